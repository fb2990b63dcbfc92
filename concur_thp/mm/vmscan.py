"""Reclaim: which pages to look at, how hard, and for whom. (Linux: mm/vmscan.c)

Each LRU has an inactive and an active list for anon and for file pages. A round looks at 1/2**priority of each list, priority
falling from 12 to 0 until enough is reclaimed; anon lists only while the swap device has room. Lists without memory of what
was evicted: no refault distances, equal pressure on all. Direct reclaim and kswapd differ in who runs them and when they stop.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import defines, inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, I64, Struct, field
from concur_thp.arch.system import system
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.config import HPAGE_PMD_NR, NR_CPUS
from concur_thp.mm import alloc_slowpath
from concur_thp.mm.deferred_split_drain import SHRINK_STOP, deferred_split_count, deferred_split_scan
from concur_thp.mm.flags import VM_EXEC
from concur_thp.mm.huge_zero import shrink_huge_zero_page
from concur_thp.mm.isolate_lru import isolate_lru_pages, move_pages_to_lru
from concur_thp.mm.lru import (
    LRU_ACTIVE,
    LRU_FILE,
    LRU_INACTIVE_ANON,
    LRU_UNEVICTABLE,
    page_evictable,
    page_is_file_cache,
)
from concur_thp.mm.mm_types import pgdat
from concur_thp.mm.page_alloc import gfpflags_to_migratetype
from concur_thp.mm.page_flags import PG_active, PG_workingset, hpage_nr_pages
from concur_thp.mm.page_list import (
    LIST_ACTIVE,
    LIST_INACTIVE,
    LIST_PAGES,
    LIST_RET,
    list_add,
    list_empty,
    list_pop,
    page_list,
)
from concur_thp.mm.page_referenced import page_referenced
from concur_thp.mm.pcp import highest_zone
from concur_thp.mm.put_page import SWAP_CLUSTER_MAX
from concur_thp.mm.shrink_page_list import shrink_page_list
from concur_thp.mm.swap import lru_add_drain, putback_lru_page
from concur_thp.mm.swap_map import get_nr_swap_pages
from concur_thp.mm.vmstat import Stat, mod_stat
from concur_thp.sync.lockdep import might_sleep
from concur_thp.sync.spinlock import spin_lock_irq, spin_unlock_irq

DEF_PRIORITY = 12
SHRINK_BATCH = 128


class ScanControl(Struct, size=64):
    """struct scan_control: what one round of reclaim is about, and what came of it."""

    nr_to_reclaim = field(I64, "cpu", "enough")
    nr_scanned = field(I64, "cpu", "pages looked at")
    nr_reclaimed = field(I64, "cpu", "pages reclaimed")
    priority = field(I32, "cpu", "look at 1/2**priority of each list")
    is_kswapd = field(I32, "cpu", "1 for kswapd")
    active = field(I32, "cpu", "1 while this CPU reclaims")
    zone_limit = field(I32, "cpu", "pages of this zone and above are of no use (Linux: reclaim_idx, one less); 0: all are")


scan_controls = SharedArray("scan_controls", ScanControl, lambda config: NR_CPUS)


@inline
def lru_size(number: int):
    """Pages of a list. A hint without lru_lock."""
    return pgdat.lru[number].size


@inline
def inactive_list_is_low(inactive: int):
    """Has the inactive list, by its number, become shorter than the active one? (inactive_ratio is 1 below 1 GiB)"""
    return lru_size(inactive) < lru_size(inactive + LRU_ACTIVE)


@kernel
def shrink_inactive_list(cpu: Cpu, nr_to_scan: int, number: int):
    """Isolate a batch of an inactive list and reclaim what can be.

    Context: no lock; mmap_sem may be held. May sleep.
    Return: pages reclaimed.
    Linux: mm/vmscan.c shrink_inactive_list
    Differs: does not wait while others have isolated too much.
    """
    sc = scan_controls[cpu.id]
    pages = page_list(cpu, LIST_PAGES)
    lru_add_drain(cpu)
    spin_lock_irq(cpu, pgdat.lru_lock)
    taken = isolate_lru_pages(cpu, number, nr_to_scan, sc.zone_limit, pages)
    spin_unlock_irq(cpu, pgdat.lru_lock)
    if taken == 0:
        return 0
    point(cpu, Point.RECLAIM_ISOLATED)
    reclaimed = shrink_page_list(cpu, pages)
    move_pages_to_lru(cpu, page_list(cpu, LIST_RET))
    pgdat.isolated.sub(taken)
    trace(cpu, Tracepoint.mm_vmscan_lru_shrink_inactive, number, taken, reclaimed)
    sc.nr_scanned = sc.nr_scanned + taken
    mod_stat(cpu, Stat.pgscan_kswapd if sc.is_kswapd else Stat.pgscan_direct, taken)
    mod_stat(cpu, Stat.pgsteal_kswapd if sc.is_kswapd else Stat.pgsteal_direct, reclaimed)
    return reclaimed


@kernel
def shrink_active_list(cpu: Cpu, nr_to_scan: int, number: int):
    """Move a batch of an active list to the inactive one; what runs from a file stays if it was used.

    Context: no lock; mmap_sem may be held. May sleep.
    Linux: mm/vmscan.c shrink_active_list
    """
    sc = scan_controls[cpu.id]
    pages = page_list(cpu, LIST_PAGES)
    lru_add_drain(cpu)
    spin_lock_irq(cpu, pgdat.lru_lock)
    taken = isolate_lru_pages(cpu, number, nr_to_scan, sc.zone_limit, pages)
    spin_unlock_irq(cpu, pgdat.lru_lock)
    page = list_pop(pages)
    while page:
        if not page_evictable(page):
            putback_lru_page(cpu, page)
        else:
            used = page_referenced(cpu, page, 0)
            if used and cpu.scratch[0] & VM_EXEC and page_is_file_cache(page.flags.read()):
                list_add(page_list(cpu, LIST_ACTIVE), page)
            else:
                page.flags.and_(~(1 << PG_active))
                page.flags.or_(1 << PG_workingset)
                mod_stat(cpu, Stat.pgdeactivate, hpage_nr_pages(page))
                list_add(page_list(cpu, LIST_INACTIVE), page)
        page = list_pop(pages)
    move_pages_to_lru(cpu, page_list(cpu, LIST_ACTIVE))
    move_pages_to_lru(cpu, page_list(cpu, LIST_INACTIVE))
    pgdat.isolated.sub(taken)


@inline
def shrink_list(cpu: Cpu, number: int, nr_to_scan: int):
    """One batch of one list; returns pages reclaimed."""
    reclaimed = 0
    if number & LRU_ACTIVE == 0:
        reclaimed = shrink_inactive_list(cpu, nr_to_scan, number)
    elif inactive_list_is_low(number - LRU_ACTIVE):
        shrink_active_list(cpu, nr_to_scan, number)
    return reclaimed


@inline
def may_scan(number: int):
    """Anon pages have somewhere to go only while the device has room."""
    return number >= LRU_INACTIVE_ANON + LRU_FILE or get_nr_swap_pages() > 0


@kernel
def shrink_node(cpu: Cpu):
    """Look at the share of every list that the priority says, a batch of each in turn, until enough is reclaimed.

    Context: no lock; mmap_sem may be held. May sleep.
    Linux: mm/vmscan.c shrink_node_memcg, get_scan_count
    Differs: the same share of every list, whatever zones its pages are in; Linux weighs anon against file by how often evicted
    pages came back, and counts the zones that are looked at.
    """
    sc = scan_controls[cpu.id]
    done = 0
    more = 1
    while more and sc.nr_reclaimed < sc.nr_to_reclaim and system.panicked.read() == 0:
        more = 0
        for number in range(LRU_UNEVICTABLE):
            left = (lru_size(number) >> sc.priority) - done
            if left > 0 and may_scan(number):
                more = 1
                sc.nr_reclaimed = sc.nr_reclaimed + shrink_list(cpu, number, min(left, SWAP_CLUSTER_MAX))
        done += SWAP_CLUSTER_MAX
    # Also when anon pages were not looked at: their lists must not get out of balance meanwhile.
    if may_scan(LRU_INACTIVE_ANON) and inactive_list_is_low(LRU_INACTIVE_ANON):
        shrink_active_list(cpu, SWAP_CLUSTER_MAX, LRU_INACTIVE_ANON + LRU_ACTIVE)


@kernel
def shrink_slab(cpu: Cpu):
    """Ask the shrinkers: THPs with unused pieces are split, an unused huge zero page is freed.

    Context: no lock but mmap_sem. May sleep.
    Linux: mm/vmscan.c shrink_slab, do_shrink_slab
    Differs: two shrinkers in a fixed order.
    """
    sc = scan_controls[cpu.id]
    freeable = deferred_split_count()
    if freeable > 0:
        # A share by priority as for the LRU lists, but not less than a batch.
        total = min(max(2 * (freeable >> sc.priority), min(freeable, SHRINK_BATCH)), 2 * freeable)
        while total > 0 and deferred_split_scan(cpu, min(total, SHRINK_BATCH)) != SHRINK_STOP:
            total -= SHRINK_BATCH
    if pgdat.huge_zero_refcount.read() == 1:
        shrink_huge_zero_page(cpu)


@kernel
def do_try_to_free_pages(cpu: Cpu, nr_to_reclaim: int, is_kswapd: int):
    """Rounds of rising effort until `nr_to_reclaim` pages are reclaimed, or nothing more can be done.

    Context: no lock but mmap_sem. May sleep.
    Return: pages reclaimed.
    Linux: mm/vmscan.c do_try_to_free_pages
    """
    might_sleep(cpu)
    sc = scan_controls[cpu.id]
    bug_on(cpu, sc.active != 0 or not list_empty(page_list(cpu, LIST_PAGES)), "reclaim inside of reclaim (value: cpu)", cpu.id,
           sc.nr_scanned)
    sc.active = 1
    sc.nr_to_reclaim = nr_to_reclaim
    sc.nr_scanned = 0
    sc.nr_reclaimed = 0
    sc.is_kswapd = is_kswapd
    sc.priority = DEF_PRIORITY
    while sc.priority >= 0 and sc.nr_reclaimed < nr_to_reclaim and system.panicked.read() == 0:
        shrink_node(cpu)
        shrink_slab(cpu)
        sc.priority = sc.priority - 1
    sc.active = 0
    return sc.nr_reclaimed


@defines(alloc_slowpath.try_to_free_pages)
def try_to_free_pages(cpu: Cpu, order: int, gfp: int):
    """Direct reclaim: who needs memory and finds none reclaims some himself.

    Context: no spinlock, no rmap lock; mmap_sem may be held. May sleep.
    Return: pages reclaimed.
    Linux: mm/vmscan.c try_to_free_pages
    Differs: for a huge page as much as it has pages at most, then compaction has its chance.
    """
    sc = scan_controls[cpu.id]
    sc.zone_limit = highest_zone(gfpflags_to_migratetype(gfp)) + 1
    reclaimed = do_try_to_free_pages(cpu, SWAP_CLUSTER_MAX if order == 0 else HPAGE_PMD_NR, 0)
    sc.zone_limit = 0
    return reclaimed


__all__ = ["do_try_to_free_pages", "shrink_active_list", "shrink_inactive_list", "shrink_node", "shrink_slab",
           "try_to_free_pages"]
