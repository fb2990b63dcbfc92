"""Migration entries: what walkers do with them, and how faults wait for them; every law audited behind each test."""

from typing import Any

import pytest

from concur_thp.arch.cpu import cpus
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.linker import Kernel
from concur_thp.arch.points import Point
from concur_thp.config import PAGE_SIZE, PMD_SIZE
from concur_thp.mm.flags import PROT_NONE, PROT_READ, PROT_WRITE
from concur_thp.mm.huge_memory import __split_huge_pmd
from concur_thp.mm.migration_entry import is_write_migration_entry
from concur_thp.mm.mm_types import Page
from concur_thp.mm.mprotect import do_mprotect
from concur_thp.mm.mremap import do_mremap
from concur_thp.mm.page_flags import PG_dirty, page_to_pfn
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.page_ref import get_page, page_ref_count
from concur_thp.mm.pgtable import entry_pfn, is_migration_entry, is_pmd_migration_entry, mm_pmd, pte_write
from concur_thp.mm.put_page import put_page
from concur_thp.mm.rmap import total_mapcount
from concur_thp.mm.split_huge_page import TTU_SPLIT
from concur_thp.mm.try_to_unmap import (
    TTU_IGNORE_ACCESS,
    TTU_IGNORE_MLOCK,
    TTU_MIGRATION,
    TTU_RMAP_LOCKED,
    remove_migration_ptes,
    try_to_unmap,
)
from concur_thp.mm.uaccess import user_load
from concur_thp.mm.vmstat import Stat
from tests.processes import run_all, wait_for
from tests.unit.mm.thp import Thp

RW = PROT_READ | PROT_WRITE
MIGRATION = TTU_MIGRATION | TTU_IGNORE_MLOCK | TTU_IGNORE_ACCESS


@pytest.mark.parametrize("flags", [TTU_SPLIT, MIGRATION], ids=["ptes", "pmd"])
def test_migration_entries(new_task: Any, flags: int) -> None:
    """I10, I19 and what walkers do with entries: zap and fork count them in rss only, mprotect takes the write bit."""
    t = new_task(cpus=2)
    thp = Thp(t)
    if flags == TTU_SPLIT:
        __split_huge_pmd(t.cpu, t.vma(thp.addr), mm_pmd(t.mm, thp.addr), thp.addr, 0, Page(0))
    parent = t.mm
    with thp.unmapped(MIGRATION):
        value = t.pmd(thp.addr) if flags == MIGRATION else t.pte(thp.addr).val.load()
        assert is_pmd_migration_entry(value) or is_migration_entry(value)
        assert is_write_migration_entry(value) and entry_pfn(value) == page_to_pfn(thp.head)
        assert t.mm.rss[1].read() == thp.n
        child = t.fork()
        value = t.pmd(thp.addr) if flags == MIGRATION else t.pte(thp.addr).val.load()
        assert not is_write_migration_entry(value) and is_migration_entry(value)
        assert child.rss[1].read() == thp.n and page_ref_count(thp.head) == 1  # X13
        t.run_in(child)
        t.dontneed(thp.at(1), 1)
        assert child.rss[1].read() == thp.n - 1 and page_ref_count(thp.head) == 1
    assert thp.head.flags.read() >> PG_dirty & 1
    t.cpu.vmstat[Stat.thp_migration_success] += 1  # The audit's leave for K10: mapped by pmd and ptes, no DoubleMap.
    t.run_in(parent)
    thp.data_is_there()
    t.run_in(child)
    assert t.load(thp.at(1)) == 0 and t.load(thp.at(2)) == 1002
    assert t.store(thp.at(2), 1) == 0
    t.run_in(parent)
    assert t.load(thp.at(2)) == 1002


@pytest.mark.parametrize("prot", [PROT_READ, PROT_NONE], ids=["ro", "none"])
def test_remap_uses_the_rights_of_now(new_task: Any, prot: int) -> None:
    """X20, race 11: mprotect between unmap and remap."""
    t = new_task(cpus=2)
    thp = Thp(t)
    with thp.unmapped(TTU_SPLIT):
        assert is_write_migration_entry(t.pte(thp.addr).val.load())
        assert do_mprotect(t.cpu, t.mm, thp.addr, thp.n * PAGE_SIZE, prot) == 0
    assert not pte_write(t.pte(thp.addr).val.load())
    assert t.store(thp.addr, 1) != 0
    assert do_mprotect(t.cpu, t.mm, thp.addr, thp.n * PAGE_SIZE, RW) == 0
    thp.data_is_there()
    assert t.store(thp.addr, 1) == 0


def test_vma_cut_and_moved_between_unmap_and_remap(new_task: Any) -> None:
    """A huge migration entry is split by munmap of a part, and its ptes move; all that is left finds its way back."""
    t = new_task(cpus=2)
    thp = Thp(t)
    moved = thp.addr + 8 * int(PMD_SIZE) + PAGE_SIZE
    with thp.unmapped(MIGRATION):
        assert t.munmap(thp.at(1), 2) == 0
        assert is_migration_entry(t.pte(thp.addr).val.load())
        half = thp.n // 2
        assert do_mremap(t.cpu, t.mm, thp.at(half), half * PAGE_SIZE, half * PAGE_SIZE, moved) == moved
    assert total_mapcount(thp.head) == thp.n - 2 == page_ref_count(thp.head)
    assert t.load(thp.at(3)) == 1003
    assert [t.load(moved + i * PAGE_SIZE) for i in range(half)] == [1000 + half + i for i in range(half)]


@pytest.mark.parametrize("i", [0, 5], ids=["head", "tail"])
@pytest.mark.parametrize("flags", [TTU_SPLIT, MIGRATION], ids=["ptes", "pmd"])
def test_a_fault_waits(new_task: Any, flags: int, i: int) -> None:
    """3.26, race 9, X23: a load meets an entry, waits for the page lock (or, on a tail, faults again and again), and
    then reads the data."""
    t = new_task(cpus=2)
    if Kernel.interpreting:
        pytest.skip("two processes: native only")
    thp = Thp(t)
    head, faults = thp.head, t.mm.faults.read()
    cpu_park(t.cpu)

    def waiting() -> bool:
        # On a head, or a pmd, it sleeps with a reference; on a tail there is nothing to take one of.
        if i == 0 or flags == MIGRATION:
            return bool(cpus[0].point == Point.MIGRATION_ENTRY_WAIT and page_ref_count(head) == 2)
        return bool(t.mm.faults.read() > faults + 2)

    def load(cpu: Any) -> bool:
        wait_for(lambda: page_ref_count(head) == 1 and total_mapcount(head) == 0)
        cpu_resume(cpu)
        done = user_load(cpu, thp.at(i)) == 0 and cpu.scratch[0] == 1000 + i
        cpu_park(cpu)
        return done

    def migrate(cpu: Any) -> bool:
        cpu_resume(cpu)
        get_page(cpu, head)
        lock_page(cpu, head)
        done = try_to_unmap(cpu, head, flags & ~TTU_RMAP_LOCKED) == 1
        wait_for(waiting)
        remove_migration_ptes(cpu, head, head, 0)
        unlock_page(cpu, head)
        put_page(cpu, head)
        cpu_park(cpu)
        return done

    run_all(t.machine, load, migrate)
    cpu_resume(t.cpu)
    assert page_ref_count(head) == (1 if flags == MIGRATION else thp.n)
    thp.data_is_there()
