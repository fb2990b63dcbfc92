"""The split of a pmd on one CPU, MADV_DONTNEED of the whole range on another.

From the moment the table stands in the pmd, its ptes can be zapped under the pte ptl alone, so nothing but the caller's own
reference keeps the page:

    CPU0 split_huge_pmd                       CPU1 MADV_DONTNEED
    trylock_page()
    pmd_populate()
                                              zap_pte_range(): N mappings and references go
                                              the last put frees a page with PG_locked set
    unlock_page()
"""

from collections.abc import Callable

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.points import Point
from concur_thp.arch.system import system
from concur_thp.check.audit import audit
from concur_thp.config import HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.flags import MADV_DONTNEED, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from concur_thp.mm.fork import mm_alloc, mmget, mmput, switch_to_mm
from concur_thp.mm.mm_types import mms
from concur_thp.mm.syscall import sys_madvise, sys_mmap
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.mm.vmstat import vmstat
from tests.litmus.held import run_held

Body = Callable[[Cpu], object]


@pytest.mark.parametrize("order", [9, 3])
def test_a_page_is_not_freed_while_the_split_of_its_pmd_has_it_locked(order: int) -> None:
    with Machine(memory="64M" if order == 9 else "4M", order=order, cpus=2) as machine:
        size = int(HPAGE_PMD_SIZE)
        start = 64 * size
        cpu = machine.cpu(0)
        mm = mms.index(mm_alloc(cpu))

        def thread(body: Body) -> Body:
            def run(cpu: Cpu) -> object:
                mmget(mms[mm])
                cpu_resume(cpu)
                switch_to_mm(cpu, mm)
                result = body(cpu)
                switch_to_mm(cpu, 0)
                mmput(cpu, mms[mm])
                cpu_park(cpu)
                return result

            return run

        def touch(cpu: Cpu) -> None:
            flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
            assert sys_mmap(cpu, start, size, PROT_READ | PROT_WRITE, flags, 0, 0) == start
            assert user_store(cpu, start, 7) == 0

        def discard(length: int) -> Body:
            return lambda cpu: sys_madvise(cpu, start, length, MADV_DONTNEED) == 0

        thread(touch)(cpu)
        assert vmstat()["thp_fault_alloc"] == 1
        assert run_held(machine, thread(discard(PAGE_SIZE)), Point.SPLIT_PMD_POPULATED, thread(discard(size)),
                        system.panicked.load) == [0, 0]
        assert vmstat()["thp_split_pmd"] == 1
        thread(lambda cpu: (user_load(cpu, start), cpu.scratch[0]) == (0, 0) or pytest.fail("not zero"))(cpu)
        assert not audit(machine.config).violations
        cpu_resume(cpu)
        mmput(cpu, mms[mm])
        cpu_park(cpu)
        assert vmstat()["NR_ANON_THPS"] == 0
