"""Every pair of operations on one block: one held at each point on its way, the other done meanwhile, as far as it goes.

Whatever comes of each, at the end every page has its word, every law holds, and everything is free when it is gone
(semantics, appendix B).
"""

from collections.abc import Callable

import pytest

from concur_thp.arch.bug import describe_bug
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.points import Point
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.system import system
from concur_thp.config import PAGE_SIZE
from concur_thp.mm.collapse import collapse_huge_page
from concur_thp.mm.compaction import compact_node
from concur_thp.mm.deferred_split_drain import deferred_split_scan
from concur_thp.mm.flags import MADV_DONTNEED, PROT_READ, PROT_WRITE
from concur_thp.mm.fork import dup_mm, mmput, switch_to_mm
from concur_thp.mm.gup_fast import get_user_pages_fast
from concur_thp.mm.lru import LRU_ACTIVE, LRU_INACTIVE_ANON
from concur_thp.mm.madvise import do_madvise
from concur_thp.mm.migrate import NEW_PAGE, NEW_SMALL_PAGE
from concur_thp.mm.mm_types import Mm, Page, Slot, frames, mem_map
from concur_thp.mm.move_pages import do_move_page
from concur_thp.mm.mprotect import do_mprotect
from concur_thp.mm.page_flags import PageCompound, PageHead, compound_head
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.page_ref import get_page_unless_zero
from concur_thp.mm.put_page import put_page
from concur_thp.mm.split_huge_page import split_huge_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.mm.vmscan import shrink_active_list, shrink_inactive_list
from concur_thp.sync.rwsem import down_read
from tests.litmus.held import run_held
from tests.litmus.place import Place, Waiting, place
from tests.processes import run_all

pair_pages = SharedArray("litmus_pair_pages", Slot, lambda config: 2)
"""What gup-fast pins; and the head, pfn + 1, that take() still has a reference of."""
TAKEN = 1

Operation = Callable[[Place, Cpu], bool]
"""Done by a CPU that runs in the mm; says whether all was well."""


def load(p: Place, cpu: Cpu) -> bool:
    return all(user_load(cpu, p.at(i)) == 0 and cpu.scratch[0] == p.word(i) for i in range(p.n) if i not in p.words)


def store(p: Place, cpu: Cpu) -> bool:
    """Page 1 gets a new word; who does this says so in p.words beforehand."""
    return bool(user_store(cpu, p.at(1), p.word(1)) == 0)


def fork(p: Place, cpu: Cpu) -> bool:
    """The child has what the parent has."""
    child = Mm(int(dup_mm(cpu, p.mm)))
    switch_to_mm(cpu, child.id)
    good = load(p, cpu) and user_store(cpu, p.at(2), 7) == 0
    switch_to_mm(cpu, p.mm.id)
    mmput(cpu, child)
    return bool(good)


def protect(p: Place, cpu: Cpu) -> bool:
    """Read-only and back."""
    size = 2 * PAGE_SIZE
    return bool(do_mprotect(cpu, p.mm, p.at(2), size, PROT_READ) == 0
                and do_mprotect(cpu, p.mm, p.at(2), size, PROT_READ | PROT_WRITE) == 0)


def migrate(p: Place, cpu: Cpu) -> bool:
    do_move_page(cpu, p.mm, p.at(3), 0, NEW_PAGE)
    return True


def migrate_small(p: Place, cpu: Cpu) -> bool:
    """Without a huge page to move to."""
    do_move_page(cpu, p.mm, p.at(3), 0, NEW_SMALL_PAGE)
    return True


def compact(p: Place, cpu: Cpu) -> bool:
    compact_node(cpu)
    return True


def reclaim(p: Place, cpu: Cpu) -> bool:
    shrink_inactive_list(cpu, 2 * p.n, LRU_INACTIVE_ANON)
    return True


def age(p: Place, cpu: Cpu) -> bool:
    shrink_active_list(cpu, 2 * p.n, LRU_INACTIVE_ANON + LRU_ACTIVE)
    return True


def collapse(p: Place, cpu: Cpu) -> bool:
    down_read(cpu, p.mm.mmap_sem)
    collapse_huge_page(cpu, p.mm, p.start, p.n)
    return True


def split(p: Place, cpu: Cpu) -> bool:
    """As a scanner splits."""
    pfn = p.pfn(4)
    page = Page(int(mem_map[pfn]))
    head = Page(int(compound_head(page)))
    if not get_page_unless_zero(head):
        return True
    if compound_head(page) != head or not PageHead(head):
        put_page(cpu, head)
        return True
    lock_page(cpu, page)
    split_huge_page(cpu, page)
    unlock_page(cpu, page)
    put_page(cpu, page)
    return True


def pin(p: Place, cpu: Cpu) -> bool:
    """A page pinned for writing is the one that the program has, for as long as it is pinned."""
    if get_user_pages_fast(cpu, p.at(5), 1, 1, pair_pages[0]) != 1:
        return False
    pfn = pair_pages[0].value
    word = frames[pfn].word[0]
    word.store(p.word(5))
    good = user_load(cpu, p.at(5)) == 0 and cpu.scratch[0] == p.word(5)
    put_page(cpu, mem_map[pfn])
    return bool(good)


def take(p: Place, cpu: Cpu) -> bool:
    """A reference by the frame of page 3, kept: who needs the page for himself has to give up and undo."""
    page = Page(int(mem_map[p.frame]))
    head = Page(int(compound_head(page)))
    if get_page_unless_zero(head):
        if compound_head(page) == head:
            pair_pages[TAKEN].value = mem_map.index(head) + 1
        else:
            put_page(cpu, head)
    return True


def give_back(cpu: Cpu) -> bool:
    put_page(cpu, mem_map[pair_pages[TAKEN].value - 1])
    return True


def shrink(p: Place, cpu: Cpu) -> bool:
    deferred_split_scan(cpu, 8)
    return True


def hole(p: Place, cpu: Cpu) -> bool:
    """The last page goes, and comes back with the same word."""
    last = p.n - 1
    return bool(do_madvise(cpu, p.mm, p.at(last), PAGE_SIZE, MADV_DONTNEED) == 0
                and user_load(cpu, p.at(last)) == 0 and cpu.scratch[0] == 0
                and user_store(cpu, p.at(last), p.word(last)) == 0)


OTHERS: tuple[Operation, ...] = (load, store, fork, protect, migrate, migrate_small, compact, reclaim, collapse, split, pin,
                                 take, shrink, hole)
HELD: dict[str, tuple[Operation, bool, tuple[Point, ...]]] = {
    "collapse": (collapse, False, (Point.COLLAPSE_UNLOCKED, Point.COLLAPSE_WRITE, Point.COLLAPSE_ANON_VMA,
                                   Point.COLLAPSE_FLUSHED, Point.COLLAPSE_ISOLATED, Point.COLLAPSE_COPIED)),
    "split": (split, True, (Point.SPLIT_PAGE_LOCKED, Point.SPLIT_PMD_INVALIDATED, Point.SPLIT_PAGE_UNMAPPED,
                            Point.SPLIT_PAGE_FROZEN, Point.SPLIT_PAGE_SPLIT, Point.SPLIT_PAGE_REMAPPED)),
    "migrate": (migrate, False, (Point.MIGRATE_UNMAPPED, Point.MIGRATE_MOVED, Point.MIGRATE_REMAPPED)),
    "migrate huge": (migrate, True, (Point.MIGRATE_UNMAPPED, Point.MIGRATE_MOVED, Point.MIGRATE_REMAPPED)),
    "reclaim": (reclaim, False, (Point.RECLAIM_ISOLATED, Point.SWAP_CACHE_ADDED, Point.RECLAIM_UNMAPPED,
                                 Point.SWAP_WRITEBACK, Point.RECLAIM_FROZEN)),
    "reclaim huge": (reclaim, True, (Point.RECLAIM_ISOLATED, Point.SWAP_CACHE_ADDED, Point.SPLIT_PMD_REFS,
                                     Point.RECLAIM_UNMAPPED, Point.SWAP_WRITEBACK, Point.RECLAIM_FROZEN)),
}
UNDECIDED = (Point.COLLAPSE_UNLOCKED, Point.COLLAPSE_WRITE, Point.COLLAPSE_ANON_VMA, Point.COLLAPSE_FLUSHED,
             Point.SPLIT_PAGE_LOCKED, Point.SPLIT_PMD_INVALIDATED, Point.SPLIT_PAGE_UNMAPPED, Point.MIGRATE_UNMAPPED)
"""Who gets a reference here, or earlier, keeps the page where and what it is."""
PAIRS = [pytest.param(name, point, other, id=f"{name} {point.name} {other.__name__}",
                      marks=() if other is take else pytest.mark.slow)
         for name, (_, _, points) in HELD.items() for point in points for other in OTHERS]


@pytest.mark.parametrize(("name", "point", "other"), PAIRS)
def test_pair(name: str, point: Point, other: Operation) -> None:
    held, huge, _ = HELD[name]
    with place(3, "4M", huge, swap="1M") as p:
        set_switch("enabled", "always")
        with p.on(p.cpu):
            lru_add_drain(p.cpu)
            if held is reclaim:
                age(p, p.cpu)
                age(p, p.cpu)
        p.frame = p.pfn(3)
        p.words = {1: 4242} if other is store else {}

        def first(cpu: Cpu) -> bool:
            with p.on(cpu):
                return held(p, cpu)

        def second(cpu: Cpu) -> bool:
            with p.on(cpu):
                return other(p, cpu)

        # take() waits for nobody, and on a busy machine Waiting() may take for a wait what is none.
        statuses = run_held(p.machine, first, point, second, (lambda: False) if other is take else Waiting())
        assert not system.panicked.load(), describe_bug()
        assert statuses == [0, 0]
        if other is take and point in UNDECIDED:
            assert pair_pages[TAKEN].value and p.pfn(3) == p.frame and bool(PageCompound(mem_map[p.frame])) == huge
        if pair_pages[TAKEN].value:
            run_all(p.machine, give_back)
