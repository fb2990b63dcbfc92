"""Flush requests between CPU processes: served at polls with irqs on, never with irqs off, not by who is parked."""

import os

import pytest

from concur_thp.arch.bug import bug_on
from concur_thp.arch.builtins import cpu_relax
from concur_thp.arch.cpu import Cpu, CpuState, cpus
from concur_thp.arch.futex import sched_yield
from concur_thp.arch.irq import cpu_park, cpu_resume, ipi_poll, local_irq_disable, local_irq_enable
from concur_thp.arch.linker import interpreted, kernel
from concur_thp.arch.system import system
from concur_thp.arch.tlb import tlb_contexts, tlb_fill_small, tlb_lookup
from concur_thp.arch.tlbflush import flush_tlb_mm_range, switch_mm
from concur_thp.errors import KernelBug
from tests.processes import end, finish, run_all, run_until_bug, start, wait_for

ADDR = 0x5000
READY, GO = 0, 1
"""Words of CPU 0's scratch room, for steps of a test."""


@kernel
def wait_word(cpu: Cpu, word: int, poll: int):
    """Until a word of CPU 0's scratch room is set; serve requests meanwhile if `poll`.

    Context: any. Emulator: a step of a test.
    """
    while cpus[0].scratch[word] == 0:
        if poll:
            ipi_poll(cpu)
        cpu_relax()
        sched_yield()


@kernel
def holder(cpu: Cpu, irqs: int):
    """Cache a translation, say so, wait and poll; then it must be gone exactly when irqs are on.

    Context: irqs on. Emulator: a step of a test.
    """
    cpu_resume(cpu)
    switch_mm(cpu, 1)
    if irqs == 0:
        local_irq_disable(cpu)
    tlb_fill_small(cpu, ADDR, 77)
    cpus[0].scratch[READY] = 1
    wait_word(cpu, GO, 1)
    bug_on(cpu, irqs == 0 and tlb_lookup(cpu, ADDR) != 77, "served with irqs off", 0, 0)
    bug_on(cpu, irqs != 0 and tlb_lookup(cpu, ADDR) != 0, "acknowledged and not flushed", 0, 0)
    if irqs == 0:
        local_irq_enable(cpu)
    bug_on(cpu, tlb_lookup(cpu, ADDR) != 0, "not served when irqs came on", 0, 0)
    cpu_park(cpu)


@kernel
def flusher(cpu: Cpu):
    """Flush, and only then let the holder go on.

    Context: irqs on. Emulator: a step of a test.
    """
    cpu_resume(cpu)
    switch_mm(cpu, 1)
    wait_word(cpu, READY, 1)
    flush_tlb_mm_range(cpu, 1, ADDR, ADDR + 0x1000)
    cpus[0].scratch[GO] = 1
    cpu_park(cpu)


def test_a_flush_returns_when_the_other_has_dropped_the_translation(machine_factory):
    machine = machine_factory(order=3)
    run_all(machine, flusher, lambda cpu: holder(cpu, 1))
    assert (cpus[0].flushes, cpus[1].ipis) == (1, 1)


def test_with_irqs_off_a_flush_waits(machine_factory):
    """The flusher is stuck until irqs come on: the holder still uses its translation after the request has come."""
    machine = machine_factory(order=3)
    held = start(machine, 1, lambda cpu: holder(cpu, 0))
    flushing = start(machine, 0, flusher)
    wait_for(lambda: cpus[1].mail[0].seq.load() == 1, "the request")
    for _ in range(20):
        os.sched_yield()  # Time for a poll that must not serve.
    alive = os.waitpid(flushing, os.WNOHANG) == (0, 0)
    cpus[0].scratch[GO] = 1
    assert finish([held, flushing]) == [0, 0] and alive and not system.panicked.load()
    assert cpus[1].ipis == 1


def test_nobody_waits_for_a_cpu_that_parks_without_serving(machine_factory):
    """CPU 1 parks while CPU 0 waits for its ack: it must not be waited for, and must catch up when it comes back."""
    machine = machine_factory(order=3)

    def parks(cpu):
        prepare(cpu)
        cpus[0].scratch[READY] = 1
        wait_word(cpu, 2, 0)
        park(cpu)
        wait_word(cpu, GO, 0)
        return lookup_after_resume(cpu) == 0

    one = start(machine, 1, parks)
    two = start(machine, 0, flusher)
    wait_for(lambda: cpus[1].ipi_bits.load() == 1, "the request")
    cpus[0].scratch[2] = 1
    assert finish([one, two]) == [0, 0]


@kernel
def prepare(cpu: Cpu):
    """Context: irqs on. Emulator: a step of a test."""
    cpu_resume(cpu)
    switch_mm(cpu, 1)
    tlb_fill_small(cpu, ADDR, 77)


@kernel
def park(cpu: Cpu):
    """Context: any. Emulator: a step of a test."""
    cpu_park(cpu)


@kernel
def lookup_after_resume(cpu: Cpu):
    """Context: irqs on. Emulator: a step of a test."""
    cpu_resume(cpu)
    found = tlb_lookup(cpu, ADDR)
    cpu_park(cpu)
    return found


@kernel
def flush_often(cpu: Cpu, rounds: int):
    """Fill and flush; others do the same. What was flushed must be gone.

    Context: irqs on. Emulator: a test.
    """
    cpu_resume(cpu)
    switch_mm(cpu, 1)
    for i in range(rounds):
        addr = ADDR + ((i & 7) << 12)
        tlb_fill_small(cpu, addr, i + 1)
        if i & 63 == 63:
            cpu_park(cpu)
            cpu_resume(cpu)
        flush_tlb_mm_range(cpu, 1, addr, addr + 0x1000)
        bug_on(cpu, tlb_lookup(cpu, addr) != 0, "flushed and still there", i, addr)
    switch_mm(cpu, 0)
    cpu_park(cpu)


def test_flushers_that_flush_each_other_come_through(machine_factory):
    machine = machine_factory(order=3, cpus=3)
    run_all(machine, *[lambda cpu: flush_often(cpu, 3000)] * 3)
    assert tlb_contexts[1].generation.load() == 9000 and tlb_contexts[1].cpumask.load() == 0
    assert all(int(cpus[n].state.load()) == CpuState.PARKED for n in range(3))


@kernel
def flush_with_irqs_off(cpu: Cpu):
    """Context: wrong on purpose. Emulator: a test."""
    local_irq_disable(cpu)
    flush_tlb_mm_range(cpu, 1, ADDR, ADDR + 0x1000)


def test_flushing_with_irqs_off_is_a_bug(machine_factory):
    machine = machine_factory(order=3)
    assert "TLB flush started with irqs off" in run_until_bug(machine, flush_with_irqs_off)
    machine = machine_factory(order=3)
    with interpreted(), pytest.raises(KernelBug, match="TLB flush started with irqs off"):
        flush_with_irqs_off(machine.cpu(0))


def test_a_panic_ends_every_wait(machine_factory):
    """CPU 1 dies with irqs off; CPU 0, which waits for its ack, parks once the machine has panicked."""
    machine = machine_factory(order=3)
    held = start(machine, 1, lambda cpu: holder(cpu, 0))
    flushing = start(machine, 0, flusher)
    wait_for(lambda: cpus[1].mail[0].seq.load() == 1, "the request")
    end([held])
    system.panicked.store(1)
    wait_for(lambda: cpus[0].state.load() == CpuState.PARKED, "parking")
    end([flushing])
    assert cpus[1].mail[0].ack.load() < cpus[1].mail[0].seq.load()
