"""The last looks before a page is gone: references first, then the dirty bit; whoever came in between keeps it."""

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.errors import KernelBug
from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.filemap import cached_pfn, filemap_get_page
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE
from concur_thp.mm.mm_types import NIL, PAGE_MAPPING_ANON, Page, files
from concur_thp.mm.page_alloc import alloc_page
from concur_thp.mm.page_flags import PageSwapCache, PG_dirty, PG_swapbacked, SetFlag, TestFlag, __SetPageUptodate, page_to_pfn
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.page_ref import get_page, page_ref_count
from concur_thp.mm.put_page import put_page
from concur_thp.mm.remove_mapping import (
    PAGE_CLEAN,
    PAGE_GONE,
    PAGE_KEEP,
    __remove_mapping,
    discard_lazyfree,
    pageout,
)
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.swap_map import swap_info, swap_map
from concur_thp.mm.swap_state import add_to_swap, delete_from_swap_cache


@pytest.fixture
def task(new_task, request):
    return new_task(swap="16M" if "order9" in request.node.name else "1M")


def file_page(task) -> tuple[int, Page]:
    """Locked, with our reference for an isolation's, and the cache's."""
    file = file_alloc(task.cpu, 1, 3)
    page = Page(int(filemap_get_page(task.cpu, file, 0)))
    lru_add_drain(task.cpu)
    lock_page(task.cpu, page)
    return file, page


def anon_page(task) -> Page:
    """Nobody maps it; locked, with our reference."""
    page = Page(int(alloc_page(task.cpu, GFP_HIGHUSER_MOVABLE)))
    __SetPageUptodate(page)
    lock_page(task.cpu, page)
    return page


def cached_page(task) -> Page:
    page = anon_page(task)
    SetFlag(page, PG_swapbacked)
    assert add_to_swap(task.cpu, page)
    return page


def leave_cache(task, page: Page) -> None:
    delete_from_swap_cache(task.cpu, page)
    unlock_page(task.cpu, page)
    put_page(task.cpu, page)


def test_a_clean_page_nobody_else_has_is_taken(task):
    file, page = file_page(task)
    assert __remove_mapping(task.cpu, page) and page_ref_count(page) == 0
    assert cached_pfn(file, 0) == NIL and files[file].nrpages == 0 and page.mapping == 0
    page._refcount.store(1)
    unlock_page(task.cpu, page)
    put_page(task.cpu, page)


@pytest.mark.parametrize("why", ["a pin", "dirty"])
def test_wanted_after_all(task, why):
    file, page = file_page(task)
    if why == "a pin":
        get_page(task.cpu, page)
    else:
        SetFlag(page, PG_dirty)
    before = page_ref_count(page)
    assert not __remove_mapping(task.cpu, page)
    assert page_ref_count(page) == before and cached_pfn(file, 0) == page_to_pfn(page) and files[file].nrpages == 1
    unlock_page(task.cpu, page)
    for _ in range(before - 1):
        put_page(task.cpu, page)


def test_out_of_the_swap_cache_with_its_slot(task):
    page = cached_page(task)
    entry = page.private
    page.flags.and_(~(1 << PG_dirty))
    assert __remove_mapping(task.cpu, page) and not PageSwapCache(page)
    assert swap_map[entry].count == 0 and swap_info.inuse_pages == 0 and page.private == 0
    page._refcount.store(1)
    unlock_page(task.cpu, page)
    put_page(task.cpu, page)


def test_in_no_cache_there_is_nothing_to_remove(task):
    """Truncated while reclaim waited for it; or anonymous, and its place on the device given up."""
    page = anon_page(task)
    assert not __remove_mapping(task.cpu, page) and page_ref_count(page) == 1
    page.mapping = PAGE_MAPPING_ANON | 4
    assert not __remove_mapping(task.cpu, page)
    unlock_page(task.cpu, page)
    put_page(task.cpu, page)


def test_pageout_of_a_pinned_page(task):
    page = cached_page(task)
    get_page(task.cpu, page)
    assert pageout(task.cpu, page) == PAGE_KEEP and TestFlag(page, PG_dirty)
    put_page(task.cpu, page)
    leave_cache(task, page)


def test_pageout_of_a_clean_page(task):
    page = cached_page(task)
    page.flags.and_(~(1 << PG_dirty))
    assert pageout(task.cpu, page) == PAGE_CLEAN
    leave_cache(task, page)


def test_pageout_of_what_no_pte_needs_writes_nothing(task):
    """Its place on the device is given up instead, and it is dirty again: contents are nowhere else."""
    page = cached_page(task)
    assert pageout(task.cpu, page) == PAGE_GONE and not PageSwapCache(page) and TestFlag(page, PG_dirty)
    put_page(task.cpu, page)


@pytest.mark.parametrize("why", ["", "a pin", "dirty"])
def test_a_lazily_freed_page(task, why):
    page = anon_page(task)
    if why == "a pin":
        get_page(task.cpu, page)
    elif why == "dirty":
        SetFlag(page, PG_dirty)
    before = page_ref_count(page)
    assert bool(discard_lazyfree(task.cpu, page)) == (why == "")
    assert page_ref_count(page) == (before if why else 0)
    page._refcount.store(1)
    unlock_page(task.cpu, page)
    put_page(task.cpu, page)


def test_a_swapbacked_page_is_not_discarded(task):
    page = anon_page(task)
    SetFlag(page, PG_swapbacked)
    with interpreted(), pytest.raises(KernelBug, match="discard_lazyfree: swapbacked"):
        discard_lazyfree(task.cpu, page)
