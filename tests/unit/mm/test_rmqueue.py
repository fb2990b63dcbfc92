"""Which zone gives, and down to which mark."""

import pytest

from concur_thp.config import HPAGE_PMD_ORDER
from concur_thp.mm.buddy import WMARK_LOW, WMARK_MIN, ZONE_MOVABLE, zone_nr
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE, GFP_KERNEL
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, MIGRATE_UNMOVABLE, Page, mem_map, pgdat, zones
from concur_thp.mm.page_alloc import alloc_pages, prep_new_page
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.put_page import put_page
from concur_thp.mm.rmqueue import get_page_from_freelist, rmqueue, zone_watermark_ok


def give_back(cpu, page: Page, order: int) -> None:
    """As the allocator would hand it out, and then freed."""
    prep_new_page(cpu, page, order, MIGRATE_MOVABLE, 0)
    assert order == 0
    put_page(cpu, page)


def free_pages() -> list[int]:
    return [int(zones[zone].nr_free_pages) for zone in range(pgdat.nr_zones)]


def test_the_highest_zone_that_may_be_used_first(new_task, request):
    task = new_task(kernelcore="32M" if "order9" in request.node.name else "2M")
    movable = int(mem_map.index(alloc_pages(task.cpu, 0, MIGRATE_MOVABLE, GFP_HIGHUSER_MOVABLE)))
    kernel = int(mem_map.index(alloc_pages(task.cpu, 0, MIGRATE_UNMOVABLE, GFP_KERNEL)))
    assert zone_nr(movable) == ZONE_MOVABLE > zone_nr(kernel)
    put_page(task.cpu, mem_map[movable])
    put_page(task.cpu, mem_map[kernel])


def test_a_kernel_page_never_from_zone_movable(new_task, request):
    """R4: when the others have none, there is none."""
    task = new_task(kernelcore="32M" if "order9" in request.node.name else "2M")
    taken = []
    while True:
        page = Page(int(get_page_from_freelist(task.cpu, 0, MIGRATE_UNMOVABLE, WMARK_MIN)))
        if not page:
            break
        taken.append(page)
    assert sum(free_pages()[:ZONE_MOVABLE]) == 0 < free_pages()[ZONE_MOVABLE]
    assert len(taken) > 100 and max(zone_nr(mem_map.index(page)) for page in taken) < ZONE_MOVABLE
    for page in taken:
        give_back(task.cpu, page, 0)


def test_a_movable_page_leaves_the_reserve(new_task):
    """What kernel pages may use up."""
    task = new_task()
    drain_pcp(task.cpu)  # Kernel pages that this CPU has in stock.
    taken = []
    while True:
        page = Page(int(get_page_from_freelist(task.cpu, 0, MIGRATE_MOVABLE, WMARK_LOW)))
        if not page:
            break
        taken.append(page)
    for zone in range(pgdat.nr_zones):
        assert 0 < zones[zone].nr_free_pages <= zones[zone].watermark[WMARK_LOW]
    kernel = Page(int(get_page_from_freelist(task.cpu, 0, MIGRATE_UNMOVABLE, WMARK_LOW)))
    assert kernel
    for page in (*taken, kernel):
        give_back(task.cpu, page, 0)


@pytest.mark.parametrize("above", [0, 1])
def test_a_block_must_leave_the_mark_when_it_is_gone(new_task, above):
    """The block counts but for one of its pages (zone_watermark_ok)."""
    task = new_task()
    zone, size = pgdat.nr_zones - 1, 1 << int(HPAGE_PMD_ORDER)
    mark = int(zones[zone].nr_free_pages) - size + 1 - above
    kept = zones[zone].watermark[WMARK_LOW]
    zones[zone].watermark[WMARK_LOW] = mark
    assert bool(zone_watermark_ok(zones[zone], int(HPAGE_PMD_ORDER), mark)) == bool(above)
    page = Page(int(rmqueue(task.cpu, zone, int(HPAGE_PMD_ORDER), MIGRATE_MOVABLE, WMARK_LOW)))
    assert bool(page) == bool(above)
    zones[zone].watermark[WMARK_LOW] = kept
    for i in range(size if page else 0):
        give_back(task.cpu, mem_map[mem_map.index(page) + i], 0)
