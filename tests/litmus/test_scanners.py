"""Who comes to a page by its frame or by a list, against who changes the page meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.points import Point
from concur_thp.check.audit import audit
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.do_mlock import do_mlock, do_munlock
from concur_thp.mm.errno import EBUSY
from concur_thp.mm.flags import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from concur_thp.mm.fork import mm_alloc, mmget, mmput, switch_to_mm
from concur_thp.mm.lru import LRU_ACTIVE, LRU_INACTIVE_ANON
from concur_thp.mm.migrate import NEW_PAGE
from concur_thp.mm.mm_types import Mm, Page, mem_map, mms
from concur_thp.mm.mmap import vm_mmap
from concur_thp.mm.move_pages import migrate_pfn
from concur_thp.mm.munmap import vm_munmap
from concur_thp.mm.page_flags import PG_mlocked, PG_unevictable, TestFlag, page_to_pfn
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.pgtable import entry_pfn, mm_pmd, pmd_trans_huge, pte_offset
from concur_thp.mm.split_huge_page import split_huge_page
from concur_thp.mm.swap import lru_add_drain, put_page
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.mm.vmscan import shrink_active_list
from tests.litmus.held import run_held

SHAPES = pytest.mark.parametrize(("order", "memory"), [(9, "64M"), (3, "4M")])


class Place:
    """One block of an mm that both CPUs run in, huge or small, its pages numbered."""

    def __init__(self, machine: Machine, huge: bool):
        self.machine, self.cpu = machine, machine.cpu(0)
        self.start, self.n = 64 * int(HPAGE_PMD_SIZE), int(HPAGE_PMD_NR)
        self.mm = Mm(int(mm_alloc(self.cpu)))
        set_switch("enabled", "always" if huge else "never")
        with self.on(self.cpu):
            assert vm_mmap(self.cpu, self.mm, self.start, int(HPAGE_PMD_SIZE), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, 0, 0) == self.start
            for i in range(self.n):
                assert user_store(self.cpu, self.at(i), 100 + i) == 0
            assert bool(pmd_trans_huge(self.pmd())) == huge

    @contextmanager
    def on(self, cpu: Cpu) -> Iterator[None]:
        """`cpu` runs in the mm."""
        cpu_resume(cpu)
        mmget(mms[self.mm.id])
        switch_to_mm(cpu, self.mm.id)
        yield
        lru_add_drain(cpu)
        switch_to_mm(cpu, 0)
        mmput(cpu, self.mm)
        cpu_park(cpu)

    def at(self, i: int) -> int:
        return self.start + i * PAGE_SIZE

    def pmd(self) -> int:
        return int(mm_pmd(self.mm, self.start).val.load())

    def pfn(self, i: int) -> int:
        pmd = self.pmd()
        if pmd_trans_huge(pmd):
            return int(entry_pfn(pmd)) + i
        return int(entry_pfn(pte_offset(pmd, self.at(i)).val.load()))

    def page(self, i: int) -> Page:
        return Page(int(mem_map[self.pfn(i)]))

    def finish(self) -> None:
        """The data is there, every law holds, and all is free when it is gone."""
        with self.on(self.cpu):
            for i in range(self.n):
                assert user_load(self.cpu, self.at(i)) == 0 and self.cpu.scratch[0] == 100 + i
            lru_add_drain(self.cpu)
            assert audit(self.machine.config).violations == []
            assert vm_munmap(self.cpu, self.mm, self.start, int(HPAGE_PMD_SIZE)) == 0
        cpu_resume(self.cpu)
        mmput(self.cpu, self.mm)
        for number in range(2):
            lru_add_drain(self.machine.cpu(number))
            drain_pcp(self.machine.cpu(number))
        assert audit(self.machine.config, expect_empty=True).violations == []


@contextmanager
def place(order: int, memory: str, huge: bool) -> Iterator[Place]:
    with Machine(memory=memory, order=order, cpus=2) as machine:
        found = Place(machine, huge)
        yield found
        found.finish()


@SHAPES
def test_a_frame_is_emptied_or_left_alone_but_no_other(order: int, memory: str) -> None:
    """R34, 3.9: a reference of the head is one of the frame's page only if the head is still its head.

        CPU0 migrate_pfn(a tail's frame)         CPU1 split_huge_page
        head of the frame
                                                 the tail is a page of its own
        reference of the old head: moves that one, not the frame's
    """
    with place(order, memory, huge=True) as p:
        before = [p.pfn(i) for i in range(p.n)]

        def offline(cpu: Cpu) -> bool:
            with p.on(cpu):
                return int(migrate_pfn(cpu, p.page(3), NEW_PAGE)) == -EBUSY

        def split(cpu: Cpu) -> bool:
            with p.on(cpu):
                page = p.page(3)
                get_page(cpu, page)
                lock_page(cpu, page)
                done = split_huge_page(cpu, page) == 0
                unlock_page(cpu, page)
                put_page(cpu, page)
                return done

        assert run_held(p.machine, offline, Point.MIGRATE_PFN_HEAD, split, lambda: False) == [0, 0]
        assert [p.pfn(i) for i in range(p.n)] == before


@SHAPES
def test_mlock_of_a_page_that_reclaim_puts_back(order: int, memory: str) -> None:
    """3.24: a page isolated when mlock came by goes to the unevictable list when it is put back.

        CPU0 move_pages_to_lru                   CPU1 mlock
        not mlocked
                                                 PG_mlocked; not on the LRU, so whoever isolated it will see
        PG_lru, on an evictable list
    """
    with place(order, memory, huge=False) as p:

        def age(cpu: Cpu) -> None:
            with p.on(cpu):
                shrink_active_list(cpu, 1, LRU_INACTIVE_ANON + LRU_ACTIVE)

        def mlock(cpu: Cpu) -> bool:
            with p.on(cpu):
                return int(do_mlock(cpu, p.mm, p.at(0), PAGE_SIZE)) == 0

        assert run_held(p.machine, age, Point.LRU_PUTBACK, mlock, lambda: cpus[1].acquiring) == [0, 0]
        page = p.page(0)
        assert TestFlag(page, PG_mlocked) and TestFlag(page, PG_unevictable), page_to_pfn(page)
        with p.on(p.cpu):
            assert audit(p.machine.config).violations == []
            assert do_munlock(p.cpu, p.mm, p.at(0), PAGE_SIZE) == 0
