"""Migration on one CPU; on the other the last vma of the page goes (3.26.2), and the anon_vma is somebody else's.

    CPU0 migrate                              CPU1
    page_get_anon_vma()
    migration entries, nothing maps the page
                                              munmap: the entry is zapped, the vma leaves the anon_vma
                                              fork of another program: takes the struct, under another root
    lock the root, walk, unlock the root

Without the reference the struct is free after the munmap. Its root changes under CPU 0, which then holds a lock that is not
the anon_vma's.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.points import Point
from concur_thp.check.audit import audit
from concur_thp.config import HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.flags import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from concur_thp.mm.fork import dup_mm, mm_alloc, mmget, mmput, switch_to_mm
from concur_thp.mm.migrate import NEW_PAGE
from concur_thp.mm.mm_types import Page, anon_vmas, mem_map, mms
from concur_thp.mm.move_pages import migrate_pfn
from concur_thp.mm.page_flags import page_anon_vma_nr
from concur_thp.mm.pgtable import entry_pfn, mm_pmd, pmd_trans_huge, pte_offset
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.syscall import sys_mmap, sys_munmap
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_store
from concur_thp.rules.edit import Force
from concur_thp.rules.variant import broken
from tests.litmus.held import run_held, run_held_until_bug

NO_REFERENCE = (Force("__unmap_and_move", "if PageAnon(page)", False),)
FLAGS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED


class Scene:
    """Program A has the page, program B an anon_vma of its own; each has one mapping."""

    def __init__(self, machine: Machine, huge: bool):
        self.machine, self.addr, self.size = machine, 64 * int(HPAGE_PMD_SIZE), int(HPAGE_PMD_SIZE)
        set_switch("enabled", "always" if huge else "never")
        cpu = machine.cpu(0)
        cpu_resume(cpu)
        self.a, self.b = (self.program(cpu) for _ in range(2))
        self.page = self.mapped(self.a)
        self.child = 0
        lru_add_drain(cpu)
        cpu_park(cpu)

    def program(self, cpu: Cpu) -> int:
        mm = mms.index(mm_alloc(cpu))
        switch_to_mm(cpu, mm)
        assert sys_mmap(cpu, self.addr, self.size, PROT_READ | PROT_WRITE, FLAGS, 0, 0) == self.addr
        assert user_store(cpu, self.addr, 7) == 0
        switch_to_mm(cpu, 0)
        return mm

    def mapped(self, mm: int) -> Page:
        pmd = mm_pmd(mms[mm], self.addr).val.load()
        entry = pmd if pmd_trans_huge(pmd) else pte_offset(pmd, self.addr).val.load()
        return Page(int(mem_map[entry_pfn(entry)]))

    def migrate(self, cpu: Cpu) -> bool:
        cpu_resume(cpu)
        done = migrate_pfn(cpu, self.page, NEW_PAGE) == 0
        lru_add_drain(cpu)
        cpu_park(cpu)
        return done

    def unmap_and_fork(self, cpu: Cpu) -> bool:
        """A unmaps all it has; B forks."""
        mmget(mms[self.a])
        cpu_resume(cpu)
        switch_to_mm(cpu, self.a)
        done = sys_munmap(cpu, self.addr, self.size + PAGE_SIZE) == 0
        switch_to_mm(cpu, 0)
        mmput(cpu, mms[self.a])
        child = dup_mm(cpu, mms[self.b])
        cpu_park(cpu)
        return bool(done and child)

    def finish(self) -> None:
        cpu = self.machine.cpu(0)
        cpu_resume(cpu)
        assert not audit(self.machine.config).violations
        for mm in (self.a, self.b, self.b + 1):
            mmput(cpu, mms[mm])
        cpu_park(cpu)


@pytest.fixture(params=[(9, False), (3, False), (3, True)], ids=["order9", "order3", "huge"])
def scene(request: Any) -> Iterator[Scene]:
    order, huge = request.param
    with Machine(memory="64M" if order == 9 else "4M", order=order, cpus=2) as machine:
        yield Scene(machine, huge)


def test_the_last_vma_goes_during_a_migration(scene: Scene) -> None:
    was = page_anon_vma_nr(scene.page)
    assert run_held(scene.machine, scene.migrate, Point.DOWN_READ, scene.unmap_and_fork, lambda: False) == [0, 0]
    assert anon_vmas[was].refcount.read() == 0, "given up behind the migration"
    scene.finish()


def test_without_a_reference_the_anon_vma_becomes_another_programs(scene: Scene) -> None:
    with broken(NO_REFERENCE, "migrate_without_anon_vma"):
        said = run_held_until_bug(scene.machine, scene.migrate, Point.DOWN_READ, scene.unmap_and_fork)
    assert "rwsem" in said or "held" in said, said
