"""Writes to read-only huge pmds, step by step: reuse, copy, small copies, and a pmd that has changed meanwhile."""

import pytest

from concur_thp.config import HPAGE_PMD_NR, PAGE_SIZE, PMD_SIZE
from concur_thp.mm.flags import GFP_TRANSHUGE_LIGHT, VM_FAULT_WRITE
from concur_thp.mm.huge_entry import is_huge_zero_pmd
from concur_thp.mm.huge_fault import alloc_transhuge_page
from concur_thp.mm.huge_wp import CHANGED, COPY, REUSED, do_huge_pmd_wp_page_fallback, wp_huge_copy, wp_huge_reuse
from concur_thp.mm.mapcount import total_mapcount
from concur_thp.mm.mm_types import MM_ANONPAGES, Page, mem_map
from concur_thp.mm.page_ref import get_page, page_ref_count
from concur_thp.mm.pgtable import _PAGE_ACCESSED, _PAGE_DIRTY, _PAGE_RW, entry_pfn, mm_pmd, pmd_table, pmd_trans_huge
from concur_thp.mm.put_page import put_page
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.vmstat import vmstat
from concur_thp.sync.rwsem import down_read, up_read

A = int(PMD_SIZE)
N = HPAGE_PMD_NR


def shared(new_task):
    """A task whose huge page a child has, too; and the child."""
    task = new_task()
    set_switch("enabled", "always")
    task.mmap(A, N)
    task.store(A, 1)
    task.store(A + PAGE_SIZE, 2)
    return task, task.fork()


def head(task) -> Page:
    return Page(int(mem_map[entry_pfn(task.pmd(A))]))


def test_the_last_one_writes_to_the_page_itself(new_task) -> None:
    task, child = shared(new_task)
    page = head(task)
    pmd = mm_pmd(task.mm, A)
    seen = pmd.val.load()
    down_read(task.cpu, task.mm.mmap_sem)
    assert wp_huge_reuse(task.cpu, task.vma(A), pmd, seen | _PAGE_RW, page) == CHANGED
    references = page_ref_count(page)
    assert wp_huge_reuse(task.cpu, task.vma(A), pmd, seen, page) == COPY
    assert page_ref_count(page) == references + 1, "for who copies it"
    put_page(task.cpu, page)
    up_read(task.cpu, task.mm.mmap_sem)
    task.exit(child)
    down_read(task.cpu, task.mm.mmap_sem)
    assert wp_huge_reuse(task.cpu, task.vma(A), pmd, seen, page) == REUSED
    up_read(task.cpu, task.mm.mmap_sem)
    assert pmd.val.load() == seen | _PAGE_RW | _PAGE_DIRTY | _PAGE_ACCESSED and page_ref_count(page) == 1


def test_a_copy_takes_the_place_of_the_page(new_task) -> None:
    task, child = shared(new_task)
    old = head(task)
    assert task.store(A, 5) == 0
    new = head(task)
    assert new != old and (total_mapcount(old), page_ref_count(old)) == (1, 1) == (total_mapcount(new), page_ref_count(new))
    assert (task.load(A), task.load(A + PAGE_SIZE)) == (5, 2) and vmstat()["wp_huge_copy"] == 1
    assert (task.mm.rss[MM_ANONPAGES].read(), task.mm.nr_ptes.read()) == (N, 1)
    task.run_in(child)
    assert (task.load(A), task.load(A + PAGE_SIZE)) == (1, 2)


@pytest.mark.parametrize("small", [False, True])
def test_a_copy_of_a_pmd_that_has_changed_is_thrown_away(new_task, small: bool) -> None:
    task, _ = shared(new_task)
    page = head(task)
    pmd = mm_pmd(task.mm, A)
    seen = pmd.val.load()
    down_read(task.cpu, task.mm.mmap_sem)
    get_page(task.cpu, page)
    if small:
        assert do_huge_pmd_wp_page_fallback(task.cpu, task.vma(A), A, pmd, seen ^ _PAGE_DIRTY, page) == 0
        put_page(task.cpu, page)  # Its caller's.
    else:
        new = alloc_transhuge_page(task.cpu, GFP_TRANSHUGE_LIGHT)
        assert wp_huge_copy(task.cpu, task.vma(A), A, pmd, seen ^ _PAGE_DIRTY, page, new) == 0
    up_read(task.cpu, task.mm.mmap_sem)
    assert pmd.val.load() == seen and (total_mapcount(page), page_ref_count(page)) == (2, 2)


def test_small_copies_take_the_place_of_the_page(new_task) -> None:
    task, child = shared(new_task)
    page = head(task)
    pmd = mm_pmd(task.mm, A)
    down_read(task.cpu, task.mm.mmap_sem)
    get_page(task.cpu, page)
    assert do_huge_pmd_wp_page_fallback(task.cpu, task.vma(A), A, pmd, pmd.val.load(), page) == VM_FAULT_WRITE
    put_page(task.cpu, page)
    up_read(task.cpu, task.mm.mmap_sem)
    assert pmd_table(task.pmd(A)) and (total_mapcount(page), page_ref_count(page)) == (1, 1)
    assert (task.mm.rss[MM_ANONPAGES].read(), task.mm.nr_ptes.read()) == (N, 1)
    assert task.pte(A).val.load() & _PAGE_RW and task.store(A, 5) == 0
    assert (task.load(A), task.load(A + PAGE_SIZE)) == (5, 2)
    task.run_in(child)
    assert task.load(A) == 1


def test_a_store_into_the_zero_page_gets_a_huge_page_of_zeroes(new_task) -> None:
    task = new_task()
    set_switch("enabled", "always")
    task.mmap(A, N)
    assert task.load(A) == 0 and is_huge_zero_pmd(task.pmd(A)) and task.mm.rss[MM_ANONPAGES].read() == 0
    assert task.store(A, 5) == 0
    assert pmd_trans_huge(task.pmd(A)) and not is_huge_zero_pmd(task.pmd(A))
    assert (task.mm.rss[MM_ANONPAGES].read(), task.mm.nr_ptes.read()) == (N, 1)
    assert (task.load(A), task.load(A + PAGE_SIZE)) == (5, 0)


def test_where_huge_pages_are_off_by_now_the_zero_page_is_split(new_task) -> None:
    task = new_task()
    set_switch("enabled", "always")
    task.mmap(A, N)
    assert task.load(A) == 0
    set_switch("enabled", "never")
    assert task.store(A, 5) == 0
    assert pmd_table(task.pmd(A)) and task.mm.rss[MM_ANONPAGES].read() == 1
    assert (vmstat()["thp_fault_fallback"], vmstat()["thp_split_pmd"]) == (1, 1)
