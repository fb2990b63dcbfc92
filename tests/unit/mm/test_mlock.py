"""PG_mlocked is set once and counted; reclaim marks what mlock could not, instead of taking it (3.24)."""

from concur_thp.config import PAGE_SIZE
from concur_thp.mm.do_mlock import do_mlock, do_munlock
from concur_thp.mm.isolate_lru import move_pages_to_lru
from concur_thp.mm.lru import isolate_lru_page
from concur_thp.mm.mlock import mlock_vma_page
from concur_thp.mm.page_flags import PG_active, PG_locked, PG_mlocked, PG_unevictable, TestFlag
from concur_thp.mm.page_list import LIST_PAGES, LIST_RET, list_add, page_list
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.pgtable import _PAGE_ACCESSED, pte_present
from concur_thp.mm.shrink_page_list import shrink_page_list
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.vmstat import vmstat

ADDR = 1 << 26


def test_marked_once(new_task):
    task = new_task()
    task.mmap(ADDR, 1)
    assert do_mlock(task.cpu, task.mm, ADDR, PAGE_SIZE) == 0
    page = task.page(ADDR)
    lock_page(task.cpu, page)
    mlock_vma_page(task.cpu, page)
    unlock_page(task.cpu, page)
    assert vmstat()["NR_MLOCK"] == 1
    lru_add_drain(task.cpu)
    assert TestFlag(page, PG_unevictable)
    assert do_munlock(task.cpu, task.mm, ADDR, PAGE_SIZE) == 0


def test_reclaim_marks_what_mlock_did_not(new_task, request):
    """Its lock was taken when mlock came by: the vma says that the page has to stay, the page does not know yet."""
    task = new_task(swap="16M" if "order9" in request.node.name else "1M")
    task.mmap(ADDR, 1)
    task.store(ADDR, 5)
    page = task.page(ADDR)
    lru_add_drain(task.cpu)
    page.flags.or_(1 << PG_locked)  # By another CPU.
    assert do_mlock(task.cpu, task.mm, ADDR, PAGE_SIZE) == 0 and not TestFlag(page, PG_mlocked)
    page.flags.and_(~(1 << PG_locked))
    pages = page_list(task.cpu, LIST_PAGES)
    task.pte(ADDR).val.and_(~_PAGE_ACCESSED)
    assert isolate_lru_page(task.cpu, page)
    page.flags.and_(~(1 << PG_active))
    list_add(pages, page)
    assert shrink_page_list(task.cpu, pages) == 0
    move_pages_to_lru(task.cpu, page_list(task.cpu, LIST_RET))
    lru_add_drain(task.cpu)
    assert TestFlag(page, PG_mlocked) and TestFlag(page, PG_unevictable) and vmstat()["NR_MLOCK"] == 1
    assert pte_present(task.pte(ADDR).val.read()) and task.load(ADDR) == 5
    assert do_munlock(task.cpu, task.mm, ADDR, PAGE_SIZE) == 0
