"""The VMAs of one mm as intervals: what is mapped where, split and cut as the calls do it. No pages."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4

MAP_SHARED = 0x01
MAP_PRIVATE = 0x02
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_GROWSDOWN = 0x100
MAP_STACK = 0x20000


@dataclass(slots=True)
class Vma:
    """[start, end) with one protection. `region` numbers its name; what follows is for `model`."""

    start: int
    end: int
    prot: int
    flags: int
    region: int = 0
    pgoff: int = 0
    file: int = 0
    advice: int = 0
    anon_vma: int = 0

    @property
    def anonymous(self) -> bool:
        return bool(self.flags & MAP_ANONYMOUS)

    def part(self, start: int, end: int) -> "Vma":
        return replace(self, start=start, end=end, pgoff=self.pgoff + ((start - self.start) >> 12))

    def allows(self, write: int) -> bool:
        return bool(self.prot & (PROT_WRITE if write else PROT_READ | PROT_WRITE | PROT_EXEC))


class AddressSpace:
    """Disjoint VMAs sorted by address. `_starts` mirrors their starts, for bisect."""

    def __init__(self, vmas: list[Vma] | None = None) -> None:
        self._vmas = vmas or []
        self._starts = [vma.start for vma in self._vmas]

    def __iter__(self) -> Iterator[Vma]:
        return iter(self._vmas)

    def copy(self) -> "AddressSpace":
        return AddressSpace([replace(vma) for vma in self._vmas])

    def find(self, address: int) -> Vma | None:
        at = bisect_right(self._starts, address) - 1
        if at >= 0 and address < self._vmas[at].end:
            return self._vmas[at]
        return None

    def around(self, vma: Vma) -> tuple[Vma | None, Vma | None]:
        """The VMAs that touch `vma` from below and from above."""
        at = bisect_right(self._starts, vma.start) - 1
        below = self._vmas[at - 1] if at > 0 else None
        above = self._vmas[at + 1] if at + 1 < len(self._vmas) else None
        return (
            below if below and below.end == vma.start else None,
            above if above and above.start == vma.end else None,
        )

    def within(self, start: int, end: int) -> list[Vma]:
        """The VMAs that overlap [start, end), whole."""
        first, last = self._span(start, end)
        return self._vmas[first:last]

    def isolate(self, start: int, end: int) -> list[Vma]:
        """Splits at both borders; the VMAs inside [start, end)."""
        self._split(start)
        self._split(end)
        return self.within(start, end)

    def unmap(self, start: int, end: int) -> list[Vma]:
        """Cuts [start, end) out; the pieces that were there."""
        pieces = self.isolate(start, end)
        first, last = self._span(start, end)
        del self._vmas[first:last], self._starts[first:last]
        return pieces

    def add(self, vma: Vma) -> None:
        """Maps over whatever is there."""
        self.unmap(vma.start, vma.end)
        at = bisect_right(self._starts, vma.start)
        self._vmas.insert(at, vma)
        self._starts.insert(at, vma.start)

    def join(self, low: Vma, high: Vma) -> None:
        """Extends `low` over its upper neighbour `high`."""
        at = bisect_right(self._starts, high.start) - 1
        del self._vmas[at], self._starts[at]
        low.end = high.end

    def _span(self, start: int, end: int) -> tuple[int, int]:
        first = bisect_right(self._starts, start) - 1
        if first < 0 or self._vmas[first].end <= start:
            first += 1
        last = first
        while last < len(self._vmas) and self._starts[last] < end:
            last += 1
        return first, last

    def _split(self, address: int) -> None:
        vma = self.find(address)
        if vma is None or vma.start == address:
            return
        upper = vma.part(address, vma.end)
        vma.end = address
        at = bisect_right(self._starts, address)
        self._vmas.insert(at, upper)
        self._starts.insert(at, address)
