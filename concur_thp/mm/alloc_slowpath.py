"""When the lists have nothing above the low watermark: wake kswapd, reclaim, compact, and in the end say no.
(Linux: mm/page_alloc.c)

A huge page is not worth much trouble: one round, then the caller falls back to small pages. For a small page reclaim goes on
as long as it gets anywhere; after that the answer is NULL, which becomes -ENOMEM for the program. Nothing waits for ever.
"""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.futex import ALL_WAITERS, futex_wake
from concur_thp.arch.linker import inline, kernel, weak
from concur_thp.arch.shared import SharedOne
from concur_thp.arch.struct import I32, Struct, atomic, field
from concur_thp.config import HPAGE_PMD_ORDER
from concur_thp.mm.buddy import WMARK_MIN
from concur_thp.mm.flags import __GFP_DIRECT_RECLAIM, __GFP_KSWAPD_RECLAIM, __GFP_NORETRY
from concur_thp.mm.mm_types import Page
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.rmqueue import get_page_from_freelist
from concur_thp.mm.vmstat import Stat, count_vm_event
from concur_thp.sync.lockdep import might_sleep

MAX_RECLAIM_RETRIES = 16
"""Rounds without progress after which a small page is given up."""
COMPACT_DEFERRED = COMPACT_INACTIVE = 2
"""Compaction was left out in some zone as it failed there lately; up to here nothing was done (Linux: enum compact_result)."""
MAX_RECLAIM_ROUNDS = 256
"""Rounds in all: others may take what we reclaim, but not for ever."""


class KswapdWait(Struct, size=64):
    """How kswapd is woken."""

    wakeups = atomic(I32, "futex: wake-ups asked for")
    asleep = atomic(I32, "1 while kswapd sleeps")
    served = field(I32, "cpu", "kswapd's: the wake-ups it has seen")


kswapd_wait = SharedOne("kswapd_wait", KswapdWait)


class KcompactdWait(Struct, size=64):
    """What kcompactd is asked for."""

    max_order = atomic(I32, "the largest order that an allocation wanted and did not find; 0: nothing to do")


kcompactd_wait = SharedOne("kcompactd_wait", KcompactdWait)


@weak
def try_to_free_pages(cpu: Cpu, order: int, gfp: int):
    """Reclaim some pages for an allocation of this order.

    Context: no spinlock, no rmap lock; mmap_sem may be held. May sleep.
    Return: pages reclaimed.
    Linux: mm/vmscan.c try_to_free_pages
    Differs: the stand-in without mm/vmscan.py, which has the real one: there is nothing to reclaim.
    """
    return 0


@weak
def try_to_compact_pages(cpu: Cpu, order: int, gfp: int):
    """Move pages so that a free block of this order comes together.

    Context: no spinlock, no rmap lock; mmap_sem may be held. May sleep.
    Return: COMPACT_*; up to COMPACT_INACTIVE nothing was done.
    Linux: mm/compaction.c try_to_compact_pages
    Differs: the stand-in without mm/compaction.py, which has the real one: nothing is moved.
    """
    return 0


@inline
def wake_all_kswapds():
    """Memory is below the low watermark: set kswapd to work, if it sleeps."""
    kswapd_wait.wakeups.add(1)
    if kswapd_wait.asleep.load() != 0:
        futex_wake(kswapd_wait, ALL_WAITERS)


@inline
def wakeup_kcompactd(order: int):
    """A block of this order is missing; kcompactd looks here now and then."""
    if kcompactd_wait.max_order.read() < order:
        kcompactd_wait.max_order.store(order)


@kernel
def __alloc_pages_slowpath(cpu: Cpu, order: int, migratetype: int, gfp: int) -> Page:
    """The lists have nothing above the low watermark.

    Context: as alloc_pages().
    Return: a block that is not prepared yet; NULL.
    Linux: mm/page_alloc.c __alloc_pages_slowpath
    Differs: no reserves for those who free memory: reclaim allocates nothing. No OOM killer. kcompactd is told here, not by
    kswapd on its way to sleep.
    """
    if gfp & __GFP_KSWAPD_RECLAIM:
        wake_all_kswapds()
        wakeup_kcompactd(order)
    page = get_page_from_freelist(cpu, order, migratetype, WMARK_MIN)
    if not page and gfp & __GFP_DIRECT_RECLAIM:
        page = alloc_pages_direct(cpu, order, migratetype, gfp)
        if not page and not costly(order):
            count_vm_event(cpu, Stat.alloc_failed)
    return page


@inline
def costly(order: int):
    """A huge page: nobody fails without it. (Linux: order > PAGE_ALLOC_COSTLY_ORDER; a geometry may have smaller ones.)"""
    return order >= HPAGE_PMD_ORDER


@kernel
def alloc_pages_direct(cpu: Cpu, order: int, migratetype: int, gfp: int) -> Page:
    """Reclaim and compact for this allocation until it succeeds or is given up.

    Context: may sleep.
    Return: a block that is not prepared yet; NULL.
    Linux: mm/page_alloc.c __alloc_pages_slowpath, from its direct compaction on
    Differs: drains this CPU's lists only; Linux has every CPU drain its own.
    """
    might_sleep(cpu)
    page = __alloc_pages_direct_compact(cpu, order, migratetype, gfp)
    if not page and gfp & __GFP_NORETRY and cpu.scratch[0] == COMPACT_DEFERRED:
        return page  # It would come to nothing, and whoever asked has small pages to fall back to: reclaim nothing for him.
    idle = 0
    rounds = 0
    while not page and idle < MAX_RECLAIM_RETRIES and rounds < MAX_RECLAIM_ROUNDS:
        progress = __alloc_pages_direct_reclaim(cpu, order, gfp)
        page = get_page_from_freelist(cpu, order, migratetype, WMARK_MIN)
        if not page:
            drain_pcp(cpu)  # What we have just freed may be on our own lists, where no block grows from it.
            page = get_page_from_freelist(cpu, order, migratetype, WMARK_MIN)
        if not page:
            page = __alloc_pages_direct_compact(cpu, order, migratetype, gfp)
        idle = 0 if progress else idle + 1
        rounds += 1
        if costly(order) or gfp & __GFP_NORETRY:
            break
    return page


@inline
def __alloc_pages_direct_compact(cpu: Cpu, order: int, migratetype: int, gfp: int) -> Page:
    """Compact, then look again; COMPACT_* in cpu.scratch[0]. Counted when at least one zone was not left out; success is to
    have the block."""
    page = Page(0)
    result = try_to_compact_pages(cpu, order, gfp) if costly(order) else 0
    if result > COMPACT_INACTIVE:
        count_vm_event(cpu, Stat.compact_stall)
        page = get_page_from_freelist(cpu, order, migratetype, WMARK_MIN)
        count_vm_event(cpu, Stat.compact_success if page else Stat.compact_fail)
    cpu.scratch[0] = result
    return page


@inline
def __alloc_pages_direct_reclaim(cpu: Cpu, order: int, gfp: int):
    """Reclaim as part of this allocation; pages reclaimed."""
    count_vm_event(cpu, Stat.allocstall)
    return try_to_free_pages(cpu, order, gfp)


__all__ = ["__alloc_pages_slowpath", "kcompactd_wait", "kswapd_wait", "try_to_compact_pages", "try_to_free_pages"]
