"""Boot: struct pages, zones, pageblocks, and all frames into the buddy lists. (Linux: mm/memblock.c)

Host code, vectorised over the segment. Frames themselves are not touched: they read zero until written.
"""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concur_thp.arch.shared import SharedArray
from concur_thp.config import MAX_ORDER, NR_CPUS, PAGE_SIZE
from concur_thp.mm.buddy import WMARK_HIGH, WMARK_LOW, WMARK_MIN, ZONE_MOVABLE, free_area
from concur_thp.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_TYPES,
    NIL,
    NR_FREE_LISTS,
    NR_ORDERS,
    NR_ZONES,
    PAGE_TYPE_BUDDY,
    PAGE_TYPE_RESERVED,
    Page,
    free_areas,
    mem_map,
    pageblock_types,
    percpu,
    pgdat,
    zones,
)
from concur_thp.mm.page_flags import PG_reserved
from concur_thp.mm.pcp import alloc_settings
from concur_thp.sync.lock_classes import ZONE_LOCK
from concur_thp.sync.spinlock import spin_lock_init

PCP_BATCH = 63
"""Most pages of a batch: what zone_batchsize() of v4.20 makes of a zone of 1 GiB or more."""
SMALL_BATCH = 31
"""What a smaller machine has at most."""
PCP_HIGH_BATCHES = 6
"""Linux: pcp->high = 6 * batch."""
FRAMES_PER_PCP_PAGE = 1024
"""A small machine has smaller batches: a page of batch for this many frames."""
FRAMES_PER_RESERVED = 256
MAX_RESERVE = 1024
"""The min watermark of a zone: a 256th of it, at most so many frames."""

Words = NDArray[Any]


def array_view(array: SharedArray, count: int) -> Words:
    """The memory of a shared array as bytes, one row for each element."""
    size = count * array.stride
    memory = (ctypes.c_uint8 * size).from_address(int(array.base))
    return np.ctypeslib.as_array(memory).reshape(count, array.stride)


def column(rows: Words, array: SharedArray, name: str) -> Words:
    """One field of every element, writable in place."""
    field = array.struct.FIELDS[name]
    return rows[:, field.offset : field.offset + field.width].view(f"i{field.width}")[:, 0]


def init_memory(config: Any) -> None:
    """Boot: all of memory free but frame 0.

    `config` has `frames` and `kernelcore` (bytes for anything; the rest is ZONE_MOVABLE; 0: no such zone).
    """
    bounds = zone_bounds(config.frames, config.kernelcore)
    init_mem_map(config.frames)
    array_view(pageblock_types, pageblock_types.count(config)).view(np.int32)[:] = MIGRATE_MOVABLE
    for number, (start, end) in enumerate(bounds):
        init_zone(number, start, end, config.cpus)
    for cpu in range(NR_CPUS):
        for row in range(NR_ZONES * MIGRATE_TYPES):
            percpu[cpu].pcp[row].head = NIL
    batch = max(1, min(SMALL_BATCH, config.frames // FRAMES_PER_PCP_PAGE),
                min(PCP_BATCH, config.frames // (4 * FRAMES_PER_PCP_PAGE)))
    alloc_settings.pcp_batch = batch
    alloc_settings.pcp_high = PCP_HIGH_BATCHES * batch
    used = [number for number, (start, end) in enumerate(bounds) if start < end]
    alloc_settings.movable_zone = used[-1]
    alloc_settings.kernel_zone = max(number for number in used if number != ZONE_MOVABLE)
    pgdat.nr_zones = used[-1] + 1


def zone_bounds(frames: int, kernelcore: int) -> list[tuple[int, int]]:
    """First frame and first frame behind, by zone number; zones begin where a largest block does.

    DMA32 is the first quarter, Normal the rest; with `kernelcore` both end there and ZONE_MOVABLE begins.
    """
    block = PAGE_SIZE << (MAX_ORDER - 1)

    def round_up(size: int) -> int:
        return -(-size // block) * block // PAGE_SIZE

    movable = min(round_up(kernelcore), frames) if kernelcore else frames
    normal = min(round_up(frames * PAGE_SIZE // 4), movable)
    return [(0, normal), (normal, movable), (movable, frames)]


def init_mem_map(frames: int) -> None:
    """Every struct page as the allocator wants a free one; one pass, as each of them is a cache line."""
    rows = array_view(mem_map, frames)
    template = np.zeros((1, Page.SIZE), np.uint8)
    for name, value in (("_mapcount", -1), ("lru_next", NIL), ("lru_prev", NIL)):
        column(template, mem_map, name)[:] = value
    rows.view(np.int64)[:] = template.view(np.int64)
    reserved = mem_map[0]
    reserved.flags.store(1 << PG_reserved)
    reserved._refcount.store(1)
    reserved.page_type = PAGE_TYPE_RESERVED


def init_zone(number: int, start: int, end: int, cpus: int) -> None:
    """One zone: its lists, its watermarks, and all its frames free."""
    zone = zones[number]
    spin_lock_init(zone.lock, ZONE_LOCK)
    zone.start_pfn, zone.end_pfn = start, end
    reserve = min(max(1, (end - start) // FRAMES_PER_RESERVED), MAX_RESERVE)
    zone.watermark[WMARK_MIN] = reserve
    zone.watermark[WMARK_LOW] = reserve + reserve // 4
    zone.watermark[WMARK_HIGH] = reserve + reserve // 2
    lists = array_view(free_areas, NR_ZONES * NR_FREE_LISTS * NR_ORDERS).reshape(NR_ZONES, NR_FREE_LISTS, NR_ORDERS, -1)
    lists[number, : cpus + 1].view(np.int32)[..., :MIGRATE_TYPES] = NIL
    for migratetype in range(MIGRATE_TYPES):
        zone.holders[migratetype] = 0
    rows = array_view(mem_map, end)
    first = max(start, 1)  # Frame 0 stays reserved.
    zone.nr_free_pages = max(0, end - first)
    for order, blocks in zone_blocks(first, end).items():
        if len(blocks):
            area = free_area(zone, 0, order)
            area.nr_free, area.head[MIGRATE_MOVABLE] = len(blocks), int(blocks[0])
            zone.holders[MIGRATE_MOVABLE] = 1
            column(rows, mem_map, "page_type")[blocks] = PAGE_TYPE_BUDDY
            column(rows, mem_map, "private")[blocks] = order
            column(rows, mem_map, "_free_type")[blocks] = MIGRATE_MOVABLE
            column(rows, mem_map, "lru_next")[blocks] = np.append(blocks[1:], NIL)
            column(rows, mem_map, "lru_prev")[blocks] = np.append(NIL, blocks[:-1])


def zone_blocks(start: int, end: int) -> dict[int, Words]:
    """The fewest aligned blocks that cover [start, end): first frame of each, by order."""
    found: dict[int, Words] = {order: np.empty(0, np.int64) for order in range(NR_ORDERS)}
    top = int(MAX_ORDER) - 1
    for order in range(top):  # Up to the first and down from the last boundary of the largest blocks.
        size = 1 << order
        edges = []
        if start & size and start + size <= end:
            edges.append(start)
            start += size
        if end & size and end - size >= start:
            end -= size
            edges.append(end)
        found[order] = np.array(edges, np.int64)
    found[top] = np.arange(start, end, 1 << top, dtype=np.int64)
    return found


def free_blocks() -> dict[int, int]:
    """First frame of each free block -> its order, as the struct pages have it. Read while nothing runs."""
    rows = array_view(mem_map, zones[ZONE_MOVABLE].end_pfn)
    pfns = np.flatnonzero(column(rows, mem_map, "page_type") == PAGE_TYPE_BUDDY)
    return dict(zip(pfns.tolist(), column(rows, mem_map, "private")[pfns].tolist(), strict=True))
