"""Writes to read-only ptes: who copies, who may keep the page, and what the page's counts say."""

from concur_thp.config import PAGE_SIZE, PMD_SIZE
from concur_thp.mm.flags import FAULT_FLAG_WRITE, MAP_SHARED, VM_FAULT_WRITE
from concur_thp.mm.memory import handle_pte_fault
from concur_thp.mm.mm_types import MM_ANONPAGES, Page, pgdat
from concur_thp.mm.page_flags import compound_head, page_anon_vma_nr
from concur_thp.mm.page_ref import get_page, page_ref_count
from concur_thp.mm.pgtable import _PAGE_DIRTY, _PAGE_RW, entry_pfn, mm_pmd, pmd_trans_huge, pte_lockptr
from concur_thp.mm.put_page import put_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.vmstat import vmstat
from concur_thp.mm.wp import do_wp_page, wp_page_copy
from concur_thp.sync.rwsem import down_read, up_read
from concur_thp.sync.spinlock import spin_lock

A = 0x40000


def test_zero_page_is_copied_as_zeroes(new_task) -> None:
    task = new_task()
    task.mmap(A, 1)
    task.load(A)
    assert task.store(A + 512, 4) == 0
    assert entry_pfn(task.pte(A).val.load()) != pgdat.zero_pfn
    assert [task.load(A), task.load(A + 512)] == [0, 4]
    assert task.mm.rss[MM_ANONPAGES].read() == 1 and vmstat()["wp_copy"] == 1


def test_after_fork_the_first_writer_copies_and_the_last_one_keeps_the_page(new_task) -> None:
    task = new_task()
    parent = task.mm
    task.mmap(A, 1)
    task.store(A, 1)
    page = task.page(A)
    child = task.fork()
    assert task.pte(A).val.load() & _PAGE_RW == 0
    lru_add_drain(task.cpu)
    assert (page_ref_count(page), page._mapcount.read()) == (2, 1)
    assert task.store(A, 2) == 0
    assert task.page(A) != page and (page_ref_count(page), page._mapcount.read()) == (1, 0)
    task.run_in(child)
    old_anon_vma = page_anon_vma_nr(page)
    assert task.load(A) == 1 and task.store(A, 3) == 0
    # Nobody else maps it: the page stays, and moves to the child's own anon_vma.
    assert task.page(A) == page and page_anon_vma_nr(page) == task.vma(A).anon_vma != old_anon_vma
    task.run_in(parent)
    assert task.load(A) == 2
    assert (vmstat()["wp_copy"], vmstat()["wp_reuse"]) == (1, 1)


def test_one_page_of_a_huge_page_mapped_by_ptes(new_task) -> None:
    task = new_task()
    set_switch("enabled", "always")
    start = int(PMD_SIZE)
    task.mmap(start, start // PAGE_SIZE)
    task.store(start + PAGE_SIZE, 1)
    assert pmd_trans_huge(task.pmd(start))
    assert task.dontneed(start + 2 * PAGE_SIZE, 1) == 0  # Splits the pmd, not the page.
    task.fork()
    page = task.page(start + PAGE_SIZE)
    set_switch("enabled", "never")
    assert task.store(start + PAGE_SIZE, 2) == 0
    assert task.page(start + PAGE_SIZE) != page and compound_head(task.page(start + PAGE_SIZE)) != compound_head(page)
    assert page._mapcount.read() == 0
    task.exit(task.mms[1])
    # The rest is ours alone again.
    neighbour = task.page(start)
    assert task.store(start, 3) == 0 and task.page(start) == neighbour
    assert [task.load(start + n * PAGE_SIZE) for n in (0, 1, 2)] == [3, 2, 0]


def test_shared_mapping_becomes_writable_in_place(new_task) -> None:
    task = new_task()
    task.mmap(A, 1, flags=MAP_SHARED)
    task.load(A)
    pte, page = task.pte(A), task.page(A)
    pte.val.store(pte.val.load() & ~_PAGE_RW)  # As a file system that wants to know about writes would have it.
    down_read(task.cpu, task.mm.mmap_sem)
    pmd = mm_pmd(task.mm, A)
    assert handle_pte_fault(task.cpu, task.vma(A), A, FAULT_FLAG_WRITE, pmd) == VM_FAULT_WRITE
    up_read(task.cpu, task.mm.mmap_sem)
    assert task.page(A) == page and pte.val.load() & (_PAGE_RW | _PAGE_DIRTY) == _PAGE_RW | _PAGE_DIRTY


def test_copy_that_comes_too_late_changes_nothing(new_task) -> None:
    task = new_task()
    task.mmap(A, 1)
    task.store(A, 1)
    task.fork()
    orig, page = task.pte(A).val.load(), task.page(A)
    assert task.store(A, 2) == 0  # "Another thread": the pte is no longer `orig`.
    down_read(task.cpu, task.mm.mmap_sem)
    get_page(task.cpu, page)
    free = vmstat()["pgalloc"] - vmstat()["pgfree"]
    assert wp_page_copy(task.cpu, task.vma(A), A, mm_pmd(task.mm, A), orig, page) == 0
    up_read(task.cpu, task.mm.mmap_sem)
    assert vmstat()["pgalloc"] - vmstat()["pgfree"] == free and task.load(A) == 2


def test_additional_reference_does_not_hinder_reuse(new_task) -> None:
    """K12: COW asks for mappings, not for pins."""
    task = new_task()
    task.mmap(A, 1)
    task.store(A, 1)
    child = task.fork()
    task.exit(child)
    page = task.page(A)
    get_page(task.cpu, page)
    down_read(task.cpu, task.mm.mmap_sem)
    pmd = mm_pmd(task.mm, A)
    spin_lock(task.cpu, pte_lockptr(pmd.val.load()))
    assert do_wp_page(task.cpu, task.vma(A), A, pmd, task.pte(A).val.load()) == VM_FAULT_WRITE
    up_read(task.cpu, task.mm.mmap_sem)
    assert task.page(A) == page
    put_page(task.cpu, Page(int(page)))
