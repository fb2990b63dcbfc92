"""Taking entries down: DONTNEED and munmap, small, huge and file pages."""

import pytest

from concur_thp.config import HPAGE_PMD_NR, PAGE_SIZE, PMD_SIZE
from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.filemap import find_get_page
from concur_thp.mm.flags import MAP_SHARED
from concur_thp.mm.mm_types import MM_ANONPAGES, MM_FILEPAGES, frames
from concur_thp.mm.page_flags import PG_dirty, TestFlag, page_to_pfn
from concur_thp.mm.pgtable import pmd_table, pmd_trans_huge
from concur_thp.mm.put_page import put_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.vmstat import vmstat

A = 0x40000


def test_small_pages_go_and_read_zero_afterwards(new_task) -> None:
    task = new_task()
    task.mmap(A, 8)
    for n in range(6):
        task.store(A + n * PAGE_SIZE, n + 1)
    lru_add_drain(task.cpu)
    freed = vmstat()["pgfree"]
    assert task.dontneed(A + PAGE_SIZE, 7) == 0
    assert vmstat()["pgfree"] == freed + 5 and task.mm.rss[MM_ANONPAGES].read() == 1
    assert [task.load(A + n * PAGE_SIZE) for n in range(8)] == [1] + [0] * 7
    assert task.mm.nr_ptes.read() == 1  # DONTNEED frees no tables.


def test_range_over_many_tables_with_holes(new_task) -> None:
    task = new_task()
    size = int(PMD_SIZE)
    start = 64 * size
    task.mmap(start, 40 * size // PAGE_SIZE)
    touched = [start + n * size + PAGE_SIZE for n in (0, 1, 7, 39)]
    for addr in touched:
        task.store(addr, 9)
    assert task.mm.rss[MM_ANONPAGES].read() == task.mm.nr_ptes.read() == 4
    assert task.dontneed(start + 2 * PAGE_SIZE, 40 * size // PAGE_SIZE - 2) == 0
    assert [task.load(addr) for addr in touched] == [9, 0, 0, 0]


@pytest.mark.parametrize("partly", [False, True])
def test_huge_page(new_task, partly: bool) -> None:
    task = new_task()
    set_switch("enabled", "always")
    start, nr = int(PMD_SIZE), int(HPAGE_PMD_NR)
    task.mmap(start, nr)
    task.store(start, 1)
    task.store(start + PAGE_SIZE, 2)
    assert pmd_trans_huge(task.pmd(start)) and task.mm.nr_ptes.read() == 1
    assert task.dontneed(start, 1 if partly else nr) == 0
    if partly:
        assert pmd_table(task.pmd(start)) and task.mm.rss[MM_ANONPAGES].read() == nr - 1
        assert vmstat()["thp_deferred_split_page"] == vmstat()["thp_split_pmd"] == 1
    else:
        assert task.pmd(start) == 0 and task.mm.rss[MM_ANONPAGES].read() == task.mm.nr_ptes.read() == 0
    set_switch("enabled", "never")
    assert [task.load(start), task.load(start + PAGE_SIZE)] == [0, 2 if partly else 0]


def test_dirty_file_page_keeps_its_content(new_task) -> None:
    task = new_task()
    file = file_alloc(task.cpu, 4, 3)
    task.mmap(A, 4, file=file, flags=MAP_SHARED)
    task.load(A)
    page = task.page(A)
    assert task.store(A, 6) == 0 and not TestFlag(page, PG_dirty)  # The mapping allowed it: only the pte knows.
    assert task.munmap(A, 4) == 0
    assert TestFlag(page, PG_dirty) and page._mapcount.read() == -1
    assert task.mm.rss[MM_FILEPAGES].read() == vmstat()["NR_FILE_MAPPED"] == 0
    found = find_get_page(task.cpu, file, 0)
    assert page == found and frames[page_to_pfn(page)].word[0].read() == 6
    put_page(task.cpu, page)
