"""Page tables: building, deposit, taking entries down, and that everything comes back."""

from contextlib import nullcontext

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import interpreted
from concur_thp.arch.tlb import tlb_contexts
from concur_thp.config import PMD_SIZE, PTRS_PER_PTE
from concur_thp.errors import KernelBug
from concur_thp.machine import Machine
from concur_thp.mm.mm_types import NIL, PAGE_TYPE_TABLE, Entry, Mm, mem_map, mms, pgdat, tables, zones
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_HUGE,
    _PAGE_MIGRATION,
    _PAGE_PRESENT,
    _PAGE_RW,
    entry_pfn,
    entry_table_pfn,
    hardware_walks,
    mk_entry,
    pmd_lockptr,
    pmd_present,
    pmd_table,
    pmd_trans_huge,
    pte_lockptr,
    pte_offset,
)
from concur_thp.mm.pgtable_alloc import (
    __pmd_alloc,
    pgd_alloc,
    pgd_free,
    pgtable_free,
    pgtable_trans_huge_deposit,
    pgtable_trans_huge_withdraw,
    pmd_populate,
    pmd_trans_huge_lock,
    pmd_trans_unstable,
    pmdp_collapse_flush,
    pmdp_huge_clear_flush,
    pmdp_invalidate,
    pte_alloc_one,
    pte_free,
    ptep_clear_flush,
    ptep_set_wrprotect,
)
from concur_thp.mm.vmstat import vmstat
from concur_thp.sync.lock_classes import PAGE_TABLE_LOCK, PMD_PTL, PTE_PTL
from concur_thp.sync.spinlock import spin_lock, spin_lock_init, spin_unlock

HUGE = _PAGE_HUGE | _PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED | _PAGE_DIRTY
MODES = pytest.mark.parametrize(("order", "plain"), [(9, False), (3, False), (3, True)])


def new_mm(cpu: Cpu) -> Mm:
    mm = mms[1]
    mm.id = 1
    spin_lock_init(mm.page_table_lock, PAGE_TABLE_LOCK)
    mm.pgd = pgd_alloc(cpu, mm)
    return mm


def free_pages(cpu: Cpu) -> int:
    drain_pcp(cpu)
    return sum(zones[n].nr_free_pages for n in range(pgdat.nr_zones))


@MODES
def test_tables_are_made_once_and_come_back(order: int, plain: bool) -> None:
    with Machine(memory="64M", order=order, cpus=1) as machine, interpreted() if plain else nullcontext():
        cpu = machine.cpu()
        before = free_pages(cpu)
        mm = new_mm(cpu)
        addr = 3 * int(PMD_SIZE)
        pmd = Entry(__pmd_alloc(cpu, mm, addr))
        assert __pmd_alloc(cpu, mm, addr) == pmd
        assert __pmd_alloc(cpu, mm, addr + int(PMD_SIZE)) == int(pmd) + 8
        assert mm.nr_pmds.read() == 1
        assert vmstat()["NR_PAGETABLE"] == 3
        page = mem_map[entry_table_pfn(pmd)]
        assert (page.page_type, page.pt_mm, page.pt_level, page.pmd_huge_pte) == (PAGE_TYPE_TABLE, 1, 2, NIL)
        assert pmd_lockptr(pmd).cls == PMD_PTL
        for level_above in (entry_table_pfn(pmd), *_upper(mm)):
            pgtable_free(cpu, level_above)
        pgd_free(cpu, mm)
        assert vmstat()["NR_PAGETABLE"] == 0
        assert free_pages(cpu) == before


def _upper(mm: Mm) -> list[int]:
    """The one PUD table of the mm."""
    words = [tables[mm.pgd].copy(int(tables[mm.pgd]) + 8 * n).val.read() for n in range(64)]
    return [entry_pfn(word) for word in words if word]


@MODES
def test_a_recycled_frame_is_an_empty_table(order: int, plain: bool) -> None:
    with Machine(memory="64M", order=order, cpus=1) as machine, interpreted() if plain else nullcontext():
        cpu = machine.cpu()
        mm = new_mm(cpu)
        pmd = Entry(__pmd_alloc(cpu, mm, 0))
        for _ in range(2):
            table = pte_alloc_one(cpu, mm)
            spin_lock(cpu, pmd_lockptr(pmd))
            pmd_populate(cpu, pmd, table)
            spin_unlock(cpu, pmd_lockptr(pmd))
            value = pmd.val.read()
            assert pmd_table(value) and pmd_present(value) and hardware_walks(value)
            assert not pmd_trans_huge(value)
            assert pte_lockptr(value).cls == PTE_PTL
            for i in range(int(PTRS_PER_PTE)):
                pte = pte_offset(value, i << 12)
                assert pte.val.read() == 0
                pte.val.write(-1)
            pmd.val.write(0)
            pte_free(cpu, table)


@MODES
def test_deposit_and_withdraw(order: int, plain: bool) -> None:
    with Machine(memory="64M", order=order, cpus=1) as machine, interpreted() if plain else nullcontext():
        cpu = machine.cpu()
        mm = new_mm(cpu)
        pmd = Entry(__pmd_alloc(cpu, mm, 0))
        spares = {pte_alloc_one(cpu, mm) for _ in range(3)}
        spin_lock(cpu, pmd_lockptr(pmd))
        for table in spares:
            pgtable_trans_huge_deposit(cpu, mm, pmd, table)
        assert {pgtable_trans_huge_withdraw(cpu, mm, pmd) for _ in range(3)} == spares
        assert mem_map[entry_table_pfn(pmd)].pmd_huge_pte == NIL
        spin_unlock(cpu, pmd_lockptr(pmd))
        for table in spares:
            pte_free(cpu, table)


@pytest.mark.parametrize("what", ["unlocked", "empty", "twice", "full table freed"])
def test_deposit_refuses(what: str) -> None:
    with Machine(memory="16M", order=3, cpus=1) as machine, interpreted():
        cpu = machine.cpu()
        mm = new_mm(cpu)
        pmd = Entry(__pmd_alloc(cpu, mm, 0))
        tables_of_mm = [pte_alloc_one(cpu, mm) for _ in range(2)]
        if what != "unlocked":
            spin_lock(cpu, pmd_lockptr(pmd))
            for table in tables_of_mm if what != "empty" else ():
                pgtable_trans_huge_deposit(cpu, mm, pmd, table)
        with pytest.raises(KernelBug):
            if what == "twice":
                pgtable_trans_huge_deposit(cpu, mm, pmd, tables_of_mm[1])
            elif what == "full table freed":
                pgtable_free(cpu, entry_table_pfn(pmd))
            else:
                pgtable_trans_huge_withdraw(cpu, mm, pmd)


@MODES
def test_entries_go_down_and_flush(order: int, plain: bool) -> None:
    with Machine(memory="64M", order=order, cpus=1) as machine, interpreted() if plain else nullcontext():
        cpu = machine.cpu()
        mm = new_mm(cpu)
        pmd = Entry(__pmd_alloc(cpu, mm, 0))
        ptl = pmd_lockptr(pmd)
        flushes = tlb_contexts[1].generation
        huge = mk_entry(1 << order, HUGE)

        pmd.val.write(huge)
        assert pmd_trans_unstable(pmd) and pmd_trans_huge_lock(cpu, pmd)
        assert pmdp_invalidate(cpu, mm, 0, pmd) == huge
        absent = pmd.val.read()
        assert pmd_present(absent) and pmd_trans_huge(absent) and not hardware_walks(absent)
        assert entry_pfn(absent) == 1 << order and flushes.read() == 1
        spin_unlock(cpu, ptl)

        pmd.val.write(huge)
        ptep_set_wrprotect(pmd)
        spin_lock(cpu, ptl)
        assert pmdp_huge_clear_flush(cpu, mm, 0, pmd) == huge & ~_PAGE_RW
        assert pmd.val.read() == 0 and flushes.read() == 2
        spin_unlock(cpu, ptl)
        assert pmd_trans_unstable(pmd) and not pmd_trans_huge_lock(cpu, pmd)

        pmd.val.write(mk_entry(1 << order, _PAGE_MIGRATION))
        assert pmd_trans_unstable(pmd) and pmd_trans_huge_lock(cpu, pmd)
        spin_unlock(cpu, ptl)

        table = pte_alloc_one(cpu, mm)
        spin_lock(cpu, ptl)
        pmd_populate(cpu, pmd, table)
        spin_unlock(cpu, ptl)
        assert not pmd_trans_unstable(pmd) and not pmd_trans_huge_lock(cpu, pmd)
        pte = pte_offset(pmd.val.read(), 0)
        pte.val.write(mk_entry(5, _PAGE_PRESENT))
        assert ptep_clear_flush(cpu, mm, 0x123, pte) == mk_entry(5, _PAGE_PRESENT) and flushes.read() == 3
        assert ptep_clear_flush(cpu, mm, 0x123, pte) == 0 and flushes.read() == 3
        spin_lock(cpu, ptl)
        value = pmd.val.read()
        assert pmdp_collapse_flush(cpu, mm, 0, pmd) == value and pmd.val.read() == 0 and flushes.read() == 4
        spin_unlock(cpu, ptl)
