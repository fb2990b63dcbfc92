"""The LRU lists: which list a page belongs to, linking, isolation. (Linux: include/linux/mm_inline.h, mm/vmscan.c)

Only heads and small pages are ever on a list; a THP counts as its N pages (I18).
"""

from typing import Any

from concur_thp.arch.bug import bug_on
from concur_thp.arch.builtins import prefetchw
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point
from concur_thp.arch.points import Point
from concur_thp.mm.deferred_split import init_deferred_split
from concur_thp.mm.mm_types import NIL, NR_LRU_LISTS, Page, mem_map, pgdat
from concur_thp.mm.page_flags import (
    PageTail,
    PG_active,
    PG_lru,
    PG_mlocked,
    PG_swapbacked,
    PG_unevictable,
    PG_waiters,
    hpage_nr_pages,
    page_to_pfn,
)
from concur_thp.mm.page_ref import get_page
from concur_thp.sync.lock_classes import LRU_LOCK
from concur_thp.sync.spinlock import spin_lock_init, spin_lock_irq, spin_unlock_irq

LRU_INACTIVE_ANON, LRU_ACTIVE_ANON, LRU_INACTIVE_FILE, LRU_ACTIVE_FILE, LRU_UNEVICTABLE = range(NR_LRU_LISTS)
LRU_FILE = 2
"""From an anon list's number to the file list's."""
LRU_ACTIVE = 1
"""From an inactive list's number to the active one's."""


def init_lru(config: Any) -> None:
    """Boot: empty lists, the deferred split queue among them."""
    init_deferred_split()
    spin_lock_init(pgdat.lru_lock, LRU_LOCK)
    for number in range(NR_LRU_LISTS):
        pgdat.lru[number].head = NIL
        pgdat.lru[number].tail = NIL
        pgdat.lru[number].size = 0


@inline
def page_is_file_cache(flags: int):
    """1 for the file lists: no page that swap would back. Lazily freed anon pages are among them."""
    return ((flags >> PG_swapbacked) & 1) ^ 1


@inline
def page_lru(flags: int):
    """The list of a head or small page with these flags."""
    if flags & (1 << PG_unevictable):
        return LRU_UNEVICTABLE
    return page_is_file_cache(flags) * LRU_FILE + ((flags >> PG_active) & 1) * LRU_ACTIVE


@inline
def page_evictable(page: Page):
    return page.flags.read() & (1 << PG_mlocked) == 0


@inline
def add_page_to_lru_list(page: Page, number: int):
    """Link as the newest of a list; lru_lock held."""
    lru = pgdat.lru[number]
    pfn = page_to_pfn(page)
    first = lru.head
    page.lru_next = first
    page.lru_prev = NIL
    if first == NIL:
        lru.tail = pfn
    else:
        mem_map[first].lru_prev = pfn
    lru.head = pfn
    lru.size = lru.size + hpage_nr_pages(page)


@inline
def del_page_from_lru_list(page: Page, number: int):
    """Unlink; lru_lock held."""
    lru = pgdat.lru[number]
    before = page.lru_prev
    after = page.lru_next
    if before == NIL:
        lru.head = after
    else:
        mem_map[before].lru_next = after
    if after == NIL:
        lru.tail = before
    else:
        mem_map[after].lru_prev = before
    lru.size = lru.size - hpage_nr_pages(page)


@inline
def prefetch_lru_neighbours(page: Page):
    """Whoever unlinks this page writes to both; a hint, without the lock. (Linux: prefetchw_prev_lru_page)"""
    prefetchw(mem_map[page.lru_prev])
    prefetchw(mem_map[page.lru_next])


@inline
def page_off_lru(page: Page):
    """Unlink a page without references; lru_lock held. Nobody else can change its flags, so they need no atomics."""
    flags = page.flags.read()
    del_page_from_lru_list(page, page_lru(flags))
    page.flags.write(flags & ~(1 << PG_lru | 1 << PG_active | 1 << PG_unevictable | 1 << PG_waiters))


@kernel
def isolate_lru_page(cpu: Cpu, page: Page):
    """Take a page off its list for somebody who works on it, with a reference of its own. Returns 1 when taken.

    Context: the caller has a reference; takes lru_lock. The caller counts `pgdat.isolated`.
    Linux: mm/vmscan.c isolate_lru_page
    Differs: 1 and 0 for 0 and -EBUSY.
    """
    bug_on(cpu, PageTail(page) != 0, "isolate_lru_page: a tail (value: pfn)", page_to_pfn(page), page.compound_head)
    bug_on(cpu, page._refcount.read() <= 0, "isolate_lru_page: no reference (value: pfn)", page_to_pfn(page), 0)
    taken = 0
    if page.flags.read() & (1 << PG_lru):
        spin_lock_irq(cpu, pgdat.lru_lock)
        # Again under the lock: another isolator may have been faster.
        flags = page.flags.read()
        if flags & (1 << PG_lru):
            get_page(cpu, page)
            page.flags.and_(~(1 << PG_lru))
            del_page_from_lru_list(page, page_lru(flags))
            check_point(cpu, Point.LRU_ISOLATED, page)
            taken = 1
        spin_unlock_irq(cpu, pgdat.lru_lock)
    return taken
