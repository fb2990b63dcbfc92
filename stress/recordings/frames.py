"""How much memory replaying needs, so that too little can be refused before anything runs.

In a replay a parent need not wait for its child's end, as it did in the recording, so what every mm needs
at its peak adds up. With THP on, a 2 MiB block that lies in anonymous mappings when it is touched may become
huge, at once or by khugepaged, and then stays allocated until all of it is unmapped.
"""

from typing import Self

import numpy as np
from numpy.typing import NDArray

from stress.recordings.calls import PAGE_SHIFT
from stress.recordings.layout import Layout
from stress.recordings.model import BLOCK_SHIFT, BLOCK_SIZE, PAGES
from stress.recordings.run import Programs, run
from stress.recordings.vmas import MAP_SHARED

UPPER_TABLES = 8
"""Tables above the lowest level in one mm: pgd, and some of each level for image, mmap area and stack."""
SPARE = 64
"""Frames that are on their way from one owner to another, per task."""


class Held(Layout):
    """The frames one mm holds: small pages by block, blocks that count whole, and tables, never freed."""

    def __init__(self, heap_start: int = 0) -> None:
        super().__init__(heap_start)
        self.small: dict[int, set[int]] = {}
        self.whole: set[int] = set()
        self.tables: set[int] = set()
        self.total = self.peak = 0

    def copy(self) -> Self:
        """What a child finds mapped counts for it too: the parent may be gone before it."""
        twin = super().copy()
        twin.small = {block: set(pages) for block, pages in self.small.items()}
        twin.whole, twin.tables = set(self.whole), set(self.tables)
        twin.total = twin.peak = self.total
        return twin

    def touch(self, address: int, write: bool) -> tuple[int, int] | None:
        """The page of page cache this access uses, if it does."""
        page, block = address >> PAGE_SHIFT, address >> BLOCK_SHIFT
        self.tables.add(block)
        vma = self.space.find(address)
        cached = (vma.file, vma.pgoff + page - (vma.start >> PAGE_SHIFT)) if vma and vma.file else None
        private = vma is None or (not vma.file or (write and not vma.flags & MAP_SHARED))
        if private and block not in self.whole:
            pages = self.small.setdefault(block, set())
            if page not in pages:
                self._hold(block, page, pages)
        return cached

    def frames(self) -> int:
        return self.peak + len(self.tables) + UPPER_TABLES

    def zap(self, start: int, end: int, unmapped: bool) -> None:
        first, last = start >> BLOCK_SHIFT, (end - 1) >> BLOCK_SHIFT
        for block in [b for b in self.whole if first <= b <= last]:
            low = block << BLOCK_SHIFT
            whole = start <= low and low + BLOCK_SIZE <= end
            if whole or (unmapped and not self.space.within(low, low + BLOCK_SIZE)):
                self.whole.discard(block)
                self.total -= PAGES
        for block in [b for b in self.small if first <= b <= last]:
            pages = self.small[block]
            gone = {page for page in pages if start <= page << PAGE_SHIFT < end}
            pages -= gone
            self.total -= len(gone)

    def move(self, old: int, new: int, length: int) -> None:
        """Moved pages count at both places: a huge page may end up in pieces at the new one."""
        first, last = old >> BLOCK_SHIFT, (old + length - 1) >> BLOCK_SHIFT
        pages = {p for b, found in self.small.items() if first <= b <= last for p in found}
        whole = [b for b in self.whole if first <= b <= last]
        pages |= {page for block in whole for page in range(block * PAGES, (block + 1) * PAGES)}
        low, high = old >> PAGE_SHIFT, (old + length) >> PAGE_SHIFT
        for page in (p for p in pages if low <= p < high):
            target = page + ((new - old) >> PAGE_SHIFT)
            self.tables.add(target // PAGES)
            self.small.setdefault(target // PAGES, set()).add(target)
            self.total += 1
        self.zap(old, old + length, unmapped=False)
        self.peak = max(self.peak, self.total)

    def _hold(self, block: int, page: int, pages: set[int]) -> None:
        if self._anonymous(block << BLOCK_SHIFT):
            self.whole.add(block)
            self.total += PAGES - len(self.small.pop(block))
        else:
            pages.add(page)
            self.total += 1
        self.peak = max(self.peak, self.total)

    def _anonymous(self, start: int) -> bool:
        """Whether anonymous mappings, merged or not, cover the block at `start`."""
        at = start
        for vma in self.space.within(start, start + BLOCK_SIZE):
            if vma.start > at or not vma.anonymous:
                return False
            at = vma.end
        return at >= start + BLOCK_SIZE


def frames_needed(programs: Programs, sequence: NDArray[np.int32]) -> int:
    """An upper estimate in 4 KiB frames, with THP on or off, page tables and page cache included."""
    mms: set[Held] = set()
    cache: set[tuple[int, int]] = set()
    for mm, touch in run(programs, sequence, lambda _, heap_start: Held(heap_start)):
        mms.add(mm)
        page = mm.touch(touch.address, touch.write)
        if page:
            cache.add(page)
    return sum(mm.frames() for mm in mms) + len(cache) + SPARE * len(programs)
