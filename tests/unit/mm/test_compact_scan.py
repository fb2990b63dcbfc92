"""Compaction's scanners, which see a frame without a lock: what they take, and what they find out in time."""

from typing import Any

from concur_thp.config import HPAGE_PMD_NR, PMD_SIZE
from concur_thp.mm.buddy import PageBuddy, set_pageblock_migratetype
from concur_thp.mm.compact_scan import (
    COMPACT_CLUSTER_MAX,
    compact_controls,
    compaction_alloc,
    compaction_free,
    isolate_free_page,
    isolate_migratepages,
    isolate_small_page,
    looks_movable,
    pageblock_start_pfn,
    release_freepages,
    suitable_migration_target,
)
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE
from concur_thp.mm.migrate import putback_movable_pages
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, MIGRATE_UNMOVABLE, Page, mem_map, pgdat, zones
from concur_thp.mm.page_alloc import alloc_page
from concur_thp.mm.page_flags import PG_lru, page_to_pfn
from concur_thp.mm.page_ref import get_page, page_ref_count
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.pgtable import pmd_trans_huge
from concur_thp.mm.swap import lru_add_drain, lru_cache_add, put_page, putback_lru_page
from concur_thp.mm.thp_sysfs import set_switch

BASE = 1 << 24
PAGE = 4096


def test_isolation_looks_again(new_task: Any) -> None:
    """A page that looked right a moment ago may be free, off the LRU, or huge."""
    task = new_task()
    set_switch("enabled", "always")
    task.mmap(BASE, int(HPAGE_PMD_NR))
    assert task.store(BASE, 1) == 0 and pmd_trans_huge(task.pmd(BASE))
    head = Page(int(mem_map[task.pmd(BASE) >> 12]))
    assert looks_movable(head) and not isolate_small_page(task.cpu, head)
    set_switch("enabled", "never")
    task.mmap(BASE + 2 * int(PMD_SIZE), 1)
    assert task.store(BASE + 2 * int(PMD_SIZE), 1) == 0
    lru_add_drain(task.cpu)
    page = task.page(BASE + 2 * int(PMD_SIZE))
    assert isolate_small_page(task.cpu, page) and page_ref_count(page) == 2
    assert not isolate_small_page(task.cpu, page)
    pgdat.isolated.sub(1)
    putback_lru_page(task.cpu, page)
    lru_add_drain(task.cpu)
    get_page(task.cpu, page)
    assert not looks_movable(page)
    put_page(task.cpu, page)


def test_a_page_without_a_mapping_that_somebody_holds_does_not_look_movable(new_task: Any) -> None:
    """Truncated, and pinned: on the LRU it cannot go anywhere. v4.20 asks page_mapping(), not PageAnon."""
    task = new_task()
    page = Page(alloc_page(task.cpu, GFP_HIGHUSER_MOVABLE))
    lru_cache_add(task.cpu, page)
    lru_add_drain(task.cpu)
    assert page.mapping == 0 and page_ref_count(page) == 1 and page.flags.load() >> PG_lru & 1
    assert not looks_movable(page)
    put_page(task.cpu, page)


def test_migrate_scanner(new_task: Any) -> None:
    """It goes up, a batch at a time, and each page it takes is off the LRU with one reference more."""
    task = new_task()
    n = 3 * COMPACT_CLUSTER_MAX
    task.mmap(BASE, n)
    for i in range(n):
        assert task.store(BASE + i * PAGE, i) == 0
    lru_add_drain(task.cpu)
    cc = compact_controls[task.cpu.id]
    number = pgdat.nr_zones - 1
    cc.zone, cc.nr_migratepages = number, 0
    cc.migrate_pfn, cc.free_pfn = zones[number].start_pfn, pageblock_start_pfn(zones[number].end_pfn - 1)
    assert 0 < isolate_migratepages(task.cpu, cc) <= COMPACT_CLUSTER_MAX
    first = mem_map[cc.migratepages.head - 1]
    assert page_ref_count(first) == 2 and not first.flags.read() >> PG_lru & 1
    assert pgdat.isolated.read() == cc.nr_migratepages and page_to_pfn(first) < cc.migrate_pfn
    putback_movable_pages(task.cpu, cc.migratepages)
    assert pgdat.isolated.read() == 0


def test_free_scanner(new_task: Any) -> None:
    """It comes down from the top, takes what is in use in part, and gives back what was not needed."""
    task = new_task()
    number = pgdat.nr_zones - 1
    zone, cc = zones[number], compact_controls[task.cpu.id]
    top = zone.end_pfn - 2 * int(HPAGE_PMD_NR)
    assert PageBuddy(mem_map[top]) and not suitable_migration_target(top)  # A huge page fits in already.
    task.mmap(BASE, 1)
    assert task.store(BASE, 1) == 0
    drain_pcp(task.cpu)
    free = zone.nr_free_pages
    block = pageblock_start_pfn(page_to_pfn(task.page(BASE)))
    set_pageblock_migratetype(block, MIGRATE_UNMOVABLE)
    assert not suitable_migration_target(block)
    set_pageblock_migratetype(block, MIGRATE_MOVABLE)
    cc.zone, cc.nr_migratepages, cc.nr_freepages = number, 1, 0
    cc.migrate_pfn, cc.free_pfn = zone.start_pfn, block
    page = Page(int(compaction_alloc(task.cpu)))
    assert page and pageblock_start_pfn(page_to_pfn(page)) <= block and page_ref_count(page) == 1
    compaction_free(task.cpu, page)
    release_freepages(task.cpu, cc)
    drain_pcp(task.cpu)
    assert zone.nr_free_pages == free and cc.freepages.head == 0
    assert isolate_free_page(task.cpu, zone, task.page(BASE)) == -1
