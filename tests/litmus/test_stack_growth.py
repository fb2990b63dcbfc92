"""A stack grows on one CPU while another faults in it: both under mmap_sem read.

    CPU0 expand_stack                         CPU1 page fault in the same vma
    vm_start = lower
                                              linear_page_index(): the new start, the old pgoff
    vm_pgoff = lower
                                              page.index is wrong: no rmap walk finds the page
"""

import os

from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.points import Point
from concur_thp.check.audit import audit
from concur_thp.config import PAGE_SHIFT, PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.anon_vma import anon_vma_lock_write, anon_vma_unlock_write
from concur_thp.mm.flags import MAP_ANONYMOUS, MAP_FIXED, MAP_GROWSDOWN, MAP_PRIVATE, PROT_READ, PROT_WRITE
from concur_thp.mm.fork import mm_alloc, mmget, mmput, switch_to_mm
from concur_thp.mm.mm_types import Mm, Vma, anon_vmas, mem_map
from concur_thp.mm.pgtable import entry_pfn, mm_pmd, pte_offset
from concur_thp.mm.syscall import sys_mmap
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_store
from concur_thp.mm.vma_tree import find_vma
from concur_thp.sync.rwsem import down_read, up_read
from concur_thp.sync.spinlock import spin_lock, spin_unlock
from tests.processes import finish, start, wait_for

TOP = 1 << 24
GROW = 3


def ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def test_a_fault_in_a_growing_stack_gives_the_page_its_index() -> None:
    with Machine(memory="4M", order=3, cpus=2) as machine:
        set_switch("enabled", "never")
        cpu = machine.cpu(0)
        mm = Mm(int(mm_alloc(cpu)))
        cpu_resume(cpu)
        switch_to_mm(cpu, mm.id)
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN
        assert sys_mmap(cpu, TOP, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE, flags, 0, 0) == TOP
        assert user_store(cpu, TOP, 1) == 0
        vma = Vma(int(find_vma(mm, TOP)))
        index = vma.vm_pgoff + 1

        def fault(cpu: Cpu) -> bool:
            mmget(mm)
            cpu_resume(cpu)
            switch_to_mm(cpu, mm.id)
            done = user_store(cpu, TOP + PAGE_SIZE, 2) == 0
            switch_to_mm(cpu, 0)
            mmput(cpu, mm)
            cpu_park(cpu)
            return done

        # What expand_stack() does, by hand and slowly.
        down_read(cpu, mm.mmap_sem)
        anon_vma_lock_write(cpu, anon_vmas[vma.anon_vma])
        spin_lock(cpu, mm.page_table_lock)
        vma.vm_start = TOP - GROW * PAGE_SIZE
        other = start(machine, 1, fault)
        wait_for(lambda: ended(other) or cpus[1].point == Point.PTE_FAULT_LOCKED, "CPU 1 behind the ptl")
        vma.vm_pgoff = vma.vm_pgoff - GROW
        spin_unlock(cpu, mm.page_table_lock)
        anon_vma_unlock_write(cpu, anon_vmas[vma.anon_vma])
        up_read(cpu, mm.mmap_sem)
        assert finish([other]) == [0]

        pte = pte_offset(mm_pmd(mm, TOP + PAGE_SIZE).val.load(), TOP + PAGE_SIZE).val.load()
        assert mem_map[entry_pfn(pte)].index == index == (TOP + PAGE_SIZE) >> PAGE_SHIFT
        assert not audit(machine.config).violations
        switch_to_mm(cpu, 0)
        mmput(cpu, mm)
        cpu_park(cpu)
