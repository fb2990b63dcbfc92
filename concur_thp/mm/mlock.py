"""Pages that have to stay: PG_mlocked and the unevictable list. (Linux: mm/mlock.c)"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.mm.mm_types import Page
from concur_thp.mm.page_flags import PageDoubleMap, PageHead, PageTail, PG_mlocked, hpage_nr_pages, page_to_pfn
from concur_thp.mm.page_lock import assert_page_locked
from concur_thp.mm.swap import isolate_lru_page, putback_lru_page
from concur_thp.mm.vmstat import Stat, mod_stat


@kernel
def mlock_vma_page(cpu: Cpu, page: Page):
    """A page that a mlocked vma maps: off to the unevictable list, unless it is there already.

    Context: page lock held; head or small page, mapped by somebody.
    Linux: mm/mlock.c mlock_vma_page
    """
    assert_page_locked(cpu, page)
    bug_on(cpu, PageTail(page) != 0, "mlock_vma_page: a tail (value: pfn)", page_to_pfn(page), page.flags.read())
    bug_on(cpu, PageHead(page) and PageDoubleMap(page), "mlock_vma_page: a THP mapped by ptes (value: pfn)",
           page_to_pfn(page), page.flags.read())
    if page.flags.or_(1 << PG_mlocked) & (1 << PG_mlocked) == 0:
        mod_stat(cpu, Stat.NR_MLOCK, hpage_nr_pages(page))
        if isolate_lru_page(cpu, page):
            putback_lru_page(cpu, page)  # It looks at PG_mlocked and finds the right list.
