"""A memory failure on one CPU; programs that use the page on another (3.36): SIGBUS or their data, never anything else."""

from collections.abc import Iterator
from typing import Any

import pytest

from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.points import Point
from concur_thp.check.audit import audit
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.errno import EHWPOISON
from concur_thp.mm.flags import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from concur_thp.mm.fork import dup_mm, mm_alloc, mmget, mmput, switch_to_mm
from concur_thp.mm.memory_failure import memory_failure, unpoison_memory
from concur_thp.mm.mm_types import Page, mem_map, mms
from concur_thp.mm.page_flags import tail_page
from concur_thp.mm.pgtable import entry_pfn, mm_pmd, pmd_trans_huge
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.syscall import sys_mmap
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.mm.vmstat import Stat
from concur_thp.sync.lock_classes import ANON_VMA_RWSEM
from tests.litmus.held import run_held, wants

BROKEN = 3
"""The subpage whose frame breaks."""


class Scene:
    """A program with one huge page, every page of it written."""

    def __init__(self, machine: Machine):
        self.machine, self.addr, cpu = machine, 64 * int(HPAGE_PMD_SIZE), machine.cpu(0)
        cpu_resume(cpu)
        self.mm = mms.index(mm_alloc(cpu))
        switch_to_mm(cpu, self.mm)
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        assert sys_mmap(cpu, self.addr, int(HPAGE_PMD_SIZE), PROT_READ | PROT_WRITE, flags, 0, 0) == self.addr
        for i in range(HPAGE_PMD_NR):
            assert user_store(cpu, self.at(i), 100 + i) == 0
        pmd = mm_pmd(mms[self.mm], self.addr).val.load()
        assert pmd_trans_huge(pmd)
        self.frame = Page(int(tail_page(mem_map[entry_pfn(pmd)], BROKEN)))
        lru_add_drain(cpu)
        switch_to_mm(cpu, 0)
        cpu_park(cpu)

    def at(self, i: int) -> int:
        return int(self.addr + i * PAGE_SIZE)

    def fail(self, cpu: Cpu) -> bool:
        cpu_resume(cpu)
        status = memory_failure(cpu, self.frame)
        cpu_park(cpu)
        return bool(status == 0)

    def lost_one(self, cpu: Cpu, mm: int) -> bool:
        """Every page of the mm has its data but the broken one."""
        switch_to_mm(cpu, mm)
        good = user_load(cpu, self.at(BROKEN)) == -EHWPOISON and user_store(cpu, self.at(BROKEN), 1) == -EHWPOISON
        for i in range(HPAGE_PMD_NR):
            good = good and (i == BROKEN or (user_load(cpu, self.at(i)) == 0 and cpu.scratch[0] == 100 + i))
        switch_to_mm(cpu, 0)
        return good

    def finish(self, *children: int) -> None:
        cpu = self.machine.cpu(0)
        cpu_resume(cpu)
        for mm in (self.mm, *children):
            assert self.lost_one(cpu, mm)
        lru_add_drain(cpu)
        assert not audit(self.machine.config).violations
        for mm in (self.mm, *children):
            mmput(cpu, mms[mm])
        assert unpoison_memory(cpu, self.frame) == 0
        cpu_park(cpu)


@pytest.fixture(params=[9, 3])
def scene(request: Any) -> Iterator[Scene]:
    with Machine(memory="64M" if request.param == 9 else "4M", order=request.param, cpus=2) as machine:
        yield Scene(machine)


def test_an_access_right_behind_the_unmap(scene: Scene) -> None:
    def access(cpu: Cpu) -> bool:
        mmget(mms[scene.mm])
        cpu_resume(cpu)
        done = scene.lost_one(cpu, scene.mm)
        mmput(cpu, mms[scene.mm])
        cpu_park(cpu)
        return done

    assert run_held(scene.machine, scene.fail, Point.MEMORY_FAILURE_UNMAPPED, access, lambda: False) == [0, 0]
    scene.finish()


def test_an_access_during_the_split_waits_and_has_its_data_or_none(scene: Scene) -> None:
    seen: list[Any] = []

    def access(cpu: Cpu) -> bool:
        mmget(mms[scene.mm])
        cpu_resume(cpu)
        switch_to_mm(cpu, scene.mm)
        status = user_load(cpu, scene.at(BROKEN))
        seen.append(status)
        good = status == -EHWPOISON or (status == 0 and cpu.scratch[0] == 100 + BROKEN)
        switch_to_mm(cpu, 0)
        mmput(cpu, mms[scene.mm])
        cpu_park(cpu)
        return good

    waits = lambda: cpus[1].vmstat[int(Stat.pgfault)] > 0  # noqa: E731 - it has faulted on the migration entry
    assert run_held(scene.machine, scene.fail, Point.SPLIT_PAGE_UNMAPPED, access, waits)[1] == 0
    cpu = scene.machine.cpu(0)
    cpu_resume(cpu)
    lru_add_drain(cpu)
    memory_failure(cpu, scene.frame)  # If the waiter's reference made the first one fail.
    cpu_park(cpu)
    scene.finish()


def test_fork_in_the_middle(scene: Scene) -> None:
    """The child gets the entry as it is at that moment: the page's or the broken one, and nobody is left with the page."""
    def fork(cpu: Cpu) -> bool:
        cpu_resume(cpu)
        child = dup_mm(cpu, mms[scene.mm])
        cpu_park(cpu)
        return bool(child)

    # It waits for the anon_vma, which the split has.
    assert run_held(scene.machine, scene.fail, Point.SPLIT_PAGE_REMAPPED, fork, wants(ANON_VMA_RWSEM)) == [0, 0]
    scene.finish(scene.mm + 1)
