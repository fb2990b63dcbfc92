"""Private lists of pages: what an isolator or a batch has in hand. (Linux: include/linux/list.h, over page.lru)

A list runs through lru_next and lru_prev of heads and small pages that are on no other list; only its owner touches it.
Each CPU has a few, by purpose, where Linux has LIST_HEADs on the stack.
"""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, Struct, field
from concur_thp.config import NR_CPUS
from concur_thp.mm.mm_types import NIL, Page, mem_map
from concur_thp.mm.page_flags import page_to_pfn

LIST_PAGES, LIST_RET, LIST_FREE, LIST_ACTIVE, LIST_INACTIVE, LIST_MIGRATE, LIST_TARGETS, NR_PAGE_LISTS = range(8)
"""What shrink_page_list() gets, keeps and frees; what shrink_active_list() sorts into; migration's pages and targets."""


class PageList(Struct, size=8, align=8):
    """struct list_head of a list of pages. A NULL pointer to one means: no list."""

    head = field(I32, "cpu", "first page (pfn) + 1, 0 when empty")
    tail = field(I32, "cpu", "last page (pfn) + 1, 0 when empty")


page_lists = SharedArray("page_lists", PageList, lambda config: NR_CPUS * NR_PAGE_LISTS)


@inline
def page_list(cpu: Cpu, which: int) -> PageList:
    """This CPU's list for one purpose."""
    return page_lists[cpu.id * NR_PAGE_LISTS + which]


@inline
def list_empty(pages: PageList):
    return pages.head == 0


@inline
def list_init(pages: PageList):
    """Make a list empty; nobody looks at the pages it had."""
    pages.head = 0
    pages.tail = 0


@inline
def list_first(pages: PageList) -> Page:
    """The first page of a list that is not empty."""
    return mem_map[pages.head - 1]


@inline
def list_next(page: Page) -> Page:
    """The page behind this one, NULL at the end."""
    return mem_map[page.lru_next] if page.lru_next != NIL else Page(0)


@inline
def list_add(pages: PageList, page: Page):
    """Link a page in front."""
    pfn = page_to_pfn(page)
    page.lru_prev = NIL
    page.lru_next = pages.head - 1
    if pages.head == 0:
        pages.tail = pfn + 1
    else:
        mem_map[pages.head - 1].lru_prev = pfn
    pages.head = pfn + 1


@inline
def list_add_tail(pages: PageList, page: Page):
    """Link a page at the end."""
    pfn = page_to_pfn(page)
    page.lru_next = NIL
    page.lru_prev = pages.tail - 1
    if pages.tail == 0:
        pages.head = pfn + 1
    else:
        mem_map[pages.tail - 1].lru_next = pfn
    pages.tail = pfn + 1


@inline
def list_del(pages: PageList, page: Page):
    """Unlink a page of this list."""
    before = page.lru_prev
    after = page.lru_next
    if before == NIL:
        pages.head = after + 1
    else:
        mem_map[before].lru_next = after
    if after == NIL:
        pages.tail = before + 1
    else:
        mem_map[after].lru_prev = before
    page.lru_next = NIL
    page.lru_prev = NIL


@inline
def list_pop(pages: PageList) -> Page:
    """Unlink and return the first page, NULL when the list is empty."""
    page = Page(0)
    if pages.head != 0:
        page = mem_map[pages.head - 1]
        list_del(pages, page)
    return page
