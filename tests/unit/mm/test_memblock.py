"""Boot: which frames are free, in which blocks and zones."""

import pytest

from concur_thp.machine import Machine
from concur_thp.mm.buddy import WMARK_HIGH, WMARK_LOW, WMARK_MIN
from concur_thp.mm.memblock import free_blocks, zone_blocks, zone_bounds
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, PAGE_TYPE_RESERVED, mem_map, pageblock_types, pgdat, zones


@pytest.mark.parametrize("order, memory", [(9, "64M"), (3, "1M"), (2, "4M")])
def test_all_frames_but_the_first_are_free(order, memory):
    with Machine(memory=memory, order=order) as m:
        blocks = free_blocks()
        covered = [pfn + i for pfn, size in blocks.items() for i in range(1 << size)]
        assert sorted(covered) == list(range(1, m.config.frames))
        assert all(pfn % (1 << size) == 0 for pfn, size in blocks.items())
        assert sum(zones[n].nr_free_pages for n in range(3)) == m.config.frames - 1
        assert (mem_map[0].page_type, mem_map[0]._refcount.load()) == (PAGE_TYPE_RESERVED, 1)
        assert all(pageblock_types[n].value == MIGRATE_MOVABLE for n in range(m.config.frames >> order))


def test_zones_follow_each_other():
    with Machine(memory="64M") as m:
        bounds = [(zones[n].start_pfn, zones[n].end_pfn) for n in range(3)]
        assert bounds == [(0, 4096), (4096, 16384), (16384, 16384)]
        assert pgdat.nr_zones == 2
        marks = [zones[1].watermark[n] for n in (WMARK_MIN, WMARK_LOW, WMARK_HIGH)]
        assert 0 < marks[0] < marks[1] < marks[2] < m.config.frames // 100


@pytest.mark.parametrize("kernelcore, ends", [("16M", [4096, 4096, 16384]), ("33M", [4096, 9216, 16384]),
                                              ("4M", [1024, 1024, 16384]), ("64M", [4096, 16384, 16384])])
def test_kernelcore_leaves_the_rest_to_zone_movable(kernelcore, ends):
    with Machine(memory="64M", kernelcore=kernelcore):
        assert [zones[n].end_pfn for n in range(3)] == ends
        assert pgdat.nr_zones == (3 if ends[1] < ends[2] else 2)


def test_zone_bounds_are_block_boundaries():
    for kernelcore in (0, 1, 12345 << 12, 100 << 20):
        for start, end in zone_bounds(25600, kernelcore):
            assert start % 1024 == 0 and end % 1024 == 0 and start <= end


@pytest.mark.parametrize("start, end", [(1, 8192), (0, 2048), (3, 5), (1023, 1025), (2049, 9999), (7, 7)])
def test_zone_blocks_cover_a_range_with_aligned_blocks(start, end):
    with Machine(memory="64M"):
        blocks = zone_blocks(start, end)
    pieces = sorted((int(pfn), 1 << order) for order, found in blocks.items() for pfn in found)
    assert all(pfn % size == 0 for pfn, size in pieces)
    assert [pfn + i for pfn, size in pieces for i in range(size)] == list(range(start, end))
