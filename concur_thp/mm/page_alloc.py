"""Pages for everybody: allocation and freeing. (Linux: mm/page_alloc.c)

A page comes with one reference, no mapping, no flags and mapcount -1, and is brought back like that, the
reference gone. The frames of a huge page come as a compound page (__GFP_COMP). Below are pcp.py for small
pages, fallback.py and buddy.py for blocks, rmqueue.py and alloc_slowpath.py that decide where to look and what to
do when there is nothing; page_check.py and compound.py say what a page must look like.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.builtins import cycles
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.trace import Tracepoint, trace, trace_at
from concur_thp.config import MAX_ORDER
from concur_thp.mm.alloc_slowpath import __alloc_pages_slowpath
from concur_thp.mm.buddy import WMARK_LOW, __free_one_page, get_pageblock_migratetype, zone_nr
from concur_thp.mm.compound import free_compound_tails, prep_compound_page
from concur_thp.mm.flags import (
    __GFP_COMP,
    __GFP_DIRECT_RECLAIM,
    __GFP_MOVABLE,
    __GFP_RECLAIMABLE,
    __GFP_ZERO,
)
from concur_thp.mm.highmem import clear_frames
from concur_thp.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_RECLAIMABLE,
    MIGRATE_TYPES,
    MIGRATE_UNMOVABLE,
    NIL,
    Page,
    Slot,
    mem_map,
    zones,
)
from concur_thp.mm.page_check import check_new_page, free_page_check
from concur_thp.mm.page_flags import PageAnon, PageHead, compound_head, page_to_pfn, tail_page
from concur_thp.mm.page_ref import put_page_testzero, set_page_count
from concur_thp.mm.pcp import free_unref_page, highest_zone, pcp_list, pcp_pop
from concur_thp.mm.rmqueue import get_page_from_freelist
from concur_thp.mm.vmstat import Stat, mod_stat
from concur_thp.sync.lockdep import might_sleep
from concur_thp.sync.spinlock import spin_lock_irq, spin_unlock_irq

# -- allocation ------------------------------------------------------------------------------------------


@inline
def gfpflags_to_migratetype(gfp: int):
    if gfp & __GFP_MOVABLE:
        return MIGRATE_MOVABLE
    return MIGRATE_RECLAIMABLE if gfp & __GFP_RECLAIMABLE else MIGRATE_UNMOVABLE


@inline
def prep_new_page(cpu: Cpu, page: Page, order: int, migratetype: int, gfp: int):
    """Make a block what its new owner expects; last, the reference: now scanners can take theirs too."""
    check_new_page(cpu, page)
    page.private = 0
    if gfp & __GFP_ZERO:
        clear_frames(page_to_pfn(page), 1 << order)
    if order != 0 and gfp & __GFP_COMP:
        prep_compound_page(cpu, page, order)
    set_page_count(page, 1)
    mod_stat(cpu, Stat.pgalloc, 1 << order)
    trace(cpu, Tracepoint.mm_page_alloc, page_to_pfn(page), order, migratetype)


@kernel
def alloc_pages(cpu: Cpu, order: int, migratetype: int, flags: int) -> Page:
    """Allocate 2**order frames that lie together.

    Context: takes zone.lock; with __GFP_DIRECT_RECLAIM it may sleep and take all that reclaim takes. `migratetype` must be
    the one that `flags` asks for (gfpflags_to_migratetype()).
    Return: the first page, with one reference; NULL when there is no such block.
    Linux: mm/page_alloc.c __alloc_pages_nodemask
    """
    bug_on(cpu, order < 0 or order >= MAX_ORDER or migratetype < 0 or migratetype >= MIGRATE_TYPES,
           "alloc_pages: no such order or migratetype", order, migratetype)
    bug_on(cpu, gfpflags_to_migratetype(flags) != migratetype,
           "alloc_pages: flags ask for another migratetype (values: flags, migratetype)", flags, migratetype)
    if flags & __GFP_DIRECT_RECLAIM:
        might_sleep(cpu)
    page = get_page_from_freelist(cpu, order, migratetype, WMARK_LOW)
    if not page:
        page = __alloc_pages_slowpath(cpu, order, migratetype, flags)
    if page:
        prep_new_page(cpu, page, order, migratetype, flags)
    return page


@kernel
def alloc_page(cpu: Cpu, gfp: int) -> Page:
    """Allocate one small page.

    Context: takes zone.lock when this CPU's list is empty.
    Return: the page, with one reference, or NULL.
    Linux: include/linux/gfp.h alloc_page
    """
    migratetype = gfpflags_to_migratetype(gfp)
    pcp = pcp_list(cpu, highest_zone(migratetype), migratetype)
    if gfp & __GFP_DIRECT_RECLAIM:
        might_sleep(cpu)  # Whether this time it would or not.
    if pcp.head == NIL:
        return alloc_pages(cpu, 0, migratetype, gfp)
    page = pcp_pop(pcp)
    prep_new_page(cpu, page, 0, migratetype, gfp)
    return page


# -- freeing ---------------------------------------------------------------------------------------------


@inline
def free_pages_prepare(cpu: Cpu, page: Page, order: int, when: int):
    """3.31.3: everything about the block is as it must be, and reset."""
    trace_at(cpu, when, Tracepoint.mm_page_free, page_to_pfn(page), order, 0)
    if PageHead(page):
        free_compound_tails(cpu, page, order)
    else:
        for i in range(1, 1 << order):
            free_page_check(cpu, tail_page(page, i))
    if PageAnon(page):
        page.mapping = 0  # Not before: rmap walkers may look at it as long as there is a reference.
    free_page_check(cpu, page)
    mod_stat(cpu, Stat.pgfree, 1 << order)


@kernel
def free_the_page(cpu: Cpu, page: Page, order: int):
    """Free a block whose last reference is gone.

    Context: takes zone.lock for a block, or when this CPU's list is full. A page table has had its page_type
    and `mapping` (the ptl) reset before.
    Linux: mm/page_alloc.c free_the_page, free_unref_page, __free_pages_ok
    """
    free_pages_prepare(cpu, page, order, cycles())
    pfn = page_to_pfn(page)
    if order == 0:
        free_unref_page(cpu, page, pfn)
    else:
        free_one_page(cpu, pfn, order)


@inline
def free_one_page(cpu: Cpu, pfn: int, order: int):
    """Give a block, already checked, to the buddy lists."""
    zone = zones[zone_nr(pfn)]
    spin_lock_irq(cpu, zone.lock)
    __free_one_page(cpu, zone, pfn, order, get_pageblock_migratetype(pfn))
    spin_unlock_irq(cpu, zone.lock)


@kernel
def free_blocks(cpu: Cpu, blocks: Slot, nr: int, order: int):
    """Free blocks of one order whose last references are gone, given as an array of pfns.

    Context: as free_the_page().
    Linux: mm/page_alloc.c __free_pages_ok, for several
    Differs: all are made ready before the first one is given back, so that zone.lock stays with this CPU.
    """
    when = cycles()
    for i in range(nr):
        free_pages_prepare(cpu, mem_map[Slot(int(blocks) + 4 * i).value], order, when)
    for i in range(nr):
        free_one_page(cpu, Slot(int(blocks) + 4 * i).value, order)


@kernel
def free_unref_page_list(cpu: Cpu, pages: Slot, nr: int):
    """Free small pages whose last references are gone, given as an array of pfns.

    Context: as free_the_page().
    Linux: mm/page_alloc.c free_unref_page_list
    Differs: one time stamp for all. Other CPUs can get none of them earlier.
    """
    when = cycles()
    for i in range(nr):
        pfn = Slot(int(pages) + 4 * i).value
        free_pages_prepare(cpu, mem_map[pfn], 0, when)
        free_unref_page(cpu, mem_map[pfn], pfn)


@kernel
def __free_pages(cpu: Cpu, page: Page, order: int):
    """Drop the reference of a block that was never mapped and is on no list; free it if it was the last.

    Context: as free_the_page().
    Linux: mm/page_alloc.c __free_pages
    """
    bug_on(cpu, compound_head(page) != page, "__free_pages: a tail (value: pfn)", page_to_pfn(page), order)
    if put_page_testzero(cpu, page):
        free_the_page(cpu, page, order)
