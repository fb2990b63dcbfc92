"""A model of who faults: the pages of each mm as Linux maps them, small or huge, with nothing running
concurrently.

What decides between a huge and a small fault is the VMA at that moment: its extent after merging with its
neighbours, its flags and advice, and whether a page table already hangs where the huge page would go.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from stress.recordings.calls import PAGE_SHIFT
from stress.recordings.layout import MADV_NOHUGEPAGE, Layout
from stress.recordings.run import Programs, Touch, run
from stress.recordings.vmas import MAP_ANONYMOUS, MAP_GROWSDOWN, MAP_SHARED, MAP_STACK, Vma

BLOCK_SHIFT = 21
PAGES = 1 << (BLOCK_SHIFT - PAGE_SHIFT)
BLOCK_SIZE = 1 << BLOCK_SHIFT

MAP_NORESERVE = 0x4000
MERGE_FLAGS = MAP_SHARED | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_NORESERVE
"""The mmap flags that become VMA flags, in which VMAs that merge must agree. An anon_vma below 0 came with a
fork: its VMA merges with none but its own parts."""


@dataclass(frozen=True)
class Rules:
    """Where kernels differ: `stack_flag` makes MAP_STACK VMAs small, `cow_splits` makes a write to a shared
    huge page split it rather than copy it, `frees_tables` lets MADV_DONTNEED of a whole block free its page
    table."""

    stack_flag: bool
    cow_splits: bool
    frees_tables: bool


LINUX_6_18 = Rules(stack_flag=True, cow_splits=True, frees_tables=True)
LINUX_4_20 = Rules(stack_flag=False, cow_splits=False, frees_tables=False)


@dataclass(slots=True)
class Huge:
    """One huge page, shared by the mms that have not yet copied it. `zero` is the huge zero page."""

    sharers: int = 1
    zero: bool = False


class PageModel(Layout):
    """One mm. `pages` and `huge` map to writable or not; a block in `tables` has a page table and stays
    small.
    """

    def __init__(self, heap_start: int = 0, thp: bool = True, rules: Rules = LINUX_6_18) -> None:
        super().__init__(heap_start)
        self.thp = thp
        self.rules = rules
        self.pages: dict[int, bool] = {}
        self.huge: dict[int, bool] = {}
        self.folios: dict[int, Huge] = {}
        self.tables: set[int] = set()
        self.anon_vmas = 0

    def copy(self) -> Self:
        twin = super().copy()
        twin.thp, twin.rules = self.thp, self.rules
        for vma in self.space:
            if not (vma.anonymous or vma.anon_vma):
                continue
            first, last = vma.start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT
            shared = bool(vma.flags & MAP_SHARED)
            for page in self._pages_in(first, last):
                self.pages[page] = twin.pages[page] = self.pages[page] and shared
                twin.tables.add(page // PAGES)
        for block, folio in self.folios.items():
            self.huge[block] = twin.huge[block] = False
            twin.folios[block] = folio
            folio.sharers += 1
        for vma in twin.space:
            vma.anon_vma = -abs(vma.anon_vma)
        twin.anon_vmas = self.anon_vmas
        return twin

    def touch(self, address: int, write: bool) -> bool:
        """Whether this access faults, after it has."""
        page = address >> PAGE_SHIFT
        block = page // PAGES
        if block in self.huge:
            if not write or self.huge[block]:
                return False
            self._write_protected(block, page)
            return True
        mapped = self.pages.get(page)
        if mapped or (mapped is not None and not write):
            return False
        vma = self.space.find(address)
        if vma is None:
            return True
        if write and not vma.anon_vma and not vma.flags & MAP_SHARED:
            self._prepare_anon_vma(vma)
        if mapped is None and self.thp and self._fits(vma, block):
            self.huge[block] = write
            self.folios[block] = Huge(zero=not write)
        else:
            self.pages[page] = write
            self.tables.add(block)
        return True

    def exit(self) -> None:
        for folio in self.folios.values():
            folio.sharers -= 1

    def _fits(self, vma: Vma, block: int) -> bool:
        start = block << BLOCK_SHIFT
        return (
            vma.anonymous
            and not vma.flags & MAP_SHARED
            and block not in self.tables
            and vma.start <= start
            and start + BLOCK_SIZE <= vma.end
            and vma.advice != MADV_NOHUGEPAGE
            and not (self.rules.stack_flag and vma.flags & MAP_STACK)
        )

    def _write_protected(self, block: int, page: int) -> None:
        folio = self.folios[block]
        if folio.zero:
            self.folios[block] = Huge()
            self.huge[block] = True
        elif folio.sharers == 1:
            self.huge[block] = True
        elif self.rules.cow_splits:
            self._split(block)
            self.pages[page] = True
        else:
            folio.sharers -= 1
            self.folios[block] = Huge()
            self.huge[block] = True

    def _split(self, block: int) -> None:
        """The huge page becomes a table of small ones, each as writable as it was."""
        writable = self.huge.pop(block)
        self.folios.pop(block).sharers -= 1
        self.tables.add(block)
        for page in range(block * PAGES, (block + 1) * PAGES):
            self.pages[page] = writable

    def cut(self, address: int) -> None:
        block = address >> BLOCK_SHIFT
        if address % BLOCK_SIZE and block in self.huge:
            self._split(block)

    def zap(self, start: int, end: int, unmapped: bool) -> None:
        for page in self._pages_in(start >> PAGE_SHIFT, end >> PAGE_SHIFT):
            del self.pages[page]
        for block in self._blocks_in(start, end):
            low, high = block << BLOCK_SHIFT, (block + 1) << BLOCK_SHIFT
            whole = start <= low and high <= end
            if whole and block in self.huge:
                del self.huge[block]
                self.folios.pop(block).sharers -= 1
            frees = whole and self.rules.frees_tables
            if unmapped:
                frees = not self.space.within(low, high)
            if frees:
                self.tables.discard(block)

    def move(self, old: int, new: int, length: int) -> None:
        aligned = (old - new) % BLOCK_SIZE == 0
        for block in [b for b in self.huge if old <= b << BLOCK_SHIFT < old + length]:
            if aligned:
                target = block + ((new - old) >> BLOCK_SHIFT)
                self.huge[target] = self.huge.pop(block)
                self.folios[target] = self.folios.pop(block)
            else:
                self._split(block)
        shift = (new - old) >> PAGE_SHIFT
        for page in self._pages_in(old >> PAGE_SHIFT, (old + length) >> PAGE_SHIFT):
            self.pages[page + shift] = self.pages.pop(page)
            self.tables.add((page + shift) // PAGES)

    def place(self, vma: Vma) -> None:
        below, above = self.space.around(vma)
        if below and self._mergeable(below, vma):
            self._join(below, vma)
            vma = below
        if above and self._mergeable(vma, above):
            self._join(vma, above)

    def _join(self, low: Vma, high: Vma) -> None:
        low.anon_vma = low.anon_vma or high.anon_vma
        self.space.join(low, high)

    def _mergeable(self, low: Vma, high: Vma) -> bool:
        a, b = low.anon_vma, high.anon_vma
        one_anon_vma = a == b or (a == 0 and b > 0) or (b == 0 and a > 0)
        return low.prot == high.prot and one_anon_vma and self._alike(low, high)

    def _alike(self, low: Vma, high: Vma) -> bool:
        flags = MERGE_FLAGS | (MAP_STACK if self.rules.stack_flag else 0)
        return (
            low.flags & flags == high.flags & flags
            and low.advice == high.advice
            and low.file == high.file
            and low.pgoff + ((low.end - low.start) >> PAGE_SHIFT) == high.pgoff
        )

    def _prepare_anon_vma(self, vma: Vma) -> None:
        """find_mergeable_anon_vma: a neighbour's is used if the two could merge but for their protection."""
        below, above = self.space.around(vma)
        for other, low, high in ((above, vma, above), (below, below, vma)):
            if other and low and high and other.anon_vma > 0 and self._alike(low, high):
                vma.anon_vma = other.anon_vma
                return
        self.anon_vmas += 1
        vma.anon_vma = self.anon_vmas

    def _blocks_in(self, start: int, end: int) -> list[int]:
        """The blocks that overlap [start, end) and have anything below them; a range can be terabytes."""
        first, last = start >> BLOCK_SHIFT, (end + BLOCK_SIZE - 1) >> BLOCK_SHIFT
        if last - first < len(self.tables) + len(self.huge):
            return list(range(first, last))
        return [block for block in (*self.tables, *self.huge) if first <= block < last]

    def _pages_in(self, first: int, last: int) -> list[int]:
        if last - first < len(self.pages):
            return [page for page in range(first, last) if page in self.pages]
        return [page for page in self.pages if first <= page < last]


def simulate(
    programs: Programs,
    sequence: NDArray[np.int32],
    huge: bool,
    rules: Rules,
    disabled: frozenset[int] = frozenset(),
) -> Iterator[tuple[PageModel, Touch, bool]]:
    """After each LOAD or STORE in recorded order: its mm, the touch, and whether it faulted.

    From their EXEC on the tasks `disabled` have THP off in any case, as after prctl(PR_SET_THP_DISABLE).
    """

    def new_mm(task: int, heap_start: int) -> PageModel:
        return PageModel(heap_start, huge and task not in disabled, rules)

    for mm, touch in run(programs, sequence, new_mm):
        yield mm, touch, mm.touch(touch.address, touch.write)
