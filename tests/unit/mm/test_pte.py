"""Tables of ptes: made once, looked for where there are any."""

from concur_thp.config import PAGE_SIZE, PMD_SIZE, PUD_SHIFT
from concur_thp.mm.mm_types import MM_ANONPAGES, mem_map
from concur_thp.mm.pgtable import _PAGE_PRESENT, _PAGE_SPECIAL, mk_entry, mm_pmd, pmd_table
from concur_thp.mm.pgtable_alloc import pmd_alloc
from concur_thp.mm.pte import __pte_alloc, mm_counter, next_pmd_table, pmd_addr_end, pte_alloc, vm_normal_page
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.sync.rwsem import down_read, up_read

A = int(PMD_SIZE)


def test_who_comes_second_frees_its_table(new_task) -> None:
    task = new_task()
    task.mmap(A, 1)
    down_read(task.cpu, task.mm.mmap_sem)
    pmd = pmd_alloc(task.cpu, task.mm, A)
    assert pte_alloc(task.cpu, task.mm, pmd) == 0 and pmd_table(pmd.val.load())
    before = pmd.val.load(), task.mm.nr_ptes.read()
    assert pte_alloc(task.cpu, task.mm, pmd) == 0
    assert __pte_alloc(task.cpu, task.mm, pmd) == 0  # As if it had seen none.
    assert (pmd.val.load(), task.mm.nr_ptes.read()) == before == (before[0], 1)
    up_read(task.cpu, task.mm.mmap_sem)


def test_the_next_address_whose_pmd_table_exists(new_task) -> None:
    task = new_task()
    set_switch("enabled", "never")
    far = 3 << int(PUD_SHIFT)
    task.mmap(far, 1)
    assert next_pmd_table(task.mm, 0, far) >= far, "nothing is mapped yet"
    assert not mm_pmd(task.mm, far)
    task.store(far, 1)
    assert next_pmd_table(task.mm, 0, far + PAGE_SIZE) == far
    assert next_pmd_table(task.mm, far, far + PAGE_SIZE) == far
    end = far + (1 << int(PUD_SHIFT))
    assert next_pmd_table(task.mm, end, end + PAGE_SIZE) >= end + PAGE_SIZE


def test_what_one_pmd_covers(new_task) -> None:
    new_task()
    size = int(PMD_SIZE)
    assert pmd_addr_end(0, 10 * size) == size == pmd_addr_end(size - PAGE_SIZE, 10 * size)
    assert pmd_addr_end(size, size + PAGE_SIZE) == size + PAGE_SIZE


def test_the_page_of_a_pte_and_what_it_counts_as(new_task) -> None:
    task = new_task()
    set_switch("enabled", "never")
    assert not vm_normal_page(mk_entry(5, _PAGE_PRESENT | _PAGE_SPECIAL)), "nobody counts the zero page"
    assert vm_normal_page(mk_entry(5, _PAGE_PRESENT)) == mem_map[5]
    task.mmap(A, 1)
    task.store(A, 1)
    assert mm_counter(task.page(A)) == MM_ANONPAGES
