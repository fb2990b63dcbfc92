"""Flushes of reclaim come before the device reads a page and before a frame is free, as the event ring tells (3.30, K11)."""

import pytest

from concur_thp.arch.trace import RING_EVENTS, Tracepoint, rings
from concur_thp.config import PAGE_SIZE
from concur_thp.mm.lru import isolate_lru_page
from concur_thp.mm.mm_types import Page, mem_map
from concur_thp.mm.page_flags import ClearFlag, PG_active, PG_dirty, page_to_pfn
from concur_thp.mm.page_list import LIST_PAGES, list_add, page_list
from concur_thp.mm.page_lock import lock_page
from concur_thp.mm.pgtable import _PAGE_ACCESSED, _PAGE_DIRTY, entry_pfn, mm_pmd
from concur_thp.mm.shrink_page_list import shrink_page_list
from concur_thp.mm.swap import lru_add_drain, putback_lru_page
from concur_thp.mm.swap_io import swap_writepage
from concur_thp.mm.swap_state import add_to_swap
from concur_thp.mm.thp_sysfs import set_switch

ADDR = 1 << 24
SWAP = {9: "16M", 3: "1M"}
UNMAP, FLUSH, WRITE, FREE = (int(t) for t in (Tracepoint.page_remove_rmap, Tracepoint.tlb_flush,
                                              Tracepoint.mm_vmscan_writepage, Tracepoint.mm_page_free))


@pytest.fixture
def task(new_task, request):
    return new_task(swap=SWAP[9 if "order9" in request.node.name else 3])


def events_after(task, number: int) -> list[tuple[int, int]]:
    """(what, pfn or mm) of every event since, in order."""
    first = task.cpu.id * RING_EVENTS
    rows = [rings[first + i] for i in range(RING_EVENTS)]
    found = sorted((row.number, int(row.what), int(row.a)) for row in rows if row.what and row.number >= number)
    return [(what, a) for _, what, a in found]


def isolate(task, page: Page) -> None:
    lru_add_drain(task.cpu)
    assert isolate_lru_page(task.cpu, page)
    page.flags.and_(~(1 << PG_active))
    list_add(page_list(task.cpu, LIST_PAGES), page)


def reclaim(task) -> list[tuple[int, int]]:
    before = task.cpu.ring_next
    assert shrink_page_list(task.cpu, page_list(task.cpu, LIST_PAGES)) > 0
    return events_after(task, before)


def last(events: list[tuple[int, int]], *wanted: tuple[int, int]) -> int:
    return max(n for n, event in enumerate(events) if event in wanted)


def flushed_between(task, events, start: int, end: int) -> bool:
    return (FLUSH, task.mm.id) in events[start:end]


def test_a_dirty_page_is_flushed_before_it_is_written(task):
    task.mmap(ADDR, 1)
    task.store(ADDR, 1)
    page = task.page(ADDR)
    task.pte(ADDR).val.and_(~_PAGE_ACCESSED)
    isolate(task, page)
    events = reclaim(task)
    pfn = page_to_pfn(page)
    unmapped, written = last(events, (UNMAP, pfn)), last(events, (WRITE, pfn))
    assert unmapped < written < last(events, (FREE, pfn))
    assert flushed_between(task, events, unmapped, written)


def test_small_pages_wait_for_one_flush(task):
    """Clean lazily freed pages: nothing is written, all are freed behind the batch's flush."""
    task.mmap(ADDR, 4)
    for i in range(4):
        task.store(ADDR + i * PAGE_SIZE, 1)
    pages = [task.page(ADDR + i * PAGE_SIZE) for i in range(4)]
    for i, page in enumerate(pages):
        task.pte(ADDR + i * PAGE_SIZE).val.and_(~(_PAGE_ACCESSED | _PAGE_DIRTY))
        isolate(task, page)
        page.flags.and_(~(1 << 12))  # PG_swapbacked
    events = reclaim(task)
    freed = [last(events, (FREE, page_to_pfn(page))) for page in pages]
    unmapped = [last(events, (UNMAP, page_to_pfn(page))) for page in pages]
    assert max(unmapped) < min(freed) and flushed_between(task, events, max(unmapped), min(freed))
    assert [event for event in events if event[0] == FLUSH] == [(FLUSH, task.mm.id)]


def test_k11_a_thp_is_flushed_before_it_is_freed(task):
    """A clean THP in the swap cache is freed in the middle of the batch, without IO that would flush."""
    set_switch("enabled", "always")
    nr = 1 << task.machine.config.order
    task.mmap(ADDR, nr)
    task.store(ADDR, 1)
    page = Page(int(mem_map[entry_pfn(task.pmd(ADDR))]))
    lru_add_drain(task.cpu)
    assert isolate_lru_page(task.cpu, page)
    lock_page(task.cpu, page)
    assert add_to_swap(task.cpu, page)
    ClearFlag(page, PG_dirty)
    swap_copy(task, page)
    page.flags.and_(~(1 << PG_active))
    putback_lru_page(task.cpu, page)
    mm_pmd(task.mm, ADDR).val.and_(~(_PAGE_ACCESSED | _PAGE_DIRTY))
    isolate(task, page)
    events = reclaim(task)
    head = page_to_pfn(page)
    unmapped = last(events, *((UNMAP, head + i) for i in range(nr)))
    freed = last(events, (FREE, head))
    assert (WRITE, head) not in events
    assert unmapped < freed and flushed_between(task, events, unmapped, freed)
    assert task.load(ADDR) == 1


def swap_copy(task, page: Page) -> None:
    """Write a locked, mapped page to its slots and unlock it."""
    from concur_thp.mm.swap_map import swap_map

    swap_map[page.private].count = swap_map[page.private].count + 1  # Else nobody needs the slots.
    swap_writepage(task.cpu, page)
    swap_map[page.private].count = swap_map[page.private].count - 1
