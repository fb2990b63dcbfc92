"""The fault's way from the pmd to the pte, and entries that give their protection back."""

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.arch.tlb import tlb_flush_all
from concur_thp.config import PAGE_SIZE, PMD_SIZE
from concur_thp.errors import KernelBug
from concur_thp.mm.flags import FAULT_FLAG_WRITE
from concur_thp.mm.memory import handle_mm_fault
from concur_thp.mm.mm_types import MM_ANONPAGES
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_HUGE,
    _PAGE_MIGRATION,
    _PAGE_PRESENT,
    _PAGE_PROTNONE,
    _PAGE_RW,
    _PAGE_SWAP,
    mm_pmd,
)
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.sync.rwsem import down_read, up_read

A = 0x40000


def fault(task, addr: int, flags: int = 0) -> int:
    down_read(task.cpu, task.mm.mmap_sem)
    result = handle_mm_fault(task.cpu, task.vma(addr), addr, flags)
    up_read(task.cpu, task.mm.mmap_sem)
    return int(result)


def test_fault_on_a_present_pte_marks_it(new_task) -> None:
    task = new_task()
    task.mmap(A, 1)
    task.store(A, 3)
    pte = task.pte(A)
    value = pte.val.load()
    pte.val.store(value & ~(_PAGE_ACCESSED | _PAGE_DIRTY))
    assert fault(task, A, FAULT_FLAG_WRITE) == 0 and pte.val.load() == value
    assert fault(task, A) == 0 and pte.val.load() == value


def test_protnone_pte_of_an_accessible_vma(new_task) -> None:
    task = new_task()
    task.mmap(A, 1)
    task.store(A, 3)
    pte = task.pte(A)
    pte.val.store(pte.val.load() & ~(_PAGE_PRESENT | _PAGE_RW) | _PAGE_PROTNONE)
    tlb_flush_all(task.cpu)
    assert task.load(A) == 3
    assert pte.val.load() & (_PAGE_PRESENT | _PAGE_PROTNONE | _PAGE_RW) == _PAGE_PRESENT
    assert task.store(A, 4) == 0 and task.mm.rss[MM_ANONPAGES].read() == 1


def test_protnone_huge_pmd_of_an_accessible_vma(new_task) -> None:
    task = new_task()
    set_switch("enabled", "always")
    start = 2 * int(PMD_SIZE)
    task.mmap(start, start // 2 // PAGE_SIZE)
    task.store(start, 3)
    pmd = mm_pmd(task.mm, start)
    pmd.val.store(pmd.val.load() & ~(_PAGE_PRESENT | _PAGE_RW) | _PAGE_PROTNONE)
    tlb_flush_all(task.cpu)
    assert task.load(start) == 3
    assert pmd.val.load() & (_PAGE_PRESENT | _PAGE_PROTNONE | _PAGE_RW | _PAGE_HUGE) == _PAGE_PRESENT | _PAGE_HUGE
    assert task.store(start, 4) == 0 and task.mm.faults.read() == 3


def test_a_swap_entry_without_its_slot(new_task) -> None:
    task = new_task()
    task.mmap(A, 1)
    task.store(A, 3)
    task.pte(A).val.store(_PAGE_SWAP | 0x5000)
    with interpreted(), pytest.raises(KernelBug, match="there is no such slot"):
        fault(task, A)


def test_a_migration_entry_of_an_unlocked_page(new_task) -> None:
    task = new_task()
    task.mmap(A, 1)
    task.store(A, 3)
    mm_pmd(task.mm, A).val.store(_PAGE_MIGRATION | 0x5000)
    with interpreted(), pytest.raises(KernelBug, match="migration entry of an unlocked page"):
        fault(task, A)
