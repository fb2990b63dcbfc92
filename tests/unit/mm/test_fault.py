"""First touches: what each kind of fault leaves in the tables, the counters and the page."""

from concur_thp.config import PAGE_SIZE, PMD_SIZE
from concur_thp.mm.errno import EFAULT, ENOMEM
from concur_thp.mm.fault import do_anonymous_page, finish_fault
from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.filemap import CONTENT_MARK, filemap_fault
from concur_thp.mm.flags import (
    FAULT_FLAG_WRITE,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_NONE,
    PROT_READ,
    VM_FAULT_LOCKED,
    VM_FAULT_NOPAGE,
)
from concur_thp.mm.mm_types import MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES, Page, pgdat
from concur_thp.mm.page_flags import PageAnon, PG_dirty, PG_uptodate, TestFlag
from concur_thp.mm.page_lock import unlock_page
from concur_thp.mm.page_ref import page_ref_count
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_PRESENT,
    _PAGE_RW,
    _PAGE_SPECIAL,
    entry_pfn,
    mm_pmd,
    pmd_table,
    pmd_trans_huge,
)
from concur_thp.mm.put_page import put_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.vmstat import vmstat
from concur_thp.sync.rwsem import down_read, up_read

A = 0x40000
WRITTEN = _PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED | _PAGE_DIRTY


def rss(task) -> list[int]:
    return [task.mm.rss[kind].read() for kind in (MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES)]


def test_write_gives_a_page_of_zeroes_with_one_word_written(new_task) -> None:
    task = new_task()
    task.mmap(A, 4)
    assert task.store(A + PAGE_SIZE, 7) == 0
    assert task.pte(A + PAGE_SIZE).val.load() & 0xFFF == WRITTEN
    page = task.page(A + PAGE_SIZE)
    assert PageAnon(page) and TestFlag(page, PG_uptodate)
    lru_add_drain(task.cpu)
    assert (page_ref_count(page), page._mapcount.read()) == (1, 0)
    assert [task.load(A + PAGE_SIZE + 512 * w) for w in range(8)] == [7, 0, 0, 0, 0, 0, 0, 0]
    assert rss(task) == [1, 0, 0] and task.mm.nr_ptes.read() == 1
    assert (vmstat()["pgfault"], task.mm.faults.read(), vmstat()["NR_ANON_MAPPED"]) == (1, 1, 1)


def test_read_maps_the_zero_page_and_nobody_counts_it(new_task) -> None:
    task = new_task()
    task.mmap(A, 4)
    assert task.load(A) == 0
    value = task.pte(A).val.load()
    assert entry_pfn(value) == pgdat.zero_pfn
    assert value & 0xFFF == _PAGE_PRESENT | _PAGE_ACCESSED | _PAGE_SPECIAL
    assert rss(task) == [0, 0, 0] and task.vma(A).anon_vma == 0


def test_loser_of_a_race_gives_its_page_back(new_task) -> None:
    task = new_task()
    task.mmap(A, 4)
    task.store(A, 7)
    before, value = vmstat(), task.pte(A).val.load()
    down_read(task.cpu, task.mm.mmap_sem)
    # As if another thread's fault had come between our look at the pte and our ptl.
    assert do_anonymous_page(task.cpu, task.vma(A), A, FAULT_FLAG_WRITE, mm_pmd(task.mm, A)) == 0
    up_read(task.cpu, task.mm.mmap_sem)
    after = vmstat()
    assert after["pgalloc"] - before["pgalloc"] == after["pgfree"] - before["pgfree"] == 1
    assert task.pte(A).val.load() == value and task.load(A) == 7


def test_accesses_that_no_vma_allows(new_task) -> None:
    task = new_task()
    task.mmap(A, 1, prot=PROT_READ)
    task.mmap(A + PAGE_SIZE, 1, prot=PROT_NONE)
    assert task.store(A, 1) == -EFAULT
    assert task.load(A) == 0
    assert task.store(A, 1) == -EFAULT  # Also with the zero page there.
    assert task.store(A + PAGE_SIZE, 1) == -EFAULT
    assert task.store(A + 2 * PAGE_SIZE, 1) == -EFAULT
    assert task.store(1 << 60, 1) == task.store(-8, 1) == -EFAULT


def test_stack_grows_to_the_fault_below_it(new_task) -> None:
    task = new_task()
    top = 0x4000000
    task.mmap(top, 2, flags=MAP_PRIVATE | MAP_GROWSDOWN)
    assert task.store(top - 3 * PAGE_SIZE, 5) == 0
    assert task.vma(top).vm_start == top - 3 * PAGE_SIZE
    assert task.load(top - 3 * PAGE_SIZE) == 5


def test_out_of_memory_is_a_result_and_leaves_nothing(new_task) -> None:
    task = new_task()
    task.mmap(A, 16384)
    addr = A
    while (error := task.store(addr, 1)) == 0:
        addr += PAGE_SIZE
    assert error == -ENOMEM
    assert rss(task)[0] == (addr - A) // PAGE_SIZE
    assert task.dontneed(A, 16384) == 0 and task.store(addr, 1) == 0


def test_huge_page_where_one_fits_else_small_ones(new_task) -> None:
    task = new_task()
    set_switch("enabled", "always")
    size = int(PMD_SIZE)
    start = 0x4000000
    task.mmap(start, 2 * size // PAGE_SIZE - 1)
    assert task.store(start, 1) == task.store(start + size, 2) == 0
    assert pmd_trans_huge(task.pmd(start)) and pmd_table(task.pmd(start + size))
    assert (task.load(start), task.load(start + size)) == (1, 2)
    assert rss(task)[0] == size // PAGE_SIZE + 1


def test_private_file_reads_share_the_cache_and_writes_copy(new_task) -> None:
    task = new_task()
    file = file_alloc(task.cpu, 8, 5)
    task.mmap(A, 4, file=file, pgoff=2)
    content = CONTENT_MARK | 5 << 40 | 3 << 8
    assert task.load(A + PAGE_SIZE + 512) == content | 1
    assert task.pte(A + PAGE_SIZE).val.load() & _PAGE_RW == 0
    assert rss(task) == [0, 1, 0] and vmstat()["NR_FILE_MAPPED"] == 1
    assert task.store(A, 9) == 0  # Never read before: copied at once (do_cow_fault).
    assert task.load(A + 512) == CONTENT_MARK | 5 << 40 | 2 << 8 | 1
    assert task.store(A + PAGE_SIZE, 9) == 0  # Mapped before: do_wp_page.
    assert (task.load(A + PAGE_SIZE), task.load(A + PAGE_SIZE + 512)) == (9, content | 1)
    assert rss(task) == [2, 0, 0] and vmstat()["NR_FILE_MAPPED"] == 0
    task.mmap(A + 0x10000, 4, file=file, pgoff=2)
    assert task.load(A + 0x10000 + PAGE_SIZE) == content


def test_shared_file_write_is_seen_by_all(new_task) -> None:
    task = new_task()
    file = file_alloc(task.cpu, 8, 5)
    task.mmap(A, 4, file=file, flags=MAP_SHARED)
    assert task.store(A, 9) == 0
    assert task.pte(A).val.load() & 0xFFF == WRITTEN and TestFlag(task.page(A), PG_dirty)
    child = task.fork()
    task.run_in(child)
    assert task.load(A) == 9 and task.store(A + PAGE_SIZE, 8) == 0
    task.run_in(task.mms[0])
    assert task.load(A + PAGE_SIZE) == 8
    assert rss(task) == [0, 2, 0]


def test_shared_anonymous_memory_is_a_file_of_zeroes(new_task) -> None:
    task = new_task()
    task.mmap(A, 4, flags=MAP_SHARED)
    assert task.load(A) == 0 and task.store(A, 3) == 0
    child = task.fork()
    task.run_in(child)
    assert task.load(A) == 3 and rss(task) == [0, 0, 1]


def test_behind_the_end_of_the_file(new_task) -> None:
    task = new_task()
    task.mmap(A, 4, file=file_alloc(task.cpu, 2, 5))
    assert task.store(A + 2 * PAGE_SIZE, 1) == -EFAULT


def test_finish_fault_maps_nothing_when_another_was_faster(new_task) -> None:
    task = new_task()
    task.mmap(A, 4, file=file_alloc(task.cpu, 8, 5))
    task.load(A)
    cpu, vma = task.cpu, task.vma(A)
    down_read(cpu, task.mm.mmap_sem)
    assert filemap_fault(cpu, vma, 0) == VM_FAULT_LOCKED
    page = Page(cpu.scratch[0])
    assert finish_fault(cpu, vma, A, 0, mm_pmd(task.mm, A), page) == VM_FAULT_NOPAGE
    unlock_page(cpu, page)
    put_page(cpu, page)
    up_read(cpu, task.mm.mmap_sem)
    assert page._mapcount.read() == 0
