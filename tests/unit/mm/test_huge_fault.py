"""The first touch of a huge range: who installs, who loses, and when small pages are used instead."""

import pytest

from concur_thp.config import HPAGE_PMD_NR, PAGE_SIZE, PMD_SIZE
from concur_thp.mm.flags import FAULT_FLAG_WRITE, GFP_TRANSHUGE_LIGHT, PROT_READ, VM_FAULT_FALLBACK
from concur_thp.mm.huge_entry import is_huge_zero_pmd
from concur_thp.mm.huge_fault import (
    __do_huge_pmd_anonymous_page,
    alloc_transhuge_page,
    do_huge_pmd_anonymous_page,
    do_huge_zero_page,
    huge_pmd_set_accessed,
)
from concur_thp.mm.mm_types import MM_ANONPAGES
from concur_thp.mm.pgtable import _PAGE_ACCESSED, _PAGE_DIRTY, _PAGE_RW, mm_pmd, pmd_none, pmd_trans_huge, set_entry
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.vmstat import vmstat
from concur_thp.sync.rwsem import down_read, up_read

A = int(PMD_SIZE)
N = HPAGE_PMD_NR
EDGE = [(0, 1), (1, 0)]


def huge(new_task, **mapping):
    task = new_task()
    set_switch("enabled", "always")
    task.mmap(A, N, **mapping)
    return task


def test_who_comes_second_frees_page_and_table_and_that_is_no_error(new_task) -> None:
    task = huge(new_task)
    task.store(A, 1)
    pmd = mm_pmd(task.mm, A)
    before = pmd.val.load()
    tables, pages = task.mm.nr_ptes.read(), task.mm.rss[MM_ANONPAGES].read()
    down_read(task.cpu, task.mm.mmap_sem)
    page = alloc_transhuge_page(task.cpu, GFP_TRANSHUGE_LIGHT)
    assert __do_huge_pmd_anonymous_page(task.cpu, task.vma(A), A, pmd, page) == 0
    assert do_huge_zero_page(task.cpu, task.vma(A), pmd, A) == 0
    up_read(task.cpu, task.mm.mmap_sem)
    assert pmd.val.load() == before and task.load(A) == 1
    assert (task.mm.nr_ptes.read(), task.mm.rss[MM_ANONPAGES].read()) == (tables, pages)
    assert vmstat()["thp_fault_alloc"] == 1


@pytest.mark.parametrize("lower, upper", EDGE)
def test_a_range_that_the_vma_does_not_hold_whole_gets_small_pages(new_task, lower: int, upper: int) -> None:
    task = new_task()
    set_switch("enabled", "always")
    task.mmap(A + lower * PAGE_SIZE, N - lower - upper)
    at = A + PAGE_SIZE
    assert task.store(at, 1) == 0
    assert not pmd_trans_huge(task.pmd(at)) and vmstat()["thp_fault_fallback"] == 0
    down_read(task.cpu, task.mm.mmap_sem)
    assert do_huge_pmd_anonymous_page(task.cpu, task.vma(at), at, FAULT_FLAG_WRITE, mm_pmd(task.mm, at)) == VM_FAULT_FALLBACK
    up_read(task.cpu, task.mm.mmap_sem)


@pytest.mark.parametrize("zero_page", [True, False])
def test_a_load_gets_the_zero_page_where_that_is_allowed(new_task, zero_page: bool) -> None:
    task = huge(new_task)
    set_switch("use_zero_page", "1" if zero_page else "0")
    assert task.load(A) == 0
    assert bool(is_huge_zero_pmd(task.pmd(A))) is zero_page
    assert task.mm.rss[MM_ANONPAGES].read() == (0 if zero_page else N)
    assert (task.mm.nr_ptes.read(), vmstat()["thp_fault_alloc"]) == (1, 0 if zero_page else 1)


def test_a_late_fault_marks_only_what_it_saw(new_task) -> None:
    task = huge(new_task)
    task.store(A, 1)
    pmd = mm_pmd(task.mm, A)
    clean = pmd.val.load() & ~(_PAGE_DIRTY | _PAGE_ACCESSED)
    set_entry(pmd, clean)
    down_read(task.cpu, task.mm.mmap_sem)
    huge_pmd_set_accessed(task.cpu, task.vma(A), A, pmd, clean | _PAGE_ACCESSED, FAULT_FLAG_WRITE)
    assert pmd.val.load() == clean, "it has changed since"
    huge_pmd_set_accessed(task.cpu, task.vma(A), A, pmd, clean, 0)
    assert pmd.val.load() == clean, "a load stores nothing"
    huge_pmd_set_accessed(task.cpu, task.vma(A), A, pmd, clean, FAULT_FLAG_WRITE)
    assert pmd.val.load() == clean | _PAGE_ACCESSED | _PAGE_DIRTY
    up_read(task.cpu, task.mm.mmap_sem)


def test_a_page_of_memory_that_is_read_only_is_zero_and_read_only(new_task) -> None:
    task = huge(new_task, prot=PROT_READ)
    set_switch("use_zero_page", "0")
    assert task.load(A) == 0
    assert pmd_trans_huge(task.pmd(A)) and task.pmd(A) & _PAGE_RW == 0
    assert task.store(A, 1) != 0 and not pmd_none(task.pmd(A))
