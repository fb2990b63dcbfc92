"""khugepaged's list of mms, and the two counts of an mm."""

from contextlib import nullcontext
from typing import Any

import pytest

from concur_thp.arch.irq import cpu_resume
from concur_thp.arch.linker import interpreted
from concur_thp.arch.tlb import tlb_contexts
from concur_thp.errors import KernelBug
from concur_thp.machine import Machine
from concur_thp.mm.flags import MMF_DISABLE_THP, MMF_VM_HUGEPAGE
from concur_thp.mm.fork import mm_alloc, mmget_not_zero, mmput, switch_to_mm
from concur_thp.mm.mm_slots import (
    __khugepaged_enter,
    collect_mm_slot,
    khugepaged_enter,
    khugepaged_exit,
    khugepaged_scan,
    mmdrop,
    mmgrab,
)
from concur_thp.mm.mm_types import POOL_MM, Mm, mms, pools
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.sync.spinlock import spin_lock, spin_unlock


def slots() -> list[int]:
    """The list forwards, checked backwards."""
    found: list[int] = []
    number = khugepaged_scan.head
    while number:
        assert mms[number].slot_prev == (found[-1] if found else 0)
        found.append(number)
        number = mms[number].slot_next
    assert khugepaged_scan.tail == (found[-1] if found else 0)
    return found


def new(cpu: Any) -> Mm:
    mm = Mm(mm_alloc(cpu))
    assert mm
    return mm


@pytest.mark.parametrize("plain", [False, True])
def test_life(plain: bool) -> None:
    with Machine(memory="4M", order=3, cpus=1) as machine, interpreted() if plain else nullcontext():
        cpu = machine.cpu(0)
        some = [new(cpu) for _ in range(4)]
        assert [mm.id for mm in some] == [1, 2, 3, 4]
        for mm in some:
            assert khugepaged_enter(cpu, mm) == 0
            assert __khugepaged_enter(cpu, mm) == 0, "the second time is none"
            assert mm.mm_count.read() == 2
        assert slots() == [1, 2, 3, 4]
        for mm in (some[1], some[3], some[0], some[2]):
            mmput(cpu, mm)
        assert slots() == [] and pools[POOL_MM].in_use.read() == 0


def test_who_registers() -> None:
    with Machine(memory="4M", order=3, cpus=1) as machine:
        cpu = machine.cpu(0)
        one, two = new(cpu), new(cpu)
        set_switch("enabled", "never")
        khugepaged_enter(cpu, one)
        set_switch("enabled", "always")
        two.flags.or_(1 << MMF_DISABLE_THP)
        khugepaged_enter(cpu, two)
        assert slots() == []
        khugepaged_enter(cpu, one)
        assert slots() == [1]


def test_exit_under_the_cursor() -> None:
    """The cursor's mm stays on the list, and allocated, until khugepaged itself takes it off."""
    with Machine(memory="4M", order=3, cpus=1) as machine:
        cpu = machine.cpu(0)
        one, two = new(cpu), new(cpu)
        for mm in (one, two):
            khugepaged_enter(cpu, mm)
        khugepaged_scan.mm_slot = one.id
        mmput(cpu, one)
        assert slots() == [1, 2] and not mmget_not_zero(one)
        assert pools[POOL_MM].in_use.read() == 2
        assert one.flags.read() >> MMF_VM_HUGEPAGE & 1
        spin_lock(cpu, khugepaged_scan.lock)
        khugepaged_scan.mm_slot = one.slot_next
        assert collect_mm_slot(cpu, one) == 1
        assert collect_mm_slot(cpu, two) == 0, "has users"
        spin_unlock(cpu, khugepaged_scan.lock)
        mmdrop(cpu, one)
        assert slots() == [2] and pools[POOL_MM].in_use.read() == 1
        khugepaged_exit(cpu, two)
        assert slots() == [2], "under the cursor"


def test_the_struct_outlives_its_users() -> None:
    with Machine(memory="4M", order=3, cpus=1) as machine:
        cpu = machine.cpu(0)
        mm = new(cpu)
        mmgrab(mm)
        assert mmget_not_zero(mm)
        mmput(cpu, mm)
        mmput(cpu, mm)
        assert pools[POOL_MM].in_use.read() == 1
        mmdrop(cpu, mm)
        assert pools[POOL_MM].in_use.read() == 0


def test_nobody_may_run_in_a_freed_mm() -> None:
    with Machine(memory="4M", order=3, cpus=1) as machine, interpreted():
        cpu = machine.cpu(0)
        cpu_resume(cpu)
        mm = new(cpu)
        switch_to_mm(cpu, mm.id)
        with pytest.raises(KernelBug, match="still runs"):
            mmput(cpu, mm)


def test_generations_only_grow() -> None:
    with Machine(memory="4M", order=3, cpus=1) as machine:
        cpu = machine.cpu(0)
        generation = 0
        for _ in range(3):
            mm = new(cpu)
            assert mm.id == 1
            tlb_contexts[1].generation.add(5)
            assert tlb_contexts[1].generation.read() >= generation + 5
            generation = tlb_contexts[1].generation.read()
            mmput(cpu, mm)
