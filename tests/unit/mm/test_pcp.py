"""The per-CPU lists of small pages: batches come and go as single pages would, in fewer pieces."""

import random
from contextlib import nullcontext

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.config import MAX_ORDER
from concur_thp.machine import Machine
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE
from concur_thp.mm.memblock import free_blocks
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, NIL, PAGE_TYPE_PCP, Page, mem_map, zones
from concur_thp.mm.page_alloc import __free_pages, alloc_page
from concur_thp.mm.pcp import alloc_settings, drain_pcp, pcp_list, pcp_pop_blocks

MODES = pytest.mark.parametrize("mode", [nullcontext, interpreted], ids=["native", "interpreted"])


@pytest.fixture
def machine():
    with Machine(memory="64M", order=3) as found:
        yield found


def take(cpu, count):
    pages = [Page(alloc_page(cpu, GFP_HIGHUSER_MOVABLE)) for _ in range(count)]
    assert all(pages)
    return pages


def pcp_pages(cpu):
    """Frames on this CPU's list, newest first."""
    pcp = pcp_list(cpu, 1, MIGRATE_MOVABLE)
    found, pfn = [], pcp.head
    while pfn != NIL:
        page = mem_map[pfn]
        assert (page.page_type, page._free_type, page.private, page.lru_prev) == (PAGE_TYPE_PCP, MIGRATE_MOVABLE, 0, NIL)
        found.append(pfn)
        pfn = page.lru_next
    assert len(found) == pcp.count
    return found


@MODES
def test_a_refill_is_a_batch_in_the_order_of_addresses(machine, mode):
    with mode():
        cpu, batch = machine.cpu(0), alloc_settings.pcp_batch
        assert batch == 16
        free = zones[1].nr_free_pages
        first = mem_map.index(take(cpu, 1)[0])
        assert pcp_pages(cpu) == list(range(first + 1, first + batch))
        assert zones[1].nr_free_pages == free - batch


@MODES
def test_a_refill_of_remnants_takes_the_smallest_first(machine, mode):
    """Two single pages and a pair are free: they go before a large block is cut."""
    with mode():
        cpu = machine.cpu(0)
        drain_pcp(cpu)
        pages = take(cpu, alloc_settings.pcp_batch)
        pfns = [mem_map.index(page) for page in pages]
        for n in (1, 4, 5, 11):
            __free_pages(cpu, pages[n], 0)
        drain_pcp(cpu)
        kept = [page for n, page in enumerate(pages) if n not in (1, 4, 5, 11)]
        again = [mem_map.index(page) for page in take(cpu, 4)]
        assert again == [pfns[1], pfns[11], pfns[4], pfns[5]] or again == [pfns[11], pfns[1], pfns[4], pfns[5]]
        for pfn in again:
            __free_pages(cpu, mem_map[pfn], 0)
        for page in kept:
            __free_pages(cpu, page, 0)
        drain_pcp(cpu)


@MODES
@pytest.mark.parametrize("order", ["up", "down", "random", "every second one"])
def test_a_batch_merges_to_the_blocks_that_single_pages_would(machine, mode, order):
    with mode():
        cpu, before = machine.cpu(0), free_blocks()
        pages = take(cpu, alloc_settings.pcp_high - 1)
        arrange = {"up": lambda: pages, "down": lambda: pages[::-1], "every second one": lambda: pages[::2] + pages[1::2],
                   "random": lambda: random.Random(1).sample(pages, len(pages))}
        for page in arrange[order]():
            __free_pages(cpu, page, 0)
        drain_pcp(cpu)
        assert free_blocks() == before


@MODES
def test_neighbours_leave_the_list_as_blocks(machine, mode):
    """None larger than the buddy allocator's largest, each aligned; what each has is what was on the list."""
    with mode():
        cpu, before = machine.cpu(0), free_blocks()
        pages = take(cpu, 70)
        drain_pcp(cpu)
        for page in pages:
            __free_pages(cpu, page, 0)
        listed = pcp_pages(cpu)
        page, blocks = Page(pcp_pop_blocks(pcp_list(cpu, 1, MIGRATE_MOVABLE), 70)), {}
        while page:
            blocks[mem_map.index(page)] = page.private
            page = mem_map[page.lru_next] if page.lru_next != NIL else None
        assert all(pfn % (1 << size) == 0 and size < int(MAX_ORDER) for pfn, size in blocks.items())
        assert sorted(pfn + n for pfn, size in blocks.items() for n in range(1 << size)) == sorted(listed)
        assert 4 <= len(blocks) < 15
        assert free_blocks() != before  # They are still nobody's; the machine ends with it.
