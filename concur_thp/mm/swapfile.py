"""Swap entries taken, duplicated and given up. (Linux: mm/swapfile.c)

    get_swap_page     a slot (a THP: a cluster) for a page that enters the swap cache
    swap_duplicate    one more pte holds the slot         swap_free       one less
    swapcache_prepare the cache takes it again            put_swap_page   the cache gives it up
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import HPAGE_PMD_NR
from concur_thp.mm.errno import EEXIST, ENOENT
from concur_thp.mm.mm_types import Page
from concur_thp.mm.page_flags import PageCompound, PageSwapCache, PageTransHuge, compound_head, hpage_nr_pages
from concur_thp.mm.swap_map import (
    CLUSTER_FLAG_HUGE,
    SWAP_COUNT,
    SWAP_HAS_CACHE,
    cluster_is_huge,
    cluster_of,
    cluster_start,
    free_slot,
    scan_swap_map,
    swap_alloc_cluster,
    swap_count,
    swap_info,
    swap_map,
)
from concur_thp.mm.thp_sysfs import thp
from concur_thp.sync.spinlock import spin_lock, spin_unlock


@inline
def check_entry(cpu: Cpu, entry: int):
    """A pte or a cached page names a slot, so it is in use."""
    bug_on(cpu, entry <= 0 or entry >= swap_info.max or swap_map[entry].count == 0,
           "swap: a bad or unused entry (values: slot, slots)", entry, swap_info.max)


@kernel
def get_swap_page(cpu: Cpu, page: Page):
    """A slot for a page that is about to enter the swap cache, for a THP a whole cluster.

    Context: page locked; takes si.lock.
    Return: the (first) slot, 0 when there is none.
    Linux: mm/swap_slots.c get_swap_page
    Differs: the switch swap_whole_thp = 0 leaves no cluster to THPs (C.4: the VM splits before swap-out).
    """
    entry = 0
    if swap_info.pages != 0 and not (PageTransHuge(page) and thp.swap_whole_thp == 0):
        spin_lock(cpu, swap_info.lock)
        entry = swap_alloc_cluster(cpu) if PageTransHuge(page) else scan_swap_map(cpu)
        spin_unlock(cpu, swap_info.lock)
    return entry


@kernel
def put_swap_page(cpu: Cpu, page: Page, entry: int):
    """The swap cache gives up the slots of a page; those that no pte holds are free.

    Context: takes si.lock. The page is out of the cache's slots already, or never was in.
    Linux: mm/swapfile.c put_swap_page
    """
    size = hpage_nr_pages(page)
    spin_lock(cpu, swap_info.lock)
    if size != 1:
        cluster = cluster_of(entry)
        bug_on(cpu, not cluster_is_huge(cluster), "put_swap_page: the cluster of a THP is not huge (value: slot)", entry, 0)
        cluster.flags = cluster.flags & ~CLUSTER_FLAG_HUGE
    for i in range(size):
        slot = swap_map[entry + i]
        bug_on(cpu, slot.count & SWAP_HAS_CACHE == 0, "put_swap_page: not the cache's (values: slot, count)", entry + i,
               slot.count)
        slot.count = slot.count & ~SWAP_HAS_CACHE
        if slot.count == 0:
            free_slot(cpu, entry + i)
    spin_unlock(cpu, swap_info.lock)


@kernel
def swap_duplicate(cpu: Cpu, entry: int):
    """One more pte holds a slot.

    Context: the caller keeps the slot in use: a cached page's lock, or the ptl of another pte that holds it. Takes si.lock.
    Linux: mm/swapfile.c swap_duplicate
    Differs: cannot fail: counts are as wide as there can be ptes.
    """
    spin_lock(cpu, swap_info.lock)
    check_entry(cpu, entry)
    swap_map[entry].count = swap_map[entry].count + 1
    spin_unlock(cpu, swap_info.lock)


@kernel
def swapcache_prepare(cpu: Cpu, entry: int):
    """The swap cache takes a slot that a pte holds, for a page about to be read in.

    Context: takes si.lock.
    Return: 0; -EEXIST: another page has it or just loses it; -ENOENT: no pte holds it any more.
    Linux: mm/swapfile.c swapcache_prepare
    """
    result = 0
    spin_lock(cpu, swap_info.lock)
    slot = swap_map[entry]
    if slot.count == 0:
        result = -ENOENT
    elif slot.count & SWAP_HAS_CACHE:
        result = -EEXIST
    else:
        slot.count = slot.count | SWAP_HAS_CACHE
    spin_unlock(cpu, swap_info.lock)
    return result


@kernel
def __swap_entry_free(cpu: Cpu, entry: int):
    """One pte less holds a slot; the last holder frees it.

    Context: the pte is down, or holds its page again; takes si.lock.
    Return: what is left: SWAP_HAS_CACHE alone means that only the cache holds the slot.
    Linux: mm/swapfile.c __swap_entry_free
    """
    spin_lock(cpu, swap_info.lock)
    check_entry(cpu, entry)
    slot = swap_map[entry]
    bug_on(cpu, slot.count & SWAP_COUNT == 0, "swap_free: no pte holds it (values: slot, count)", entry, slot.count)
    slot.count = slot.count - 1
    left = slot.count
    if left == 0:
        free_slot(cpu, entry)
    spin_unlock(cpu, swap_info.lock)
    return left


@inline
def swap_free(cpu: Cpu, entry: int):
    """One pte less holds a slot."""
    __swap_entry_free(cpu, entry)


@inline
def __page_swapcount(page: Page):
    """Swap ptes for this very (sub)page; si.lock held."""
    return swap_count(page.private)


@kernel
def page_swapcount(cpu: Cpu, page: Page):
    """Swap ptes for this very (sub)page of the swap cache.

    Context: page locked; takes si.lock.
    Return: the count.
    Linux: mm/swapfile.c page_swapcount
    """
    spin_lock(cpu, swap_info.lock)
    count = __page_swapcount(page)
    spin_unlock(cpu, swap_info.lock)
    return count


@kernel
def swap_page_trans_huge_swapped(cpu: Cpu, entry: int):
    """Does a pte hold this slot, or, in a huge cluster, any slot of the cluster?

    Context: takes si.lock.
    Return: 1 or 0.
    Linux: mm/swapfile.c swap_page_trans_huge_swapped
    """
    spin_lock(cpu, swap_info.lock)
    swapped = swap_count(entry) != 0
    if cluster_is_huge(cluster_of(entry)):
        first = cluster_start(entry)
        for i in range(HPAGE_PMD_NR):
            if swap_count(first + i) != 0:
                swapped = 1
                break
    spin_unlock(cpu, swap_info.lock)
    return swapped


@kernel
def page_swapped(cpu: Cpu, page: Page):
    """Is there a swap pte for the page or, for a THP, any of its subpages?

    Context: page locked and in the swap cache; takes si.lock.
    Return: 1 or 0.
    Linux: mm/swapfile.c page_swapped
    """
    bug_on(cpu, not PageSwapCache(page), "page_swapped: not in the swap cache (value: slot)", page.private, 0)
    if PageCompound(page):
        return swap_page_trans_huge_swapped(cpu, compound_head(page).private)
    return page_swapcount(cpu, page) != 0


@kernel
def split_swap_cluster(cpu: Cpu, entry: int):
    """A THP in the swap cache was split: each piece keeps its slot, the cluster is an ordinary one.

    Context: page locked; takes si.lock.
    Linux: mm/swapfile.c split_swap_cluster
    """
    spin_lock(cpu, swap_info.lock)
    cluster = cluster_of(entry)
    bug_on(cpu, not cluster_is_huge(cluster), "split_swap_cluster: not a huge cluster (value: slot)", entry, cluster.flags)
    cluster.flags = cluster.flags & ~CLUSTER_FLAG_HUGE
    spin_unlock(cpu, swap_info.lock)


__all__ = [
    "get_swap_page", "page_swapcount", "page_swapped", "put_swap_page", "split_swap_cluster", "swap_duplicate", "swap_free",
    "swap_page_trans_huge_swapped", "swapcache_prepare",
]
