"""Caches dropped: what is mapped stays, what is not goes."""

from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.filemap import filemap_get_page
from concur_thp.mm.mm_types import Page, files
from concur_thp.mm.page_flags import PG_dirty, SetFlag
from concur_thp.mm.put_page import put_page
from concur_thp.mm.truncate import drop_caches, invalidate_mapping_pages
from concur_thp.mm.vmstat import vmstat

A = 0x40000


def test_drop_caches(new_task) -> None:
    cpu = new_task().cpu
    for file in (file_alloc(cpu, 8, n) for n in (1, 2)):
        for index in (0, 3, 7):
            put_page(cpu, Page(int(filemap_get_page(cpu, file, index))))
    assert drop_caches(cpu) == 6 and drop_caches(cpu) == 0
    assert vmstat()["NR_FILE_PAGES"] == 0


def test_mapped_pages_stay(new_task) -> None:
    task = new_task()
    file = file_alloc(task.cpu, 4, 1)
    task.mmap(A, 4, file=file)
    task.load(A)
    put_page(task.cpu, Page(int(filemap_get_page(task.cpu, file, 2))))
    assert invalidate_mapping_pages(task.cpu, file) == 1 and files[file].nrpages == 1
    assert drop_caches(task.cpu) == 0


def test_dirty_and_pinned_pages_go_too(new_task) -> None:
    """There is no disk to keep the one for; the pin keeps the frame, not the place in the file."""
    cpu = new_task().cpu
    file = file_alloc(cpu, 4, 1)
    page = Page(int(filemap_get_page(cpu, file, 2)))
    SetFlag(page, PG_dirty)
    assert invalidate_mapping_pages(cpu, file) == 1 and files[file].nrpages == 0
    assert page.mapping == 0
    put_page(cpu, page)
