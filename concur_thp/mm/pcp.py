"""Per-CPU lists of free small pages, by zone and migratetype. (Linux: mm/page_alloc.c, struct per_cpu_pages)

Only its own CPU touches a list, so a small page costs no lock most of the time. A page on a list has
PAGE_TYPE_PCP and no reference; the lists are linked through lru_next, newest first.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.builtins import ffs64
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.shared import SharedOne
from concur_thp.arch.struct import I64, Struct, field
from concur_thp.config import MAX_ORDER
from concur_thp.mm.buddy import __free_one_page, get_pageblock_migratetype, zone_nr
from concur_thp.mm.fallback import __rmqueue
from concur_thp.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_TYPES,
    NIL,
    NR_ZONES,
    PAGE_TYPE_NONE,
    PAGE_TYPE_PCP,
    Page,
    PcpList,
    Zone,
    mem_map,
    percpu,
    zones,
)
from concur_thp.sync.spinlock import spin_lock_irq, spin_unlock_irq


class AllocSettings(Struct, size=64):
    """What boot decides about the allocator."""

    pcp_batch = field(I64, "const", "pages moved at once between a per-CPU list and the buddy lists")
    pcp_high = field(I64, "const", "a per-CPU list this long gives a batch back")
    movable_zone = field(I64, "const", "highest zone for movable requests")
    kernel_zone = field(I64, "const", "highest zone for all others")


alloc_settings = SharedOne("alloc_settings", AllocSettings)


@inline
def highest_zone(migratetype: int):
    """ZONE_MOVABLE is for movable requests only: kernel pages can never fragment it (R4)."""
    return alloc_settings.movable_zone if migratetype == MIGRATE_MOVABLE else alloc_settings.kernel_zone


@inline
def pcp_list(cpu: Cpu, zone: int, migratetype: int) -> PcpList:
    """This CPU's list of one zone and migratetype."""
    return percpu[cpu.id].pcp[zone * MIGRATE_TYPES + migratetype]


@inline
def pcp_push(pcp: PcpList, page: Page, pfn: int, migratetype: int):
    page.page_type = PAGE_TYPE_PCP
    page._free_type = migratetype
    page.lru_next = pcp.head
    pcp.head = pfn
    pcp.count = pcp.count + 1


@inline
def pcp_pop(pcp: PcpList) -> Page:
    """The newest page of a list that is not empty."""
    page = mem_map[pcp.head]
    pcp.head = page.lru_next
    pcp.count = pcp.count - 1
    page.lru_next = NIL
    page.page_type = PAGE_TYPE_NONE
    return page


@kernel
def rmqueue_bulk(cpu: Cpu, zone: Zone, pcp: PcpList, migratetype: int):
    """Refill an empty list with a batch, in the order the buddy lists give.

    Context: takes zone.lock.
    Linux: mm/page_alloc.c rmqueue_bulk
    Differs: takes neighbours at once, and makes them pages of the list when the lock is free again.
    """
    bug_on(cpu, pcp.head != NIL or pcp.count != 0, "rmqueue_bulk: the list is not empty (values: pfn, count)",
           pcp.head, pcp.count)
    runs = Page(0)
    got = 0
    spin_lock_irq(cpu, zone.lock)
    while got < alloc_settings.pcp_batch:
        page = __rmqueue(cpu, zone, 0, migratetype, alloc_settings.pcp_batch - got)
        if not page:
            break
        page.private = cpu.scratch[0]
        page.lru_next = mem_map.index(runs) if runs else NIL
        runs = page
        got += page.private
    spin_unlock_irq(cpu, zone.lock)
    while runs:
        page = runs
        runs = mem_map[page.lru_next] if page.lru_next != NIL else Page(0)
        pcp_push_run(pcp, page, migratetype)


@inline
def pcp_push_run(pcp: PcpList, page: Page, migratetype: int):
    """Put neighbours in front of a list, the first one first; `private` of the first says how many they are."""
    count = page.private
    page.private = 0
    first = mem_map.index(page)
    for pfn in range(first, first + count):
        mem_map[pfn].page_type = PAGE_TYPE_PCP
        mem_map[pfn]._free_type = migratetype
        mem_map[pfn].lru_next = pfn + 1
    mem_map[first + count - 1].lru_next = pcp.head
    pcp.head = first
    pcp.count = pcp.count + count


@kernel
def free_pcppages_bulk(cpu: Cpu, zone: Zone, pcp: PcpList, count: int):
    """Give the `count` newest pages of a list back to the buddy lists.

    Context: takes zone.lock.
    Linux: mm/page_alloc.c free_pcppages_bulk
    Differs: newest first, as the list has one end; Linux gives the oldest back, from each list in turn. Neighbours have
    merged before the lock is taken.
    """
    bug_on(cpu, count > pcp.count, "free_pcppages_bulk: more than the list has", count, pcp.count)
    page = pcp_pop_blocks(pcp, count)
    spin_lock_irq(cpu, zone.lock)
    while page:
        pfn = mem_map.index(page)
        order = page.private
        following = page.lru_next
        page.private = 0
        page.lru_next = NIL
        __free_one_page(cpu, zone, pfn, order, page._free_type)
        page = mem_map[following] if following != NIL else Page(0)
    spin_unlock_irq(cpu, zone.lock)


@kernel
def pcp_pop_blocks(pcp: PcpList, count: int) -> Page:
    """Take the `count` newest pages off a list and put neighbours together to blocks, as the buddy allocator would.

    Context: this CPU's own list; the pages are its own, so no lock is needed.
    Return: the first block; they are linked through lru_next and have their order in `private`.
    Emulator: what free_pcppages_bulk() can do before it takes zone.lock.
    """
    blocks = NIL
    while count > 0:
        low = mem_map.index(pcp_pop(pcp))
        high = low + 1
        count -= 1
        # Pages that were freed in the order of their addresses come back one by one from the last.
        while count > 0 and pcp.head in (low - 1, high) and mem_map[pcp.head]._free_type == mem_map[low]._free_type:
            low = min(low, pcp.head)
            high = max(high, pcp.head + 1)
            pcp_pop(pcp)
            count -= 1
        while low < high:
            order = min(ffs64(low), MAX_ORDER - 1)
            while low + (1 << order) > high:
                order -= 1
            mem_map[low].private = order
            mem_map[low].lru_next = blocks
            blocks = low
            low += 1 << order
    return mem_map[blocks] if blocks != NIL else Page(0)


@inline
def free_unref_page(cpu: Cpu, page: Page, pfn: int):
    """Put a small page, already checked, on this CPU's list."""
    zone = zone_nr(pfn)
    migratetype = get_pageblock_migratetype(pfn)
    pcp = pcp_list(cpu, zone, migratetype)
    pcp_push(pcp, page, pfn, migratetype)
    if pcp.count >= alloc_settings.pcp_high:
        free_pcppages_bulk(cpu, zones[zone], pcp, alloc_settings.pcp_batch)


@kernel
def drain_pcp(cpu: Cpu):
    """Give all of this CPU's lists back to the buddy lists.

    Context: takes zone.lock.
    Linux: mm/page_alloc.c drain_local_pages
    """
    for zone in range(NR_ZONES):
        for migratetype in range(MIGRATE_TYPES):
            pcp = pcp_list(cpu, zone, migratetype)
            if pcp.count != 0:
                free_pcppages_bulk(cpu, zones[zone], pcp, pcp.count)
