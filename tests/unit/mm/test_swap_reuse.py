"""Who may write to an anon page as it is: mappings and swap ptes together, and when the page leaves the swap cache for it."""

from concur_thp.config import HPAGE_PMD_NR, PMD_SIZE
from concur_thp.mm.huge_memory import split_huge_pmd
from concur_thp.mm.mm_types import Page, mem_map
from concur_thp.mm.page_flags import (
    ClearFlag,
    PageSwapCache,
    PG_dirty,
    PG_writeback,
    SetFlag,
    TestFlag,
    compound_head,
    tail_page,
)
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.pgtable import entry_pfn, is_swap_entry, mm_pmd
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.swap_reuse import page_trans_huge_map_swapcount, reuse_swap_page
from concur_thp.mm.swap_state import add_to_swap
from concur_thp.mm.swapfile import swap_duplicate, swap_free
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.program.pressure import swap_out_address
from concur_thp.sync.rwsem import down_read, up_read

A = int(PMD_SIZE)
N = HPAGE_PMD_NR


def reuse(task, page: Page) -> tuple[int, int]:
    """May the page be reused, and what maps and needs all of it?"""
    lock_page(task.cpu, page)
    answer = int(reuse_swap_page(task.cpu, page)), int(task.cpu.scratch[0])
    unlock_page(task.cpu, page)
    return answer


def swapped(new_task):
    """A task whose page at A is on the device."""
    task = new_task(swap="8M")
    set_switch("enabled", "never")
    task.mmap(A, 1)
    task.store(A, 7)
    lru_add_drain(task.cpu)
    assert swap_out_address(task.cpu, A) == 1 and is_swap_entry(task.pte(A).val.load())
    return task


def test_a_page_that_one_mm_maps_leaves_the_cache(new_task) -> None:
    task = swapped(new_task)
    assert task.load(A) == 7
    page = task.page(A)
    assert PageSwapCache(page) and not TestFlag(page, PG_dirty)
    assert reuse(task, page) == (1, 1)
    assert not PageSwapCache(page) and TestFlag(page, PG_dirty), "its place on the device is about to be old"


def test_a_page_under_writeback_is_reused_and_stays_in_the_cache(new_task) -> None:
    task = swapped(new_task)
    assert task.load(A) == 7
    page = task.page(A)
    SetFlag(page, PG_writeback)
    assert reuse(task, page) == (1, 1) and PageSwapCache(page)
    ClearFlag(page, PG_writeback)


def test_a_swap_pte_of_another_mm_counts_as_a_mapping(new_task) -> None:
    task = swapped(new_task)
    parent = task.mm
    child = task.fork()
    assert task.load(A) == 7
    page = task.page(A)
    assert reuse(task, page) == (0, 2) and PageSwapCache(page)
    task.run_in(child)
    assert task.dontneed(A, 1) == 0
    task.run_in(parent)
    assert reuse(task, page) == (1, 1)


def test_the_subpage_that_is_mapped_most_decides(new_task) -> None:
    task = new_task()
    set_switch("enabled", "always")
    parent = task.mm
    task.mmap(A, N)
    task.store(A, 1)
    head = Page(int(mem_map[entry_pfn(task.pmd(A))]))
    assert reuse(task, head) == (1, 1)
    child = task.fork()
    assert reuse(task, head) == (0, 2)
    task.run_in(child)
    down_read(task.cpu, child.mmap_sem)
    split_huge_pmd(task.cpu, task.vma(A), mm_pmd(child, A), A)
    up_read(task.cpu, child.mmap_sem)
    assert reuse(task, head) == (0, 1 + N)
    assert task.dontneed(A, N - 1) == 0
    assert reuse(task, head) == (0, 2), "the last subpage has two"
    last = task.page(A + (N - 1) * 4096)
    assert compound_head(last) == head
    task.run_in(parent)
    assert task.dontneed(A, N) == 0
    assert reuse(task, last) == (1, 1)
    assert page_trans_huge_map_swapcount(task.cpu, last) == 1


def test_a_thp_leaves_the_cache_only_when_the_one_swap_pte_left_is_this_subpages(new_task) -> None:
    task = new_task(swap="8M")
    set_switch("enabled", "always")
    task.mmap(A, int(N))
    task.store(A, 1)
    lru_add_drain(task.cpu)
    page = Page(int(mem_map[entry_pfn(task.pmd(A))]))
    lock_page(task.cpu, page)
    assert add_to_swap(task.cpu, page)
    unlock_page(task.cpu, page)
    entry = page.private
    task.munmap(A, int(N) - 2)
    swap_duplicate(task.cpu, entry)  # The first page is being mapped: its pte still counts as a swap pte.
    assert reuse(task, tail_page(page, 1)) == (1, 3) and PageSwapCache(page)
    assert reuse(task, page) == (1, 3) and not PageSwapCache(page)
    swap_free(task.cpu, entry)
