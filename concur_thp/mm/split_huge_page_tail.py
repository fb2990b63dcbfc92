"""A frozen THP becomes N small pages. (Linux: mm/huge_memory.c __split_huge_page)

Each tail gets flags, mapping and index, then stops being a tail, then gets references, in this order: from the moment
it has one a scanner can take another, and may at once drop it (which asks for the head) or lock the page (I13, R31).
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.builtins import smp_wmb
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point
from concur_thp.arch.points import Point
from concur_thp.config import HPAGE_PMD_NR
from concur_thp.mm.lru import add_page_to_lru_list, page_lru
from concur_thp.mm.mm_types import NIL, LruList, Page, mem_map, pgdat
from concur_thp.mm.page_account import CACHE, account_set
from concur_thp.mm.page_flags import (
    ClearFlag,
    PageAnon,
    PageSwapCache,
    PG_active,
    PG_dirty,
    PG_head,
    PG_hwpoison,
    PG_locked,
    PG_lru,
    PG_mlocked,
    PG_referenced,
    PG_swapbacked,
    PG_swapcache,
    PG_unevictable,
    PG_uptodate,
    PG_workingset,
    page_to_pfn,
    tail_page,
)
from concur_thp.mm.page_list import PageList, list_add_tail
from concur_thp.mm.page_ref import page_ref_add, page_ref_unfreeze
from concur_thp.sync.spinlock import assert_spin_locked

TAIL_FLAGS = (
    1 << PG_referenced | 1 << PG_swapbacked | 1 << PG_swapcache | 1 << PG_mlocked | 1 << PG_uptodate | 1 << PG_active
    | 1 << PG_workingset | 1 << PG_locked | 1 << PG_unevictable | 1 << PG_dirty
)
"""What each piece inherits."""


@kernel
def __split_huge_page(cpu: Cpu, head: Page, pages: PageList):
    """Set the tails of a frozen THP free, then the head. Every piece is locked by this CPU afterwards.

    Context: page lock, lru_lock; references frozen at 0, nothing maps the page, off the deferred split queue. `pages`,
    if not NULL, gets the tails of an isolated page, with a reference each.
    Linux: mm/huge_memory.c __split_huge_page, its first half
    """
    assert_spin_locked(cpu, pgdat.lru_lock)
    old = head.flags.read()
    flags = old & TAIL_FLAGS
    # Linux sets PG_lru when it links the tail; who cares about it has lru_lock.
    if not pages:
        flags = flags | 1 << PG_lru
    bug_on(cpu, pages and old & (1 << PG_lru) != 0, "split to a list, but the page is on the LRU (value: pfn)",
           page_to_pfn(head), old)
    count = 1 if PageAnon(head) and not PageSwapCache(head) else 2
    number = page_lru(old)
    for i in range(HPAGE_PMD_NR - 1, 0, -1):
        tail = tail_page(head, i)
        __split_huge_page_tail(cpu, head, tail, i, flags, count)
        lru_add_page_tail(head, tail, old, number, pages)
    check_point(cpu, Point.PAGE_THAW, head)
    ClearFlag(head, PG_head)  # 3.18.10.e: after all tails, whose compound_head must lead to a head
    account_set(head, count | (count - 1) * CACHE)  # The cache's references were the head's; now each piece has one.
    head._refcount.add(count)  # f
    cpu.page_locks = cpu.page_locks + HPAGE_PMD_NR - 1


@inline
def __split_huge_page_tail(cpu: Cpu, head: Page, tail: Page, i: int, flags: int, count: int):
    """3.18.10.d: one tail."""
    bug_on(cpu, tail._mapcount.read() != -1 or tail._refcount.read() != 0,
           "split: a tail is mapped or has references (values: pfn, mapcount)", page_to_pfn(tail),
           tail._mapcount.read())
    tail.flags.write(tail.flags.read() & (1 << PG_hwpoison) | flags)
    tail.mapping = head.mapping
    tail.index = head.index + i
    tail.lock_owner = head.lock_owner
    smp_wmb()
    tail.compound_head = 0
    account_set(tail, (count - 1) * CACHE)
    page_ref_unfreeze(cpu, tail, count)


@inline
def lru_add_page_tail(head: Page, tail: Page, flags: int, number: int, pages: PageList):
    """Where the tail goes: next to its head; to the isolator's list; or, without one, to the LRU. lru_lock held."""
    if flags & (1 << PG_lru):
        link_before(head, tail, pgdat.lru[number])
    elif pages:
        page_ref_add(tail, 1)
        list_add_tail(pages, tail)
    else:
        add_page_to_lru_list(tail, number)


@inline
def link_before(page: Page, new: Page, lru: LruList):
    """Link on the newer side of `page`. The size stays: the THP was counted as N."""
    pfn = page_to_pfn(new)
    before = page.lru_prev
    new.lru_prev = before
    new.lru_next = page_to_pfn(page)
    page.lru_prev = pfn
    if before == NIL:
        lru.head = pfn
    else:
        mem_map[before].lru_next = pfn
