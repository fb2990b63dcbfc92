"""Reclaim has taken a pte down and not yet flushed; another thread faults on it and writes to a new frame.

v4.20 flushes on reclaim's behalf before a zap, mprotect, mremap and madvise, but not before a fault fills the pte again:

    CPU0 reclaim                    CPU1                        CPU2
                                    load: old (now in its TLB)
    pte down, flush deferred
    page out of its cache
                                                                store new: fault, new frame
                                    load: old, from the TLB
    try_to_unmap_flush()
"""

from collections.abc import Callable

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.listen import HOLD_NONE, HOLD_OVER, HOLD_THERE, HOLD_WANTED, LISTEN_HOLD
from concur_thp.arch.points import Point
from concur_thp.arch.system import system
from concur_thp.check.audit import audit
from concur_thp.config import PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.flags import MADV_FREE, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE
from concur_thp.mm.fork import mm_alloc, mmput, switch_to_mm
from concur_thp.mm.mm_types import mms
from concur_thp.mm.pgtable import _PAGE_ACCESSED, mm_pmd, pte_offset
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.syscall import sys_madvise, sys_mmap
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.mm.vmscan import do_try_to_free_pages
from tests.processes import finish, start, wait_for

ADDR = 1 << 24
OLD, NEW = 7, 8


def load(cpu: Cpu) -> int:
    assert user_load(cpu, ADDR) == 0
    return int(cpu.scratch[0])


def reclaim(cpu: Cpu) -> bool:
    cpu_resume(cpu)
    got = do_try_to_free_pages(cpu, 1, 0)
    cpu_park(cpu)
    return bool(got == 1)


def swapped_in(cpu: Cpu) -> None:
    """Clean, in the swap cache, and on the device."""
    assert user_store(cpu, ADDR, OLD) == 0
    lru_add_drain(cpu)
    while not do_try_to_free_pages(cpu, 1, 0):
        pass
    assert load(cpu) == OLD


def lazily_freed(cpu: Cpu) -> None:
    assert user_store(cpu, ADDR, OLD) == 0
    lru_add_drain(cpu)
    assert sys_madvise(cpu, ADDR, PAGE_SIZE, MADV_FREE) == 0
    assert load(cpu) == OLD


def of_a_file(cpu: Cpu) -> None:
    assert load(cpu) != 0


@pytest.mark.parametrize(("make", "shared"), [(swapped_in, False), (lazily_freed, False), (of_a_file, True)])
def test_no_cpu_reads_the_old_frame_when_another_writes_to_the_new_one(make: Callable[[Cpu], None], shared: bool) -> None:
    with Machine(memory="4M", order=3, cpus=3, swap="1M") as machine:
        set_switch("enabled", "never")
        reader, writer = machine.cpu(1), machine.cpu(2)
        mm = mms.index(mm_alloc(reader))
        for cpu in (writer, reader):
            cpu_resume(cpu)
            switch_to_mm(cpu, mm)
            cpu_park(cpu)  # One process is both of them: whoever does not act is parked.
        cpu_resume(reader)
        file = file_alloc(reader, 4, 5) if shared else 0
        flags = MAP_FIXED | (MAP_SHARED if shared else MAP_PRIVATE | MAP_ANONYMOUS)
        assert sys_mmap(reader, ADDR, PAGE_SIZE, PROT_READ | PROT_WRITE, flags, file, 0) == ADDR
        make(reader)
        lru_add_drain(reader)
        pte_offset(mm_pmd(mms[mm], ADDR).val.load(), ADDR).val.and_(~_PAGE_ACCESSED)  # It has aged.
        old = load(reader)
        cpu_park(reader)

        system.hold_cpu, system.hold_point = 0, int(Point.RECLAIM_UNFLUSHED)
        system.hold_state.store(HOLD_WANTED)
        system.listen.or_(LISTEN_HOLD)
        reclaimer = start(machine, 0, reclaim)
        wait_for(lambda: system.hold_state.load() == HOLD_THERE, "CPU 0 before its flush")
        cpu_resume(writer)
        assert user_store(writer, ADDR, NEW) == 0
        cpu_park(writer)
        cpu_resume(reader)
        assert old != NEW and load(reader) == NEW
        cpu_park(reader)
        system.hold_state.store(HOLD_OVER)
        assert finish([reclaimer]) == [0]
        system.hold_state.store(HOLD_NONE)
        for cpu in (writer, reader):
            cpu_resume(cpu)
            lru_add_drain(cpu)
            switch_to_mm(cpu, 0)
            cpu_park(cpu)
        assert not audit(machine.config).violations
        cpu_resume(reader)
        mmput(reader, mms[mm])
        cpu_park(reader)
