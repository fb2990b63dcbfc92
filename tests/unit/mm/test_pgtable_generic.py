"""Entries taken down on every CPU: the old one comes back with all that hardware set, and no TLB has it any more."""

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.arch.tlb import tlb_contexts
from concur_thp.config import HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.errors import KernelBug
from concur_thp.mm.mm_types import Entry
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_PRESENT,
    _PAGE_PROTNONE,
    _PAGE_RW,
    hardware_walks,
    mm_pmd,
    pmd_lockptr,
    pmd_present,
    pmd_table,
    pmd_trans_huge,
    pte_lockptr,
)
from concur_thp.mm.pgtable_generic import (
    __pmd_trans_huge_lock,
    pmd_trans_huge_lock,
    pmd_trans_unstable,
    pmdp_collapse_flush,
    pmdp_huge_clear_flush,
    pmdp_invalidate,
    ptep_clear_flush,
    ptep_set_wrprotect,
)
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.sync.spinlock import spin_lock, spin_unlock

ADDR = 1 << 24
SET = _PAGE_ACCESSED | _PAGE_DIRTY


def huge(task) -> Entry:
    set_switch("enabled", "always")
    task.mmap(ADDR, int(HPAGE_PMD_SIZE) // PAGE_SIZE)
    assert task.store(ADDR, 1) == 0
    return Entry(int(mm_pmd(task.mm, ADDR)))


def small(task) -> Entry:
    task.mmap(ADDR, 4)
    assert task.store(ADDR, 1) == 0
    return Entry(int(mm_pmd(task.mm, ADDR)))


def flushes(task) -> int:
    return int(tlb_contexts[task.mm.id].generation.load())


def cached(task) -> bool:
    """Has this CPU a translation of ADDR?"""
    tag = ADDR // PAGE_SIZE + 1
    small_tags = [task.cpu.tlb_small[i].tag for i in range(128)]
    return tag in small_tags or tag in [task.cpu.tlb_huge[i].tag for i in range(32)]


def test_invalidate_is_absent_to_hardware_only(new_task):
    """3.16.C.1"""
    task = new_task()
    pmd = huge(task)
    before = pmd.val.load()
    assert cached(task)
    spin_lock(task.cpu, pmd_lockptr(pmd))
    old = int(pmdp_invalidate(task.cpu, task.mm, ADDR, pmd))
    now = pmd.val.load()
    assert old == before and old & SET == SET
    assert pmd_trans_huge(now) and pmd_present(now) and not hardware_walks(now) and not cached(task)
    pmd.val.store(old)
    spin_unlock(task.cpu, pmd_lockptr(pmd))


def test_clear_and_collapse_leave_none(new_task):
    task = new_task()
    pmd = huge(task)
    spin_lock(task.cpu, pmd_lockptr(pmd))
    old = int(pmdp_huge_clear_flush(task.cpu, task.mm, ADDR, pmd))
    assert pmd_trans_huge(old) and pmd.val.load() == 0 and not cached(task)
    pmd.val.store(old)
    spin_unlock(task.cpu, pmd_lockptr(pmd))


def test_collapse_takes_a_table(new_task):
    task = new_task()
    pmd = small(task)
    spin_lock(task.cpu, pmd_lockptr(pmd))
    old = int(pmdp_collapse_flush(task.cpu, task.mm, ADDR, pmd))
    assert pmd_table(old) and pmd.val.load() == 0 and not cached(task)
    pmd.val.store(old)
    spin_unlock(task.cpu, pmd_lockptr(pmd))


@pytest.mark.parametrize("function, made, says", [
    (pmdp_invalidate, small, "pmdp_invalidate: not a huge pmd"),
    (pmdp_huge_clear_flush, small, "pmdp_huge_clear_flush: not a huge pmd"),
    (pmdp_collapse_flush, huge, "pmdp_collapse_flush: not a table"),
], ids=["invalidate", "clear", "collapse"])
def test_the_wrong_kind_of_pmd(new_task, function, made, says):
    task = new_task()
    pmd = made(task)
    spin_lock(task.cpu, pmd_lockptr(pmd))
    with interpreted(), pytest.raises(KernelBug, match=says):
        function(task.cpu, task.mm, ADDR, pmd)


@pytest.mark.parametrize("pending, flushed", [(0, 0), (1, 1)])
def test_a_protnone_pte_is_flushed_while_somebody_elses_flush_is_on_its_way(new_task, pending, flushed):
    """It was never loaded itself; what it replaced may still be in a TLB."""
    task = new_task()
    pmd = small(task)
    pte, ptl = task.pte(ADDR), pte_lockptr(pmd.val.load())
    present = pte.val.load()
    pte.val.store(present & ~_PAGE_PRESENT | _PAGE_PROTNONE)
    spin_lock(task.cpu, ptl)
    task.mm.tlb_flush_pending.add(pending)
    before = cached(task)
    old = int(ptep_clear_flush(task.cpu, task.mm, ADDR, pte))
    assert old & _PAGE_PROTNONE and pte.val.load() == 0 and before and cached(task) != bool(flushed)
    task.mm.tlb_flush_pending.sub(pending)
    pte.val.store(present)
    spin_unlock(task.cpu, ptl)


def test_a_present_pte_is_flushed_and_an_empty_one_is_not(new_task):
    task = new_task()
    pmd = small(task)
    ptl = pte_lockptr(pmd.val.load())
    spin_lock(task.cpu, ptl)
    pte = task.pte(ADDR)
    old = int(ptep_clear_flush(task.cpu, task.mm, ADDR, pte))
    assert old & SET == SET and not cached(task)
    before = flushes(task)
    assert int(ptep_clear_flush(task.cpu, task.mm, ADDR, pte)) == 0 and flushes(task) == before
    pte.val.store(old)
    spin_unlock(task.cpu, ptl)


def test_write_protection_takes_one_bit(new_task):
    task = new_task()
    small(task)
    pte = task.pte(ADDR)
    before = pte.val.load()
    with interpreted():
        ptep_set_wrprotect(pte)
    assert pte.val.load() == before & ~_PAGE_RW and before & _PAGE_RW
    pte.val.store(before)


def test_only_a_table_is_stable(new_task):
    """And the lock is kept only for what is huge when it is held (3.1.3)."""
    task = new_task()
    pmd = huge(task)
    with interpreted():
        assert pmd_trans_unstable(pmd) and pmd_trans_huge_lock(task.cpu, pmd)
        spin_unlock(task.cpu, pmd_lockptr(pmd))
        task.munmap(ADDR, 1)
        assert not pmd_trans_unstable(pmd) and not pmd_trans_huge_lock(task.cpu, pmd)
        assert not __pmd_trans_huge_lock(task.cpu, pmd) and task.cpu.depth == 0
