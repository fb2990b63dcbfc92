"""Write faults on present read-only ptes: reuse the page, or copy it. (Linux: mm/memory.c)

Order that matters in a copy: clear the pte and flush every CPU, then map the new page, then drop the old
mapcount, then the old reference. If the mapcount fell before the flush another process could take the old
page for its own and write to it while CPUs of this mm still read it through their TLBs.
"""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point_with, point
from concur_thp.arch.points import Point
from concur_thp.mm.anon_vma import anon_vma_prepare
from concur_thp.mm.filemap import mm_counter_file
from concur_thp.mm.flags import (
    __GFP_ZERO,
    GFP_HIGHUSER_MOVABLE,
    VM_FAULT_OOM,
    VM_FAULT_WRITE,
    VM_LOCKED,
    VM_SHARED,
    VM_WRITE,
)
from concur_thp.mm.highmem import copy_page
from concur_thp.mm.huge_entry import maybe_mkwrite
from concur_thp.mm.mm_types import MM_ANONPAGES, Entry, Page, Vma, mms
from concur_thp.mm.munlock import munlock_vma_page
from concur_thp.mm.page_alloc import alloc_page
from concur_thp.mm.page_flags import (
    PageAnon,
    PageCompound,
    PG_dirty,
    PG_mlocked,
    SetFlag,
    TestFlag,
    __SetPageUptodate,
)
from concur_thp.mm.page_lock import lock_page, trylock_page, unlock_page
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.pgtable import _PAGE_ACCESSED, _PAGE_DIRTY, pte_lockptr, pte_offset, set_entry
from concur_thp.mm.pgtable_generic import ptep_clear_flush
from concur_thp.mm.pte import mk_pte, vm_normal_page
from concur_thp.mm.rmap import (
    page_add_new_anon_rmap,
    page_mapcount,
    page_move_anon_rmap,
    page_remove_rmap,
)
from concur_thp.mm.swap import lru_cache_add_active_or_unevictable, put_page
from concur_thp.mm.swap_reuse import reuse_swap_page
from concur_thp.mm.vmstat import Stat, count_vm_event
from concur_thp.sync.spinlock import assert_spin_locked, spin_lock, spin_unlock


@kernel
def do_wp_page(cpu: Cpu, vma: Vma, addr: int, pmd: Entry, orig_pte: int):
    """Make the page of a read-only pte writable for this mm: as it is if it is ours alone, else as a copy.

    Context: mmap_sem read; pte ptl held, pte is orig_pte. Releases the ptl. May sleep afterwards.
    Return: VM_FAULT_WRITE: done; 0: the pte changed, look anew; VM_FAULT_OOM.
    Linux: mm/memory.c do_wp_page
    """
    pmdval = pmd.val.load()  # A table, and under mmap_sem it stays one.
    ptl = pte_lockptr(pmdval)
    assert_spin_locked(cpu, ptl)
    page = vm_normal_page(orig_pte)
    if not page:
        spin_unlock(cpu, ptl)
        return wp_page_copy(cpu, vma, addr, pmd, orig_pte, Page(0))
    if PageAnon(page):
        pte = pte_offset(pmdval, addr)
        if not trylock_page(cpu, page) and not lock_page_recheck(cpu, page, pte, pmdval, orig_pte):  # 3.7.2
            return 0
        if wp_may_reuse(cpu, vma, page):
            unlock_page(cpu, page)  # Who takes the page lock now finds our mapping, and waits for the ptl to change it.
            wp_page_reuse(cpu, vma, pte, orig_pte)
            spin_unlock(cpu, ptl)
            return VM_FAULT_WRITE
        unlock_page(cpu, page)
    elif vma.vm_flags & (VM_WRITE | VM_SHARED) == VM_WRITE | VM_SHARED:
        return wp_page_shared(cpu, vma, pte_offset(pmdval, addr), pmdval, orig_pte, page)
    # Keeps the source alive while it is copied without the ptl: DONTNEED may unmap it.
    get_page(cpu, page)
    spin_unlock(cpu, ptl)
    return wp_page_copy(cpu, vma, addr, pmd, orig_pte, page)


@kernel
def lock_page_recheck(cpu: Cpu, page: Page, pte: Entry, pmdval: int, orig_pte: int):
    """The page lock is taken: let go of the ptl, wait for it, come back.

    Context: pte ptl held, released and retaken. Sleeps.
    Return: 1: page locked, ptl held, pte unchanged; 0: the pte changed, both are released.
    Linux: mm/memory.c do_wp_page, the part after a failed trylock_page
    """
    ptl = pte_lockptr(pmdval)
    get_page(cpu, page)
    spin_unlock(cpu, ptl)
    lock_page(cpu, page)
    spin_lock(cpu, ptl)
    # Whoever held the page lock (a split, another fault) may have changed the entry; also DONTNEED meanwhile.
    if pte.val.read() != orig_pte:
        unlock_page(cpu, page)
        spin_unlock(cpu, ptl)
        put_page(cpu, page)
        return 0
    put_page(cpu, page)
    return 1


@inline
def wp_may_reuse(cpu: Cpu, vma: Vma, page: Page):
    """Is this anon page mapped here only? Then it also moves to this vma's anon_vma. Page lock and pte ptl held."""
    if not reuse_swap_page(cpu, page):
        return 0
    # Only when nothing else of the whole compound page is mapped anywhere may its anon_vma change.
    if cpu.scratch[0] == 1:
        check_point_with(cpu, Point.ANON_RMAP_MOVED, page, vma)
        page_move_anon_rmap(page, vma)
    return 1


@inline
def wp_page_reuse(cpu: Cpu, vma: Vma, pte: Entry, orig_pte: int):
    """Write through the page that is mapped already; pte ptl held. No flush: the entry only becomes more permissive."""
    # A plain store is enough: it has every bit that hardware could set meanwhile.
    set_entry(pte, maybe_mkwrite(orig_pte | _PAGE_ACCESSED | _PAGE_DIRTY, vma))
    count_vm_event(cpu, Stat.wp_reuse)


@kernel
def wp_page_shared(cpu: Cpu, vma: Vma, pte: Entry, pmdval: int, orig_pte: int, page: Page):
    """Write to a shared mapping of a file: make it writable in place.

    Context: pte ptl held, released here. Sleeps on the page lock afterwards.
    Return: VM_FAULT_WRITE.
    Linux: mm/memory.c wp_page_shared
    Differs: no file system that wants to be told (page_mkwrite).
    """
    get_page(cpu, page)
    wp_page_reuse(cpu, vma, pte, orig_pte)
    spin_unlock(cpu, pte_lockptr(pmdval))
    lock_page(cpu, page)
    SetFlag(page, PG_dirty)  # fault_dirty_shared_page
    unlock_page(cpu, page)
    put_page(cpu, page)
    return VM_FAULT_WRITE


@inline
def wp_new_page(cpu: Cpu, vma: Vma, old_page: Page) -> Page:
    """The copy, with all that can fail or sleep done; NULL without memory."""
    new_page = Page(0)
    if anon_vma_prepare(cpu, vma) == 0:
        new_page = alloc_page(cpu, GFP_HIGHUSER_MOVABLE if old_page else GFP_HIGHUSER_MOVABLE | __GFP_ZERO)
        if new_page:
            if old_page:
                copy_page(new_page, old_page)
            __SetPageUptodate(new_page)
    return new_page


@kernel
def wp_page_copy(cpu: Cpu, vma: Vma, addr: int, pmd: Entry, orig_pte: int, old_page: Page):
    """Give the writer a copy of its own; of the zero page (`old_page` NULL) a page of zeroes.

    Context: mmap_sem read, no spinlock; takes over a reference of old_page. Takes the pte ptl, flushes under
    it.
    Return: VM_FAULT_WRITE: done; 0: the pte changed, look anew; VM_FAULT_OOM.
    Linux: mm/memory.c wp_page_copy
    Differs: copies once more, behind the flush, what may have been written to meanwhile (K21). Of an old page only a small one
    that is marked is locked and munlocked; v4.20 locks any, and would run into a BUG with the tail of a marked THP.
    """
    new_page = wp_new_page(cpu, vma, old_page)
    if not new_page:
        if old_page:
            put_page(cpu, old_page)
        return VM_FAULT_OOM
    point(cpu, Point.WP_PTE_COPIED)
    pmdval = pmd.val.load()
    pte = pte_offset(pmdval, addr)
    ptl = pte_lockptr(pmdval)
    spin_lock(cpu, ptl)
    if pte.val.read() != orig_pte:
        # Another thread broke the sharing, or the range was zapped. (Accessed set meanwhile counts too: just
        # retry.)
        spin_unlock(cpu, ptl)
        put_page(cpu, new_page)
        if old_page:
            put_page(cpu, old_page)
        return 0
    count_copied_page(vma, old_page)
    ptep_clear_flush(cpu, mms[vma.vm_mm], addr, pte)
    point(cpu, Point.WP_PTE_FLUSHED)
    if old_page and may_have_been_reused(old_page):
        copy_page(new_page, old_page)
    page_add_new_anon_rmap(cpu, new_page, vma, addr, 0)
    lru_cache_add_active_or_unevictable(cpu, new_page, vma)
    set_entry(pte, maybe_mkwrite(mk_pte(new_page, vma) | _PAGE_DIRTY, vma))
    if old_page:
        page_remove_rmap(cpu, old_page, 0)  # Behind the flush: see the module's head.
        put_page(cpu, old_page)  # The mapping's reference; ours is still there.
    spin_unlock(cpu, ptl)
    if old_page:
        munlock_copied_page(cpu, vma, old_page)
        put_page(cpu, old_page)
    count_vm_event(cpu, Stat.wp_copy)
    return VM_FAULT_WRITE


@inline
def may_have_been_reused(old_page: Page):
    """Nobody else maps the anon page any more; pte ptl held, pte down and flushed.

    That the pte is what it was does not prove that the page is (K21). When the other mm let go of it, another thread of
    ours could take it for its own and write; and reclaim and the next load bring back a pte as read-only and clean as before.
    Since then nobody can have come to map it: fork waits for our mmap_sem. So where somebody does map it, nobody has written.
    A part of a THP is always copied: what is left of a pmd mapping may still be in its count for a moment.
    """
    return PageAnon(old_page) and (PageCompound(old_page) or page_mapcount(old_page) == 1)


@inline
def munlock_copied_page(cpu: Cpu, vma: Vma, old_page: Page):
    """Others, whose vmas need not be mlocked, may go on using the page: it must not stay for our sake."""
    if vma.vm_flags & VM_LOCKED and TestFlag(old_page, PG_mlocked):
        lock_page(cpu, old_page)
        # A THP that we had mapped by a pte has no mark (I21): if it has one now, it is another mm's.
        if not PageCompound(old_page) and TestFlag(old_page, PG_mlocked):
            munlock_vma_page(cpu, old_page)
        unlock_page(cpu, old_page)


@inline
def count_copied_page(vma: Vma, old_page: Page):
    """The rss of a mm in which an anon page takes the place of `old_page`."""
    mm = mms[vma.vm_mm]
    if not old_page:
        mm.rss[MM_ANONPAGES].add(1)
    elif not PageAnon(old_page):
        mm.rss[mm_counter_file(old_page)].sub(1)
        mm.rss[MM_ANONPAGES].add(1)
