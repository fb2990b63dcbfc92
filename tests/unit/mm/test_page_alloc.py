"""The page allocator on one CPU, natively and as plain Python."""

from contextlib import nullcontext

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.arch.system import system
from concur_thp.errors import KernelBug
from concur_thp.machine import Machine
from concur_thp.mm.buddy import free_area
from concur_thp.mm.flags import (
    __GFP_ZERO,
    GFP_HIGHUSER_MOVABLE,
    GFP_KERNEL,
    GFP_TRANSHUGE,
    GFP_TRANSHUGE_LIGHT,
)
from concur_thp.mm.highmem import copy_huge_page
from concur_thp.mm.memblock import free_blocks
from concur_thp.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_TYPES,
    MIGRATE_UNMOVABLE,
    NIL,
    NR_ORDERS,
    PAGE_TYPE_PCP,
    TAIL_MAPPING,
    Page,
    frames,
    mem_map,
    pageblock_types,
    zones,
)
from concur_thp.mm.page_alloc import __free_pages, alloc_page, alloc_pages, free_the_page
from concur_thp.mm.page_flags import PG_dirty, PG_double_map, PG_head, PG_lru
from concur_thp.mm.page_ref import get_page_unless_zero
from concur_thp.mm.pcp import alloc_settings, drain_pcp
from concur_thp.mm.swap_map import swap_info
from concur_thp.mm.vmstat import vmstat
from concur_thp.sync.spinlock import spin_lock

MODES = pytest.mark.parametrize("mode", [nullcontext, interpreted], ids=["native", "interpreted"])
ORDERS = pytest.mark.parametrize("order, memory", [(9, "64M"), (3, "1M")])


def listed_blocks():
    """First frame of each block found by walking the free lists -> its order; counts and links must agree."""
    found = {}
    for zone in (zones[n] for n in range(3)):
        free = 0
        for order in range(NR_ORDERS):
            for number in range(system.nr_cpus + 1):
                area = free_area(zone, number, order)
                blocks = []
                for migratetype in range(MIGRATE_TYPES):
                    pfn, before = area.head[migratetype], NIL
                    assert pfn == NIL or zone.holders[migratetype] & 1 << number
                    while pfn != NIL:
                        page = mem_map[pfn]
                        assert (page.lru_prev, page._free_type, page.free_cpu) == (before, migratetype, number)
                        blocks.append(pfn)
                        pfn, before = page.lru_next, pfn
                assert len(blocks) == area.nr_free
                free += len(blocks) << order
                found |= dict.fromkeys(blocks, order)
        assert free == zone.nr_free_pages
    return found


def take(cpu, order, gfp):
    page = alloc_pages(cpu, order, MIGRATE_MOVABLE if gfp & 8 else MIGRATE_UNMOVABLE, gfp)
    return Page(page) if page else None


def take_all(cpu, order, gfp):
    return list(iter(lambda: take(cpu, order, gfp), None))


@MODES
def test_a_small_page_comes_clean_and_goes_to_the_cpus_list(mode):
    with Machine(memory="64M") as m, mode():
        cpu = m.cpu(0)
        page = Page(alloc_page(cpu, GFP_HIGHUSER_MOVABLE))
        assert (page._refcount.load(), page._mapcount.load(), page.mapping) == (1, -1, 0)
        assert page.flags.load() == 0
        page.flags.or_(1 << PG_dirty)
        page.mapping = 5 << 2 | 1  # An anon page keeps its mapping until it is freed.
        __free_pages(cpu, page, 0)
        assert (page.page_type, page._refcount.load(), page.mapping) == (PAGE_TYPE_PCP, 0, 0)
        assert page.flags.load() == 0
        assert alloc_page(cpu, GFP_HIGHUSER_MOVABLE) == page.addr, "newest first"
        assert vmstat()["pgalloc"] == 2 and vmstat()["pgfree"] == 1


@MODES
@ORDERS
def test_a_huge_page_is_compound_and_comes_apart_when_freed(order, memory, mode):
    with Machine(memory=memory, order=order) as m, mode():
        cpu, before = m.cpu(0), free_blocks()
        head = take(cpu, order, GFP_TRANSHUGE)
        pfn = mem_map.index(head)
        tails = [mem_map[pfn + i] for i in range(1, 1 << order)]
        assert pfn % (1 << order) == 0 and head._refcount.load() == 1 and head.flags.load() == 1 << PG_head
        assert all(t.compound_head == pfn << 1 | 1 and t._refcount.load() == 0 for t in tails)
        assert all(t.mapping == TAIL_MAPPING for t in (tails[0], *tails[2:]))
        assert (tails[0].compound_mapcount.load(), tails[0].compound_order) == (-1, order)
        assert (tails[1].deferred_next, tails[1].deferred_prev) == (0, 0)
        assert get_page_unless_zero(head) == 1 and not any(get_page_unless_zero(t) for t in tails)
        tails[0].flags.or_(1 << PG_double_map)
        head._refcount.sub(1)
        __free_pages(cpu, head, order)
        assert all((t.compound_head, t.mapping, t.flags.load()) == (0, 0, 0) for t in (head, *tails))
        assert free_blocks() == before == listed_blocks()


@ORDERS
def test_everything_freed_merges_to_the_initial_layout(order, memory):
    with Machine(memory=memory, order=order) as m:
        cpu, before = m.cpu(0), free_blocks()
        huge = take_all(cpu, order, GFP_TRANSHUGE)
        small = take_all(cpu, 0, GFP_KERNEL)
        assert (len(huge) << order) + len(small) == m.config.frames - 1
        assert free_blocks() == {} == listed_blocks()
        for page in small[::2] + small[1::2]:
            __free_pages(cpu, page, 0)
        for page in huge:
            __free_pages(cpu, page, order)
        drain_pcp(cpu)
        assert free_blocks() == before == listed_blocks()


def test_blocks_of_any_order_come_and_go():
    with Machine(memory="64M") as m:
        cpu, before = m.cpu(0), free_blocks()
        pages = [(take(cpu, order, GFP_KERNEL), order) for order in (*range(1, 11), *range(1, 11))]
        assert all(page and mem_map.index(page) % (1 << order) == 0 for page, order in pages)
        assert free_blocks() == listed_blocks()
        for page, order in pages:
            __free_pages(cpu, page, order)
        assert free_blocks() == before


def test_contents_are_cleared_on_request_only():
    with Machine(memory="64M") as m:
        cpu = m.cpu(0)
        first, second = take(cpu, 9, GFP_TRANSHUGE), take(cpu, 9, GFP_TRANSHUGE)
        pfn = mem_map.index(first)
        for i in range(512):
            frames[pfn + i].word[i % 8].store(i + 1)
        copy_huge_page(second, first)
        assert all(frames[mem_map.index(second) + i].word[i % 8].load() == i + 1 for i in range(512))
        __free_pages(cpu, first, 9)
        assert take(cpu, 9, GFP_TRANSHUGE | __GFP_ZERO) == first
        assert not any(frames[pfn + i].word[w].load() for i in range(512) for w in range(8))


def test_huge_pages_leave_the_reserve_and_small_kernel_pages_take_it():
    with Machine(memory="64M") as m:
        cpu = m.cpu(0)
        take_all(cpu, 9, GFP_TRANSHUGE_LIGHT)
        left = [zones[n].nr_free_pages for n in range(2)]
        assert all(zones[n].watermark[0] < left[n] < zones[n].watermark[0] + 512 for n in range(2))
        reserve = zones[0].watermark[0] + zones[1].watermark[0]
        most = sum(left) - reserve + 2 * alloc_settings.pcp_batch
        assert 0 < len(take_all(cpu, 0, GFP_HIGHUSER_MOVABLE)) <= most
        assert take(cpu, 0, GFP_HIGHUSER_MOVABLE) is None
        assert len(take_all(cpu, 0, GFP_KERNEL)) > 0 and free_blocks() == {}


def test_only_movable_pages_in_zone_movable():
    with Machine(memory="64M", kernelcore="32M") as m:
        cpu = m.cpu(0)
        page = take(cpu, 0, GFP_HIGHUSER_MOVABLE)
        assert mem_map.index(page) >= zones[2].start_pfn
        kernel_pages = take_all(cpu, 0, GFP_KERNEL)
        assert len(kernel_pages) == zones[1].end_pfn - 1
        assert all(mem_map.index(p) < zones[2].start_pfn for p in kernel_pages)
        assert all(pageblock_types[n].value == MIGRATE_MOVABLE for n in range(zones[2].start_pfn >> 9, 32))
        assert len(take_all(cpu, 9, GFP_TRANSHUGE_LIGHT)) >= 14


def test_a_list_gives_back_a_batch_when_it_is_full():
    with Machine(memory="256M") as m:
        cpu = m.cpu(0)
        pages = [Page(alloc_page(cpu, GFP_HIGHUSER_MOVABLE)) for _ in range(alloc_settings.pcp_high + 31)]
        free = zones[1].nr_free_pages
        for page in pages[: alloc_settings.pcp_high - 1]:
            __free_pages(cpu, page, 0)
        assert zones[1].nr_free_pages in (free, free + alloc_settings.pcp_batch)
        for page in pages[alloc_settings.pcp_high - 1 :]:
            __free_pages(cpu, page, 0)
        assert zones[1].nr_free_pages > free
        assert (alloc_settings.pcp_batch, alloc_settings.pcp_high) == (31, 186)


def spoil_flags(page):
    page.flags.or_(1 << PG_lru)


def spoil_mapcount(page):
    page._mapcount.store(0)


def spoil_mapping(page):
    page.mapping = 3 << 2


def spoil_refcount(page):
    page._refcount.store(2)


@pytest.mark.parametrize("spoil, text", [
    (spoil_flags, "flags set"), (spoil_mapcount, "still mapped"), (spoil_mapping, "still has a mapping"),
    (spoil_refcount, "still has references")])
def test_a_bad_small_page_is_not_taken_back(spoil, text):
    with Machine(memory="1M", order=3) as m, interpreted():
        page = Page(alloc_page(m.cpu(0), GFP_KERNEL))
        page._refcount.store(0)
        spoil(page)
        with pytest.raises(KernelBug, match=text):
            free_the_page(m.cpu(0), page, 0)


def test_a_page_is_not_freed_twice():
    with Machine(memory="1M", order=3) as m, interpreted():
        page = Page(alloc_page(m.cpu(0), GFP_KERNEL))
        __free_pages(m.cpu(0), page, 0)
        with pytest.raises(KernelBug, match="free already"):
            free_the_page(m.cpu(0), page, 0)


def spoil_tail(head):
    mem_map[mem_map.index(head) + 5]._mapcount.store(3)


def spoil_tail_mapping(head):
    mem_map[mem_map.index(head) + 5].mapping = 0


def spoil_compound_mapcount(head):
    mem_map[mem_map.index(head) + 1].compound_mapcount.store(0)


def spoil_deferred(head):
    mem_map[mem_map.index(head) + 2].deferred_next = 1 << 32


def spoil_tail_refcount(head):
    mem_map[mem_map.index(head) + 7]._refcount.store(1)


@pytest.mark.parametrize("spoil, text", [
    (spoil_tail, "still mapped"), (spoil_tail_mapping, "not TAIL_MAPPING"),
    (spoil_deferred, "deferred split list"), (spoil_compound_mapcount, "still mapped by pmds"),
    (spoil_tail_refcount, "still has references")])
def test_a_bad_huge_page_is_not_taken_back(spoil, text):
    with Machine(memory="1M", order=3) as m, interpreted():
        head = take(m.cpu(0), 3, GFP_TRANSHUGE)
        head._refcount.store(0)
        spoil(head)
        with pytest.raises(KernelBug, match=text):
            free_the_page(m.cpu(0), head, 3)


@pytest.mark.parametrize("listed", [False, True], ids=["from the zone", "from the CPU's list"])
def test_an_allocation_that_may_sleep_is_refused_under_a_spinlock(listed):
    """Also when this CPU's list has a page and there is nothing to wait for."""
    with Machine(memory="1M", order=3) as m, interpreted():
        cpu = m.cpu(0)
        if listed:
            __free_pages(cpu, alloc_page(cpu, GFP_HIGHUSER_MOVABLE), 0)
        else:
            drain_pcp(cpu)
        spin_lock(cpu, swap_info.lock)
        with pytest.raises(KernelBug, match="sleeping while atomic"):
            alloc_page(cpu, GFP_HIGHUSER_MOVABLE)
