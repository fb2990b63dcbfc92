"""Translation caches: what is filled is found, what is flushed is not, and generations tell who is behind."""

from contextlib import nullcontext

import pytest

from concur_thp.arch.cpu import TLB_HUGE, TLB_SMALL, Cpu
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.linker import interpreted, kernel
from concur_thp.arch.tlb import (
    FLUSH_ALL_CEILING,
    tlb_catch_up,
    tlb_contexts,
    tlb_fill_huge,
    tlb_fill_small,
    tlb_flush_all,
    tlb_flush_local,
    tlb_lookup,
)
from concur_thp.arch.tlbflush import flush_tlb_mm_range, switch_mm
from concur_thp.config import PAGE_SIZE, PMD_SIZE


@kernel
def fill_small(cpu: Cpu, addr: int, entry: int):
    tlb_fill_small(cpu, addr, entry)


@kernel
def fill_huge(cpu: Cpu, addr: int, entry: int):
    tlb_fill_huge(cpu, addr, entry)


@kernel
def lookup(cpu: Cpu, addr: int):
    return tlb_lookup(cpu, addr)


@pytest.fixture(params=[(9, nullcontext), (3, nullcontext), (3, interpreted)], ids=["order9", "order3", "interpreted"])
def cpu(request, machine_factory):
    order, mode = request.param
    machine = machine_factory(order=order)
    with mode():
        yield machine.cpu(0)


def found(cpu, *addresses):
    return [lookup(cpu, addr) for addr in addresses]


def test_what_is_filled_is_found_by_any_address_in_the_page(cpu):
    fill_small(cpu, 0x5000, 77)
    assert found(cpu, 0x5000, 0x5FFF, 0x4FFF, 0x6000) == [77, 77, 0, 0]
    base = 3 * int(PMD_SIZE)
    fill_huge(cpu, base + 0x1000, 99)
    assert found(cpu, base, base + int(PMD_SIZE) - 1, base - 1, base + int(PMD_SIZE)) == [99, 99, 0, 0]


def test_a_slot_holds_one_page(cpu):
    fill_small(cpu, 0x5000, 1)
    fill_small(cpu, 0x5000 + TLB_SMALL * PAGE_SIZE, 2)
    assert found(cpu, 0x5000, 0x5000 + TLB_SMALL * PAGE_SIZE) == [0, 2]
    fill_huge(cpu, 0, 3)
    fill_huge(cpu, TLB_HUGE * int(PMD_SIZE), 4)
    assert found(cpu, 0, TLB_HUGE * int(PMD_SIZE)) == [0, 4]


@pytest.mark.parametrize("pages", [1, 3, FLUSH_ALL_CEILING, FLUSH_ALL_CEILING + 1, 100])
def test_a_flush_drops_the_range_and_nothing_else(cpu, pages):
    start = 0x40 * PAGE_SIZE
    for page in range(TLB_SMALL):
        fill_small(cpu, page * PAGE_SIZE, page + 1)
    tlb_flush_local(cpu, start, start + pages * PAGE_SIZE, 1)
    left = {page for page in range(TLB_SMALL) if lookup(cpu, page * PAGE_SIZE)}
    assert left == set(range(TLB_SMALL)) - set(range(0x40, 0x40 + pages))


def test_a_flush_of_one_page_drops_the_huge_translation_around_it(cpu):
    size = int(PMD_SIZE)
    for block in range(4):
        fill_huge(cpu, block * size, block + 1)
    tlb_flush_local(cpu, 2 * size + PAGE_SIZE, 2 * size + 2 * PAGE_SIZE, 1)
    assert found(cpu, 0, size, 2 * size, 3 * size) == [1, 2, 0, 4]
    tlb_flush_local(cpu, size - PAGE_SIZE, size + PAGE_SIZE, 2)
    assert found(cpu, 0, size, 3 * size) == [0, 0, 4]


def test_the_generation_moves_one_step_at_a_time(cpu):
    cpu.generation = 4
    tlb_flush_local(cpu, 0, PAGE_SIZE, 7)
    assert cpu.generation == 4, "a flush was missed: the CPU stays behind"
    tlb_flush_local(cpu, 0, PAGE_SIZE, 5)
    assert cpu.generation == 5


def test_catching_up_drops_everything_only_when_behind(cpu):
    switch_mm(cpu, 1)
    fill_small(cpu, 0x5000, 77)
    tlb_catch_up(cpu)
    assert lookup(cpu, 0x5000) == 77
    tlb_contexts[1].generation.add(1)
    tlb_catch_up(cpu)
    assert lookup(cpu, 0x5000) == 0 and cpu.generation == tlb_contexts[1].generation.load()


def test_a_parked_cpu_finds_out_when_it_comes_back(cpu):
    from concur_thp.machine import Machine

    other = Machine.booted.cpu(1)
    for c in (cpu, other):
        cpu_resume(c)
        switch_mm(c, 1)
    fill_small(other, 0x5000, 77)
    park(other)
    flush_tlb_mm_range(cpu, 1, 0x5000, 0x6000)
    assert lookup(other, 0x5000) == 77, "parked: not asked"
    cpu_resume(other)
    assert lookup(other, 0x5000) == 0
    park(other)
    park(cpu)


@kernel
def park(cpu: Cpu):
    cpu_park(cpu)


def test_switching_the_mm_drops_everything_and_moves_the_mask(cpu):
    switch_mm(cpu, 1)
    fill_small(cpu, 0x5000, 77)
    switch_mm(cpu, 1)
    assert lookup(cpu, 0x5000) == 77, "the same mm"
    switch_mm(cpu, 2)
    assert lookup(cpu, 0x5000) == 0
    assert (tlb_contexts[1].cpumask.load(), tlb_contexts[2].cpumask.load()) == (0, 1)
    fill_small(cpu, 0x5000, 78)
    tlb_flush_all(cpu)
    assert lookup(cpu, 0x5000) == 0
    switch_mm(cpu, 0)
    assert tlb_contexts[2].cpumask.load() == 0
