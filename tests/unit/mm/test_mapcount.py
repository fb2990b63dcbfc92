"""What the counts of a page say at each stage of its sharing, by ptes and pmds."""

from concur_thp.config import HPAGE_PMD_NR, PAGE_SIZE, PMD_SIZE
from concur_thp.mm.huge_memory import split_huge_pmd
from concur_thp.mm.mapcount import compound_mapcount, mapped_by_ptes, page_mapcount, page_mapped, total_mapcount
from concur_thp.mm.mm_types import Page, mem_map
from concur_thp.mm.page_flags import PageDoubleMap, tail_page
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.pgtable import entry_pfn, mm_pmd
from concur_thp.mm.put_page import put_page
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.sync.rwsem import down_read, up_read

A = int(PMD_SIZE)
N = HPAGE_PMD_NR


def counts(head: Page) -> tuple[int, int, int, int]:
    """Of all, of pmds, of subpage 0, of subpage 1."""
    return total_mapcount(head), compound_mapcount(head), page_mapcount(head), page_mapcount(tail_page(head, 1))


def split(task) -> None:
    down_read(task.cpu, task.mm.mmap_sem)
    split_huge_pmd(task.cpu, task.vma(A), mm_pmd(task.mm, A), A)
    up_read(task.cpu, task.mm.mmap_sem)


def test_a_small_page(new_task) -> None:
    task = new_task()
    set_switch("enabled", "never")
    task.mmap(A, 1)
    task.store(A, 1)
    page = task.page(A)
    assert (total_mapcount(page), page_mapcount(page), page_mapped(page)) == (1, 1, 1)
    child = task.fork()
    assert (total_mapcount(page), page_mapcount(page)) == (2, 2)
    task.exit(child)
    get_page(task.cpu, page)
    assert task.dontneed(A, 1) == 0
    assert (total_mapcount(page), page_mapcount(page), page_mapped(page)) == (0, 0, 0)
    put_page(task.cpu, page)


def test_a_huge_page_of_two_one_of_whom_splits_and_zaps(new_task) -> None:
    task = new_task()
    set_switch("enabled", "always")
    parent = task.mm
    task.mmap(A, N)
    task.store(A, 1)
    head = Page(int(mem_map[entry_pfn(task.pmd(A))]))
    assert counts(head) == (1, 1, 1, 1) and not mapped_by_ptes(head)
    child = task.fork()
    assert counts(head) == (2, 2, 2, 2) and not mapped_by_ptes(head)
    task.run_in(child)
    split(task)
    assert counts(head) == (1 + N, 1, 2, 2) and PageDoubleMap(head) and mapped_by_ptes(head)
    assert task.dontneed(A, 1) == 0
    assert counts(head) == (N, 1, 1, 2)
    task.run_in(parent)
    assert task.dontneed(A, N) == 0  # The offset goes with the last pmd.
    assert counts(head) == (N - 1, 0, 0, 1) and not PageDoubleMap(head)
    assert page_mapped(head) and page_mapped(tail_page(head, 1)), "some part of it is"
    task.run_in(child)
    assert task.dontneed(A + PAGE_SIZE, N - 2) == 0
    assert counts(head) == (1, 0, 0, 0) and page_mapped(head)
