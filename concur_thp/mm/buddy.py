"""The buddy allocator: free blocks of 2**order frames, split when asked for, merged when freed.

The first page of a free block has PageBuddy and its order in `private`; lists run through lru_next and
lru_prev. Each list has one migratetype; a block remembers which in `_free_type`. All this needs zone.lock.

Each CPU has lists of its own, for the blocks that it has freed, and looks there first: their struct pages, here as large as the
contents, are in its cache, and so are those of their neighbours in the list. Linux has one set of lists for all.
(Linux: mm/page_alloc.c)
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.builtins import ffs64
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import MAX_ORDER, pageblock_order
from concur_thp.mm.mm_types import (
    NIL,
    NR_FREE_LISTS,
    NR_ORDERS,
    PAGE_TYPE_BUDDY,
    PAGE_TYPE_NONE,
    FreeArea,
    Page,
    Zone,
    free_areas,
    mem_map,
    pageblock_types,
    zones,
)
from concur_thp.mm.page_flags import page_to_pfn
from concur_thp.sync.spinlock import assert_spin_locked

ZONE_DMA32, ZONE_NORMAL, ZONE_MOVABLE = 0, 1, 2
WMARK_MIN, WMARK_LOW, WMARK_HIGH = 0, 1, 2


@inline
def zone_nr(pfn: int):
    """The zone of a frame: starts rise with the number, an unused zone starts where the next one does."""
    return (pfn >= zones[ZONE_NORMAL].start_pfn) + (pfn >= zones[ZONE_MOVABLE].start_pfn)


@inline
def get_pageblock_migratetype(pfn: int):
    return pageblock_types[pfn >> pageblock_order].value


@inline
def set_pageblock_migratetype(pfn: int, migratetype: int):
    pageblock_types[pfn >> pageblock_order].value = migratetype


@inline
def PageBuddy(page: Page):
    return page.page_type == PAGE_TYPE_BUDDY


@inline
def free_area(zone: Zone, number: int, order: int) -> FreeArea:
    """The lists of one order that belong to CPU `number` - 1, or to nobody."""
    return free_areas[(zones.index(zone) * NR_FREE_LISTS + number) * NR_ORDERS + order]


@inline
def link_free(zone: Zone, page: Page, order: int, migratetype: int):
    """Put a free block at the front of a list of the CPU that freed it."""
    number = page.free_cpu
    area = free_area(zone, number, order)
    pfn = page_to_pfn(page)
    first = area.head[migratetype]
    page.lru_next = first
    page.lru_prev = NIL
    page._free_type = migratetype
    if first != NIL:
        mem_map[first].lru_prev = pfn
    area.head[migratetype] = pfn
    if zone.holders[migratetype] & (1 << number) == 0:
        zone.holders[migratetype] = zone.holders[migratetype] | 1 << number


@inline
def unlink_free(zone: Zone, page: Page, order: int):
    """Take a free block out of its list."""
    following = page.lru_next
    before = page.lru_prev
    if following != NIL:
        mem_map[following].lru_prev = before
    if before != NIL:
        mem_map[before].lru_next = following
    else:
        free_area(zone, page.free_cpu, order).head[page._free_type] = following
    page.lru_next = NIL
    page.lru_prev = NIL


@inline
def add_to_free_list(cpu: Cpu, zone: Zone, page: Page, order: int, migratetype: int):
    """Make a block free: PageBuddy, its order, and onto the list."""
    page.page_type = PAGE_TYPE_BUDDY
    page.free_cpu = cpu.id + 1
    page.private = order
    link_free(zone, page, order, migratetype)
    area = free_area(zone, cpu.id + 1, order)
    area.nr_free = area.nr_free + 1


@inline
def del_page_from_free_list(zone: Zone, page: Page, order: int):
    """A block is free no longer, or becomes part of a larger one."""
    unlink_free(zone, page, order)
    page.page_type = PAGE_TYPE_NONE
    page.private = 0
    area = free_area(zone, page.free_cpu, order)
    area.nr_free = area.nr_free - 1


@inline
def expand(cpu: Cpu, zone: Zone, page: Page, taken: int, size: int, migratetype: int):
    """Return what is left of a block of `size` pages behind its first `taken`, in the largest blocks that fit."""
    at = taken
    while at < size:
        order = ffs64(at)
        add_to_free_list(cpu, zone, Page(int(page) + 64 * at), order, migratetype)
        at += 1 << order


@inline
def own_block(zone: Zone, number: int, order: int, migratetype: int):
    """The newest block of the smallest sufficient order on the lists of one CPU, or NIL."""
    pfn = NIL
    current = order
    while pfn == NIL and current < MAX_ORDER:
        pfn = free_area(zone, number, current).head[migratetype]
        current += 1
    return pfn


@inline
def any_block(zone: Zone, order: int, migratetype: int):
    """A block of just this order and type, whoever has freed it, or NIL. Without zone.lock a hint."""
    pfn = NIL
    left = zone.holders[migratetype]
    while pfn == NIL and left != 0:
        pfn = free_area(zone, ffs64(left), order).head[migratetype]
        left = left & (left - 1)
    return pfn


@kernel
def others_block(zone: Zone, order: int, migratetype: int):
    """The smallest sufficient block on anybody's lists.

    Context: zone.lock held; this CPU's lists have none.
    Return: its first frame, NIL when there is none.
    Emulator: the second half of __rmqueue_smallest().
    """
    pfn = NIL
    current = order
    while pfn == NIL and current < MAX_ORDER:
        pfn = any_block(zone, current, migratetype)
        current += 1
    if pfn == NIL and order == 0:
        zone.holders[migratetype] = 0  # Nobody has any: the next look is short.
    return pfn


@kernel
def __rmqueue_smallest(cpu: Cpu, zone: Zone, order: int, migratetype: int, pages: int) -> Page:
    """The first `pages` pages of the smallest sufficient block of this very migratetype: 1 << order of them, or, for order
    0, as many as the caller can use.

    Context: zone.lock held.
    Return: the first page, NULL when the lists are empty; how many there are in cpu.scratch[0].
    Linux: mm/page_alloc.c __rmqueue_smallest
    Differs: blocks that another CPU has freed come second. Several small pages at once are those that as many calls would
    return, and leave the same blocks behind.
    """
    pfn = own_block(zone, cpu.id + 1, order, migratetype)
    if pfn == NIL:
        pfn = others_block(zone, order, migratetype)
    if pfn == NIL:
        return Page(0)
    page = mem_map[pfn]
    current = page.private
    bug_on(cpu, not PageBuddy(page) or current < order or current >= MAX_ORDER,
           "__rmqueue_smallest: not a free block that is large enough (values: pfn, order)", pfn, current)
    del_page_from_free_list(zone, page, current)
    taken = min(pages, 1 << current)
    expand(cpu, zone, page, taken, 1 << current, migratetype)
    zone.nr_free_pages = zone.nr_free_pages - taken
    cpu.scratch[0] = taken
    return page


@inline
def page_is_buddy(zone: Zone, pfn: int, order: int):
    """May the block at `pfn` be merged with its neighbour of this order?"""
    return (zone.start_pfn <= pfn < zone.end_pfn and mem_map[pfn].page_type == PAGE_TYPE_BUDDY
            and mem_map[pfn].private == order)


@kernel
def __free_one_page(cpu: Cpu, zone: Zone, pfn: int, order: int, migratetype: int):
    """Free a block: merge it with its buddies as far as that goes and put the result on a list.

    Context: zone.lock held.
    Linux: mm/page_alloc.c __free_one_page
    Differs: always at the front of the list; Linux puts what may soon merge at the end.
    """
    assert_spin_locked(cpu, zone.lock)
    bug_on(cpu, pfn & ((1 << order) - 1) != 0, "__free_one_page: misaligned (values: pfn, order)", pfn, order)
    bug_on(cpu, pfn < zone.start_pfn or pfn + (1 << order) > zone.end_pfn,
           "__free_one_page: outside its zone (values: pfn, order)", pfn, order)
    bug_on(cpu, PageBuddy(mem_map[pfn]), "__free_one_page: already free (values: pfn, order)", pfn, order)
    zone.nr_free_pages = zone.nr_free_pages + (1 << order)
    while order < MAX_ORDER - 1:
        buddy = pfn ^ (1 << order)
        if not page_is_buddy(zone, buddy, order):
            break
        del_page_from_free_list(zone, mem_map[buddy], order)
        pfn = pfn & buddy
        order += 1
    add_to_free_list(cpu, zone, mem_map[pfn], order, migratetype)
