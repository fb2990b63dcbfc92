"""The swap cache: which page in memory has the contents of which slot. (Linux: mm/swap_state.c)

A page enters it before its first pte becomes a swap entry and leaves it when no pte needs the slot any more, or with the
page. In between a fault on a swap entry finds the page here. The cache holds a reference for each slot; `private` of each
(sub)page is its slot. Page lock and i_pages are needed to change anything, i_pages or a reference to look.
"""

from typing import Any

from concur_thp.arch.bug import bug_on, panic_check
from concur_thp.arch.builtins import smp_wmb
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.futex import sched_yield
from concur_thp.arch.irq import ipi_poll
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import I64, Struct, embed, field
from concur_thp.mm.mapcount import page_mapped
from concur_thp.mm.mm_types import NIL, CacheSlot, Page, mem_map
from concur_thp.mm.page_account import CACHE, account
from concur_thp.mm.page_flags import (
    ClearFlag,
    PageSwapCache,
    PageTail,
    PG_dirty,
    PG_locked,
    PG_swapbacked,
    PG_swapcache,
    PG_uptodate,
    PG_writeback,
    SetFlag,
    TestFlag,
    compound_head,
    hpage_nr_pages,
    page_to_pfn,
    tail_page,
)
from concur_thp.mm.page_lock import lock_page, trylock_page, unlock_page
from concur_thp.mm.page_ref import get_page_unless_zero, page_ref_add, page_ref_sub
from concur_thp.mm.put_page import put_page
from concur_thp.mm.swap_map import SWAP_HAS_CACHE, swap_info, vm_swap_full
from concur_thp.mm.swapfile import (
    __swap_entry_free,
    get_swap_page,
    page_swapped,
    put_swap_page,
    swap_page_trans_huge_swapped,
)
from concur_thp.mm.vmstat import Stat, mod_stat
from concur_thp.sync.lock_classes import I_PAGES
from concur_thp.sync.spinlock import SpinLock, assert_spin_locked, spin_lock_init, spin_lock_irq, spin_unlock_irq


class SwapperSpace(Struct, size=64):
    """struct address_space of the swap cache. (Linux has one for each 64 MiB.)"""

    i_pages = embed(SpinLock, "guards the slots")
    nrpages = field(I64, "i_pages", "filled slots")


swapper_space = SharedOne("swapper_space", SwapperSpace)
swap_cache_slots = SharedArray("swap_cache_slots", CacheSlot, lambda c: max(c.swap_slots, 1))
"""pfn + 1 by slot; of a THP each slot has its own subpage."""


def init_swap_cache(config: Any) -> None:
    """Boot: an empty cache."""
    spin_lock_init(swapper_space.i_pages, I_PAGES)


@inline
def swap_cached_pfn(entry: int):
    """The page of a slot, NIL when there is none. Without i_pages or a reference it may be gone at once."""
    return swap_cache_slots[entry].value - 1


@kernel
def lookup_swap_cache(cpu: Cpu, entry: int) -> Page:
    """Look a slot's page up without any lock and take a reference of its head.

    Context: any with irqs on. The page may leave the cache meanwhile: lock it and look at `private` again.
    Return: the page, which may be a tail; NULL when the slot has none.
    Linux: mm/swap_state.c lookup_swap_cache
    """
    while True:
        pfn = swap_cached_pfn(entry)
        if pfn == NIL:
            return Page(0)
        page = mem_map[pfn]
        head = compound_head(page)
        if get_page_unless_zero(head):
            # The frame may have been freed and used anew, or split, since the slot was read: see find_get_page().
            if compound_head(page) == head and swap_cached_pfn(entry) == pfn:
                return page
            put_page(cpu, head)
        # Frozen by a reclaim or a split, which is about to change the slot or to thaw the page.
        ipi_poll(cpu)
        panic_check(cpu)
        sched_yield()


@kernel
def add_to_swap_cache(cpu: Cpu, page: Page, entry: int):
    """Put a page into its slots, which are the cache's already.

    Context: page locked, not in the cache; takes i_pages.
    Linux: mm/swap_state.c add_to_swap_cache
    Differs: cannot fail: there is no tree to grow.
    """
    nr = hpage_nr_pages(page)
    bug_on(cpu, TestFlag(page, PG_locked) == 0 or PageSwapCache(page) != 0 or TestFlag(page, PG_swapbacked) == 0,
           "add_to_swap_cache: not locked, cached already or not swapbacked (values: pfn, slot)", page_to_pfn(page), entry)
    page_ref_add(page, nr)
    account(cpu, page, nr * CACHE)
    SetFlag(page, PG_swapcache)
    spin_lock_irq(cpu, swapper_space.i_pages)
    for i in range(nr):
        bug_on(cpu, swap_cache_slots[entry + i].value != 0, "add_to_swap_cache: the slot is filled (values: slot, pfn + 1)",
               entry + i, swap_cache_slots[entry + i].value)
        tail_page(page, i).private = entry + i
        smp_wmb()  # `private`, the flag and PG_locked before the slot: lookup_swap_cache() holds no lock.
        swap_cache_slots[entry + i].value = page_to_pfn(page) + i + 1
    swapper_space.nrpages = swapper_space.nrpages + nr
    mod_stat(cpu, Stat.NR_FILE_PAGES, nr)
    spin_unlock_irq(cpu, swapper_space.i_pages)
    point(cpu, Point.SWAP_CACHE_ADDED)


@kernel
def __delete_from_swap_cache(cpu: Cpu, page: Page):
    """Take a page out of its slots. The slots' references and the slots themselves are still to be given up.

    Context: page locked, i_pages held.
    Linux: mm/swap_state.c __delete_from_swap_cache
    """
    assert_spin_locked(cpu, swapper_space.i_pages)
    nr = hpage_nr_pages(page)
    entry = page.private
    bug_on(cpu, TestFlag(page, PG_locked) == 0 or PageSwapCache(page) == 0 or TestFlag(page, PG_writeback) != 0,
           "__delete_from_swap_cache: not locked, not cached or being written (values: pfn, slot)", page_to_pfn(page), entry)
    for i in range(nr):
        bug_on(cpu, swap_cache_slots[entry + i].value != page_to_pfn(page) + i + 1,
               "__delete_from_swap_cache: not in its slot (values: pfn, slot)", page_to_pfn(page) + i, entry + i)
        swap_cache_slots[entry + i].value = 0
        tail_page(page, i).private = 0
    account(cpu, page, -nr * CACHE)
    ClearFlag(page, PG_swapcache)
    swapper_space.nrpages = swapper_space.nrpages - nr
    mod_stat(cpu, Stat.NR_FILE_PAGES, -nr)


@kernel
def delete_from_swap_cache(cpu: Cpu, page: Page):
    """Take a page out of the cache, give its slots up, drop the cache's references.

    Context: head or small page, locked, not under writeback; the caller has a reference or a mapping under its ptl. Takes
    i_pages, then si.lock.
    Linux: mm/swap_state.c delete_from_swap_cache
    """
    bug_on(cpu, PageTail(page) != 0, "delete_from_swap_cache: a tail (value: pfn)", page_to_pfn(page), 0)
    entry = page.private
    spin_lock_irq(cpu, swapper_space.i_pages)
    __delete_from_swap_cache(cpu, page)
    spin_unlock_irq(cpu, swapper_space.i_pages)
    point(cpu, Point.SWAP_CACHE_DELETED)
    put_swap_page(cpu, page, entry)
    old = page_ref_sub(cpu, page, hpage_nr_pages(page))
    bug_on(cpu, old <= hpage_nr_pages(page), "delete_from_swap_cache: the caller had no reference (values: pfn, count)",
           page_to_pfn(page), old)


@kernel
def add_to_swap(cpu: Cpu, page: Page):
    """Give a page a place on the device and put it into the swap cache.

    Context: page locked, uptodate, head or small.
    Return: 1, or 0 when there is no room (for a THP: no free cluster).
    Linux: mm/swap_state.c add_to_swap
    """
    bug_on(cpu, PageTail(page) != 0 or TestFlag(page, PG_uptodate) == 0, "add_to_swap: a tail, or not uptodate (value: pfn)",
           page_to_pfn(page), 0)
    entry = get_swap_page(cpu, page)
    if entry == 0:
        return 0
    add_to_swap_cache(cpu, page, entry)
    # Always written: MADV_FREE may have cleaned it, and a clean page in the cache would be taken for one that is on the
    # device already.
    SetFlag(page, PG_dirty)
    return 1


@kernel
def try_to_free_swap(cpu: Cpu, page: Page):
    """Take a page out of the swap cache if no pte needs its slot.

    Context: page locked, the caller has a reference or a mapping under its ptl.
    Return: 1 when it left the cache.
    Linux: mm/swapfile.c try_to_free_swap
    """
    bug_on(cpu, TestFlag(page, PG_locked) == 0, "try_to_free_swap: not locked (value: pfn)", page_to_pfn(page), 0)
    if not PageSwapCache(page) or TestFlag(page, PG_writeback) or page_swapped(cpu, page):
        return 0
    head = compound_head(page)
    delete_from_swap_cache(cpu, head)
    SetFlag(head, PG_dirty)  # Its contents are nowhere else now.
    return 1


@inline
def free_swap_cache(cpu: Cpu, page: Page):
    """A page has just lost a mapping: if it was the last, its place in the swap cache may go with it."""
    if PageSwapCache(page):
        __free_swap_cache(cpu, compound_head(page))


@kernel
def __free_swap_cache(cpu: Cpu, page: Page):
    """Take a page out of the swap cache if nobody maps it and no pte needs its slot.

    Context: the caller has a reference. Any locks: the page lock is only tried.
    Linux: mm/swap_state.c free_swap_cache
    """
    if not page_mapped(page) and trylock_page(cpu, page):
        try_to_free_swap(cpu, page)
        unlock_page(cpu, page)


@kernel
def free_page_and_swap_cache(cpu: Cpu, page: Page):
    """Drop the reference of a mapping that is down, and the page's place in the swap cache if it was the last mapping.

    Context: the entry is down and flushed.
    Linux: mm/swap_state.c free_page_and_swap_cache
    """
    free_swap_cache(cpu, page)
    put_page(cpu, page)


@kernel
def free_swap_and_cache(cpu: Cpu, entry: int):
    """A swap pte is taken down for good: its slot, and the cached page if only the cache still holds it.

    Context: the pte's ptl held.
    Linux: mm/swapfile.c free_swap_and_cache, __try_to_reclaim_swap
    """
    if __swap_entry_free(cpu, entry) != SWAP_HAS_CACHE or swap_page_trans_huge_swapped(cpu, entry):
        return 0
    page = lookup_swap_cache(cpu, entry)
    if page:
        # Whoever has the lock (reclaim, a fault of another mm) finds the slot unused when it looks itself; or nobody
        # does, and reclaim drops the page some day.
        if trylock_page(cpu, page):
            if not page_mapped(page) or vm_swap_full():
                try_to_free_swap(cpu, page)
            unlock_page(cpu, page)
        put_page(cpu, page)
    return 0


@kernel
def drop_swap_cache(cpu: Cpu):
    """Take every page out of the swap cache whose slots no pte needs: what lost its last pte while others had its lock.

    Context: may sleep.
    Return: how many pages.
    Emulator: the part of swapoff that is needed to find an empty machine empty.
    """
    dropped = 0
    for entry in range(1, swap_info.max):
        page = lookup_swap_cache(cpu, entry)
        if page:
            lock_page(cpu, page)
            dropped += try_to_free_swap(cpu, page)
            unlock_page(cpu, page)
            put_page(cpu, page)
    return dropped


__all__ = [
    "add_to_swap", "add_to_swap_cache", "delete_from_swap_cache", "drop_swap_cache", "free_page_and_swap_cache",
    "free_swap_and_cache", "free_swap_cache", "lookup_swap_cache", "try_to_free_swap",
]
