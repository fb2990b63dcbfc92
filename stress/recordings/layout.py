"""What the rows of a program do to the VMAs of their mm. Planner, check and fault count all run this."""

from collections.abc import Callable, Sequence
from typing import ClassVar, Self

from concur_thp.ops import Op
from stress.recordings.calls import PAGE_SHIFT, page_up
from stress.recordings.vmas import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    AddressSpace,
    Vma,
)

MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLLAPSE = 4, 8, 14, 15, 25
ADVICE = frozenset({MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLLAPSE})

Row = Sequence[int]


class Layout:
    """The VMAs and the break of one mm. The public methods below `apply` are hooks for a model of pages."""

    def __init__(self, heap_start: int = 0) -> None:
        self.space = AddressSpace()
        self.heap_start = self.brk = heap_start

    def copy(self) -> Self:
        twin = self.__class__(self.heap_start)
        twin.space = self.space.copy()
        twin.brk = self.brk
        return twin

    def apply(self, row: Row, region: int = 0) -> bool:
        """Does one row that changes VMAs; False when the call would have failed."""
        handler = self._HANDLERS.get(row[0])
        return handler is None or handler(self, row, region)

    def cut(self, address: int) -> None:
        """A VMA or a zapped range begins or ends here."""

    def zap(self, start: int, end: int, unmapped: bool) -> None:
        """The pages of [start, end) are gone, and the VMAs too if `unmapped`."""

    def move(self, old: int, new: int, length: int) -> None:
        """The pages of `old` are now at `new`."""

    def place(self, vma: Vma) -> None:
        """`vma` is new or has changed: it may merge with its neighbours."""

    def exit(self) -> None:
        """The last task has left this mm."""

    def _unmap(self, start: int, end: int) -> None:
        self.cut(start)
        self.cut(end)
        self.space.unmap(start, end)
        self.zap(start, end, unmapped=True)

    def _add(self, vma: Vma) -> None:
        self._unmap(vma.start, vma.end)
        self.space.add(vma)
        self.place(vma)

    def _mmap(self, row: Row, region: int) -> bool:
        _, start, length, prot, flags, file, pgoff, *_ = row
        if flags & MAP_ANONYMOUS:
            pgoff = start >> PAGE_SHIFT
        self._add(Vma(start, start + length, prot, flags, region, pgoff, file))
        return True

    def _munmap(self, row: Row, region: int) -> bool:
        self._unmap(row[1], row[1] + row[2])
        return True

    def _brk(self, row: Row, region: int) -> bool:
        old, new = page_up(self.brk), page_up(row[1])
        if row[1] < self.heap_start or self.heap_start == 0:
            return False
        self.brk = row[1]
        if new < old:
            self._unmap(new, old)
        elif new > old:
            flags = MAP_PRIVATE | MAP_ANONYMOUS
            self._add(Vma(old, new, PROT_READ | PROT_WRITE, flags, region, old >> PAGE_SHIFT))
        return True

    def _mprotect(self, row: Row, region: int) -> bool:
        start, end = row[1], row[1] + row[2]
        if not self._covered(start, end):
            return False
        for vma in self._pieces(start, end, lambda vma: vma.prot != row[3]):
            vma.prot = row[3]
        self._place_all(start, end)
        return True

    def _mremap(self, row: Row, region: int) -> bool:
        _, old, old_length, new_length, new, *_ = row
        vma = self.space.find(old)
        if vma is None or old + old_length > vma.end or old_length == 0:
            return False
        if new_length < old_length:
            self._unmap(old + new_length, old + old_length)
            old_length = new_length
        if new != old:
            self._unmap(new, new + new_length)
            source = self.space.find(old)
            if source is None:
                return False
            target = source.part(old, old + old_length)
            if not target.anon_vma and target.anonymous:
                target.pgoff = new >> PAGE_SHIFT
            target.start, target.end = new, new + new_length
            self.cut(old)
            self.cut(old + old_length)
            self.move(old, new, old_length)
            self.space.unmap(old, old + old_length)
            self.space.add(target)
            self.place(target)
        elif new_length > old_length:
            self._add(vma.part(old + old_length, old + new_length))
        return True

    def _madvise(self, row: Row, region: int) -> bool:
        start, end, advice = row[1], row[1] + row[2], row[3]
        if advice in (MADV_HUGEPAGE, MADV_NOHUGEPAGE):
            for vma in self._pieces(start, end, lambda vma: vma.advice != advice):
                vma.advice = advice
            self._place_all(start, end)
        elif advice == MADV_DONTNEED:
            self.cut(start)
            self.cut(end)
            self.zap(start, end, unmapped=False)
        return True

    def _pieces(self, start: int, end: int, differs: Callable[[Vma], bool]) -> list[Vma]:
        """What lies in [start, end) of the VMAs a call changes, split off from the rest of them."""
        found: list[Vma] = []
        for vma in self.space.within(start, end):
            if differs(vma):
                low, high = max(start, vma.start), min(end, vma.end)
                self.cut(low)
                self.cut(high)
                found += self.space.isolate(low, high)
        return found

    def _place_all(self, start: int, end: int) -> None:
        at = start
        while at < end and (vma := self.space.find(at)):
            at = vma.end
            self.place(vma)

    def _covered(self, start: int, end: int) -> bool:
        at = start
        while at < end:
            vma = self.space.find(at)
            if vma is None:
                return False
            at = vma.end
        return True

    _HANDLERS: ClassVar[dict[int, Callable[["Layout", Row, int], bool]]] = {
        Op.MMAP: _mmap,
        Op.MUNMAP: _munmap,
        Op.BRK: _brk,
        Op.MPROTECT: _mprotect,
        Op.MREMAP: _mremap,
        Op.MADVISE: _madvise,
    }
