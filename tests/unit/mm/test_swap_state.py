"""The swap cache: slots, references, and when a page may leave."""

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from concur_thp.errors import KernelBug
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE, GFP_TRANSHUGE
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, Page, mem_map
from concur_thp.mm.page_alloc import alloc_page, alloc_pages
from concur_thp.mm.page_flags import (
    PageSwapCache,
    PG_dirty,
    PG_swapbacked,
    PG_writeback,
    SetFlag,
    TestFlag,
    __SetPageUptodate,
    page_to_pfn,
    tail_page,
)
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.page_ref import page_ref_count
from concur_thp.mm.put_page import put_page
from concur_thp.mm.swap_map import SWAP_HAS_CACHE, swap_clusters, swap_info, swap_map
from concur_thp.mm.swap_state import (
    add_to_swap,
    delete_from_swap_cache,
    drop_swap_cache,
    free_swap_and_cache,
    free_swap_cache,
    lookup_swap_cache,
    swap_cached_pfn,
    swapper_space,
    try_to_free_swap,
)
from concur_thp.mm.swapfile import swap_duplicate, swap_free
from concur_thp.mm.vmstat import vmstat


@pytest.fixture
def task(new_task, request):
    return new_task(swap="16M" if "order9" in request.node.name else "1M")


def fresh(task, *, huge: bool = False) -> Page:
    """An anon page as reclaim has it: uptodate, swapbacked, locked, one reference."""
    cpu = task.cpu
    page = (alloc_pages(cpu, int(HPAGE_PMD_ORDER), MIGRATE_MOVABLE, GFP_TRANSHUGE) if huge
            else alloc_page(cpu, GFP_HIGHUSER_MOVABLE))
    page = Page(int(page))
    if huge:
        tail_page(page, 2).deferred_next = 0
        tail_page(page, 2).deferred_prev = 0
    __SetPageUptodate(page)
    SetFlag(page, PG_swapbacked)
    lock_page(cpu, page)
    return page


def gone(task, page: Page) -> None:
    unlock_page(task.cpu, page)
    put_page(task.cpu, page)
    assert swap_info.inuse_pages == swapper_space.nrpages == vmstat()["NR_FILE_PAGES"] == 0


@pytest.mark.parametrize("huge", [False, True])
def test_in_and_out(task, huge):
    page = fresh(task, huge=huge)
    nr = int(HPAGE_PMD_NR) if huge else 1
    assert add_to_swap(task.cpu, page) and PageSwapCache(page) and TestFlag(page, PG_dirty)
    entry = page.private
    assert page_ref_count(page) == 1 + nr == 1 + swapper_space.nrpages and swap_info.inuse_pages == nr
    for i in range(nr):
        assert tail_page(page, i).private == entry + i and swap_cached_pfn(entry + i) == page_to_pfn(page) + i
        assert swap_map[entry + i].count == SWAP_HAS_CACHE
    delete_from_swap_cache(task.cpu, page)
    assert page_ref_count(page) == 1 and not PageSwapCache(page) and tail_page(page, nr - 1).private == 0
    gone(task, page)


def test_a_lookup_finds_the_tail_and_holds_the_head(task):
    page = fresh(task, huge=True)
    add_to_swap(task.cpu, page)
    found = Page(int(lookup_swap_cache(task.cpu, page.private + 3)))
    assert page_to_pfn(found) == page_to_pfn(page) + 3 and page_ref_count(page) == 2 + int(HPAGE_PMD_NR)
    put_page(task.cpu, found)
    delete_from_swap_cache(task.cpu, page)
    assert not lookup_swap_cache(task.cpu, 5)
    gone(task, page)


@pytest.mark.parametrize("why", ["a pte needs it", "being written"])
def test_may_not_leave(task, why):
    page = fresh(task)
    add_to_swap(task.cpu, page)
    entry = page.private
    if why == "being written":
        page.flags.or_(1 << PG_writeback)
    else:
        swap_duplicate(task.cpu, entry)
    assert not try_to_free_swap(task.cpu, page) and PageSwapCache(page)
    page.flags.and_(~(1 << PG_writeback | 1 << PG_dirty))
    if why != "being written":
        swap_free(task.cpu, entry)
    assert try_to_free_swap(task.cpu, page) and TestFlag(page, PG_dirty), "its contents are nowhere else now"
    assert not try_to_free_swap(task.cpu, page)
    gone(task, page)


def test_a_thp_stays_while_a_pte_needs_any_of_its_slots(task):
    page = fresh(task, huge=True)
    add_to_swap(task.cpu, page)
    last = page.private + int(HPAGE_PMD_NR) - 1
    swap_duplicate(task.cpu, last)
    assert not try_to_free_swap(task.cpu, page)
    swap_free(task.cpu, last)
    assert try_to_free_swap(task.cpu, tail_page(page, 2)), "asked by a tail"
    assert swap_clusters[last >> int(HPAGE_PMD_ORDER)].count == 0
    gone(task, page)


@pytest.mark.parametrize("locked", [False, True])
def test_the_last_pte_takes_the_cached_page_with_it_unless_another_has_its_lock(task, locked):
    page = fresh(task)
    add_to_swap(task.cpu, page)
    entry = page.private
    swap_duplicate(task.cpu, entry)
    swap_duplicate(task.cpu, entry)
    if not locked:
        unlock_page(task.cpu, page)
    free_swap_and_cache(task.cpu, entry)
    assert PageSwapCache(page), "there is another pte"
    free_swap_and_cache(task.cpu, entry)
    assert bool(PageSwapCache(page)) == locked and swap_map[entry].count == (SWAP_HAS_CACHE if locked else 0)
    if locked:
        unlock_page(task.cpu, page)
        assert drop_swap_cache(task.cpu) == 1
    lock_page(task.cpu, page)
    gone(task, page)


def test_a_mapped_page_keeps_its_place(task):
    """free_swap_cache() is for who has just taken the last mapping down."""
    page = fresh(task)
    add_to_swap(task.cpu, page)
    unlock_page(task.cpu, page)
    page._mapcount.store(0)
    with interpreted():
        free_swap_cache(task.cpu, page)
        assert PageSwapCache(page)
        page._mapcount.store(-1)
        free_swap_cache(task.cpu, page)
    assert not PageSwapCache(page)
    lock_page(task.cpu, page)
    gone(task, page)


def test_twice_into_the_cache(task):
    page = fresh(task)
    add_to_swap(task.cpu, page)
    with interpreted(), pytest.raises(KernelBug, match="add_to_swap_cache: not locked, cached already"):
        add_to_swap(task.cpu, page)


def test_who_deletes_has_a_reference_of_his_own(task):
    page = fresh(task)
    add_to_swap(task.cpu, page)
    page._refcount.sub(1)
    with interpreted(), pytest.raises(KernelBug, match="delete_from_swap_cache: the caller had no reference"):
        delete_from_swap_cache(task.cpu, mem_map[page_to_pfn(page)])
