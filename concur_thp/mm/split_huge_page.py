"""split_huge_page: one compound page becomes N small ones, wherever it is mapped. (Linux: mm/huge_memory.c)

It fails with -EBUSY when anybody but page tables and the caller has a reference: those cannot be handed to the pieces
(R7, R32). The order is everything:

    lock the anon_vma        no other split, no collapse, no fork or vma change
    migration entries        in place of every pte: whoever faults on one waits for the page lock
    freeze the references    from exactly 1 (the caller's) to 0: nobody has any, nobody can get one (I11)
    tails, then the head     become pages of their own
    map the pieces again     under the rights the vmas have now
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point, point
from concur_thp.arch.points import Point
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.config import HPAGE_PMD_NR
from concur_thp.mm.anon_vma import (
    anon_vma_lock_write,
    anon_vma_unlock_write,
    page_get_anon_vma,
    put_anon_vma,
)
from concur_thp.mm.deferred_split import split_queue_del, split_queued
from concur_thp.mm.errno import EBUSY
from concur_thp.mm.huge_zero import is_huge_zero_pfn
from concur_thp.mm.mm_types import Page, pgdat
from concur_thp.mm.page_flags import (
    PageAnon,
    PageHead,
    PageSwapCache,
    PG_mlocked,
    PG_writeback,
    TestFlag,
    compound_head,
    page_to_pfn,
    tail_page,
)
from concur_thp.mm.page_list import PageList
from concur_thp.mm.page_lock import assert_page_locked, unlock_page
from concur_thp.mm.page_ref import page_ref_count, page_ref_freeze
from concur_thp.mm.rmap import total_mapcount
from concur_thp.mm.split_huge_page_tail import __split_huge_page
from concur_thp.mm.swap import lru_add_drain, put_page
from concur_thp.mm.swapfile import split_swap_cluster
from concur_thp.mm.try_to_unmap import (
    TTU_IGNORE_ACCESS,
    TTU_IGNORE_MLOCK,
    TTU_RMAP_LOCKED,
    TTU_SPLIT_FREEZE,
    TTU_SPLIT_HUGE_PMD,
    TTU_SYNC,
    remove_migration_range,
    try_to_unmap,
)
from concur_thp.mm.vmstat import Stat, count_vm_event
from concur_thp.sync.spinlock import spin_lock_irq, spin_unlock_irq

TTU_SPLIT = (
    TTU_IGNORE_MLOCK | TTU_IGNORE_ACCESS | TTU_RMAP_LOCKED | TTU_SPLIT_HUGE_PMD | TTU_SPLIT_FREEZE | TTU_SYNC
)


@inline
def extra_pins(head: Page):
    """References of the swap cache: one for each subpage."""
    return HPAGE_PMD_NR if PageSwapCache(head) else 0


@kernel
def can_split_huge_page(cpu: Cpu, head: Page):
    """Does nobody but page tables, swap cache and the caller have a reference?

    Context: page lock held and one reference. A hint all the same (I4): mappings and pins come and go.
    Return: 1 or 0.
    Linux: mm/huge_memory.c can_split_huge_page
    """
    return total_mapcount(head) == page_ref_count(head) - extra_pins(head) - 1


@inline
def split_huge_page(cpu: Cpu, page: Page):
    """split_huge_page_to_list() of a page that is on the LRU, or on nobody's list."""
    return split_huge_page_to_list(cpu, page, PageList(0))


@kernel
def split_huge_page_to_list(cpu: Cpu, page: Page, pages: PageList):
    """Split the THP that `page` is a subpage of. Pieces that nothing maps are freed.

    Context: the page lock held and one reference, no spinlock; both belong to `page` alone afterwards, whichever
    subpage it is. Sleeps. `pages` gets the tails when the caller has isolated the page; else NULL.
    Return: 0; -EBUSY: the page is still whole, though no pmd may map it any more.
    Linux: mm/huge_memory.c split_huge_page_to_list
    Differs: anon pages only.
    """
    head = compound_head(page)
    assert_page_locked(cpu, head)
    bug_on(cpu, not PageHead(head) or not PageAnon(head) or is_huge_zero_pfn(page_to_pfn(head)),
           "split_huge_page: not an anon THP (values: pfn, flags)", page_to_pfn(page), head.flags.read())
    if TestFlag(head, PG_writeback):
        return -EBUSY  # 3.18.1
    result = -EBUSY
    anon_vma = page_get_anon_vma(cpu, head)  # 3.18.2
    if anon_vma:
        anon_vma_lock_write(cpu, anon_vma)
        point(cpu, Point.SPLIT_PAGE_LOCKED)
        # 3.18.3: it may be wrong, but mostly it saves the huge mappings of a page that is pinned.
        if can_split_huge_page(cpu, head):
            result = split_unmapped(cpu, page, head, pages)
        anon_vma_unlock_write(cpu, anon_vma)
        put_anon_vma(cpu, anon_vma)
    count_vm_event(cpu, Stat.thp_split_page if result == 0 else Stat.thp_split_page_failed)
    trace(cpu, Tracepoint.split_huge_page, page_to_pfn(head), page_to_pfn(page), result)
    return result


@kernel
def split_unmapped(cpu: Cpu, page: Page, head: Page, pages: PageList):
    """Unmap the page, split it if that leaves the caller alone with it, map it again.

    Context: as split_huge_page_to_list(), the anon_vma locked for writing.
    Return: 0 or -EBUSY.
    Linux: mm/huge_memory.c split_huge_page_to_list, from unmap_page() on
    """
    mlocked = TestFlag(head, PG_mlocked)
    try_to_unmap(cpu, head, TTU_SPLIT)  # 3.18.4
    point(cpu, Point.SPLIT_PAGE_UNMAPPED)
    check_point(cpu, Point.SPLIT_PAGE_UNMAPPED, head)
    if mlocked:
        lru_add_drain(cpu)  # 3.18.5: munlocking has put it on a pagevec, with a reference
    frozen = freeze_and_split(cpu, head, pages)
    if frozen and PageSwapCache(head):
        # Before the pieces are unlocked: an unlocked one may leave the swap cache, so its slot must be ordinary by then.
        split_swap_cluster(cpu, head.private)
    point(cpu, Point.SPLIT_PAGE_SPLIT)
    # 3.18.10.h and 11: one walk for all the pieces, or for the page that is still whole (X21).
    remove_migration_range(cpu, head, head, HPAGE_PMD_NR, 1)
    point(cpu, Point.SPLIT_PAGE_REMAPPED)
    if not frozen:
        return -EBUSY
    release_pieces(cpu, head, page)
    return 0


@inline
def release_pieces(cpu: Cpu, head: Page, page: Page):
    """3.18.10.i: lock and reference of the THP stay with the piece that the caller named (X22)."""
    for i in range(HPAGE_PMD_NR):
        piece = tail_page(head, i)
        if piece != page:
            unlock_page(cpu, piece)
            put_page(cpu, piece)  # Frees it if nothing maps it (R39).


@inline
def freeze_and_split(cpu: Cpu, head: Page, pages: PageList):
    """3.18.6 to 10.g: the decision. 1 when the page has been split."""
    # lru_lock: the pieces take their head's place on the LRU. split_queue_lock: the shrinker must not take a reference
    # between our freeze and the removal from its queue, nor find a page there that is none any more (X19).
    spin_lock_irq(cpu, pgdat.lru_lock)
    spin_lock_irq(cpu, pgdat.split_queue_lock)
    frozen = total_mapcount(head) == 0 and page_ref_freeze(head, 1 + extra_pins(head))  # 3.18.9
    if frozen:
        check_point(cpu, Point.PAGE_FROZEN, head)
    if frozen and split_queued(head):
        split_queue_del(head)
    spin_unlock_irq(cpu, pgdat.split_queue_lock)
    if frozen:
        point(cpu, Point.SPLIT_PAGE_FROZEN)
        __split_huge_page(cpu, head, pages)
    spin_unlock_irq(cpu, pgdat.lru_lock)
    return frozen


__all__ = ["can_split_huge_page", "split_huge_page", "split_huge_page_to_list"]
