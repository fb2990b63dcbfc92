"""What becomes of one isolated page: freed, kept, or back to work; and with which marks."""

import pytest

from concur_thp.config import PAGE_SIZE
from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.flags import MAP_ANONYMOUS, MAP_SHARED, PROT_EXEC, PROT_READ
from concur_thp.mm.isolate_lru import move_pages_to_lru
from concur_thp.mm.lru import isolate_lru_page
from concur_thp.mm.mm_types import MM_ANONPAGES, Page
from concur_thp.mm.page_flags import (
    PageSwapCache,
    PG_active,
    PG_dirty,
    PG_locked,
    PG_referenced,
    PG_writeback,
    TestFlag,
)
from concur_thp.mm.page_list import LIST_PAGES, LIST_RET, list_add, list_first, page_list
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.pgtable import _PAGE_ACCESSED
from concur_thp.mm.put_page import put_page
from concur_thp.mm.shrink_page_list import shrink_page_list
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.vmstat import vmstat

ADDR = 1 << 24
OLD = ~_PAGE_ACCESSED


@pytest.fixture
def task(new_task, request):
    return new_task(swap="16M" if "order9" in request.node.name else "1M")


def mapped(task, **how) -> Page:
    """A page at ADDR, isolated, its entry old unless `young`."""
    young = how.pop("young", False)
    task.mmap(ADDR, 1, **how)
    task.load(ADDR) if how.get("prot") else task.store(ADDR, 7)
    page = task.page(ADDR)
    lru_add_drain(task.cpu)
    if not young:
        task.pte(ADDR).val.and_(OLD)
    isolate(task, page)
    return page


def isolate(task, page: Page) -> None:
    assert isolate_lru_page(task.cpu, page)
    page.flags.and_(~(1 << PG_active))
    list_add(page_list(task.cpu, LIST_PAGES), page)


def shrink(task) -> int:
    return int(shrink_page_list(task.cpu, page_list(task.cpu, LIST_PAGES)))


def kept(task, page: Page) -> bool:
    """It is the one that was kept, not locked; back it goes."""
    found = list_first(page_list(task.cpu, LIST_RET)) == page and not TestFlag(page, PG_locked)
    move_pages_to_lru(task.cpu, page_list(task.cpu, LIST_RET))
    return found


def test_an_anon_page_goes_to_the_device(task):
    mapped(task)
    assert shrink(task) == 1 and vmstat()["pswpout"] == 1 and task.mm.rss[MM_ANONPAGES].read() == 0
    assert task.load(ADDR) == 7


def test_used_lately_is_active(task):
    page = mapped(task, young=True)
    assert shrink(task) == 0 and TestFlag(page, PG_active) and kept(task, page)
    assert vmstat()["pgactivate"] == 1 and not PageSwapCache(page)


def test_locked_by_another_is_left_alone(task):
    page = mapped(task)
    lock_page(task.cpu, page)
    assert shrink(task) == 0 and not TestFlag(page, PG_active) and not PageSwapCache(page)
    unlock_page(task.cpu, page)
    assert kept(task, page)


def test_being_written_is_active(task):
    page = mapped(task)
    page.flags.or_(1 << PG_writeback)
    assert shrink(task) == 0 and TestFlag(page, PG_active)
    page.flags.and_(~(1 << PG_writeback))
    assert kept(task, page)


def test_without_room_on_the_device_it_is_active(new_task):
    task = new_task()
    page = mapped(task)
    assert shrink(task) == 0 and TestFlag(page, PG_active) and kept(task, page)
    assert task.pte(ADDR).val.load() & 1, "not even unmapped"


def test_pinned_it_is_unmapped_and_kept_in_the_cache(task):
    """The pin may have written: nothing goes to the device."""
    page = mapped(task)
    get_page(task.cpu, page)
    assert shrink(task) == 0 and PageSwapCache(page) and TestFlag(page, PG_dirty) and vmstat()["pswpout"] == 0
    assert kept(task, page) and task.load(ADDR) == 7
    put_page(task.cpu, page)


def test_shared_memory_stays(task):
    page = mapped(task, flags=MAP_SHARED | MAP_ANONYMOUS)
    assert shrink(task) == 0 and TestFlag(page, PG_active) and kept(task, page)


def file_page(task, *, prot: int = PROT_READ, young: bool = True) -> Page:
    return mapped(task, file=file_alloc(task.cpu, 1, 3), flags=MAP_SHARED, prot=prot, young=young)


def test_a_file_page_used_once_has_a_second_chance(task):
    """It came young: one use is no reason to keep it for long, two are."""
    page = file_page(task)
    page.flags.and_(~(1 << PG_referenced))
    assert shrink(task) == 0 and not TestFlag(page, PG_active) and TestFlag(page, PG_referenced) and kept(task, page)
    task.load(ADDR)
    task.pte(ADDR).val.or_(_PAGE_ACCESSED)
    isolate(task, page)
    assert shrink(task) == 0 and TestFlag(page, PG_active) and kept(task, page)


def test_code_is_active_the_first_time(task):
    page = file_page(task, prot=PROT_READ | PROT_EXEC)
    page.flags.and_(~(1 << PG_referenced))
    assert shrink(task) == 0 and TestFlag(page, PG_active) and kept(task, page)


@pytest.mark.parametrize("dirty", [False, True])
def test_an_unused_file_page_goes_if_it_is_clean(task, dirty):
    page = file_page(task, young=False)
    page.flags.and_(~(1 << PG_referenced))
    if dirty:
        page.flags.or_(1 << PG_dirty)
    assert shrink(task) == (0 if dirty else 1)
    assert not dirty or (TestFlag(page, PG_active) and kept(task, page))
    task.load(ADDR)


def test_a_batch_is_sorted_out(task):
    """One to the device, one active, one locked: each its own way."""
    task.mmap(ADDR, 3)
    pages = []
    for i in range(3):
        task.store(ADDR + i * PAGE_SIZE, i + 1)
        pages.append(task.page(ADDR + i * PAGE_SIZE))
    lru_add_drain(task.cpu)
    for i, page in enumerate(pages):
        if i != 1:
            task.pte(ADDR + i * PAGE_SIZE).val.and_(OLD)
        isolate(task, page)
    lock_page(task.cpu, pages[2])
    assert shrink(task) == 1
    unlock_page(task.cpu, pages[2])
    assert [bool(TestFlag(page, PG_active)) for page in pages[1:]] == [True, False]
    move_pages_to_lru(task.cpu, page_list(task.cpu, LIST_RET))
    assert [task.load(ADDR + i * PAGE_SIZE) for i in range(3)] == [1, 2, 3]
