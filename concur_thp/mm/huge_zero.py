"""The huge zero page: one read-only THP of zeroes for everybody, made on demand (3.5). (Linux: mm/huge_memory.c)

`huge_zero_refcount` is 0 while there is none; else 1 for the shrinker and 1 for each mm that maps it. It is not in rss,
rmap or on the LRU, and its own _refcount stays 1.
"""

from typing import Any

from concur_thp.arch.bug import bug_on, panic_check
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.futex import sched_yield
from concur_thp.arch.irq import ipi_poll, preempt_disable, preempt_enable
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from concur_thp.mm.deferred_split import prep_transhuge_page
from concur_thp.mm.errno import ENOMEM
from concur_thp.mm.flags import __GFP_MOVABLE, __GFP_ZERO, GFP_TRANSHUGE, MMF_HUGE_ZERO_PAGE
from concur_thp.mm.mm_types import MIGRATE_UNMOVABLE, NIL, Mm, Page, mem_map, pgdat
from concur_thp.mm.page_alloc import alloc_pages
from concur_thp.mm.page_flags import page_to_pfn
from concur_thp.mm.put_page import put_page
from concur_thp.mm.vmstat import Stat, count_vm_event, mod_stat

GFP_HUGE_ZERO = (GFP_TRANSHUGE | __GFP_ZERO) & ~__GFP_MOVABLE
"""Not movable: nothing could find its mappings to migrate them."""


def init_huge_zero(config: Any) -> None:
    """Boot: there is none yet."""
    pgdat.huge_zero_page.write(NIL)
    pgdat.huge_zero_refcount.write(0)


@inline
def is_huge_zero_pfn(pfn: int):
    return pfn == pgdat.huge_zero_page.read()


@inline
def get_if_there():
    """Take a reference unless there is no page; 1 when taken."""
    seen = pgdat.huge_zero_refcount.read()
    taken = 0
    while seen > 0 and not taken:
        now = pgdat.huge_zero_refcount.cas(seen, seen + 1)
        taken = now == seen
        seen = now
    return taken


@kernel
def get_huge_zero_page(cpu: Cpu) -> Page:
    """A reference to the huge zero page, which is made if there is none.

    Context: may reclaim, unless the caller knows that another mm keeps the page.
    Return: the page, NULL without memory.
    Linux: mm/huge_memory.c get_huge_zero_page
    Differs: waits while another CPU is between pointer and count, instead of allocating pages only to free them.
    """
    point(cpu, Point.HUGE_ZERO_GET)
    while not get_if_there():
        if pgdat.huge_zero_page.read() != NIL:
            ipi_poll(cpu)
            panic_check(cpu)
            sched_yield()
        elif make_huge_zero_page(cpu) != 0:
            return Page(0)
    return mem_map[pgdat.huge_zero_page.load()]


@kernel
def make_huge_zero_page(cpu: Cpu):
    """Make the huge zero page, unless another CPU is faster. The reference is the shrinker's.

    Context: may reclaim.
    Return: 0, or -ENOMEM.
    Linux: mm/huge_memory.c get_huge_zero_page
    Differs: the count starts with the shrinker's 1 and the creator takes its own like everybody. It has the destructor of a
    THP, and its pages are counted.
    """
    page = alloc_pages(cpu, HPAGE_PMD_ORDER, MIGRATE_UNMOVABLE, GFP_HUGE_ZERO)
    if not page:
        count_vm_event(cpu, Stat.thp_zero_page_alloc_failed)
        return -ENOMEM
    prep_transhuge_page(page)
    count_vm_event(cpu, Stat.thp_zero_page_alloc)  # also counts the loser of the race
    preempt_disable(cpu)
    # Whoever finds the pointer set while the count is still 0 waits for us.
    won = pgdat.huge_zero_page.cas(NIL, page_to_pfn(page)) == NIL
    if won:
        mod_stat(cpu, Stat.NR_KERNEL_PAGES, HPAGE_PMD_NR)
        pgdat.huge_zero_refcount.store(1)
    preempt_enable(cpu)
    if not won:
        put_page(cpu, page)
    return 0


@kernel
def put_huge_zero_page(cpu: Cpu):
    """Drop an mm's reference; never the last, which is the shrinker's.

    Context: any.
    Linux: mm/huge_memory.c put_huge_zero_page
    """
    old = pgdat.huge_zero_refcount.sub(1)
    bug_on(cpu, old <= 1, "the last reference of the huge zero page is the shrinker's (value: count)", old, 0)


@kernel
def mm_get_huge_zero_page(cpu: Cpu, mm: Mm) -> Page:
    """The huge zero page, with one reference for the whole mm, however often it is mapped.

    Context: as get_huge_zero_page().
    Return: the page, NULL without memory.
    Linux: mm/huge_memory.c mm_get_huge_zero_page
    """
    bit = 1 << MMF_HUGE_ZERO_PAGE
    if mm.flags.load() & bit == 0:
        if not get_huge_zero_page(cpu):
            return Page(0)
        if mm.flags.or_(bit) & bit != 0:
            put_huge_zero_page(cpu)  # Another thread of the mm was faster; its reference is enough.
    return mem_map[pgdat.huge_zero_page.load()]


@kernel
def mm_put_huge_zero_page(cpu: Cpu, mm: Mm):
    """The mm maps nothing any more: drop its reference, if it has one.

    Context: after exit_mmap(): no CPU holds a translation of it for this mm.
    Linux: mm/huge_memory.c mm_put_huge_zero_page
    Differs: clears the bit, so that bits and references agree for a dead mm too (Q13).
    """
    bit = 1 << MMF_HUGE_ZERO_PAGE
    if mm.flags.and_(~bit) & bit != 0:
        put_huge_zero_page(cpu)


@kernel
def shrink_huge_zero_page(cpu: Cpu):
    """Under memory pressure: free the huge zero page if no mm uses it.

    Context: reclaim.
    Return: pages freed.
    Linux: mm/huge_memory.c shrink_huge_zero_page_scan
    """
    # From 1 to 0 in one step: a get on another CPU comes before it, and we fail, or after it, and it makes a new page.
    if pgdat.huge_zero_refcount.cas(1, 0) != 1:
        return 0
    pfn = pgdat.huge_zero_page.xchg(NIL)
    bug_on(cpu, pfn == NIL, "shrink_huge_zero_page: count without a page", pfn, 0)
    mod_stat(cpu, Stat.NR_KERNEL_PAGES, -HPAGE_PMD_NR)
    put_page(cpu, mem_map[pfn])  # A pin may still hold it; then the pin's put frees it.
    return HPAGE_PMD_NR
