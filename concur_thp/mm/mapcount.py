"""How often a page is mapped. (Linux: include/linux/mm.h, mm/util.c, mm/huge_memory.c, mm/swapfile.c)

A THP keeps two kinds of counts: compound_mapcount for pmds that map it, and _mapcount of each subpage for ptes; both
start at -1. Anon and file pages differ (semantics 1.3):

    anon   every subpage has one more while PG_double_map is set: a pmd still maps it, so no pte unmap may take it to -1
    file   every pmd mapping is counted in all the subpages as well

Each formula below is a sum of separate reads: exact only while nobody can map the page, unmap it or split its pmd.
"""

from concur_thp.arch.linker import inline, kernel
from concur_thp.config import HPAGE_PMD_NR
from concur_thp.mm.mm_types import Page
from concur_thp.mm.page_flags import (
    PageAnon,
    PageCompound,
    PageDoubleMap,
    PageHead,
    compound_head,
    tail_page,
)


@inline
def compound_mapcount(page: Page):
    """Pmds that map the compound page."""
    return tail_page(compound_head(page), 1).compound_mapcount.read() + 1


@kernel
def page_mapcount(page: Page):
    """How many entries map this subpage, ptes and pmds together.

    Context: exact only if the page's mappings cannot change.
    Return: the count.
    Linux: include/linux/mm.h page_mapcount
    """
    count = page._mapcount.read() + 1
    if PageCompound(page) and PageAnon(page):
        head = compound_head(page)
        count += compound_mapcount(head)
        if PageDoubleMap(head):
            count -= 1
    return count


@kernel
def total_mapcount(head: Page):
    """How many entries map the page or any of its subpages.

    Context: a head or small page. Exact only if the page's mappings cannot change; else a hint.
    Return: the count.
    Linux: mm/huge_memory.c total_mapcount
    """
    if not PageHead(head):
        return head._mapcount.read() + 1
    compound = compound_mapcount(head)
    count = compound
    for i in range(HPAGE_PMD_NR):
        count += tail_page(head, i)._mapcount.read() + 1
    if not PageAnon(head):
        return count - compound * HPAGE_PMD_NR
    if PageDoubleMap(head):
        count -= HPAGE_PMD_NR
    return count


@inline
def mapped_by_ptes(head: Page):
    """Does any pte map a THP? Under the page lock the answer "no" lasts: only the split of a pmd brings the first one."""
    return total_mapcount(head) != compound_mapcount(head)


@kernel
def page_mapped(page: Page):
    """Does any entry map the page, or (for a THP) any of its subpages?

    Context: any. Without a lock the answer may be old when it arrives.
    Return: 1 or 0.
    Linux: mm/util.c page_mapped
    """
    if not PageCompound(page):
        return page._mapcount.read() >= 0
    head = compound_head(page)
    if tail_page(head, 1).compound_mapcount.read() >= 0:
        return 1
    for i in range(HPAGE_PMD_NR):
        if tail_page(head, i)._mapcount.read() >= 0:
            return 1
    return 0
