"""split_huge_page and the shrinker of the deferred queue; every law audited behind each test."""

from typing import Any

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.config import PAGE_SIZE, PMD_SIZE
from concur_thp.errors import KernelBug
from concur_thp.machine import Machine
from concur_thp.mm.deferred_split_drain import SHRINK_STOP, deferred_split_count, deferred_split_scan
from concur_thp.mm.errno import EBUSY
from concur_thp.mm.flags import GFP_TRANSHUGE, MADV_FREE
from concur_thp.mm.lru import isolate_lru_page
from concur_thp.mm.madvise import do_madvise
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, NIL, Page, mem_map, pgdat
from concur_thp.mm.mremap import do_mremap
from concur_thp.mm.page_alloc import alloc_pages
from concur_thp.mm.page_flags import (
    PageCompound,
    PageHead,
    PG_active,
    PG_dirty,
    PG_locked,
    PG_lru,
    PG_mlocked,
    PG_referenced,
    PG_swapbacked,
    PG_uptodate,
    PG_writeback,
    page_to_pfn,
)
from concur_thp.mm.page_list import PageList, list_init, list_pop, page_list
from concur_thp.mm.page_lock import PageLocked, lock_page, trylock_page, unlock_page
from concur_thp.mm.page_ref import get_page, get_page_unless_zero, page_ref_count
from concur_thp.mm.pgtable import pmd_table, pmd_trans_huge
from concur_thp.mm.put_page import put_page
from concur_thp.mm.rmap import total_mapcount
from concur_thp.mm.split_huge_page import split_huge_page, split_huge_page_to_list
from concur_thp.mm.swap import putback_lru_page
from concur_thp.mm.vmstat import vmstat
from tests.unit.mm.thp import Thp

COPIED = (PG_referenced, PG_swapbacked, PG_uptodate, PG_active, PG_locked, PG_dirty)


def test_pieces(new_task: Any) -> None:
    """3.18.10: flags, mapping, index, references, LRU; the caller's lock and reference stay with the page it named."""
    thp = Thp(new_task(cpus=2))
    head = thp.head
    before, size = head.flags.read(), sum(pgdat.lru[k].size for k in range(5))
    with thp.held(3) as page:
        assert split_huge_page(thp.cpu, page) == 0
        assert not any(PageCompound(thp.piece(i)) for i in range(thp.n))
        assert thp.refs() == [2 if i == 3 else 1 for i in range(thp.n)]
        assert [PageLocked(thp.piece(i)) for i in range(thp.n)] == [int(i == 3) for i in range(thp.n)]
    assert sum(pgdat.lru[k].size for k in range(5)) == size
    for i in range(thp.n):
        piece = thp.piece(i)
        assert piece.mapping == head.mapping and piece.index == head.index + i
        assert piece.flags.read() >> PG_lru & 1
        for flag in COPIED:
            if flag not in (PG_locked, PG_dirty):
                assert piece.flags.read() >> flag & 1 == before >> flag & 1
    # Newer than their head, and in order.
    order, pfn = [], page_to_pfn(thp.piece(thp.n - 1))
    for _ in range(thp.n):
        order.append(pfn - page_to_pfn(head))
        pfn = mem_map[pfn].lru_next
    assert order == list(range(thp.n - 1, -1, -1))
    thp.data_is_there()
    left = vmstat()
    assert (left["thp_split_page"], left["thp_split_page_failed"], left["thp_split_pmd"]) == (1, 0, 1)
    assert left["thp_deferred_split_page"] == 1 and deferred_split_count() == 0  # K7
    assert left["NR_ANON_MAPPED"] == thp.n and left["NR_ANON_THPS"] == 0


def test_holes_are_freed(new_task: Any) -> None:
    """R39, and A1's last row for a page that only one mm maps."""
    t = new_task(cpus=2)
    thp = Thp(t)
    t.dontneed(thp.at(1), 2)
    assert deferred_split_count() == 1 and page_ref_count(thp.head) == thp.n - 2
    free = vmstat()["pgfree"]
    assert thp.split() == 0
    assert thp.refs() == [0 if i in (1, 2) else 1 for i in range(thp.n)]
    assert vmstat()["pgfree"] == free + 2 and deferred_split_count() == 0
    assert [t.load(thp.at(i)) for i in range(4)] == [1000, 0, 0, 1003]


def test_pinned_page_stays_whole(new_task: Any) -> None:
    """R7, R32: found before anything is unmapped, so its pmd survives."""
    thp = Thp(new_task(cpus=2))
    pinned = thp.piece(6)
    get_page(thp.cpu, pinned)
    assert thp.split(2) == -EBUSY
    assert PageHead(thp.head) and pmd_trans_huge(thp.t.pmd(thp.addr)) and page_ref_count(thp.head) == 2
    assert vmstat()["thp_split_page_failed"] == 1
    put_page(thp.cpu, pinned)
    assert thp.split(2) == 0
    thp.data_is_there()


def test_unmapped_page_and_writeback(new_task: Any) -> None:
    """3.18.1 and 2: -EBUSY, the writeback one without a counter."""
    t = new_task(cpus=2)
    thp = Thp(t)
    with thp.held() as page:
        page.flags.or_(1 << PG_writeback)
        assert split_huge_page(thp.cpu, page) == -EBUSY and vmstat()["thp_split_page_failed"] == 0
        page.flags.and_(~(1 << PG_writeback))
        with thp.task():
            t.munmap(thp.addr, thp.n)
        assert split_huge_page(thp.cpu, page) == -EBUSY and vmstat()["thp_split_page_failed"] == 1


def test_three_mappers_and_a_moved_one(new_task: Any) -> None:
    """Pmds and ptes, in three mms, one of them over two tables (K16): all get small ptes to the same frames."""
    t = new_task(cpus=2)
    thp = Thp(t)
    parent, children = t.mm, [t.fork(), t.fork()]
    t.run_in(children[0])
    moved = thp.addr + 8 * int(PMD_SIZE) + 3 * PAGE_SIZE
    assert do_mremap(t.cpu, t.mm, thp.addr, thp.n * PAGE_SIZE, thp.n * PAGE_SIZE, moved) == moved
    t.run_in(parent)
    assert t.dontneed(thp.at(2), 1) == 0
    assert thp.split(5) == 0
    assert thp.refs() == [2 if i == 2 else 3 for i in range(thp.n)] and not PageCompound(thp.head)
    t.run_in(children[0])
    assert [t.load(moved + i * PAGE_SIZE) for i in range(thp.n)] == [1000 + i for i in range(thp.n)]
    t.run_in(children[1])
    thp.data_is_there()
    assert t.store(thp.at(1), 5) == 0  # still shared: copied
    t.run_in(parent)
    assert [t.load(thp.at(i)) for i in range(4)] == [1000, 1001, 0, 1003]


def test_failed_split_maps_everything_again(new_task: Any) -> None:
    """3.18.11, X21: a pin that comes after the early look makes the freeze fail; nothing is lost but the pmd."""
    t = new_task(cpus=2)
    thp = Thp(t)
    with interpreted(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(split_huge_page_to_list.function.__globals__, "can_split_huge_page", lambda cpu, head: 1)
        get_page(thp.cpu, thp.piece(7))
        assert thp.split() == -EBUSY
        put_page(thp.cpu, thp.piece(7))
    assert PageHead(thp.head) and pmd_table(t.pmd(thp.addr))
    assert page_ref_count(thp.head) == thp.n == total_mapcount(thp.head)
    assert deferred_split_count() == 1  # K7: it stays queued
    thp.data_is_there()
    assert t.store(thp.at(3), 1003) == 0
    with thp.splitter():
        assert deferred_split_scan(thp.cpu, 10) == 1
    thp.data_is_there()


def test_split_to_a_list(new_task: Any) -> None:
    """An isolated page: the tails come to the isolator's list, in its order, with a reference each."""
    thp = Thp(new_task(cpus=2))
    head = thp.head
    pages = PageList(int(page_list(thp.cpu, 0)))
    list_init(pages)
    with thp.splitter():
        lock_page(thp.cpu, head)
        assert isolate_lru_page(thp.cpu, head) == 1
        assert split_huge_page_to_list(thp.cpu, head, pages) == 0
        unlock_page(thp.cpu, head)
        assert thp.refs() == [2] * thp.n
        got = [head]
        while page := list_pop(pages):
            assert not page.flags.read() >> PG_lru & 1
            got.append(Page(int(page)))
        assert [page_to_pfn(p) - page_to_pfn(head) for p in got] == [0, *range(thp.n - 1, 0, -1)]
        for page in got:
            putback_lru_page(thp.cpu, page)
    thp.data_is_there()


def test_isolated_by_the_caller_without_a_list(new_task: Any) -> None:
    """Third case of lru_add_page_tail(): the tails go to the LRU one by one."""
    thp = Thp(new_task(cpus=2))
    size = sum(pgdat.lru[k].size for k in range(5))
    with thp.splitter():
        lock_page(thp.cpu, thp.head)
        assert isolate_lru_page(thp.cpu, thp.head) == 1
        assert split_huge_page(thp.cpu, thp.head) == 0
        unlock_page(thp.cpu, thp.head)
        assert sum(pgdat.lru[k].size for k in range(5)) == size - 1
        putback_lru_page(thp.cpu, thp.head)
    thp.data_is_there()


def test_mlocked_page_loses_its_mark(new_task: Any) -> None:
    """3.18.5: the pmd split munlocks, which must leave no reference behind."""
    thp = Thp(new_task(cpus=2))
    thp.head.flags.or_(1 << PG_mlocked)
    thp.cpu.vmstat[6] = thp.cpu.vmstat[6] + thp.n
    assert thp.split() == 0
    assert vmstat()["NR_MLOCK"] == 0
    thp.data_is_there()


def test_scan(new_task: Any) -> None:
    """3.19: oldest first, up to a number; a locked or pinned page stays queued, the rest is split."""
    t = new_task(cpus=2)
    thps = [Thp(t, k) for k in range(4)]
    for thp in thps:
        t.dontneed(thp.at(1), 1)
    assert deferred_split_count() == 4
    assert trylock_page(t.cpu, thps[0].head)
    get_page(t.cpu, thps[1].piece(3))
    assert deferred_split_scan(t.cpu, 3) == 1
    assert [PageHead(thp.head) for thp in thps] == [1, 1, 0, 1]
    assert deferred_split_count() == 3 and pgdat.split_queue_head == page_to_pfn(thps[3].head)
    unlock_page(t.cpu, thps[0].head)
    put_page(t.cpu, thps[1].piece(3))
    t.munmap(thps[1].addr, thps[1].n)  # freed, so it leaves the queue
    assert deferred_split_count() == 2
    assert deferred_split_scan(t.cpu, 100) == 2 and deferred_split_count() == 0
    assert deferred_split_scan(t.cpu, 100) == SHRINK_STOP and pgdat.split_queue_head == NIL
    assert [t.load(thp.at(i)) for thp in (thps[0], thps[2], thps[3]) for i in range(3)] == [1000, 0, 1002] * 3


def test_scan_drops_the_last_reference(new_task: Any) -> None:
    """X25, race 15: the page is unmapped while it stands on the private list; the scanner's put frees it."""
    t = new_task(cpus=2)
    thp = Thp(t)
    t.dontneed(thp.at(1), 1)
    with interpreted(), pytest.MonkeyPatch.context() as patch:
        spaces = deferred_split_scan.function.__globals__

        def no_luck(cpu: Any, page: Any) -> int:
            t.munmap(thp.addr, thp.n)
            assert deferred_split_count() == 1 and page_ref_count(page) == 1
            return 0

        patch.setitem(spaces, "trylock_page", no_luck)
        assert deferred_split_scan(t.cpu, 1) == SHRINK_STOP
    assert deferred_split_count() == 0 and page_ref_count(thp.head) == 0 and pgdat.split_queue_head == NIL


def test_madvise_free_of_a_part_splits(new_task: Any) -> None:
    """3.21: a huge pmd first, then a THP that ptes map; not one that is pinned or shared."""
    t = new_task(cpus=2)
    thp = Thp(t)
    assert do_madvise(t.cpu, t.mm, thp.at(2), 2 * PAGE_SIZE, MADV_FREE) == 0
    assert not PageCompound(thp.head) and vmstat()["thp_split_page"] == 1
    thp.data_is_there()
    second = Thp(t, 1)
    t.dontneed(second.at(1), 1)  # now ptes map it
    get_page(t.cpu, second.head)
    assert do_madvise(t.cpu, t.mm, second.at(2), PAGE_SIZE, MADV_FREE) == 0
    assert PageHead(second.head)
    put_page(t.cpu, second.head)
    assert do_madvise(t.cpu, t.mm, second.at(2), PAGE_SIZE, MADV_FREE) == 0
    assert not PageCompound(second.head) and vmstat()["thp_split_page"] == 2
    assert t.load(second.addr) == 1000


def test_scanner_reference_keeps_the_page_whole(new_task: Any) -> None:
    """R36, race 13: before the freeze a scanner's reference makes the split fail; on a tail it never gets one (R22)."""
    thp = Thp(new_task(cpus=2))
    assert get_page_unless_zero(thp.piece(3)) == 0
    assert get_page_unless_zero(thp.head) == 1
    assert thp.split(4) == -EBUSY
    put_page(thp.cpu, thp.head)
    assert thp.split(4) == 0
    assert get_page_unless_zero(thp.piece(3)) == 1
    put_page(thp.cpu, thp.piece(3))


def test_misuse_is_found() -> None:
    """A page that is not locked."""
    with Machine(memory="16M", order=3, cpus=1) as machine, interpreted():
        page = Page(alloc_pages(machine.cpu(), 3, MIGRATE_MOVABLE, GFP_TRANSHUGE))
        with pytest.raises(KernelBug, match="not locked"):
            split_huge_page(machine.cpu(), page)
