"""Which free block an allocation takes when several CPUs have freed some."""

from contextlib import nullcontext

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.mm.buddy import NEAR_LOOKS
from concur_thp.mm.flags import GFP_TRANSHUGE
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, Page, mem_map
from concur_thp.mm.page_alloc import __free_pages, alloc_pages

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


def test_the_search_for_an_own_block_ends(machine_factory):
    """Behind NEAR_LOOKS foreign ones the own block is not found; a block that nobody has freed yet is as good."""
    machine = machine_factory(cpus=2, memory="4M", order=3)
    pfns, between = held_apart(machine.cpu(0), NEAR_LOOKS + 1)
    free(machine.cpu(0), pfns[0])
    for pfn in pfns[1:]:
        free(machine.cpu(1), pfn)
    assert huge(machine.cpu(0)) not in pfns
    for pfn in between:
        free(machine.cpu(0), pfn)
