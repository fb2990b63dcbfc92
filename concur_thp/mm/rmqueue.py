"""Where a block comes from: the zones a request may use, their watermarks, the per-CPU and the buddy lists.
(Linux: mm/page_alloc.c)
"""

from concur_thp.arch.builtins import prefetchw
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.mm.fallback import __rmqueue
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, NIL, Page, Zone, zones
from concur_thp.mm.pcp import highest_zone, pcp_list, pcp_pop, rmqueue_bulk
from concur_thp.sync.spinlock import spin_lock_irq, spin_unlock_irq


@inline
def zone_watermark_ok(zone: Zone, order: int, mark: int):
    """Are more pages free than the mark, when a block of this order is gone? A hint without zone.lock."""
    return zone.nr_free_pages - ((1 << order) - 1) > mark


@inline
def alloc_mark(zone: Zone, order: int, migratetype: int, wmark: int):
    """The mark for a request. Small kernel pages may use up the reserve: they have no substitute."""
    return 0 if order == 0 and migratetype != MIGRATE_MOVABLE else zone.watermark[wmark]


@kernel
def rmqueue(cpu: Cpu, zone: int, order: int, migratetype: int, wmark: int) -> Page:
    """A block from one zone, if its watermark allows.

    Context: takes zone.lock.
    Return: its first page, NULL when the zone has none to give.
    Linux: mm/page_alloc.c rmqueue, zone_watermark_fast
    Differs: a small page that is on this CPU's list already is no longer held against the watermark.
    """
    row = zones[zone]
    page = Page(0)
    if order != 0:
        prefetchw(row.lock)
    allowed = zone_watermark_ok(row, order, alloc_mark(row, order, migratetype, wmark))
    if order == 0:
        pcp = pcp_list(cpu, zone, migratetype)
        if pcp.head == NIL and allowed:
            rmqueue_bulk(cpu, row, pcp, migratetype)
        if pcp.head != NIL:
            page = pcp_pop(pcp)
    elif allowed:
        spin_lock_irq(cpu, row.lock)
        page = __rmqueue(cpu, row, order, migratetype, 1 << order)
        spin_unlock_irq(cpu, row.lock)
    return page


@kernel
def get_page_from_freelist(cpu: Cpu, order: int, migratetype: int, wmark: int) -> Page:
    """A block from the highest zone that has one above the watermark, of those the request may use.

    Context: takes zone.lock.
    Return: its first page, not prepared yet; NULL.
    Linux: mm/page_alloc.c get_page_from_freelist
    """
    page = Page(0)
    zone = highest_zone(migratetype)
    while zone >= 0 and not page:
        page = rmqueue(cpu, zone, order, migratetype, wmark)
        zone -= 1
    return page
