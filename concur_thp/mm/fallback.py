"""When the lists of one migratetype are empty: stealing from another. (Linux: mm/page_alloc.c)

A pageblock is as large as a huge page. Kinds are kept apart by pageblock, so that unmovable pages spoil few.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import MAX_ORDER, pageblock_nr_pages, pageblock_order
from concur_thp.mm.buddy import (
    PageBuddy,
    __rmqueue_smallest,
    any_block,
    get_pageblock_migratetype,
    link_free,
    set_pageblock_migratetype,
    unlink_free,
)
from concur_thp.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_RECLAIMABLE,
    MIGRATE_UNMOVABLE,
    NIL,
    Page,
    Zone,
    mem_map,
)
from concur_thp.mm.page_flags import PG_lru, TestFlag, page_to_pfn
from concur_thp.mm.vmstat import Stat, count_vm_event
from concur_thp.sync.spinlock import assert_spin_locked


@inline
def find_suitable_fallback(zone: Zone, order: int, migratetype: int):
    """The block of this order to steal, of the first type in the order of Linux's table `fallbacks`; or NIL."""
    first = MIGRATE_UNMOVABLE if migratetype == MIGRATE_RECLAIMABLE else MIGRATE_RECLAIMABLE
    second = MIGRATE_UNMOVABLE if migratetype == MIGRATE_MOVABLE else MIGRATE_MOVABLE
    pfn = any_block(zone, order, first)
    return pfn if pfn != NIL else any_block(zone, order, second)


@inline
def can_steal_fallback(order: int, migratetype: int):
    """May everything free in the block's pageblock change its type?"""
    return order >= pageblock_order // 2 or migratetype != MIGRATE_MOVABLE


@kernel
def move_freepages_block(cpu: Cpu, zone: Zone, pfn: int, migratetype: int):
    """Move all free blocks of a pageblock to the lists of `migratetype`.

    Context: zone.lock held.
    Return: the pages moved; in cpu.scratch[0] the pages in use there that look movable.
    Linux: mm/page_alloc.c move_freepages_block
    """
    at = max(pfn & ~(pageblock_nr_pages - 1), zone.start_pfn)
    end = (pfn | (pageblock_nr_pages - 1)) + 1
    moved = 0
    movable = 0
    if end > zone.end_pfn:
        at = end  # A pageblock that the zone has only a part of is not moved.
    while at < end:
        page = mem_map[at]
        if PageBuddy(page):
            order = page.private
            unlink_free(zone, page, order)
            link_free(zone, page, order, migratetype)
            moved += 1 << order
            at += 1 << order
        else:
            # Racy: another CPU may be freeing or mapping the page right now. It only feeds a guess.
            movable += TestFlag(page, PG_lru)
            at += 1
    cpu.scratch[0] = movable
    return moved


@inline
def pages_alike(pfn: int, migratetype: int, free_pages: int, movable_pages: int):
    """How many used pages of a pageblock suit the type that wants it."""
    if migratetype == MIGRATE_MOVABLE:
        return movable_pages
    if get_pageblock_migratetype(pfn) == MIGRATE_MOVABLE:
        return pageblock_nr_pages - free_pages - movable_pages
    return 0  # Unmovable and reclaimable pages cannot be told apart.


@kernel
def steal_suitable_fallback(cpu: Cpu, zone: Zone, page: Page, migratetype: int, whole_block: int):
    """Bring one free block, and perhaps its whole pageblock, to the lists of `migratetype`.

    Context: zone.lock held.
    Linux: mm/page_alloc.c steal_suitable_fallback
    """
    pfn = page_to_pfn(page)
    order = page.private
    if order >= pageblock_order:
        for block in range(pfn, pfn + (1 << order), pageblock_nr_pages):
            set_pageblock_migratetype(block, migratetype)
    elif whole_block:
        free_pages = move_freepages_block(cpu, zone, pfn, migratetype)
        alike_pages = pages_alike(pfn, migratetype, free_pages, cpu.scratch[0])
        if free_pages != 0:
            if free_pages + alike_pages >= pageblock_nr_pages // 2:
                set_pageblock_migratetype(pfn, migratetype)
            return 0
    unlink_free(zone, page, order)
    link_free(zone, page, order, migratetype)
    return 0


@kernel
def __rmqueue_fallback(cpu: Cpu, zone: Zone, order: int, migratetype: int):
    """Steal a block from another migratetype, the largest there is; the caller then looks again.

    Context: zone.lock held.
    Return: 1 when something was stolen.
    Linux: mm/page_alloc.c __rmqueue_fallback
    """
    assert_spin_locked(cpu, zone.lock)
    victim = NIL
    current = MAX_ORDER - 1
    while current >= order:
        victim = find_suitable_fallback(zone, current, migratetype)
        if victim != NIL:
            break
        current -= 1
    if victim == NIL:
        return 0
    whole_block = can_steal_fallback(current, migratetype)
    if not whole_block and current > order:
        # Movable, and only small blocks are left: spoil the smallest one instead of the largest.
        current = order
        victim = find_suitable_fallback(zone, current, migratetype)
        while victim == NIL:
            current += 1
            victim = find_suitable_fallback(zone, current, migratetype)
    page = mem_map[victim]
    bug_on(cpu, not PageBuddy(page) or page.private != current,
           "__rmqueue_fallback: no free block of its order (values: pfn, order)", page_to_pfn(page), current)
    steal_suitable_fallback(cpu, zone, page, migratetype, whole_block)
    count_vm_event(cpu, Stat.alloc_fallback)
    return 1


@kernel
def __rmqueue(cpu: Cpu, zone: Zone, order: int, migratetype: int, pages: int) -> Page:
    """A block of `order` from the zone, or for order 0 up to `pages` neighbours; stolen if need be.

    Context: zone.lock held.
    Return: the first page, NULL when no type has a block large enough; how many there are in cpu.scratch[0].
    Linux: mm/page_alloc.c __rmqueue
    """
    page = __rmqueue_smallest(cpu, zone, order, migratetype, pages)
    while not page and __rmqueue_fallback(cpu, zone, order, migratetype):
        page = __rmqueue_smallest(cpu, zone, order, migratetype, pages)
    return page
