"""What a page must look like when it enters or leaves the allocator. (Linux: mm/page_alloc.c)"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.mm.mm_types import PAGE_TYPE_NONE, Page
from concur_thp.mm.page_flags import PAGE_FLAGS_CHECK_AT_FREE, page_to_pfn


@inline
def page_expected_state(page: Page, flags: int):
    """Nobody refers to the page, nothing maps it, it has no type and none of `flags`."""
    return (page.flags.read() & flags | page._refcount.read() | (page._mapcount.read() + 1)
            | page.mapping | page.compound_head | page.page_type) == 0


@kernel
def bad_page(cpu: Cpu, page: Page, flags: int):
    """Say what is wrong with a page on its way into or out of the allocator.

    Context: page_expected_state() was false. Values: pfn, and what was found.
    Linux: mm/page_alloc.c bad_page, free_pages_check_bad
    """
    pfn = page_to_pfn(page)
    bug_on(cpu, page.page_type != PAGE_TYPE_NONE, "bad page: free already, or a table (values: pfn, type)",
           pfn, page.page_type)
    bug_on(cpu, page._mapcount.read() != -1, "bad page: still mapped (values: pfn, mapcount)",
           pfn, page._mapcount.read())
    bug_on(cpu, page._refcount.read() != 0, "bad page: still has references (values: pfn, refcount)",
           pfn, page._refcount.read())
    bug_on(cpu, page.compound_head != 0, "bad page: a tail without its head (values: pfn, compound_head)",
           pfn, page.compound_head)
    bug_on(cpu, page.flags.read() & flags != 0, "bad page: flags set (values: pfn, flags)",
           pfn, page.flags.read())
    bug_on(cpu, page.mapping != 0, "bad page: still has a mapping (values: pfn, mapping)", pfn, page.mapping)


@inline
def free_page_check(cpu: Cpu, page: Page):
    """A head or small page is fit to be freed; the flags that may still be set go."""
    if not page_expected_state(page, PAGE_FLAGS_CHECK_AT_FREE):
        bad_page(cpu, page, PAGE_FLAGS_CHECK_AT_FREE)
    page.flags.write(0)


@inline
def check_new_page(cpu: Cpu, page: Page):
    """A free page is as it was left."""
    if not page_expected_state(page, -1):
        bad_page(cpu, page, -1)
