"""The buddy allocator: free blocks of 2**order frames, split when asked for, merged when freed.

The first page of a free block has PageBuddy and its order in `private`; lists run through lru_next and
lru_prev. Each list has one migratetype; a block remembers which in `_free_type`. All this needs zone.lock.
(Linux: mm/page_alloc.c)
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import MAX_ORDER, pageblock_order
from concur_thp.mm.mm_types import (
    NIL,
    PAGE_TYPE_BUDDY,
    PAGE_TYPE_NONE,
    Page,
    Zone,
    mem_map,
    pageblock_types,
    zones,
)
from concur_thp.mm.page_flags import page_to_pfn
from concur_thp.sync.spinlock import assert_spin_locked

ZONE_DMA32, ZONE_NORMAL, ZONE_MOVABLE = 0, 1, 2
WMARK_MIN, WMARK_LOW, WMARK_HIGH = 0, 1, 2
NEAR_LOOKS = 8
"""How many blocks of a list are looked at for one that this CPU has freed itself."""


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
def link_free(zone: Zone, page: Page, order: int, migratetype: int):
    """Put a free block at the front of a list."""
    area = zone.free_area[order]
    pfn = page_to_pfn(page)
    first = area.head[migratetype]
    page.lru_next = first
    page.lru_prev = NIL
    page._free_type = migratetype
    if first != NIL:
        mem_map[first].lru_prev = pfn
    area.head[migratetype] = pfn


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
        zone.free_area[order].head[page._free_type] = following
    page.lru_next = NIL
    page.lru_prev = NIL


@inline
def add_to_free_list(cpu: Cpu, zone: Zone, page: Page, order: int, migratetype: int):
    """Make a block free: PageBuddy, its order, and onto the list."""
    page.page_type = PAGE_TYPE_BUDDY
    page.free_cpu = cpu.id + 1
    page.private = order
    link_free(zone, page, order, migratetype)
    zone.free_area[order].nr_free = zone.free_area[order].nr_free + 1


@inline
def del_page_from_free_list(zone: Zone, page: Page, order: int):
    """A block is free no longer, or becomes part of a larger one."""
    unlink_free(zone, page, order)
    page.page_type = PAGE_TYPE_NONE
    page.private = 0
    zone.free_area[order].nr_free = zone.free_area[order].nr_free - 1


@inline
def expand(cpu: Cpu, zone: Zone, page: Page, low: int, high: int, migratetype: int):
    """Return the upper halves of a block of order `high` until it is one of order `low`."""
    while high > low:
        high -= 1
        add_to_free_list(cpu, zone, Page(int(page) + (64 << high)), high, migratetype)


@inline
def near_block(cpu: Cpu, first: int):
    """Of the newest blocks of a list, one that no other CPU has freed, or NIL."""
    pfn = first
    looks = 0
    while pfn != NIL and mem_map[pfn].free_cpu != 0 and mem_map[pfn].free_cpu != cpu.id + 1:
        looks += 1
        pfn = mem_map[pfn].lru_next if looks < NEAR_LOOKS else NIL
    return pfn


@inline
def take_block(cpu: Cpu, zone: Zone, pfn: int, current: int, order: int, migratetype: int):
    """Off its list, and cut down to `order`."""
    page = mem_map[pfn]
    bug_on(cpu, not PageBuddy(page) or page.private != current,
           "__rmqueue_smallest: not a free block of its order (values: pfn, order)", pfn, current)
    del_page_from_free_list(zone, page, current)
    expand(cpu, zone, page, order, current, migratetype)
    zone.nr_free_pages = zone.nr_free_pages - (1 << order)


@kernel
def __rmqueue_smallest(cpu: Cpu, zone: Zone, order: int, migratetype: int) -> Page:
    """The smallest sufficient block of this very migratetype, cut down to `order`.

    Context: zone.lock held.
    Return: its first page, NULL when the lists are empty.
    Linux: mm/page_alloc.c __rmqueue_smallest
    Differs: blocks that another CPU has freed come second. Its cache still has their struct pages, here as large as the
    contents, and neighbours that two CPUs use at once would be fetched to and fro.
    """
    for current in range(order, MAX_ORDER):
        pfn = near_block(cpu, zone.free_area[current].head[migratetype])
        if pfn != NIL:
            take_block(cpu, zone, pfn, current, order, migratetype)
            return mem_map[pfn]
    for current in range(order, MAX_ORDER):
        pfn = zone.free_area[current].head[migratetype]
        if pfn != NIL:
            take_block(cpu, zone, pfn, current, order, migratetype)
            return mem_map[pfn]
    return Page(0)


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
