"""Reclaim asks who uses a page that it has not locked; while it waits for the rmap lock the page changes its anon_vma.

    CPU0 page_referenced(), no page lock         CPU1
    page.mapping is the parent's anon_vma
    somebody has the rwsem: a reference of it
                                                 the parent zaps the page
                                                 the child stores: the page is its own, and gets the child's anon_vma
                                                 the child exits: nothing maps the page, its anon_vma is free
                                                 fork of another program: takes the struct, under another root
    locks the root, walks

page.mapping names an anon_vma of the other program now, whose rwsem CPU 0 does not hold. The anon_vma that CPU 0 has locked
is still there, and every vma that may map the page is in it.
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
from concur_thp.mm.anon_vma_ref import anon_vma_lock_write, anon_vma_unlock_write
from concur_thp.mm.flags import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from concur_thp.mm.fork import dup_mm, mm_alloc, mmget, mmput, switch_to_mm
from concur_thp.mm.madvise import MADV_DONTNEED
from concur_thp.mm.mapcount import page_mapped
from concur_thp.mm.mm_types import Page, anon_vmas, mem_map, mms
from concur_thp.mm.page_flags import page_anon_vma_nr
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.page_referenced import page_referenced
from concur_thp.mm.pgtable import entry_pfn, mm_pmd, pte_offset
from concur_thp.mm.swap import lru_add_drain, put_page
from concur_thp.mm.syscall import sys_madvise, sys_mmap
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_store
from concur_thp.rules.edit import Force
from concur_thp.rules.variant import broken
from tests.litmus.held import run_held, run_held_until_bug

FROM_THE_PAGE = (Force("rmap_walk_begin_range", "if walk.locked == 0", True),)
FLAGS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED


class Scene:
    """A parent and a child share a page of the parent's anon_vma; a stranger has an anon_vma of its own."""

    def __init__(self, machine: Machine):
        self.machine, self.addr = machine, 64 * int(HPAGE_PMD_SIZE)
        set_switch("enabled", "never")
        cpu = machine.cpu(0)
        cpu_resume(cpu)
        self.parent, self.stranger = (self.program(cpu) for _ in range(2))
        self.child = mms.index(dup_mm(cpu, mms[self.parent]))
        pte = pte_offset(mm_pmd(mms[self.parent], self.addr).val.load(), self.addr).val.load()
        self.page = Page(int(mem_map[entry_pfn(pte)]))
        self.was = page_anon_vma_nr(self.page)
        get_page(cpu, self.page)
        lru_add_drain(cpu)
        cpu_park(cpu)
        # The other CPU has the rwsem at first, so that the trylock fails.
        anon_vma_lock_write(machine.cpu(1), anon_vmas[self.was])

    def program(self, cpu: Cpu) -> int:
        mm = mms.index(mm_alloc(cpu))
        self.run_in(cpu, mm)
        assert sys_mmap(cpu, self.addr, 4 * PAGE_SIZE, PROT_READ | PROT_WRITE, FLAGS, 0, 0) == self.addr
        assert user_store(cpu, self.addr, 7) == 0
        self.leave(cpu, mm)
        return mm

    def run_in(self, cpu: Cpu, mm: int) -> None:
        mmget(mms[mm])
        switch_to_mm(cpu, mm)

    def leave(self, cpu: Cpu, mm: int) -> None:
        switch_to_mm(cpu, 0)
        mmput(cpu, mms[mm])

    def referenced(self, cpu: Cpu) -> int:
        cpu_resume(cpu)
        found = int(page_referenced(cpu, self.page, 0))
        cpu_park(cpu)
        return found

    def move(self, cpu: Cpu) -> bool:
        """The parent zaps the page, the child makes it its own."""
        cpu_resume(cpu)
        anon_vma_unlock_write(cpu, anon_vmas[self.was])
        self.run_in(cpu, self.parent)
        assert sys_madvise(cpu, self.addr, PAGE_SIZE, MADV_DONTNEED) == 0
        self.leave(cpu, self.parent)
        self.run_in(cpu, self.child)
        assert user_store(cpu, self.addr, 8) == 0
        self.leave(cpu, self.child)
        lru_add_drain(cpu)
        cpu_park(cpu)
        return page_anon_vma_nr(self.page) != self.was and bool(page_mapped(self.page))

    def move_away(self, cpu: Cpu) -> bool:
        """And exits; the stranger forks, and its child has the anon_vma."""
        moved = self.move(cpu)
        nr = page_anon_vma_nr(self.page)
        cpu_resume(cpu)
        mmput(cpu, mms[self.child])
        moved = moved and anon_vmas[nr].refcount.read() == 0
        assert dup_mm(cpu, mms[self.stranger])  # The struct of the child's mm is used again, too.
        cpu_park(cpu)
        return moved and anon_vmas[nr].refcount.read() == 1 and anon_vmas[nr].root != anon_vmas[self.was].root

    def finish(self) -> None:
        cpu = self.machine.cpu(0)
        cpu_resume(cpu)
        put_page(cpu, self.page)
        assert not audit(self.machine.config).violations
        for mm in (self.parent, self.stranger, self.child):
            mmput(cpu, mms[mm])
        cpu_park(cpu)
        assert not audit(self.machine.config, expect_empty=True).violations


@pytest.fixture(params=[9, 3])
def scene(request: Any) -> Iterator[Scene]:
    order = request.param
    with Machine(memory="64M" if order == 9 else "4M", order=order, cpus=2) as machine:
        yield Scene(machine)


def test_the_page_leaves_its_anon_vma_and_that_becomes_another_programs(scene: Scene) -> None:
    assert run_held(scene.machine, lambda cpu: scene.referenced(cpu) == 0, Point.DOWN_READ, scene.move_away,
                    lambda: False) == [0, 0]
    scene.finish()


def test_a_page_that_moved_to_the_childs_anon_vma_is_found_from_the_parents(scene: Scene) -> None:
    assert run_held(scene.machine, lambda cpu: scene.referenced(cpu) == 1, Point.DOWN_READ, scene.move,
                    lambda: False) == [0, 0]
    scene.finish()


def test_a_walk_by_the_pages_mapping_would_be_in_another_program(scene: Scene) -> None:
    with broken(FROM_THE_PAGE, "walk_by_mapping"):
        said = run_held_until_bug(scene.machine, lambda cpu: scene.referenced(cpu) >= 0, Point.DOWN_READ, scene.move_away)
    assert "rwsem not held" in said and "rmap_walk_begin_range" in said, said
