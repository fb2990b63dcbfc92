"""Private lists of pages, linked through their LRU fields: of isolated pages that one CPU works on. (Linux: linux/list.h)

A page on one has PG_lru clear and a reference of whoever isolated it; only heads and small pages are ever on one.
"""

from concur_thp.arch.linker import inline
from concur_thp.arch.struct import I32, Struct, field
from concur_thp.mm.mm_types import NIL, Page, mem_map
from concur_thp.mm.page_flags import page_to_pfn


class PageList(Struct, size=8):
    """A list of pages."""

    head = field(I32, "owner", "first page (pfn), or NIL")
    tail = field(I32, "owner", "last page (pfn), or NIL")


@inline
def page_list_init(pages: PageList):
    pages.head = NIL
    pages.tail = NIL


@inline
def page_list_empty(pages: PageList):
    return pages.head == NIL


@inline
def page_list_add(pages: PageList, page: Page):
    """At the front."""
    pfn = page_to_pfn(page)
    first = pages.head
    page.lru_prev = NIL
    page.lru_next = first
    if first == NIL:
        pages.tail = pfn
    else:
        mem_map[first].lru_prev = pfn
    pages.head = pfn


@inline
def page_list_add_tail(pages: PageList, page: Page):
    """At the end."""
    pfn = page_to_pfn(page)
    last = pages.tail
    page.lru_next = NIL
    page.lru_prev = last
    if last == NIL:
        pages.head = pfn
    else:
        mem_map[last].lru_next = pfn
    pages.tail = pfn


@inline
def page_list_del(pages: PageList, page: Page):
    """Unlink; the page's links are NIL afterwards."""
    before = page.lru_prev
    after = page.lru_next
    if before == NIL:
        pages.head = after
    else:
        mem_map[before].lru_next = after
    if after == NIL:
        pages.tail = before
    else:
        mem_map[after].lru_prev = before
    page.lru_next = NIL
    page.lru_prev = NIL


@inline
def page_list_first(pages: PageList) -> Page:
    """The first page, NULL if the list is empty."""
    return mem_map[pages.head] if pages.head != NIL else Page(0)
