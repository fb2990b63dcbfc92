"""The page cache: what files contain, slots and their references, dropping."""

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.config import FRAME_WORDS
from concur_thp.errors import KernelBug
from concur_thp.mm.errno import EEXIST
from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.filemap import (
    CONTENT_MARK,
    add_to_page_cache,
    cached_pfn,
    delete_from_page_cache,
    filemap_fault,
    filemap_get_page,
    find_get_page,
    page_file_nr,
)
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE, VM_FAULT_LOCKED, VM_FAULT_OOM, VM_FAULT_SIGBUS
from concur_thp.mm.mm_types import NIL, Page, files, frames
from concur_thp.mm.page_alloc import alloc_page
from concur_thp.mm.page_flags import PG_swapbacked, PG_uptodate, TestFlag, page_to_pfn
from concur_thp.mm.page_lock import PageLocked, lock_page, trylock_page, unlock_page
from concur_thp.mm.page_ref import page_ref_count
from concur_thp.mm.put_page import put_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.truncate import drop_caches, invalidate_mapping_pages
from concur_thp.mm.vmstat import vmstat

A = 0x40000


def words(page: Page) -> list[int]:
    return [frames[page_to_pfn(page)].word[w].read() for w in range(FRAME_WORDS)]


def test_content_follows_from_id_and_index(new_task) -> None:
    cpu = new_task().cpu
    file = file_alloc(cpu, 16, 9)
    assert Page(int(find_get_page(cpu, file, 5))) == Page(0)
    page = Page(int(filemap_get_page(cpu, file, 5)))
    assert words(page) == [CONTENT_MARK | 9 << 40 | 5 << 8 | w for w in range(FRAME_WORDS)]
    assert (page_file_nr(page), page.index, cached_pfn(file, 5)) == (file, 5, page_to_pfn(page))
    assert TestFlag(page, PG_uptodate) and not TestFlag(page, PG_swapbacked) and not PageLocked(page)
    assert find_get_page(cpu, file, 5) == page and files[file].nrpages == vmstat()["NR_FILE_PAGES"] == 1
    lru_add_drain(cpu)
    assert page_ref_count(page) == 3  # The slot's, and ours twice.
    put_page(cpu, page)
    put_page(cpu, page)


def test_id_0_is_zeroed_and_swapbacked(new_task) -> None:
    cpu = new_task().cpu
    page = Page(int(filemap_get_page(cpu, file_alloc(cpu, 1, 0), 0)))
    assert words(page) == [0] * FRAME_WORDS and TestFlag(page, PG_swapbacked)
    put_page(cpu, page)


def test_a_slot_is_filled_once(new_task) -> None:
    cpu = new_task().cpu
    file = file_alloc(cpu, 4, 1)
    first, second = (Page(int(alloc_page(cpu, GFP_HIGHUSER_MOVABLE))) for _ in range(2))
    assert trylock_page(cpu, first) and trylock_page(cpu, second)
    assert add_to_page_cache(cpu, file, first, 2) == 0
    assert add_to_page_cache(cpu, file, second, 2) == -EEXIST
    assert (page_ref_count(first), page_ref_count(second), second.mapping) == (2, 1, 0)
    delete_from_page_cache(cpu, first)
    assert cached_pfn(file, 2) == NIL and (page_ref_count(first), first.mapping) == (1, 0)
    for page in (first, second):
        unlock_page(cpu, page)
        put_page(cpu, page)


def test_mapped_page_may_not_leave_the_cache(new_task) -> None:
    task = new_task()
    file = file_alloc(task.cpu, 4, 1)
    task.mmap(A, 4, file=file)
    task.load(A)
    assert invalidate_mapping_pages(task.cpu, file) == drop_caches(task.cpu) == 0
    page = task.page(A)
    lock_page(task.cpu, page)
    with interpreted(), pytest.raises(KernelBug, match="delete_from_page_cache: mapped"):
        delete_from_page_cache(task.cpu, page)


def test_fault_returns_the_page_locked(new_task) -> None:
    task = new_task()
    file = file_alloc(task.cpu, 3, 1)
    task.mmap(A, 8, file=file)
    assert filemap_fault(task.cpu, task.vma(A), 3) == VM_FAULT_SIGBUS
    assert filemap_fault(task.cpu, task.vma(A), 2) == VM_FAULT_LOCKED
    page = Page(task.cpu.scratch[0])
    assert PageLocked(page) and page.index == 2
    unlock_page(task.cpu, page)
    put_page(task.cpu, page)


def test_no_memory_for_a_page(new_task) -> None:
    task = new_task()
    file = file_alloc(task.cpu, 3, 1)
    task.mmap(A, 8, file=file)
    pages = list(iter(lambda: int(alloc_page(task.cpu, GFP_HIGHUSER_MOVABLE)), 0))
    assert int(filemap_get_page(task.cpu, file, 0)) == 0
    assert filemap_fault(task.cpu, task.vma(A), 0) == VM_FAULT_OOM
    for page in pages:
        put_page(task.cpu, Page(page))
