"""What becomes of pages that reclaim has isolated. (Linux: mm/vmscan.c shrink_page_list; semantics 3.30)

Each page is locked by trylock and then goes as far as it can: used lately -> active; no place on the device -> active; taken
down everywhere; written; out of its cache; freed. TLB flushes wait until pages are written or freed (tlb_batch.py).
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point, point
from concur_thp.arch.points import Point
from concur_thp.mm.flags import VM_EXEC, VM_LOCKED
from concur_thp.mm.isolate_lru import free_unref_pages
from concur_thp.mm.lru import page_evictable, page_is_file_cache
from concur_thp.mm.mm_types import Page
from concur_thp.mm.page_flags import (
    PageAnon,
    PageHead,
    PageSwapCache,
    PageTransHuge,
    PG_active,
    PG_dirty,
    PG_lru,
    PG_mlocked,
    PG_referenced,
    PG_swapbacked,
    PG_unevictable,
    PG_writeback,
    SetFlag,
    TestClearFlag,
    TestFlag,
    hpage_nr_pages,
    page_to_pfn,
)
from concur_thp.mm.page_list import LIST_FREE, LIST_RET, PageList, list_add, list_pop, page_list
from concur_thp.mm.page_lock import trylock_page, unlock_page
from concur_thp.mm.page_referenced import page_referenced
from concur_thp.mm.remove_mapping import (
    PAGE_GONE,
    PAGE_KEEP,
    __remove_mapping,
    discard_lazyfree,
    pageout,
)
from concur_thp.mm.rmap import compound_mapcount, page_mapped
from concur_thp.mm.split_huge_page import can_split_huge_page, split_huge_page_to_list
from concur_thp.mm.swap import free_transhuge_page
from concur_thp.mm.swap_map import vm_swap_full
from concur_thp.mm.swap_state import add_to_swap, try_to_free_swap
from concur_thp.mm.tlb_batch import try_to_unmap_flush, try_to_unmap_flush_dirty
from concur_thp.mm.try_to_unmap import TTU_BATCH_FLUSH, TTU_SPLIT_HUGE_PMD, try_to_unmap
from concur_thp.mm.vmstat import Stat, count_vm_event, mod_stat

PAGEREF_RECLAIM, PAGEREF_RECLAIM_CLEAN, PAGEREF_KEEP, PAGEREF_ACTIVATE = range(4)
"""page_check_references()."""
FREED, KEEP, KEEP_LOCKED, ACTIVATE_LOCKED = range(4)
"""shrink_locked_page(): frozen, free it; keep it, not locked any more; keep it; it is wanted, to the active list."""


@kernel
def page_check_references(cpu: Cpu, page: Page):
    """Was the page used since we last asked?

    Context: page locked; takes the rmap lock.
    Return: PAGEREF_*.
    Linux: mm/vmscan.c page_check_references
    """
    referenced_ptes = page_referenced(cpu, page, 1)
    vm_flags = cpu.scratch[0]
    referenced_page = TestClearFlag(page, PG_referenced)
    swapbacked = TestFlag(page, PG_swapbacked)
    if vm_flags & VM_LOCKED:
        return PAGEREF_RECLAIM  # try_to_unmap() notices and moves it to the unevictable list.
    if referenced_ptes:
        if swapbacked:
            return PAGEREF_ACTIVATE
        # A file page starts with a young pte: only the second time counts, or a second user.
        SetFlag(page, PG_referenced)
        return PAGEREF_ACTIVATE if referenced_page or referenced_ptes > 1 or vm_flags & VM_EXEC else PAGEREF_KEEP
    return PAGEREF_RECLAIM_CLEAN if referenced_page and not swapbacked else PAGEREF_RECLAIM


@kernel
def give_swap_space(cpu: Cpu, page: Page, pages: PageList):
    """Put an anon page into the swap cache: a THP whole if there is room, else in pieces.

    Context: page locked, isolated; no other lock. Pieces of a split page go to `pages`.
    Return: 1 when the page, or what is left of it, is in the swap cache.
    Linux: mm/vmscan.c shrink_page_list, its branch for anon pages
    """
    if PageTransHuge(page):
        if not can_split_huge_page(cpu, page):
            return 0  # Pinned: nothing could be done with it (R12).
        # Without a pmd that maps it some pieces are likely unused, and can be freed without IO.
        if compound_mapcount(page) == 0 and split_huge_page_to_list(cpu, page, pages) != 0:
            return 0
    if add_to_swap(cpu, page):
        return 1
    if not PageTransHuge(page) or split_huge_page_to_list(cpu, page, pages) != 0:
        return 0
    count_vm_event(cpu, Stat.thp_swpout_fallback)
    return add_to_swap(cpu, page)


@inline
def unmap_page(cpu: Cpu, page: Page):
    """Take every mapping down; flushes are batched. 1 when none is left."""
    return try_to_unmap(cpu, page, TTU_BATCH_FLUSH | (TTU_SPLIT_HUGE_PMD if PageTransHuge(page) else 0))


@kernel
def shrink_locked_page(cpu: Cpu, page: Page, pages: PageList):
    """One page, as far as it goes.

    Context: page locked, isolated. May sleep.
    Return: FREED (frozen, still locked), KEEP (not locked any more), KEEP_LOCKED, ACTIVATE_LOCKED.
    Linux: mm/vmscan.c shrink_page_list, the body of its loop
    Differs: shared anonymous memory (swapbacked, not anon) is not swapped out; dirty pages of files have no disk.
    """
    bug_on(cpu, TestFlag(page, PG_active) != 0, "shrink_page_list: an active page (value: pfn)", page_to_pfn(page), 0)
    if not page_evictable(page) or TestFlag(page, PG_writeback):
        return ACTIVATE_LOCKED
    references = page_check_references(cpu, page)
    if references in (PAGEREF_ACTIVATE, PAGEREF_KEEP):
        return ACTIVATE_LOCKED if references == PAGEREF_ACTIVATE else KEEP_LOCKED
    if TestFlag(page, PG_swapbacked):
        if not PageAnon(page) or not (PageSwapCache(page) or give_swap_space(cpu, page, pages)):
            return ACTIVATE_LOCKED
    elif PageTransHuge(page) and split_huge_page_to_list(cpu, page, pages) != 0:
        return KEEP_LOCKED
    if page_mapped(page) and not unmap_page(cpu, page):
        return ACTIVATE_LOCKED
    point(cpu, Point.RECLAIM_UNMAPPED)
    if TestFlag(page, PG_dirty):
        verdict = write_page(cpu, page, references)
        if verdict != FREED:
            return verdict
    if PageAnon(page) and not TestFlag(page, PG_swapbacked):
        return FREED if discard_lazyfree(cpu, page) else KEEP_LOCKED
    point(cpu, Point.RECLAIM_CLEAN)
    return FREED if __remove_mapping(cpu, page) else KEEP_LOCKED


@inline
def write_page(cpu: Cpu, page: Page, references: int):
    """A dirty page: on to the device. FREED means: go on, it is clean and locked."""
    verdict = FREED
    if page_is_file_cache(page.flags.read()):
        verdict = ACTIVATE_LOCKED
    elif references == PAGEREF_RECLAIM_CLEAN:
        verdict = KEEP_LOCKED
    else:
        # No CPU may write to the page through a translation that is down already, once the device reads it.
        try_to_unmap_flush_dirty(cpu)
        written = pageout(cpu, page)
        if written == PAGE_GONE:
            verdict = KEEP
        elif written == PAGE_KEEP:
            verdict = KEEP_LOCKED
    return verdict


@inline
def activate_locked(cpu: Cpu, page: Page):
    """The page is wanted: to the active list with it, and its place on the device may be of more use to others."""
    mlocked = TestFlag(page, PG_mlocked)
    if PageSwapCache(page) and (vm_swap_full() or mlocked):
        try_to_free_swap(cpu, page)
    if not mlocked:
        SetFlag(page, PG_active)
        mod_stat(cpu, Stat.pgactivate, hpage_nr_pages(page))


@inline
def free_reclaimed(cpu: Cpu, page: Page):
    """The page is nobody's. Small pages wait for the flush; a THP is freed at once, so it is flushed at once (K11 fixed)."""
    if PageHead(page):
        try_to_unmap_flush(cpu)
        check_point(cpu, Point.PUT_PAGE_ZERO, page)
        free_transhuge_page(cpu, page)
    else:
        list_add(page_list(cpu, LIST_FREE), page)


@kernel
def shrink_page_list(cpu: Cpu, pages: PageList):
    """Reclaim what can be reclaimed of isolated pages; the others stay on the list.

    Context: no lock; mmap_sem may be held. May sleep.
    Return: pages reclaimed.
    Linux: mm/vmscan.c shrink_page_list
    Differs: a THP counts as its N pages, reclaimed or activated, as since v5.4; v4.20 counts one.
    """
    kept = page_list(cpu, LIST_RET)
    reclaimed = 0
    page = list_pop(pages)
    while page:
        verdict = KEEP
        if trylock_page(cpu, page):
            verdict = shrink_locked_page(cpu, page, pages)
            if verdict == ACTIVATE_LOCKED:
                activate_locked(cpu, page)
            if verdict != KEEP:
                unlock_page(cpu, page)
        if verdict == FREED:
            reclaimed += hpage_nr_pages(page)
            free_reclaimed(cpu, page)
        else:
            bug_on(cpu, page.flags.read() & (1 << PG_lru | 1 << PG_unevictable) != 0,
                   "shrink_page_list: a page it keeps is on the LRU (value: pfn)", page_to_pfn(page), verdict)
            list_add(kept, page)
        page = list_pop(pages)
    point(cpu, Point.RECLAIM_UNFLUSHED)
    try_to_unmap_flush(cpu)  # Before any of them is anybody else's page.
    free_unref_pages(cpu, page_list(cpu, LIST_FREE))
    return reclaimed


__all__ = ["shrink_page_list"]
