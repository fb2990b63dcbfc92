"""Which free block an allocation takes when several CPUs have freed some."""

from contextlib import nullcontext

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.machine import Machine
from concur_thp.mm.buddy import __free_one_page, __rmqueue_smallest
from concur_thp.mm.flags import GFP_TRANSHUGE
from concur_thp.mm.memblock import free_blocks
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, Page, mem_map, zones
from concur_thp.mm.page_alloc import __free_pages, alloc_pages
from concur_thp.sync.spinlock import spin_lock_irq, spin_unlock_irq

MODES = pytest.mark.parametrize("mode", [nullcontext, interpreted], ids=["native", "interpreted"])


def huge(cpu):
    page = Page(alloc_pages(cpu, 3, MIGRATE_MOVABLE, GFP_TRANSHUGE))
    assert page
    return mem_map.index(page)


def held_apart(cpu, count):
    """Huge pages of which no two are buddies: each second one of a row stays in use."""
    row = [huge(cpu) for _ in range(2 * count)]
    return row[::2], row[1::2]


def free(cpu, pfn):
    __free_pages(cpu, mem_map[pfn], 3)


@MODES
def test_each_cpu_gets_back_what_it_has_freed_itself(machine_factory, mode):
    machine = machine_factory(cpus=2, memory="4M", order=3)
    first, second = machine.cpu(0), machine.cpu(1)
    with mode():
        pfns, between = held_apart(first, 4)
        for pfn in pfns:
            free((first, second)[pfns.index(pfn) % 2], pfn)
        got = {0: {huge(first), huge(first)}, 1: {huge(second), huge(second)}}
        assert got == {0: {pfns[0], pfns[2]}, 1: {pfns[1], pfns[3]}}
        for pfn in [*pfns, *between]:
            free(first, pfn)


@MODES
def test_what_others_have_freed_is_taken_when_there_is_nothing_else(machine_factory, mode):
    machine = machine_factory(cpus=2, memory="1M", order=3)
    with mode():
        got = []
        while page := alloc_pages(machine.cpu(1), 3, MIGRATE_MOVABLE, GFP_TRANSHUGE):
            got.append(mem_map.index(Page(page)))
        for pfn in got:
            free(machine.cpu(1), pfn)
        assert len({huge(machine.cpu(0)) for _ in got}) == len(got) > 20
        assert not alloc_pages(machine.cpu(0), 3, MIGRATE_MOVABLE, GFP_TRANSHUGE)


def test_an_own_block_is_found_behind_any_number_of_others(machine_factory):
    """Fails on lists that all CPUs share, where only so many foreign blocks can be passed over."""
    machine = machine_factory(cpus=2, memory="4M", order=3)
    pfns, between = held_apart(machine.cpu(0), 20)
    free(machine.cpu(0), pfns[0])
    for pfn in pfns[1:]:
        free(machine.cpu(1), pfn)
    assert huge(machine.cpu(0)) == pfns[0]
    for pfn in [pfns[0], *between]:
        free(machine.cpu(0), pfn)


@MODES
def test_neighbours_are_those_that_single_calls_would_return(machine_factory, mode):
    """As many pages of a block as are wanted; what stays behind is the same, whichever way they are taken."""
    left = []
    for one_by_one in (False, True):
        with mode(), Machine(memory="1M", order=3) as machine:
            cpu, zone, got = machine.cpu(0), zones[1], []
            spin_lock_irq(cpu, zone.lock)
            while len(got) < 13:
                page = Page(__rmqueue_smallest(cpu, zone, 0, MIGRATE_MOVABLE, 1 if one_by_one else 13 - len(got)))
                got += range(mem_map.index(page), mem_map.index(page) + cpu.scratch[0])
            spin_unlock_irq(cpu, zone.lock)
            left.append((got, free_blocks(), zone.nr_free_pages))
            spin_lock_irq(cpu, zone.lock)
            for pfn in got:
                __free_one_page(cpu, zone, pfn, 0, MIGRATE_MOVABLE)
            spin_unlock_irq(cpu, zone.lock)
    assert left[0] == left[1]
