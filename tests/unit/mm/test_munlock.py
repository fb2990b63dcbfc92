"""Taking the mark off: with one hold of lru_lock, and given back by who else wants it."""

from concur_thp.config import HPAGE_PMD_NR, PAGE_SIZE
from concur_thp.mm.do_mlock import do_mlock
from concur_thp.mm.flags import VM_LOCKED
from concur_thp.mm.lru import isolate_lru_page
from concur_thp.mm.mm_types import mem_map
from concur_thp.mm.munlock import munlock_vma_page
from concur_thp.mm.page_flags import PG_lru, PG_mlocked, PG_unevictable, TestFlag
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.page_ref import page_ref_count
from concur_thp.mm.pgtable import entry_pfn
from concur_thp.mm.swap import lru_add_drain, putback_lru_page
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.vmstat import vmstat

ADDR = 1 << 26


def locked_page(task):
    task.mmap(ADDR, 1)
    assert do_mlock(task.cpu, task.mm, ADDR, PAGE_SIZE) == 0
    lru_add_drain(task.cpu)
    return task.page(ADDR)


def munlock(task, page) -> int:
    lock_page(task.cpu, page)
    more = munlock_vma_page(task.cpu, page)
    unlock_page(task.cpu, page)
    return more


def let_go(task):
    """The vma's own flag and count, which munlock_vma_page() does not touch."""
    vma = task.vma(ADDR)
    vma.vm_flags = vma.vm_flags & ~VM_LOCKED
    task.mm.locked_vm = 0


def test_back_on_the_list_it_came_from(new_task):
    task = new_task()
    page = locked_page(task)
    assert munlock(task, page) == 0 and vmstat()["NR_MLOCK"] == 0
    lru_add_drain(task.cpu)
    flags = page.flags.read()
    assert flags >> PG_lru & 1 and not flags >> PG_unevictable & 1 and page_ref_count(page) == 1
    assert munlock(task, page) == 0, "once more does no harm"
    let_go(task)


def test_isolated_by_another_it_is_put_back_by_that_one(new_task):
    task = new_task()
    page = locked_page(task)
    assert isolate_lru_page(task.cpu, page)
    assert munlock(task, page) == 0 and not TestFlag(page, PG_mlocked) and page_ref_count(page) == 2
    putback_lru_page(task.cpu, page)
    lru_add_drain(task.cpu)
    assert not TestFlag(page, PG_unevictable) and TestFlag(page, PG_lru)
    let_go(task)


def test_a_huge_page_says_how_far_to_skip(new_task):
    task = new_task()
    set_switch("enabled", "always")
    task.mmap(ADDR, int(HPAGE_PMD_NR))
    assert do_mlock(task.cpu, task.mm, ADDR, int(HPAGE_PMD_NR) * PAGE_SIZE) == 0
    head = mem_map[entry_pfn(task.pmd(ADDR))]
    assert munlock(task, head) == int(HPAGE_PMD_NR) - 1
    assert munlock(task, head) == 0
    let_go(task)

