"""DONTNEED has taken a huge pmd down and not yet flushed; another thread stores, faults, and gets a small page.

    CPU0 DONTNEED                   CPU1
                                    load: the huge page (read-only, now in its TLB)
    pmd down, flush deferred
                                    store: fault, small page; its translation goes into the TLB
    tlb_finish_mmu()

A fault drops what its CPU remembers of the address, so CPU1 never holds it small and huge.
"""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.points import Point
from concur_thp.check.audit import audit
from concur_thp.check.instant import check_at
from concur_thp.config import HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.flags import MADV_DONTNEED, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from concur_thp.mm.fork import mm_alloc, mmput, switch_to_mm
from concur_thp.mm.mm_types import mms
from concur_thp.mm.pgtable import mm_pmd, pmd_table, pmd_trans_huge
from concur_thp.mm.syscall import sys_madvise, sys_mmap
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_load, user_store
from tests.litmus.held import run_held

ADDR = 1 << 24


def test_no_cpu_holds_an_address_small_and_huge() -> None:
    with Machine(memory="4M", order=3, cpus=2) as machine:
        zapper, writer = machine.cpu(0), machine.cpu(1)
        cpu_resume(writer)
        mm = mms.index(mm_alloc(writer))
        switch_to_mm(writer, mm)
        flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS
        assert sys_mmap(writer, ADDR, int(HPAGE_PMD_SIZE), PROT_READ | PROT_WRITE, flags, 0, 0) == ADDR
        assert user_load(writer, ADDR) == 0 and pmd_trans_huge(mm_pmd(mms[mm], ADDR).val.load())
        cpu_park(writer)
        set_switch("enabled", "never")

        def zap(cpu: Cpu) -> bool:
            cpu_resume(cpu)
            switch_to_mm(cpu, mm)
            done = sys_madvise(cpu, ADDR, int(HPAGE_PMD_SIZE), MADV_DONTNEED)
            switch_to_mm(cpu, 0)
            cpu_park(cpu)
            return bool(done == 0)

        def write(cpu: Cpu) -> bool:
            cpu_resume(cpu)
            done = user_store(cpu, ADDR + PAGE_SIZE, 7) == 0 and pmd_table(mm_pmd(mms[mm], ADDR).val.load())
            check_at(cpu, Point.USER, 0)
            cpu_park(cpu)
            return bool(done)

        assert run_held(machine, zap, Point.TLB_FLUSH, write, lambda: False) == [0, 0]
        assert not audit(machine.config).violations
        for cpu in (zapper, writer):
            cpu_resume(cpu)
            switch_to_mm(cpu, 0)
            cpu_park(cpu)
        mmput(zapper, mms[mm])
