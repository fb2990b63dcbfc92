"""MADV_FREE of memory that another mm has a part of: it is not the caller's to throw away."""

import pytest

from concur_thp.config import PAGE_SIZE
from concur_thp.mm.flags import MADV_FREE
from concur_thp.mm.madvise import do_madvise
from concur_thp.mm.mm_types import Page, mem_map
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.pgtable import _PAGE_ACCESSED, entry_pfn, pmd_trans_huge
from concur_thp.mm.put_page import put_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.swap_state import add_to_swap
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.tlb_batch import try_to_unmap_flush
from concur_thp.mm.try_to_unmap import TTU_BATCH_FLUSH, TTU_SPLIT_HUGE_PMD, try_to_unmap
from concur_thp.mm.vmscan import do_try_to_free_pages
from concur_thp.mm.vmstat import vmstat

ADDR = 1 << 24


@pytest.fixture
def order(request):
    return 9 if "order9" in request.node.name else 3


@pytest.fixture
def task(new_task, order):
    task = new_task(swap={9: "16M", 3: "1M"}[order])
    set_switch("enabled", "always")
    task.mmap(ADDR, 1 << order)
    for i in range(1 << order):
        assert task.store(ADDR + i * PAGE_SIZE, i + 1) == 0
    assert pmd_trans_huge(task.pmd(ADDR))
    return task


def madv_free(task, pages: int) -> None:
    assert do_madvise(task.cpu, task.mm, ADDR, pages * PAGE_SIZE, MADV_FREE) == 0
    lru_add_drain(task.cpu)


def reclaim(task, pages: int) -> None:
    for _ in range(3):
        do_try_to_free_pages(task.cpu, pages, 0)


def test_a_huge_page_that_another_mm_maps_in_part_keeps_its_contents(task, order):
    """Its first page is the caller's alone, so page_mapcount() of the head is 1; the child's ptes of the others are
    clean, the page was dirty: clearing that would let reclaim discard what the child has."""
    parent, child = task.mm, task.fork()
    task.run_in(child)
    assert task.dontneed(ADDR, 1) == 0  # Splits the child's pmd.
    task.run_in(parent)
    madv_free(task, 1 << order)
    reclaim(task, 1 << order)
    assert vmstat()["pglazyfreed"] == 0
    task.run_in(child)
    assert [task.load(ADDR + i * PAGE_SIZE) for i in range(1 << order)] == [0, *range(2, (1 << order) + 1)]


def test_a_huge_page_of_one_mm_may_go(task, order):
    parent, child = task.mm, task.fork()
    task.run_in(child)
    assert task.dontneed(ADDR, 1) == 0
    task.exit(child)
    task.run_in(parent)
    madv_free(task, 1 << order)
    assert vmstat()["pglazyfree"] == 1 << order
    reclaim(task, 1 << order)
    assert vmstat()["pglazyfreed"] == 1 << order and task.load(ADDR) == 0


def swap_out_until_in_use(task, page: Page) -> None:
    """As reclaim does, which gives up at the first pte that was used since it asked."""
    get_page(task.cpu, page)
    lock_page(task.cpu, page)
    assert add_to_swap(task.cpu, page) == 1
    assert try_to_unmap(task.cpu, page, TTU_BATCH_FLUSH | TTU_SPLIT_HUGE_PMD) == 0
    try_to_unmap_flush(task.cpu)
    unlock_page(task.cpu, page)
    put_page(task.cpu, page)


def test_a_huge_page_in_the_swap_cache_that_was_not_yet_written_stays_dirty(task, order):
    """The parent has a swap pte of it and the child the only mapping: clean, it would be dropped without ever having
    been on the device."""
    nr, parent, page = 1 << order, task.mm, Page(int(mem_map[entry_pfn(task.pmd(ADDR))]))
    child = task.fork()
    assert task.dontneed(ADDR + (nr - 1) * PAGE_SIZE, 1) == 0  # Splits the parent's pmd.
    for i in range(nr - 1):
        task.pte(ADDR + i * PAGE_SIZE).val.and_(~_PAGE_ACCESSED)
    task.run_in(child)
    task.run_in(parent)  # An empty TLB.
    assert task.load(ADDR + PAGE_SIZE) == 2
    swap_out_until_in_use(task, page)
    assert task.dontneed(ADDR + PAGE_SIZE, nr - 2) == 0
    task.run_in(child)
    assert pmd_trans_huge(task.pmd(ADDR))
    madv_free(task, nr)
    reclaim(task, nr)
    task.run_in(parent)
    assert task.load(ADDR) == 1
