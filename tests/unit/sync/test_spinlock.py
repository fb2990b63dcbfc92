"""A spinlock on one CPU."""

from contextlib import nullcontext

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import interpreted, kernel
from concur_thp.errors import KernelBug
from concur_thp.sync.lock_classes import LRU_LOCK, PTE_PTL
from concur_thp.sync.spinlock import (
    SpinLock,
    assert_spin_locked,
    spin_lock,
    spin_lock_irq,
    spin_trylock,
    spin_unlock,
    spin_unlock_irq,
)
from tests.processes import run_until_bug
from tests.unit.sync.locks import boot, lock

MODES = pytest.mark.parametrize("mode", [nullcontext, interpreted], ids=["native", "interpreted"])


@kernel
def irq_depths(cpu: Cpu, spinlock: SpinLock):
    """Context: irqs on. Emulator: a test."""
    before = cpu.irq_off
    spin_lock_irq(cpu, spinlock)
    inside = cpu.irq_off
    spin_unlock_irq(cpu, spinlock)
    return before * 100 + inside * 10 + cpu.irq_off


@kernel
def must_hold(cpu: Cpu, spinlock: SpinLock):
    """Context: any. Emulator: a test."""
    assert_spin_locked(cpu, spinlock)


@MODES
def test_it_names_its_owner_while_held(machine_factory, mode):
    machine = boot(machine_factory)
    spinlock = lock(PTE_PTL).spin
    with mode():
        cpu = machine.cpu(1)
        spin_lock(cpu, spinlock)
        assert (spinlock.word.load(), spinlock.last, cpu.depth, cpu.held_mask) == (2, 2, 1, 1 << PTE_PTL)
        assert cpu.held[0] & 0xFF == PTE_PTL
        must_hold(cpu, spinlock)
        spin_unlock(cpu, spinlock)
        assert (spinlock.word.load(), cpu.depth, cpu.held_mask, cpu.acquiring) == (0, 0, 0, 0)


@MODES
def test_trylock_takes_a_free_lock_only(machine_factory, mode):
    machine = boot(machine_factory)
    spinlock = lock(PTE_PTL).spin
    with mode():
        assert spin_trylock(machine.cpu(0), spinlock) == 1
        assert spin_trylock(machine.cpu(1), spinlock) == 0 and machine.cpu(1).depth == 0
        spin_unlock(machine.cpu(0), spinlock)
        assert spin_trylock(machine.cpu(1), spinlock) == 1
        spin_unlock(machine.cpu(1), spinlock)


@MODES
def test_irqs_are_off_while_an_irq_lock_is_held(machine_factory, mode):
    machine = boot(machine_factory)
    with mode():
        assert irq_depths(machine.cpu(0), lock(LRU_LOCK).spin) == 10


def test_asserting_a_lock_that_is_not_held_is_a_bug(machine_factory):
    machine = boot(machine_factory)
    with interpreted(), pytest.raises(KernelBug, match="spinlock not held"):
        must_hold(machine.cpu(0), lock(PTE_PTL).spin)


def test_waiting_for_oneself_is_a_bug(machine_factory):
    """Even when lockdep's stack does not know: the word does."""
    machine = boot(machine_factory)

    def recursion(cpu):
        spin_lock(cpu, lock(PTE_PTL).spin)
        cpu.held_mask = 0
        spin_lock(cpu, lock(PTE_PTL).spin)

    assert "spinlock recursion" in run_until_bug(machine, recursion)
