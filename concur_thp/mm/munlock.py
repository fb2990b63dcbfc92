"""Pages that need not stay any more: munlock, munmap and exit of a mlocked vma. (Linux: mm/mlock.c)

PG_mlocked belongs to the page, VM_LOCKED to the vmas that map it. Who takes VM_LOCKED away takes the mark off every page of
the range, then asks the other vmas of a shared page whether one of them wants it back.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point
from concur_thp.arch.points import Point
from concur_thp.config import PAGE_SIZE
from concur_thp.mm.flags import FOLL_DUMP, FOLL_GET, VM_LOCKED
from concur_thp.mm.follow_page import follow_page_mask
from concur_thp.mm.lru import del_page_from_lru_list, page_lru
from concur_thp.mm.mlock import mlock_vma_page
from concur_thp.mm.mm_types import Mm, Page, Vma, pgdat
from concur_thp.mm.page_flags import (
    PageCompound,
    PageTail,
    PG_lru,
    PG_mlocked,
    TestClearFlag,
    hpage_nr_pages,
    page_to_pfn,
)
from concur_thp.mm.page_lock import assert_page_locked, lock_page, unlock_page
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.rmap import page_mapcount
from concur_thp.mm.rmap_walk import (
    page_vma_mapped_walk,
    page_vma_mapped_walk_done,
    pvmw_vma,
    rmap_walk_begin,
    rmap_walk_lock,
    rmap_walk_next,
    rmap_walk_unlock,
)
from concur_thp.mm.swap import put_page, putback_lru_page
from concur_thp.mm.vma_tree import vma_at
from concur_thp.mm.vmstat import Stat, mod_stat
from concur_thp.sync.spinlock import spin_lock_irq, spin_unlock_irq


@kernel
def try_to_munlock(cpu: Cpu, page: Page):
    """A page has lost PG_mlocked: does another vma that maps it want it back?

    Context: page lock held, isolated; takes the rmap lock for reading, ptls. This CPU is in no other walk.
    Linux: mm/rmap.c try_to_munlock, try_to_unmap_one with TTU_MUNLOCK
    """
    if not rmap_walk_lock(cpu, page):
        return 0
    rmap_walk_begin(cpu, page, 0)
    going = 1
    while going and rmap_walk_next(cpu):
        while page_vma_mapped_walk(cpu):
            # Under the ptl: whoever takes VM_LOCKED from this vma right now comes to this entry after us.
            if pvmw_vma(cpu).vm_flags & VM_LOCKED:
                if not PageCompound(page):
                    mlock_vma_page(cpu, page)
                page_vma_mapped_walk_done(cpu)
                going = 0
                break
    rmap_walk_unlock(cpu, page)
    return 0


@kernel
def munlock_vma_page(cpu: Cpu, page: Page):
    """A vma that maps this page is not mlocked any more.

    Context: page lock held, a reference; head or small page. Takes lru_lock, the rmap lock. May sleep.
    Return: how many more pages need no look of their own: N - 1 for a huge page that was mlocked, else 0.
    Linux: mm/mlock.c munlock_vma_page
    """
    assert_page_locked(cpu, page)
    bug_on(cpu, PageTail(page), "munlock_vma_page: a tail (value: pfn)", page_to_pfn(page), page.compound_head)
    more = 0
    isolated = 0
    # Mark and list in one hold of lru_lock, as a split copies both to the tails in one hold (X29).
    spin_lock_irq(cpu, pgdat.lru_lock)
    if TestClearFlag(page, PG_mlocked):
        mod_stat(cpu, Stat.NR_MLOCK, -hpage_nr_pages(page))
        more = hpage_nr_pages(page) - 1
        isolated = munlock_isolate(cpu, page)
    spin_unlock_irq(cpu, pgdat.lru_lock)
    if isolated:
        # Not isolated: somebody else has it off the LRU, and puts it back where its flags say by then.
        if page_mapcount(page) > 1:
            try_to_munlock(cpu, page)
        putback_lru_page(cpu, page)
    return more


@inline
def munlock_isolate(cpu: Cpu, page: Page):
    """Off its LRU list, with a reference; lru_lock held. Returns 1 when it was on one. (Linux: __munlock_isolate_lru_page)"""
    flags = page.flags.read()
    taken = (flags >> PG_lru) & 1
    if taken:
        get_page(cpu, page)
        page.flags.and_(~(1 << PG_lru))
        del_page_from_lru_list(page, page_lru(flags))
        check_point(cpu, Point.LRU_ISOLATED, page)
    return taken


@kernel
def munlock_vma_pages_range(cpu: Cpu, vma: Vma, start: int, end: int):
    """[start, end) of a vma is not mlocked any more.

    Context: mmap_sem write, or mm_users is 0. Takes page locks, one at a time. Sleeps.
    Linux: mm/mlock.c munlock_vma_pages_range
    Differs: small pages one by one; Linux collects them in a pagevec to take lru_lock less often.
    """
    # First the vma: whoever maps or remaps one of its pages from here on does not mark it.
    vma.vm_flags = vma.vm_flags & ~VM_LOCKED
    while start < end:
        more = 0
        found = follow_page_mask(cpu, vma, start, FOLL_GET | FOLL_DUMP)
        if found > 0:
            page = Page(found)
            # A tail: its THP is mapped by ptes here, and so has no mark (I21); or the range begins inside a huge page.
            if not PageTail(page):
                lock_page(cpu, page)
                more = munlock_vma_page(cpu, page)
                unlock_page(cpu, page)
            put_page(cpu, page)
        start += (1 + more) * PAGE_SIZE


@kernel
def munlock_vmas(cpu: Cpu, mm: Mm, first: int, behind: int):
    """Vmas first .. behind-1 are about to be unmapped: those that are mlocked give their pages up.

    Context: as munlock_vma_pages_range().
    Linux: mm/mmap.c do_munmap, exit_mmap; munlock_vma_pages_all
    """
    k = first
    while mm.locked_vm != 0 and k < behind:
        vma = vma_at(mm, k)
        if vma.vm_flags & VM_LOCKED:
            mm.locked_vm = mm.locked_vm - (vma.vm_end - vma.vm_start) // PAGE_SIZE
            munlock_vma_pages_range(cpu, vma, vma.vm_start, vma.vm_end)
        k += 1


__all__ = ["munlock_vma_page", "munlock_vma_pages_range", "munlock_vmas", "try_to_munlock"]
