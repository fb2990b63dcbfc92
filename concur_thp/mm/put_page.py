"""The last reference: off the LRU, off the deferred split queue, back to the allocator (3.31). (Linux: mm/swap.c)

put_page() drops one reference, release_pages() a whole batch under one hold of lru_lock.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.builtins import prefetchw
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point, point
from concur_thp.arch.points import Point
from concur_thp.arch.shared import SharedArray
from concur_thp.config import HPAGE_PMD_ORDER, NR_CPUS
from concur_thp.mm.deferred_split import undefer_split_huge_page
from concur_thp.mm.lru import page_off_lru, prefetch_lru_neighbours
from concur_thp.mm.mm_types import PAGE_TYPE_NONE, Page, Slot, mem_map, pgdat
from concur_thp.mm.page_alloc import free_blocks, free_the_page, free_unref_page_list
from concur_thp.mm.page_flags import PageHead, PageTail, PG_lru, PG_reserved, compound_head, page_to_pfn
from concur_thp.mm.page_ref import put_page_testzero
from concur_thp.sync.spinlock import spin_lock_irq, spin_unlock_irq

SWAP_CLUSTER_MAX = 32
"""Pages that one hold of lru_lock takes off the LRU, and one batch of reclaim."""
RELEASE_HEADS = 16
"""Huge pages that release_pages() frees together."""
release_heads = SharedArray("release_heads", Slot, lambda config: NR_CPUS * RELEASE_HEADS)
"""Their pfns, of each CPU a cache line."""


@inline
def put_page(cpu: Cpu, page: Page):
    """Drop a reference of the page that this one belongs to; the last one frees it (3.9)."""
    head = compound_head(page)
    if put_page_testzero(cpu, head):
        __put_page(cpu, head)


@inline
def check_last_put(cpu: Cpu, page: Page):
    """Nobody may drop the reference that keeps a zero page, a reserved page or a table page."""
    pfn = page_to_pfn(page)
    bug_on(cpu, page.page_type != PAGE_TYPE_NONE or page.flags.read() & (1 << PG_reserved) != 0,
           "last put of a page that is not anybody's to free (values: pfn, page type)", pfn, page.page_type)
    bug_on(cpu, pfn == pgdat.huge_zero_page.read() or pfn == pgdat.zero_pfn,
           "last put of a zero page (value: pfn)", pfn, pgdat.huge_zero_refcount.read())


@kernel
def __put_page(cpu: Cpu, head: Page):
    """The last reference of a head or small page is gone: free it.

    Context: _refcount is 0, so get_page_unless_zero() fails everywhere. Takes lru_lock, split_queue_lock and
    zone.lock in turn, never two at once; may be called under a ptl.
    Linux: mm/swap.c __put_page
    """
    point(cpu, Point.PUT_PAGE_ZERO)
    bug_on(cpu, PageTail(head) != 0, "__put_page: a tail (value: pfn)", page_to_pfn(head), head.compound_head)
    check_last_put(cpu, head)
    check_point(cpu, Point.PUT_PAGE_ZERO, head)
    # Nobody can put it on the LRU any more: that takes a reference.
    if head.flags.read() & (1 << PG_lru):
        prefetchw(pgdat.lru_lock)
        prefetchw(pgdat.split_queue_lock)
        prefetch_lru_neighbours(head)
        spin_lock_irq(cpu, pgdat.lru_lock)
        page_off_lru(head)
        spin_unlock_irq(cpu, pgdat.lru_lock)
    if PageHead(head):
        free_transhuge_page(cpu, head)
    else:
        free_the_page(cpu, head, 0)


@kernel
def free_transhuge_page(cpu: Cpu, head: Page):
    """The destructor of a THP: off the deferred split queue, then to the buddy lists.

    Context: _refcount is 0, off the LRU; takes split_queue_lock, then zone.lock.
    Linux: mm/huge_memory.c free_transhuge_page
    """
    undefer_split_huge_page(cpu, head)
    free_the_page(cpu, head, HPAGE_PMD_ORDER)


@inline
def slot_at(first: Slot, i: int) -> Slot:
    return Slot(int(first) + 4 * i)


@kernel
def release_pages(cpu: Cpu, pages: Slot, nr: int):
    """Drop one reference of each of `nr` pages, given as an array of pfns. The array is used up.

    Context: as __put_page().
    Linux: mm/swap.c release_pages
    Differs: lru_lock is taken when the references are gone, not in between, and so is held for a fraction of the time. Some
    huge pages go together, each lock being taken for all of them before the next one is.
    """
    nr_free = 0
    nr_heads = 0
    heads = release_heads[cpu.id * RELEASE_HEADS]
    for i in range(nr):
        head = compound_head(mem_map[slot_at(pages, i).value])
        if page_to_pfn(head) == pgdat.huge_zero_page.read():
            continue  # Mappings of it hold no reference.
        if not put_page_testzero(cpu, head):
            continue
        point(cpu, Point.PUT_PAGE_ZERO)
        check_last_put(cpu, head)
        check_point(cpu, Point.PUT_PAGE_ZERO, head)
        if not PageHead(head):
            slot_at(pages, nr_free).value = page_to_pfn(head)
            nr_free += 1
            continue
        slot_at(heads, nr_heads).value = page_to_pfn(head)
        nr_heads += 1
        if nr_heads == RELEASE_HEADS:
            free_transhuge_pages(cpu, heads, nr_heads)
            nr_heads = 0
    if nr_heads != 0:
        free_transhuge_pages(cpu, heads, nr_heads)
    pages_off_lru(cpu, pages, nr_free)
    free_unref_page_list(cpu, pages, nr_free)


@kernel
def free_transhuge_pages(cpu: Cpu, heads: Slot, nr: int):
    """Free huge pages whose last references are gone, given as an array of pfns.

    Context: as free_transhuge_page().
    Linux: mm/swap.c __put_compound_page, for several
    """
    pages_off_lru(cpu, heads, nr)
    for i in range(nr):
        undefer_split_huge_page(cpu, mem_map[slot_at(heads, i).value])
    free_blocks(cpu, heads, nr, HPAGE_PMD_ORDER)


@inline
def pages_off_lru(cpu: Cpu, pages: Slot, nr: int):
    """Take pages without references off the LRU, many under one hold of its lock."""
    locked = 0
    for i in range(nr):
        page = mem_map[slot_at(pages, i).value]
        if page.flags.read() & (1 << PG_lru):
            if locked == SWAP_CLUSTER_MAX:
                # Others wait with a short spin, then sleep: no hold may be longer than that.
                spin_unlock_irq(cpu, pgdat.lru_lock)
                locked = 0
            if locked == 0:
                spin_lock_irq(cpu, pgdat.lru_lock)
            locked += 1
            page_off_lru(page)
    if locked:
        spin_unlock_irq(cpu, pgdat.lru_lock)
