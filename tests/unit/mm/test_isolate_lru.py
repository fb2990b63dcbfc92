"""Batches off the LRU and back: the oldest first, each page where its flags say by then, references kept."""

import pytest

from concur_thp.config import PAGE_SIZE
from concur_thp.mm.buddy import zone_nr
from concur_thp.mm.isolate_lru import isolate_lru_pages, move_pages_to_lru
from concur_thp.mm.lru import LRU_ACTIVE_ANON, LRU_INACTIVE_ANON, LRU_UNEVICTABLE
from concur_thp.mm.mm_types import NIL, Page, mem_map, pgdat
from concur_thp.mm.page_flags import PG_active, PG_lru, PG_mlocked, PG_unevictable, TestFlag, page_to_pfn
from concur_thp.mm.page_list import LIST_PAGES, list_empty, page_list
from concur_thp.mm.page_ref import page_ref_count
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.vmstat import Stat, mod_stat, vmstat
from concur_thp.sync.spinlock import spin_lock_irq, spin_unlock_irq

ADDR = 1 << 24


@pytest.fixture
def task(new_task):
    task = new_task()
    task.mmap(ADDR, 8)
    for i in range(8):
        task.store(ADDR + i * PAGE_SIZE, i + 1)
    lru_add_drain(task.cpu)
    return task


def isolate(task, number: int, count: int, limit: int = 0) -> int:
    spin_lock_irq(task.cpu, pgdat.lru_lock)
    taken = int(isolate_lru_pages(task.cpu, number, count, limit, page_list(task.cpu, LIST_PAGES)))
    spin_unlock_irq(task.cpu, pgdat.lru_lock)
    return taken


def put_back(task, taken: int) -> None:
    move_pages_to_lru(task.cpu, page_list(task.cpu, LIST_PAGES))
    pgdat.isolated.sub(taken)
    assert list_empty(page_list(task.cpu, LIST_PAGES))


def members(number: int) -> list[int]:
    """Newest first."""
    found, pfn = [], pgdat.lru[number].head
    while pfn != NIL:
        found.append(int(pfn))
        pfn = mem_map[pfn].lru_next
    return found


def test_the_oldest_go_and_come_back_as_the_newest(task):
    before = members(LRU_ACTIVE_ANON)
    oldest = [mem_map[pfn] for pfn in before[-3:]]
    assert isolate(task, LRU_ACTIVE_ANON, 3) == 3 == pgdat.isolated.load()
    assert all(not TestFlag(page, PG_lru) and page_ref_count(page) == 2 for page in oldest)
    assert members(LRU_ACTIVE_ANON) == before[:-3] and pgdat.lru[LRU_ACTIVE_ANON].size == len(before) - 3
    put_back(task, 3)
    after = members(LRU_ACTIVE_ANON)
    assert after[3:] == before[:-3] and sorted(after) == sorted(before)
    assert all(TestFlag(page, PG_lru) and page_ref_count(page) == 1 for page in oldest)


def test_a_huge_page_counts_for_all_its_pages(new_task, request):
    nr = 1 << (9 if "order9" in request.node.name else 3)
    task = new_task()
    set_switch("enabled", "always")
    task.mmap(ADDR, 2 * nr)
    task.store(ADDR, 1)
    task.store(ADDR + nr * PAGE_SIZE, 2)
    assert isolate(task, LRU_ACTIVE_ANON, 1) == nr and pgdat.lru[LRU_ACTIVE_ANON].size == nr
    put_back(task, nr)


def test_a_page_whose_last_reference_just_went_stays_on_its_list(task):
    """R34: whoever dropped it waits for lru_lock and takes the page off himself."""
    page = mem_map[members(LRU_ACTIVE_ANON)[-1]]
    page._refcount.store(0)
    assert isolate(task, LRU_ACTIVE_ANON, 1) == 0 and pgdat.isolated.load() == 0
    assert TestFlag(page, PG_lru) and page_to_pfn(page) in members(LRU_ACTIVE_ANON)
    page._refcount.store(1)


def test_more_than_there_are(task):
    """With pages that cannot be had among them, each is looked at once."""
    page = mem_map[members(LRU_ACTIVE_ANON)[3]]
    page._refcount.store(0)
    count = len(members(LRU_ACTIVE_ANON))
    assert isolate(task, LRU_ACTIVE_ANON, 1000) == count - 1 and len(members(LRU_ACTIVE_ANON)) == 1
    page._refcount.store(1)
    put_back(task, count - 1)


def test_zones_above_the_limit_are_passed_over(task):
    before = members(LRU_ACTIVE_ANON)
    zone = zone_nr(before[0])
    assert all(zone_nr(pfn) == zone for pfn in before)
    assert zone == 0 or (isolate(task, LRU_ACTIVE_ANON, 4, zone) == 0 and sorted(members(LRU_ACTIVE_ANON)) == sorted(before))
    assert isolate(task, LRU_ACTIVE_ANON, 4, zone + 1) == 4
    put_back(task, 4)


def test_back_to_where_the_flags_say_by_then(task):
    aged, locked = (mem_map[pfn] for pfn in members(LRU_ACTIVE_ANON)[-2:])
    isolate(task, LRU_ACTIVE_ANON, 2)
    aged.flags.and_(~(1 << PG_active))
    locked.flags.or_(1 << PG_mlocked)
    mod_stat(task.cpu, Stat.NR_MLOCK, 1)
    put_back(task, 2)
    lru_add_drain(task.cpu)
    assert page_to_pfn(aged) in members(LRU_INACTIVE_ANON)
    assert members(LRU_UNEVICTABLE) == [page_to_pfn(locked)] and TestFlag(locked, PG_unevictable)
    task.munmap(ADDR, 8)
    assert vmstat()["NR_MLOCK"] == 0


def test_the_isolators_reference_may_be_the_last(task):
    free = vmstat()["pgfree"]
    page = Page(int(mem_map[members(LRU_ACTIVE_ANON)[-1]]))
    isolate(task, LRU_ACTIVE_ANON, 1)
    task.munmap(ADDR, 8)
    assert page_ref_count(page) == 1
    put_back(task, 1)
    assert page_ref_count(page) == 0 and not TestFlag(page, PG_lru) and vmstat()["pgfree"] >= free + 8
