"""Faults on swap entries: data comes back, counts are right, sharing ends where it must."""

import pytest

from concur_thp.config import PAGE_SIZE
from concur_thp.mm.flags import MADV_FREE, PROT_READ, PROT_WRITE
from concur_thp.mm.lru import isolate_lru_page
from concur_thp.mm.madvise import do_madvise
from concur_thp.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, Page, mem_map
from concur_thp.mm.mprotect import do_mprotect
from concur_thp.mm.mremap import do_mremap
from concur_thp.mm.page_flags import PageHead, PageSwapCache, PG_active, tail_page
from concur_thp.mm.page_list import LIST_PAGES, list_add, page_list
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.pgtable import _PAGE_ACCESSED, _PAGE_SOFT_DIRTY, entry_pfn, is_swap_entry, pte_present, pte_write
from concur_thp.mm.shrink_page_list import shrink_page_list
from concur_thp.mm.swap import lru_add_drain, putback_lru_page
from concur_thp.mm.swap_map import SWAP_COUNT, SWAP_HAS_CACHE, swap_info, swap_map
from concur_thp.mm.swap_state import add_to_swap
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.try_to_unmap import TTU_IGNORE_ACCESS, TTU_SPLIT_HUGE_PMD, try_to_unmap
from concur_thp.mm.vmstat import vmstat

ADDR = 1 << 24
SWAP = {9: "16M", 3: "1M"}


@pytest.fixture
def task(new_task, request):
    order = 9 if "order9" in request.node.name else 3
    return new_task(swap=SWAP[order])


def swap_out(task, *addresses: int) -> None:
    """Reclaim the small pages at these addresses, used or not."""
    lru_add_drain(task.cpu)
    pages = page_list(task.cpu, LIST_PAGES)
    for addr in addresses:
        task.pte(addr).val.and_(~_PAGE_ACCESSED)
        page = task.page(addr)
        assert isolate_lru_page(task.cpu, page)
        page.flags.and_(~(1 << PG_active))
        list_add(pages, page)
    assert shrink_page_list(task.cpu, pages) == len(addresses)
    assert all(is_swap_entry(task.pte(addr).val.read()) for addr in addresses)


def slot(task, addr: int) -> int:
    return entry_pfn(task.pte(addr).val.read())


def entries(task) -> tuple[int, int]:
    return task.mm.rss[MM_ANONPAGES].read(), task.mm.rss[MM_SWAPENTS].read()


def test_read_back(task):
    task.mmap(ADDR, 4)
    task.store(ADDR, 5)
    swap_out(task, ADDR)
    assert entries(task) == (0, 1)
    entry = slot(task, ADDR)
    assert task.load(ADDR) == 5
    assert entries(task) == (1, 0)
    pte = task.pte(ADDR).val.read()
    assert pte_present(pte) and not pte_write(pte)
    # The slot stays the cache's, so that a page that stays clean need not be written again.
    assert swap_map[entry].count == SWAP_HAS_CACHE and PageSwapCache(task.page(ADDR))
    task.store(ADDR, 6)
    assert swap_map[entry].count == 0 and not PageSwapCache(task.page(ADDR))
    assert task.load(ADDR) == 6


def test_write_takes_the_page_out_of_the_cache(task):
    task.mmap(ADDR, 1)
    task.store(ADDR, 5)
    swap_out(task, ADDR)
    task.store(ADDR + 512, 6)
    assert swap_info.inuse_pages == 0 and pte_write(task.pte(ADDR).val.read())
    assert (task.load(ADDR), task.load(ADDR + 512)) == (5, 6)


def test_a_clean_page_goes_again_without_io(task):
    task.mmap(ADDR, 1)
    task.store(ADDR, 5)
    swap_out(task, ADDR)
    assert task.load(ADDR) == 5
    written = vmstat()["pswpout"]
    swap_out(task, ADDR)
    assert vmstat()["pswpout"] == written
    assert task.load(ADDR) == 5


def test_fork_shares_the_slot(task):
    task.mmap(ADDR, 2)
    task.store(ADDR, 5)
    swap_out(task, ADDR)
    entry = slot(task, ADDR)
    child, parent = task.fork(), task.mm
    assert swap_map[entry].count == 2 and child.rss[MM_SWAPENTS].read() == 1
    task.store(ADDR, 6)  # The parent copies: the child still needs the slot.
    assert swap_map[entry].count & SWAP_COUNT == 1
    task.run_in(child)
    assert task.load(ADDR) == 5
    task.store(ADDR, 7)
    task.run_in(parent)
    assert task.load(ADDR) == 6


def test_zap_gives_the_slot_up(task):
    task.mmap(ADDR, 3)
    for i in range(3):
        task.store(ADDR + i * PAGE_SIZE, i + 1)
    swap_out(task, ADDR, ADDR + PAGE_SIZE, ADDR + 2 * PAGE_SIZE)
    assert task.load(ADDR + PAGE_SIZE) == 2  # One is in the cache again.
    task.dontneed(ADDR, 2)
    assert swap_info.inuse_pages == 1 and entries(task) == (0, 1)
    assert task.load(ADDR) == 0 and task.load(ADDR + 2 * PAGE_SIZE) == 3


def test_madvise_free_drops_swapped_pages(task):
    task.mmap(ADDR, 2)
    task.store(ADDR, 1)
    swap_out(task, ADDR)
    assert do_madvise(task.cpu, task.mm, ADDR, 2 * PAGE_SIZE, MADV_FREE) == 0
    assert swap_info.inuse_pages == 0 and entries(task) == (0, 0)
    assert task.load(ADDR) == 0


def test_mprotect_and_mremap_keep_swap_entries(task):
    task.mmap(ADDR, 2)
    task.store(ADDR, 1)
    swap_out(task, ADDR)
    assert do_mprotect(task.cpu, task.mm, ADDR, 2 * PAGE_SIZE, PROT_READ) == 0
    assert task.load(ADDR) == 1
    swap_out(task, ADDR)
    assert do_mprotect(task.cpu, task.mm, ADDR, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE) == 0
    new = ADDR + (1 << 22) + PAGE_SIZE
    assert do_mremap(task.cpu, task.mm, ADDR, 2 * PAGE_SIZE, 2 * PAGE_SIZE, new) == new
    assert entries(task) == (0, 1)
    task.store(new + 512, 2)
    assert (task.load(new), task.load(new + 512)) == (1, 2)


def huge_in_cache(task, nr: int) -> Page:
    """A THP whose ptes are swap entries, and that is still in the swap cache."""
    set_switch("enabled", "always")
    cpu = task.cpu
    task.mmap(ADDR, nr)
    for i in range(nr):
        task.store(ADDR + i * PAGE_SIZE, i + 1)
    page = Page(int(mem_map[entry_pfn(task.pmd(ADDR))]))
    assert PageHead(page) and isolate_lru_page(cpu, page)
    lock_page(cpu, page)
    assert add_to_swap(cpu, page)
    assert try_to_unmap(cpu, page, TTU_SPLIT_HUGE_PMD | TTU_IGNORE_ACCESS) == 1
    unlock_page(cpu, page)
    putback_lru_page(cpu, page)
    return page


def test_a_tail_is_mapped_from_the_cache(task):
    nr = 1 << task.machine.config.order
    page = huge_in_cache(task, nr)
    assert entries(task) == (0, nr)
    assert task.load(ADDR + 3 * PAGE_SIZE) == 4
    assert task.page(ADDR + 3 * PAGE_SIZE) == tail_page(page, 3) and page._refcount.read() == nr + 1
    assert swap_map[page.private + 3].count == SWAP_HAS_CACHE
    # The others still need their slots, so the page stays in the cache; but this subpage is ours alone.
    task.store(ADDR + 3 * PAGE_SIZE, 100)
    assert PageSwapCache(page) and task.page(ADDR + 3 * PAGE_SIZE) == tail_page(page, 3)
    for i in range(nr):
        assert task.load(ADDR + i * PAGE_SIZE) == (100 if i == 3 else i + 1)
    assert entries(task) == (nr, 0)


def test_the_last_pte_of_a_thp_frees_its_cluster(task):
    nr = 1 << task.machine.config.order
    huge_in_cache(task, nr)
    lru_add_drain(task.cpu)
    task.dontneed(ADDR, nr - 1)
    assert swap_info.inuse_pages == nr
    task.dontneed(ADDR + (nr - 1) * PAGE_SIZE, 1)
    assert swap_info.inuse_pages == 0


def test_a_shared_thp_is_copied_when_a_fork_needs_its_slots(task):
    nr = 1 << task.machine.config.order
    page = huge_in_cache(task, nr)
    child, parent = task.fork(), task.mm
    task.store(ADDR, 50)
    assert task.page(ADDR) != page
    task.run_in(child)
    assert task.load(ADDR) == 1
    task.run_in(parent)
    assert task.load(ADDR) == 50
    assert all(task.load(ADDR + i * PAGE_SIZE) == i + 1 for i in range(1, nr))


def test_soft_dirty_comes_back(task):
    task.mmap(ADDR, 1)
    task.store(ADDR, 5)
    task.pte(ADDR).val.or_(_PAGE_SOFT_DIRTY)
    swap_out(task, ADDR)
    assert task.load(ADDR) == 5 and task.pte(ADDR).val.read() & _PAGE_SOFT_DIRTY
