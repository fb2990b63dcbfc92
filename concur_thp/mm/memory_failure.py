"""A broken frame: its page leaves every address space, and the frame the allocator. (Linux: mm/memory-failure.c)

A huge page is split first, so that one small page is lost and not N. Whoever had it mapped finds a hwpoison entry, and an
access ends with SIGBUS: the data is lost, but never wrong. The frame stays with one reference, which nobody drops until
unpoison_memory() says that it was a false alarm.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.mm.errno import EBUSY, EHWPOISON
from concur_thp.mm.mm_types import Page
from concur_thp.mm.page_flags import (
    ClearFlag,
    PageAnon,
    PageCompound,
    PageHead,
    PageHWPoison,
    PageSwapCache,
    PG_active,
    PG_dirty,
    PG_hwpoison,
    PG_lru,
    PG_referenced,
    PG_unevictable,
    PG_uptodate,
    PG_writeback,
    TestFlag,
    compound_head,
    page_to_pfn,
)
from concur_thp.mm.page_lock import assert_page_locked, lock_page, unlock_page
from concur_thp.mm.page_ref import get_page_unless_zero, page_ref_count
from concur_thp.mm.rmap import page_mapped
from concur_thp.mm.split_huge_page import split_huge_page
from concur_thp.mm.swap import isolate_lru_page, lru_add_drain, put_page, putback_lru_page
from concur_thp.mm.try_to_unmap import (
    TTU_HWPOISON,
    TTU_IGNORE_ACCESS,
    TTU_IGNORE_MLOCK,
    TTU_SYNC,
    try_to_unmap,
)
from concur_thp.mm.vmstat import Stat, count_vm_event

TTU_FAILURE = TTU_IGNORE_MLOCK | TTU_IGNORE_ACCESS | TTU_SYNC


@kernel
def get_hwpoison_page(cpu: Cpu, page: Page):
    """Take a reference of the page that a frame belongs to, knowing nothing but the frame (R34).

    Context: any.
    Return: 1 when taken; 0 when it is free, frozen, changing, or of a kind that cannot be handled.
    Linux: mm/memory-failure.c get_hwpoison_page
    """
    head = compound_head(page)
    if PageHead(head) and not PageAnon(head):
        return 0
    if not get_page_unless_zero(head):
        return 0
    if compound_head(page) == head:
        return 1
    put_page(cpu, head)  # Split, or freed and allocated again, while we looked.
    return 0


@kernel
def memory_failure(cpu: Cpu, page: Page):
    """Take a broken frame out of use.

    Context: no lock, and no reference: the frame may be anything. Takes page locks, the rmap lock. Sleeps.
    Return: 0: nobody uses the frame any more, one reference keeps it; -EBUSY: it goes on being used; -EHWPOISON: known.
    Linux: mm/memory-failure.c memory_failure
    Differs: anonymous pages only, the others and free frames are left in use; says -EHWPOISON, as since v5.14; a failure
    leaves no mark.
    """
    if not get_hwpoison_page(cpu, page):
        return -EBUSY
    if page.flags.or_(1 << PG_hwpoison) >> PG_hwpoison & 1:
        put_page(cpu, page)
        return -EHWPOISON
    error = 0
    if PageCompound(page):
        # With our reference nobody else can split it; and after our split the reference is this subpage's.
        lock_page(cpu, page)
        error = split_huge_page(cpu, page) if PageAnon(page) and TestFlag(page, PG_lru) else -EBUSY
        unlock_page(cpu, page)
    if error == 0:
        lru_add_drain(cpu)  # shake_page()
        lock_page(cpu, page)
        error = hwpoison_small_page(cpu, page)
        unlock_page(cpu, page)
    if error != 0:
        page.flags.and_(~(1 << PG_hwpoison))
        put_page(cpu, page)
        return -EBUSY
    count_vm_event(cpu, Stat.memory_failure)
    return 0


@kernel
def hwpoison_small_page(cpu: Cpu, page: Page):
    """Unmap a broken small page everywhere and take it off the LRU for good.

    Context: page lock held and a reference, which stays with the frame.
    Return: 0 or -EBUSY: it is as it was, but that some mappings may be lost.
    Linux: mm/memory-failure.c hwpoison_user_mappings, me_pagecache_clean, me_swapcache_dirty
    Differs: isolated before it is unmapped, so that what comes after cannot fail; a clean page of the swap cache is not
    dropped for its copy on the device, because a pin may have parted the two.
    """
    assert_page_locked(cpu, page)
    if PageCompound(page) or not TestFlag(page, PG_lru) or not PageAnon(page) or TestFlag(page, PG_writeback):
        return -EBUSY
    if not isolate_lru_page(cpu, page):
        return -EBUSY
    # In the swap cache the entries become swap entries, which lead to the page, and do_swap_page() looks at its mark.
    cached = PageSwapCache(page)
    unmapped = try_to_unmap(cpu, page, TTU_FAILURE if cached else TTU_FAILURE | TTU_HWPOISON)
    point(cpu, Point.MEMORY_FAILURE_UNMAPPED)
    if not unmapped:
        putback_lru_page(cpu, page)
        return -EBUSY
    page.flags.and_(~(1 << PG_active | 1 << PG_unevictable | 1 << PG_referenced))
    if cached:
        page.flags.and_(~(1 << PG_dirty | 1 << PG_uptodate))
    put_page(cpu, page)  # The isolation's.
    return 0


@kernel
def unpoison_memory(cpu: Cpu, page: Page):
    """A frame is good after all: give it back to the allocator. What it held stays lost.

    Context: memory_failure() of the page has returned 0, to the caller; nobody else unpoisons it. May sleep.
    Return: 0; -EBUSY: pins or a swap slot still hold the page.
    Linux: mm/memory-failure.c unpoison_memory
    """
    bug_on(cpu, PageCompound(page) or not PageHWPoison(page), "unpoison: not a poisoned page (value: pfn)",
           page_to_pfn(page), page.flags.read())
    # In the order in which they can only go: mapped again it is never, and out of the swap cache it does not come back.
    if page_mapped(page) or PageSwapCache(page) or page_ref_count(page) > 1:
        return -EBUSY
    ClearFlag(page, PG_hwpoison)
    count_vm_event(cpu, Stat.memory_unpoisoned)
    put_page(cpu, page)
    return 0


__all__ = ["get_hwpoison_page", "hwpoison_small_page", "memory_failure", "unpoison_memory"]
