"""Compound pages: a free block becomes a THP, and a THP a free block. (Linux: mm/page_alloc.c)"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import HPAGE_PMD_ORDER
from concur_thp.mm.mm_types import NIL, TAIL_MAPPING, Page
from concur_thp.mm.page_check import bad_page
from concur_thp.mm.page_flags import PAGE_FLAGS_CHECK_AT_FREE, PG_head, page_to_pfn, tail_page


@kernel
def prep_compound_page(cpu: Cpu, head: Page, order: int):
    """Make one compound page, a THP, of a block nobody can reach yet.

    Context: the head's refcount is still 0, so plain stores do.
    Linux: mm/page_alloc.c prep_compound_page; mm/huge_memory.c prep_transhuge_page
    """
    pfn = page_to_pfn(head)
    bug_on(cpu, order != HPAGE_PMD_ORDER, "only huge pages are compound (values: pfn, order)", pfn, order)
    head.flags.write(1 << PG_head)
    link = pfn << 1 | 1
    for address in range(int(head) + 64, int(head) + (64 << order), 64):
        tail = Page(address)
        tail._refcount.write(0)  # get_page_unless_zero() must fail on every tail (R22).
        tail.mapping = TAIL_MAPPING
        tail.compound_head = link
    tail_page(head, 1).compound_mapcount.write(-1)
    tail_page(head, 1).compound_order = order
    tail_page(head, 2).deferred_next = 0
    tail_page(head, 2).deferred_prev = 0


@inline
def free_tail_page(tail: Page, link: int):
    """Reset a tail if it is as it must be, and return 0. (`mapping` is left out: tail 2 has a link there.)"""
    bad = (tail.flags.read() & PAGE_FLAGS_CHECK_AT_FREE | tail._refcount.read() | (tail._mapcount.read() + 1)
           | (tail.compound_head ^ link) | tail.page_type)
    if bad == 0:
        tail.flags.write(0)  # In tail 1 this clears PG_double_map.
        tail.compound_head = 0
        tail.mapping = 0
    return bad


@kernel
def free_compound_tails(cpu: Cpu, head: Page, order: int):
    """The tails of a compound page become ordinary free pages.

    Context: the last reference is gone and the page is on no list.
    Linux: mm/page_alloc.c free_pages_prepare, free_tail_pages_check
    """
    first = tail_page(head, 1)
    second = tail_page(head, 2)
    pfn = page_to_pfn(head)
    link = pfn << 1 | 1
    bug_on(cpu, first.compound_order != order, "bad compound page: order (values: pfn, order)", pfn, order)
    bug_on(cpu, first.compound_mapcount.read() != -1,
           "bad compound page: still mapped by pmds (values: pfn, compound_mapcount)", pfn,
           first.compound_mapcount.read())
    bug_on(cpu, second.deferred_next != 0 or second.deferred_prev != 0,
           "bad compound page: on the deferred split list (values: pfn, next)", pfn, second.deferred_next)
    bad = free_tail_page(first, link) | free_tail_page(second, link)
    first.lru_next = NIL
    first.lru_prev = NIL
    for address in range(int(head) + 3 * 64, int(head) + (64 << order), 64):
        tail = Page(address)
        bad = bad | (tail.mapping ^ TAIL_MAPPING)
        bad = bad | free_tail_page(tail, link)
    if bad != 0:
        bad_tails(cpu, head, order)


@kernel
def bad_tails(cpu: Cpu, head: Page, order: int):
    """Say which tail is wrong; the good ones are reset already.

    Context: free_compound_tails() found one.
    Linux: mm/page_alloc.c free_tail_pages_check
    """
    link = page_to_pfn(head) << 1 | 1
    for i in range(1, 1 << order):
        tail = tail_page(head, i)
        pfn = page_to_pfn(tail)
        bug_on(cpu, tail.compound_head not in (0, link), "bad tail: another head (values: pfn, link)",
               pfn, tail.compound_head)
        if tail.compound_head == link:
            tail.compound_head = 0
            tail.mapping = 0
            bad_page(cpu, tail, PAGE_FLAGS_CHECK_AT_FREE)
    bug_on(cpu, 1, "bad tail: a mapping was not TAIL_MAPPING (value: pfn of the head)", page_to_pfn(head), 0)
