"""Compaction's two scanners. (Linux: mm/compaction.c)

The migrate scanner goes up from the bottom of a zone and takes small pages off the LRU; the free scanner comes down
from the top and takes free pages for them to move to. Both look at struct pages without a lock and so may be wrong
about every one; what counts is looked at again under lru_lock or zone.lock.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import defines, inline, kernel
from concur_thp.arch.listen import check_point
from concur_thp.arch.points import Point
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, I64, Struct, embed, field
from concur_thp.config import HPAGE_PMD_NR, MAX_ORDER, NR_CPUS, pageblock_nr_pages, pageblock_order
from concur_thp.mm import migrate
from concur_thp.mm.buddy import WMARK_MIN, PageBuddy, del_page_from_free_list, get_pageblock_migratetype
from concur_thp.mm.lru import del_page_from_lru_list, page_lru
from concur_thp.mm.mapcount import page_mapcount
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, Page, Zone, mem_map, pgdat, zones
from concur_thp.mm.page_alloc import prep_new_page
from concur_thp.mm.page_flags import PageAnon, PageCompound, PageSwapCache, PG_lru, page_to_pfn, tail_page
from concur_thp.mm.page_list import PageList, list_add_tail, list_pop
from concur_thp.mm.page_ref import get_page_unless_zero, page_ref_count
from concur_thp.mm.swap import put_page
from concur_thp.mm.vmstat import Stat, mod_stat
from concur_thp.sync.spinlock import spin_lock_irq, spin_unlock_irq

COMPACT_CLUSTER_MAX = 32
"""Pages isolated at once."""


class CompactControl(Struct, align=64):
    """struct compact_control: one compaction, on the CPU that runs it."""

    freepages = embed(PageList, "free pages to move to, each with one reference")
    migratepages = embed(PageList, "isolated pages to move")
    nr_freepages = field(I64, "cpu", "how many")
    nr_migratepages = field(I64, "cpu", "how many")
    migrate_pfn = field(I64, "cpu", "where the migrate scanner is")
    free_pfn = field(I64, "cpu", "where the free scanner is")
    zone = field(I32, "cpu", "number of the zone")
    order = field(I32, "cpu", "wanted: a free block of this order; -1 for all that can be done")
    direct = field(I32, "cpu", "1 while an allocation compacts: what that does must not compact in turn (PF_MEMALLOC)")


compact_controls = SharedArray("compact_controls", CompactControl, lambda config: NR_CPUS)


@inline
def pageblock_start_pfn(pfn: int):
    return pfn & ~(pageblock_nr_pages - 1)


@inline
def pageblock_end_pfn(pfn: int):
    return pageblock_start_pfn(pfn) + pageblock_nr_pages


# -- the migrate scanner ----------------------------------------------------------------------------------------------


@kernel
def isolate_migratepages(cpu: Cpu, cc: CompactControl):
    """Isolate pages of the next pageblock that has any, up to the free scanner.

    Context: no lock held; takes lru_lock.
    Return: how many; then they are on the list.
    Linux: mm/compaction.c isolate_migratepages
    Differs: no hints about blocks that are not worth a look; asynchronous compaction does not keep to movable pageblocks;
    nobody is held back when much is isolated already.
    """
    limit = min(pageblock_start_pfn(cc.free_pfn), zones[cc.zone].end_pfn)
    while cc.nr_migratepages == 0 and cc.migrate_pfn < limit:
        end = min(pageblock_end_pfn(cc.migrate_pfn), limit)
        cc.migrate_pfn = isolate_migratepages_block(cpu, cc, cc.migrate_pfn, end)
    return cc.nr_migratepages


@kernel
def isolate_migratepages_block(cpu: Cpu, cc: CompactControl, low_pfn: int, end_pfn: int):
    """Isolate what can be moved in a range of frames.

    Context: as isolate_migratepages().
    Return: the first frame not looked at.
    Linux: mm/compaction.c isolate_migratepages_block
    Differs: lru_lock is taken for each page that is a candidate, so the checks under it are always made.
    """
    pfn = low_pfn
    while pfn < end_pfn and cc.nr_migratepages < COMPACT_CLUSTER_MAX:
        page = mem_map[pfn]
        if PageBuddy(page):
            pfn += 1 << racy_order(page)
        elif PageCompound(page):
            # A huge page: nothing to gain. Wrong when it is split or freed right now, then we miss some of its pages.
            pfn = (pfn | (HPAGE_PMD_NR - 1)) + 1
        else:
            if looks_movable(page) and isolate_small_page(cpu, page):
                list_add_tail(cc.migratepages, page)
                cc.nr_migratepages = cc.nr_migratepages + 1
            pfn += 1
    mod_stat(cpu, Stat.compact_migrate_scanned, min(pfn, end_pfn) - low_pfn)
    return min(pfn, end_pfn)


@inline
def racy_order(page: Page):
    """A free block's order, read without zone.lock: it may be none any more, so only what an order can be."""
    order = page.private
    return order if 0 <= order < MAX_ORDER else 0


@inline
def looks_movable(page: Page):
    """On the LRU, and, if no cache has it, with no more references than mappings: a pinned page does not move."""
    uncached = page.mapping == 0 or (PageAnon(page) != 0 and PageSwapCache(page) == 0)
    return (page.flags.read() >> PG_lru) & 1 and not (uncached and page_ref_count(page) > page_mapcount(page))


@kernel
def isolate_small_page(cpu: Cpu, page: Page):
    """Take a small page, known by its frame only, off the LRU.

    Context: takes lru_lock.
    Return: 1 when taken, with a reference.
    Linux: mm/compaction.c isolate_migratepages_block; mm/vmscan.c __isolate_lru_page
    """
    taken = 0
    spin_lock_irq(cpu, pgdat.lru_lock)
    # Again under the lock: isolated by another, freed, or grown together to a huge page since we looked. Its reference
    # count may also be 0 while the last put waits for this lock.
    if (page.flags.read() >> PG_lru) & 1 and not PageCompound(page) and get_page_unless_zero(page):
        flags = page.flags.and_(~(1 << PG_lru))
        del_page_from_lru_list(page, page_lru(flags))
        check_point(cpu, Point.LRU_ISOLATED, page)
        pgdat.isolated.add(1)
        taken = 1
    spin_unlock_irq(cpu, pgdat.lru_lock)
    return taken


# -- the free scanner -------------------------------------------------------------------------------------------------


@inline
def suitable_migration_target(pfn: int):
    """May pages move into this pageblock? Not where kernel pages are, and not if all of it is free."""
    page = mem_map[pfn]
    whole = PageBuddy(page) and racy_order(page) >= pageblock_order
    return not whole and get_pageblock_migratetype(pfn) == MIGRATE_MOVABLE


@kernel
def isolate_freepages(cpu: Cpu, cc: CompactControl):
    """Take free pages for everything that was isolated, as far as there are any above the migrate scanner.

    Context: takes zone.lock.
    Linux: mm/compaction.c isolate_freepages
    """
    zone = zones[cc.zone]
    low = pageblock_end_pfn(cc.migrate_pfn - 1)  # Not from the block that is being emptied.
    at = cc.free_pfn
    block = pageblock_start_pfn(at)
    while block >= low and cc.nr_freepages < cc.nr_migratepages:
        end = min(block + pageblock_nr_pages, zone.end_pfn)
        if suitable_migration_target(block):
            at = isolate_freepages_block(cpu, cc, zone, at, end)
        else:
            at = end
        if at >= end:
            block -= pageblock_nr_pages
            at = block
    cc.free_pfn = at


@kernel
def isolate_freepages_block(cpu: Cpu, cc: CompactControl, zone: Zone, start_pfn: int, end_pfn: int):
    """Take the free pages of a range of frames, until there are enough.

    Context: takes zone.lock.
    Return: the first frame not looked at.
    Linux: mm/compaction.c isolate_freepages_block, split_map_pages
    """
    pfn = start_pfn
    while pfn < end_pfn and cc.nr_freepages < cc.nr_migratepages:
        page = mem_map[pfn]
        order = -1
        if PageBuddy(page):
            order = isolate_free_page(cpu, zone, page)
        if order < 0:
            pfn += 1
        else:
            for i in range(1 << order):
                single = tail_page(page, i)
                prep_new_page(cpu, single, 0, MIGRATE_MOVABLE, 0)
                list_add_tail(cc.freepages, single)
            cc.nr_freepages = cc.nr_freepages + (1 << order)
            pfn += 1 << order
    mod_stat(cpu, Stat.compact_free_scanned, min(pfn, end_pfn) - start_pfn)
    return pfn


@kernel
def isolate_free_page(cpu: Cpu, zone: Zone, page: Page):
    """Take a free block out of the buddy lists.

    Context: takes zone.lock.
    Return: its order; -1 when it is no free block any more, or too many pages would be gone.
    Linux: mm/page_alloc.c __isolate_free_page
    """
    order = -1
    spin_lock_irq(cpu, zone.lock)
    # Again under the lock: it may have been allocated, or be the middle of a larger block now.
    if PageBuddy(page) and page.private < pageblock_order:
        size = 1 << page.private
        if zone.nr_free_pages - size > zone.watermark[WMARK_MIN]:
            order = page.private
            bug_on(cpu, page_to_pfn(page) & (size - 1) != 0, "compaction: misaligned free block (values: pfn, order)",
                   page_to_pfn(page), order)
            del_page_from_free_list(zone, page, order)
            zone.nr_free_pages = zone.nr_free_pages - size
    spin_unlock_irq(cpu, zone.lock)
    return order


@defines(migrate.compaction_alloc)
def compaction_alloc(cpu: Cpu) -> Page:
    """A free page to move a page to.

    Context: inside compact_zone(); takes zone.lock.
    Return: the page, with one reference; NULL when the scanners have met.
    Linux: mm/compaction.c compaction_alloc
    """
    cc = compact_controls[cpu.id]
    if cc.nr_freepages == 0:
        isolate_freepages(cpu, cc)
    page = list_pop(cc.freepages)
    if page:
        cc.nr_freepages = cc.nr_freepages - 1
    return page


@defines(migrate.compaction_free)
def compaction_free(cpu: Cpu, page: Page):
    """A page of compaction_alloc() was not needed.

    Context: inside compact_zone().
    Linux: mm/compaction.c compaction_free
    """
    cc = compact_controls[cpu.id]
    list_add_tail(cc.freepages, page)
    cc.nr_freepages = cc.nr_freepages + 1


@kernel
def release_freepages(cpu: Cpu, cc: CompactControl):
    """Give the free pages back that are left.

    Context: takes zone.lock.
    Linux: mm/compaction.c release_freepages
    """
    page = list_pop(cc.freepages)
    while page:
        cc.nr_freepages = cc.nr_freepages - 1
        put_page(cpu, page)
        page = list_pop(cc.freepages)
    bug_on(cpu, cc.nr_freepages != 0, "compaction: free pages miscounted (value: left)", cc.nr_freepages, cc.zone)
