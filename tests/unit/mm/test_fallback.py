"""Stealing between migratetypes (semantics 3.34), on one CPU."""

from contextlib import nullcontext

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.machine import Machine
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE, GFP_KERNEL
from concur_thp.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_RECLAIMABLE,
    MIGRATE_UNMOVABLE,
    Page,
    mem_map,
    pageblock_types,
    zones,
)
from concur_thp.mm.page_alloc import __free_pages, alloc_page, alloc_pages
from concur_thp.mm.page_flags import PG_lru
from concur_thp.mm.pcp import alloc_settings, drain_pcp
from concur_thp.mm.vmstat import vmstat

MODES = pytest.mark.parametrize("mode", [nullcontext, interpreted], ids=["native", "interpreted"])


def fill(cpu, gfp):
    """Allocate all small pages; no reserve is kept, and from now on pages move one by one."""
    for n in range(3):
        zones[n].watermark[0] = 0
    pages = {mem_map.index(Page(p)): Page(p) for p in iter(lambda: alloc_page(cpu, gfp), 0)}
    alloc_settings.pcp_batch = 1
    return pages


def free(cpu, pages, pfns):
    for pfn in pfns:
        __free_pages(cpu, pages[pfn], 0)
    drain_pcp(cpu)


@MODES
def test_a_large_block_is_taken_whole_and_its_pageblocks_change_type(mode):
    with Machine(memory="1M", order=3) as m, mode():
        pfn = mem_map.index(Page(alloc_pages(m.cpu(0), 1, MIGRATE_UNMOVABLE, GFP_KERNEL)))
        assert pfn == zones[1].start_pfn, "the highest zone first"
        types = [pageblock_types[pfn // 8 + n].value for n in range(3)]
        assert types == [MIGRATE_UNMOVABLE, MIGRATE_UNMOVABLE, MIGRATE_MOVABLE]
        assert vmstat()["alloc_fallback"] == 1
        alloc_pages(m.cpu(0), 2, MIGRATE_UNMOVABLE, GFP_KERNEL)
        assert vmstat()["alloc_fallback"] == 1, "the stolen block has more"


@MODES
@pytest.mark.parametrize("on_lru, retyped", [(True, False), (False, True)])
def test_a_pageblock_changes_type_when_half_of_it_suits(on_lru, retyped, mode):
    with Machine(memory="1M", order=3) as m, mode():
        cpu = m.cpu(0)
        pages = fill(cpu, GFP_HIGHUSER_MOVABLE)
        free(cpu, pages, (66, 67, 70))
        for pfn in (64, 65, 68, 69, 71):
            pages[pfn].flags.store(int(on_lru) << PG_lru)
        page = Page(alloc_page(cpu, GFP_KERNEL))
        assert mem_map.index(page) == 70 and mem_map[66]._free_type == MIGRATE_UNMOVABLE, "all have moved"
        assert pageblock_types[8].value == (MIGRATE_UNMOVABLE if retyped else MIGRATE_MOVABLE)


def test_a_movable_request_spoils_the_smallest_block_of_a_foreign_pageblock():
    with Machine(memory="64M") as m:
        cpu = m.cpu(0)
        pages = fill(cpu, GFP_KERNEL)
        assert all(pageblock_types[n].value == MIGRATE_UNMOVABLE for n in range(32))
        free(cpu, pages, (8192, 8200, 8201, 8202, 8203, 8700))
        page = Page(alloc_page(cpu, GFP_HIGHUSER_MOVABLE))
        assert mem_map.index(page) in (8192, 8700)
        assert mem_map[8200].private == 2 and mem_map[8200]._free_type == MIGRATE_UNMOVABLE
        assert pageblock_types[16].value == pageblock_types[16 + 1].value == MIGRATE_UNMOVABLE


def test_each_type_steals_in_its_own_order():
    with Machine(memory="64M") as m:
        cpu = m.cpu(0)
        pages = fill(cpu, GFP_KERNEL)
        pageblock_types[16].value, pageblock_types[17].value = MIGRATE_RECLAIMABLE, MIGRATE_UNMOVABLE
        free(cpu, pages, (8192, 8704))
        assert [mem_map[pfn]._free_type for pfn in (8192, 8704)] == [MIGRATE_RECLAIMABLE, MIGRATE_UNMOVABLE]
        page = Page(alloc_page(cpu, GFP_HIGHUSER_MOVABLE))
        assert mem_map.index(page) == 8192, "reclaimable before unmovable"
