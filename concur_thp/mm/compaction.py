"""Compaction: free pages spread over a zone become free blocks, by moving what lies between. (Linux: mm/compaction.c)

    bottom  [ migrate scanner ->            <- free scanner ]  top

Pages that the one finds move to where the other is, until a free block of the wanted order has come together or the two
meet. An allocation does that itself (direct compaction, as far as `defrag` lets it), or kcompactd for it. If it did not
help it is not tried again for a while, twice as long each time.
"""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import defines, inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I64, Struct, atomic
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.config import MAX_ORDER, pageblock_order
from concur_thp.mm import alloc_slowpath
from concur_thp.mm.alloc_slowpath import COMPACT_INACTIVE, kcompactd_wait
from concur_thp.mm.buddy import WMARK_LOW, any_block
from concur_thp.mm.compact_scan import (
    CompactControl,
    compact_controls,
    isolate_migratepages,
    pageblock_start_pfn,
    release_freepages,
)
from concur_thp.mm.errno import ENOMEM
from concur_thp.mm.fallback import can_steal_fallback, find_suitable_fallback
from concur_thp.mm.flags import __GFP_NORETRY
from concur_thp.mm.migrate import (
    MIGRATE_ASYNC,
    MIGRATE_SYNC,
    NEW_PAGE_COMPACTION,
    migrate_pages,
    putback_movable_pages,
)
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, NIL, NR_ZONES, Zone, zones
from concur_thp.mm.page_alloc import gfpflags_to_migratetype
from concur_thp.mm.pcp import drain_pcp, highest_zone
from concur_thp.mm.rmqueue import zone_watermark_ok
from concur_thp.mm.swap import lru_add_drain

COMPACT_SKIPPED, COMPACT_DEFERRED, COMPACT_CONTINUE, COMPACT_COMPLETE, COMPACT_CONTENDED, COMPACT_SUCCESS = 1, 2, 4, 5, 7, 8
"""Too little free memory to begin; failed lately; go on; the scanners met; no page to move to; there is a free block."""
assert COMPACT_DEFERRED == COMPACT_INACTIVE
COMPACT_MAX_DEFER_SHIFT = 6


class CompactZone(Struct, size=64):
    """struct zone, what compaction keeps there. Changed without a lock: hints."""

    migrate_pfn = atomic(I64, "where the next compaction begins to migrate, 0 for the zone's start")
    free_pfn = atomic(I64, "where it begins to look for free pages, 0 for the zone's end")
    considered = atomic(I64, "times it was thought of since it last failed")
    defer_shift = atomic(I64, "1 << this many times it is not done after a failure")
    order_failed = atomic(I64, "the lowest order for which it failed")


compact_zones = SharedArray("compact_zones", CompactZone, lambda config: NR_ZONES)


# -- not again and again ----------------------------------------------------------------------------------------------


@inline
def compaction_deferred(zone: int, order: int):
    """Did it fail lately, so that this time it is left out? Counts the times it is asked."""
    state = compact_zones[zone]
    limit = 1 << state.defer_shift.read()
    seen = min(state.considered.read() + 1, limit)
    deferred = 0
    if order >= state.order_failed.read():
        state.considered.write(seen)
        deferred = seen < limit
    return deferred


@inline
def defer_compaction(zone: int, order: int):
    """It did not help: wait twice as long as last time."""
    state = compact_zones[zone]
    state.considered.write(0)
    state.defer_shift.write(min(state.defer_shift.read() + 1, COMPACT_MAX_DEFER_SHIFT))
    state.order_failed.write(min(state.order_failed.read(), order))


@inline
def compaction_defer_reset(zone: int, order: int):
    """It helped."""
    state = compact_zones[zone]
    state.considered.write(0)
    state.defer_shift.write(0)
    state.order_failed.write(max(state.order_failed.read(), order + 1))


# -- one zone ---------------------------------------------------------------------------------------------------------


@inline
def has_free_block(zone: Zone, order: int):
    """Is there a block for a movable allocation of this order? Looks without zone.lock."""
    found = 0
    for current in range(order, MAX_ORDER):
        others = can_steal_fallback(current, MIGRATE_MOVABLE)
        if (any_block(zone, current, MIGRATE_MOVABLE) != NIL
                or others and find_suitable_fallback(zone, current, MIGRATE_MOVABLE) != NIL):
            found = 1
    return found


@inline
def compaction_suitable(zone: Zone, order: int):
    """Is there anything to do, and free memory to do it with? A block is needed twice: one copy while pages move."""
    result = COMPACT_CONTINUE
    if order >= 0:
        mark = zone.watermark[WMARK_LOW]
        if has_free_block(zone, order) and zone_watermark_ok(zone, order, mark):
            result = COMPACT_SUCCESS
        elif zone.nr_free_pages <= mark + (2 << order):
            result = COMPACT_SKIPPED
    return result


@inline
def compact_finished(cc: CompactControl):
    """Have the scanners met, or is there what we want?"""
    result = COMPACT_CONTINUE
    if cc.free_pfn >> pageblock_order <= cc.migrate_pfn >> pageblock_order:
        result = COMPACT_COMPLETE
    elif cc.order >= 0 and has_free_block(zones[cc.zone], cc.order):
        result = COMPACT_SUCCESS
    return result


@inline
def begin_compaction(cc: CompactControl, zone: int, order: int):
    """Where the last one stopped, or at the ends of the zone."""
    row = zones[zone]
    cc.zone = zone
    cc.order = order
    cc.nr_migratepages = 0
    cc.nr_freepages = 0
    cc.migrate_pfn = row.start_pfn
    cc.free_pfn = pageblock_start_pfn(row.end_pfn - 1)
    migrate = compact_zones[zone].migrate_pfn.read()
    free = compact_zones[zone].free_pfn.read()
    if order >= 0 and migrate != 0 and free != 0:
        cc.migrate_pfn = migrate
        cc.free_pfn = free


@inline
def end_compaction(cc: CompactControl, result: int):
    """Remember where, unless it is done: then the next one begins anew."""
    met = result == COMPACT_COMPLETE
    compact_zones[cc.zone].migrate_pfn.write(0 if met else cc.migrate_pfn)
    compact_zones[cc.zone].free_pfn.write(0 if met else cc.free_pfn)


@kernel
def compact_zone(cpu: Cpu, zone: int, order: int, mode: int):
    """Move pages until a free block of this order has come together; -1: move all that can be moved.

    Context: no spinlock, no page or rmap lock held; mmap_sem may be, then only with MIGRATE_ASYNC. Sleeps.
    Return: COMPACT_*.
    Linux: mm/compaction.c compact_zone
    """
    cc = compact_controls[cpu.id]
    result = compaction_suitable(zones[zone], order)
    if result == COMPACT_CONTINUE:
        begin_compaction(cc, zone, order)
        lru_add_drain(cpu)  # migrate_prep_local()
        result = compact_finished(cc)
        while result == COMPACT_CONTINUE:
            result = compact_some(cpu, cc, mode)
        release_freepages(cpu, cc)
        end_compaction(cc, result)
    trace(cpu, Tracepoint.mm_compaction_end, zone, order, result)
    return result


@inline
def compact_some(cpu: Cpu, cc: CompactControl, mode: int):
    """One batch. Returns COMPACT_*."""
    result = COMPACT_CONTINUE
    block = cc.migrate_pfn >> pageblock_order
    if isolate_migratepages(cpu, cc):
        point(cpu, Point.COMPACT_ISOLATED)
        failed = migrate_pages(cpu, cc.migratepages, NEW_PAGE_COMPACTION, mode)
        cc.nr_migratepages = 0
        if failed != 0:
            putback_movable_pages(cpu, cc.migratepages)
        if failed == -ENOMEM and compact_finished(cc) != COMPACT_COMPLETE:
            result = COMPACT_CONTENDED
    if result == COMPACT_CONTINUE:
        result = compact_finished(cc)
    if result != COMPACT_CONTINUE or cc.migrate_pfn >> pageblock_order != block:
        # Done with a block: what was freed there waits on this CPU's lists, and holds up the merge.
        lru_add_drain(cpu)
        drain_pcp(cpu)
        if result != COMPACT_CONTENDED:
            result = compact_finished(cc)
    return result


# -- who asks ---------------------------------------------------------------------------------------------------------


@defines(alloc_slowpath.try_to_compact_pages)
def try_to_compact_pages(cpu: Cpu, order: int, gfp: int):
    """Direct compaction: an allocation makes itself a block of this order.

    Context: no spinlock, no page or rmap lock held; mmap_sem may be. Sleeps, but waits for no page lock.
    Return: COMPACT_*, of several zones the furthest.
    Linux: mm/compaction.c try_to_compact_pages
    Differs: asynchronous at every priority; is content with a movable block, which others can steal.
    """
    cc = compact_controls[cpu.id]
    if cc.direct:
        return COMPACT_SKIPPED
    cc.direct = 1
    furthest = COMPACT_SKIPPED
    zone = highest_zone(gfpflags_to_migratetype(gfp))
    while zone >= 0 and furthest != COMPACT_SUCCESS:
        result = COMPACT_SKIPPED
        if zones[zone].start_pfn < zones[zone].end_pfn:
            result = COMPACT_DEFERRED
            if not compaction_deferred(zone, order):
                result = compact_zone(cpu, zone, order, MIGRATE_ASYNC)
        if result == COMPACT_COMPLETE and gfp & __GFP_NORETRY == 0:
            defer_compaction(zone, order)
        elif result == COMPACT_SUCCESS:
            compaction_defer_reset(zone, order)
        furthest = max(furthest, result)
        zone -= 1
    cc.direct = 0
    return furthest


@kernel
def kcompactd_do_work(cpu: Cpu):
    """What an allocation has left to kcompactd: bring blocks of its order together in every zone.

    Context: kernel thread, no lock held. Sleeps.
    Return: the order, 0 when there was nothing to do.
    Linux: mm/compaction.c kcompactd_do_work
    """
    order = kcompactd_wait.max_order.xchg(0)
    if order > 0:
        for zone in range(NR_ZONES):
            if zones[zone].start_pfn < zones[zone].end_pfn and not compaction_deferred(zone, order):
                result = compact_zone(cpu, zone, order, MIGRATE_SYNC)
                if result == COMPACT_SUCCESS:
                    compaction_defer_reset(zone, order)
                elif result == COMPACT_COMPLETE:
                    defer_compaction(zone, order)
    return order


@kernel
def compact_node(cpu: Cpu):
    """Compact everything, as after a write to /proc/sys/vm/compact_memory.

    Context: no lock held. Sleeps.
    Linux: mm/compaction.c compact_node
    """
    for zone in range(NR_ZONES):
        if zones[zone].start_pfn < zones[zone].end_pfn:
            compact_zone(cpu, zone, -1, MIGRATE_SYNC)
