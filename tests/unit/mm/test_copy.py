"""fork's copy of the entries."""

from concur_thp.config import HPAGE_PMD_NR, PAGE_SIZE, PMD_SIZE
from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.flags import MAP_SHARED
from concur_thp.mm.mm_types import MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES
from concur_thp.mm.page_ref import page_ref_count
from concur_thp.mm.pgtable import _PAGE_ACCESSED, _PAGE_DIRTY, _PAGE_RW, pmd_trans_huge
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.thp_sysfs import set_switch

A = 0x40000


def test_private_pages_are_shared_read_only_and_old(new_task) -> None:
    task = new_task()
    parent = task.mm
    task.mmap(A, 4)
    task.store(A, 1)
    task.load(A + PAGE_SIZE)  # The zero page.
    page = task.page(A)
    task.run_in(task.fork())
    mine = task.pte(A).val.load()
    assert task.page(A) == page and mine & (_PAGE_RW | _PAGE_ACCESSED | _PAGE_DIRTY) == _PAGE_DIRTY
    assert task.pte(A + PAGE_SIZE).val.load() != 0 and task.pte(A + 2 * PAGE_SIZE).val.load() == 0
    lru_add_drain(task.cpu)
    assert (page_ref_count(page), page._mapcount.read()) == (2, 1)
    assert task.mm.rss[MM_ANONPAGES].read() == parent.rss[MM_ANONPAGES].read() == 1
    assert task.mm.nr_ptes.read() == 1
    assert task.store(A + PAGE_SIZE, 5) == 0
    task.run_in(parent)
    assert (task.load(A), task.load(A + PAGE_SIZE)) == (1, 0)


def test_file_mappings_fault_again_unless_a_page_is_private(new_task) -> None:
    task = new_task()
    file = file_alloc(task.cpu, 8, 2)
    task.mmap(A, 4, file=file)
    task.mmap(A + 0x10000, 4, file=file)
    task.mmap(A + 0x20000, 4, flags=MAP_SHARED)
    for addr in (A, A + 0x10000, A + 0x20000):
        task.load(addr)
    task.store(A + PAGE_SIZE, 7)  # Only the first mapping has an anon_vma.
    task.run_in(task.fork())
    kinds = (MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES)
    assert [task.mm.rss[kind].read() for kind in kinds] == [1, 1, 0]
    assert task.load(A + PAGE_SIZE) == 7 and task.load(A + 0x10000) == task.load(A) != 0


def test_huge_pmd_and_split_one(new_task) -> None:
    task = new_task()
    set_switch("enabled", "always")
    size, nr = int(PMD_SIZE), int(HPAGE_PMD_NR)
    start = 8 * size
    task.mmap(start, 3 * nr)
    for n in range(3):
        task.store(start + n * size, n + 1)
    task.dontneed(start + size + PAGE_SIZE, 1)
    parent = task.mm
    task.run_in(task.fork())
    assert pmd_trans_huge(task.pmd(start)) and not pmd_trans_huge(task.pmd(start + size))
    assert task.mm.rss[MM_ANONPAGES].read() == parent.rss[MM_ANONPAGES].read() == 3 * nr - 1
    assert task.mm.nr_ptes.read() == 3
    assert [task.load(start + n * size) for n in range(3)] == [1, 2, 3]
    assert task.store(start + size, 20) == 0
    task.run_in(parent)
    assert task.load(start + size) == 2
