"""The end of a reclaimed page: written if it has to be, then out of whatever cache has it, if nobody else wants it.
(Linux: mm/vmscan.c pageout, __remove_mapping)
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point, point
from concur_thp.arch.points import Point
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.config import HPAGE_PMD_NR
from concur_thp.mm.filemap import __delete_from_page_cache, page_file_nr
from concur_thp.mm.mm_types import Page, files
from concur_thp.mm.page_flags import (
    PageAnon,
    PageSwapCache,
    PageTransHuge,
    PG_dirty,
    PG_locked,
    PG_swapbacked,
    PG_writeback,
    TestClearFlag,
    TestFlag,
    page_to_pfn,
)
from concur_thp.mm.page_lock import trylock_page
from concur_thp.mm.page_ref import page_ref_count, page_ref_freeze, page_ref_unfreeze
from concur_thp.mm.swap_io import swap_writepage
from concur_thp.mm.swap_state import __delete_from_swap_cache, swapper_space
from concur_thp.mm.swapfile import put_swap_page
from concur_thp.mm.vmstat import Stat, mod_stat
from concur_thp.sync.spinlock import spin_lock_irq, spin_unlock_irq

PAGE_KEEP, PAGE_SUCCESS, PAGE_CLEAN, PAGE_GONE = range(4)
"""pageout(): not now; written, and locked by us again; was clean already; not locked by us any more."""


@inline
def cache_references(page: Page):
    """References of the isolator and the cache, and no other: what a page that nobody uses has."""
    return 1 + HPAGE_PMD_NR if PageTransHuge(page) and PageSwapCache(page) else 2


@kernel
def pageout(cpu: Cpu, page: Page):
    """Write a dirty page of the swap cache.

    Context: page locked, isolated, unmapped; flushed if a CPU could still write to it. May sleep.
    Return: PAGE_KEEP, PAGE_CLEAN, PAGE_SUCCESS (page locked); PAGE_GONE (not locked: somebody else was faster).
    Linux: mm/vmscan.c pageout, and in shrink_page_list the part behind its PAGE_SUCCESS
    """
    if page_ref_count(page) != cache_references(page) or not PageSwapCache(page):
        return PAGE_KEEP
    # Cleaned before it is written: what is stored from now on makes it dirty again.
    if not TestClearFlag(page, PG_dirty):
        return PAGE_CLEAN
    trace(cpu, Tracepoint.mm_vmscan_writepage, page_to_pfn(page), page.private, page.flags.read())
    swap_writepage(cpu, page)
    busy = 1 << PG_dirty | 1 << PG_writeback
    if page.flags.read() & busy != 0 or not trylock_page(cpu, page):
        return PAGE_GONE
    return PAGE_SUCCESS if page.flags.read() & busy == 0 else PAGE_KEEP


@kernel
def __remove_mapping(cpu: Cpu, page: Page):
    """Take a clean page out of its cache, if nobody but the cache and the isolator has a reference.

    Context: page locked and unmapped; takes i_pages, then si.lock.
    Return: 1 with the references frozen at 0: the page is the caller's to free.
    Linux: mm/vmscan.c __remove_mapping
    """
    swap = PageSwapCache(page)
    if not swap and (PageAnon(page) or page.mapping == 0):
        return 0
    entry = page.private
    lock = swapper_space.i_pages if swap else files[page_file_nr(page)].i_pages
    expected = cache_references(page)
    spin_lock_irq(cpu, lock)
    # First the references, then the dirty bit: a mapping that came and went meanwhile left either a reference, or, when it
    # had dropped that, the dirty bit. From here lookups fail until the slot is empty.
    frozen = page_ref_freeze(page, expected)
    if frozen:
        check_point(cpu, Point.PAGE_FROZEN, page)
    if frozen and TestFlag(page, PG_dirty):
        page_ref_unfreeze(cpu, page, expected)
        frozen = 0
    if frozen:
        point(cpu, Point.RECLAIM_FROZEN)
        if swap:
            __delete_from_swap_cache(cpu, page)
        else:
            __delete_from_page_cache(cpu, page)
    spin_unlock_irq(cpu, lock)
    if frozen and swap:
        put_swap_page(cpu, page, entry)
    return frozen


@kernel
def discard_lazyfree(cpu: Cpu, page: Page):
    """Give up a lazily freed page that was not written since.

    Context: page locked, unmapped, isolated.
    Return: 1 with the references frozen at 0: the page is the caller's to free.
    Linux: mm/vmscan.c shrink_page_list, its branch for lazily freed pages
    """
    bug_on(cpu, TestFlag(page, PG_swapbacked) != 0 or TestFlag(page, PG_locked) == 0,
           "discard_lazyfree: swapbacked or not locked (value: pfn)", page_to_pfn(page), page.flags.read())
    if not page_ref_freeze(page, 1):
        return 0
    check_point(cpu, Point.PAGE_FROZEN, page)
    if TestFlag(page, PG_dirty):
        page_ref_unfreeze(cpu, page, 1)
        return 0
    mod_stat(cpu, Stat.pglazyfreed, 1)
    return 1


__all__ = ["PAGE_CLEAN", "PAGE_GONE", "PAGE_KEEP", "PAGE_SUCCESS", "__remove_mapping", "discard_lazyfree", "pageout"]
