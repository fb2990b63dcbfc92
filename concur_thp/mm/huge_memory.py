"""One huge pmd: taking it down, changing its protection, marking it lazily free. (Linux: mm/huge_memory.c)

A walker saw that the pmd is huge without holding its lock; each function here takes the ptl, looks again, and returns
0 ("not handled") when the pmd is no longer huge, so that the walker goes on with the ptes (R18, R19). The other
operations on one huge pmd stand in their own files and are named here too, as in Linux's one file.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.builtins import prefetchw
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point_with, point
from concur_thp.arch.points import Point
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.config import HPAGE_PMD_MASK, HPAGE_PMD_NR, HPAGE_PMD_SIZE
from concur_thp.mm.filemap import mm_counter_file
from concur_thp.mm.huge_entry import is_huge_zero_pmd, pmd_modify, savedwrite, vma_is_anonymous
from concur_thp.mm.huge_fault import do_huge_pmd_anonymous_page, huge_pmd_set_accessed
from concur_thp.mm.huge_move import copy_huge_pmd, move_huge_pmd
from concur_thp.mm.huge_split_pmd import (
    __split_huge_pmd,
    split_huge_pmd,
    split_huge_pmd_address,
    vma_adjust_trans_huge,
)
from concur_thp.mm.huge_wp import do_huge_pmd_wp_page
from concur_thp.mm.mm_types import MM_ANONPAGES, Entry, Mm, Page, Vma, mem_map, mms
from concur_thp.mm.mmu_gather import tlb_record, tlb_remove_page
from concur_thp.mm.page_flags import ClearFlag, PageAnon, PageSwapCache, PG_dirty, TestFlag, tail_page
from concur_thp.mm.page_lock import trylock_page, unlock_page
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_RW,
    entry_pfn,
    get_and_clear,
    is_pmd_migration_entry,
    is_swap_pmd,
    pmd_lockptr,
    pmd_present,
    pte_write,
    set_entry,
)
from concur_thp.mm.pgtable_alloc import pgtable_trans_huge_withdraw, pte_free
from concur_thp.mm.pgtable_generic import pmd_trans_huge_lock, pmdp_invalidate
from concur_thp.mm.rmap import page_mapcount, page_remove_rmap, total_mapcount
from concur_thp.mm.split_huge_page import split_huge_page
from concur_thp.mm.swap import mark_page_lazyfree, put_page
from concur_thp.mm.swap_state import try_to_free_swap
from concur_thp.sync.spinlock import spin_unlock


@inline
def zap_deposited_table(cpu: Cpu, mm: Mm, pmd: Entry):
    """A huge pmd goes, and with it the table that was reserved for its split."""
    pte_free(cpu, pgtable_trans_huge_withdraw(cpu, mm, pmd))
    mm.nr_ptes.sub(1)


@kernel
def zap_huge_pmd(cpu: Cpu, vma: Vma, pmd: Entry, addr: int):
    """Take a huge pmd down inside the caller's mmu_gather, which flushes before it drops the page's reference.

    Context: mmap_sem in any mode or mm_users 0; a gather is open on this CPU; takes the pmd ptl.
    Return: 1; 0 when the pmd was no longer huge.
    Linux: mm/huge_memory.c zap_huge_pmd
    """
    bug_on(cpu, addr & ~HPAGE_PMD_MASK != 0, "zap_huge_pmd: address inside a huge page (value: address)", addr, 0)
    if not pmd_trans_huge_lock(cpu, pmd):
        return 0
    mm = mms[vma.vm_mm]
    ptl = pmd_lockptr(pmd)
    old = get_and_clear(pmd)  # 3.20: the value from the exchange, hardware sets Dirty until then
    tlb_record(cpu, addr, HPAGE_PMD_SIZE)
    trace(cpu, Tracepoint.zap_huge_pmd, entry_pfn(old), addr, mm.id)
    point(cpu, Point.ZAP_HUGE_CLEARED)
    if is_huge_zero_pmd(old):
        zap_deposited_table(cpu, mm, pmd)
        spin_unlock(cpu, ptl)
        tlb_remove_page(cpu, mem_map[entry_pfn(old)])  # Of which release_pages() knows that no mapping has a reference.
        return 1
    page = mem_map[entry_pfn(old)]
    mapped = pmd_present(old)
    prefetchw(page)
    prefetchw(tail_page(page, 2))  # The node of the deferred split queue.
    if mapped:
        page_remove_rmap(cpu, page, 1)
    if PageAnon(page):
        zap_deposited_table(cpu, mm, pmd)
        mm.rss[MM_ANONPAGES].sub(HPAGE_PMD_NR)
    else:
        mm.rss[mm_counter_file(page)].sub(HPAGE_PMD_NR)
    spin_unlock(cpu, ptl)
    if mapped:  # a migration entry held no reference, and no CPU has it cached
        tlb_remove_page(cpu, page)
    return 1


@kernel
def change_huge_pmd(cpu: Cpu, vma: Vma, pmd: Entry, addr: int, newprot: int, prot_numa: int):
    """Give a huge pmd the protection `newprot` (vma_prot_bits), keeping Accessed and Dirty; for a NUMA hint also RW.

    The pmd never passes through none: DONTNEED on another CPU, which looks without the lock, would skip it and the old
    data would survive (X10).

    Context: mmap_sem write, for a hint read; the caller has raised tlb_flush_pending; takes the pmd ptl, flushes under it.
    Return: 0 when it was no longer huge; 1 when there was no translation to flush; else HPAGE_PMD_NR.
    Linux: mm/huge_memory.c change_huge_pmd
    Differs: a hint is given to the huge zero page too, and to a pmd that has one; it leaves a migration entry its write bit.
    """
    if not pmd_trans_huge_lock(cpu, pmd):
        return 0
    ptl = pmd_lockptr(pmd)
    old = pmd.val.load()
    changed = 1
    if is_swap_pmd(old):
        bug_on(cpu, not is_pmd_migration_entry(old), "huge pmd neither present nor migrating (value: pmd)", old, addr)
        if pte_write(old) and not prot_numa:
            set_entry(pmd, old & ~_PAGE_RW)
    else:
        entry = pmd_modify(pmdp_invalidate(cpu, mms[vma.vm_mm], addr, pmd), newprot) | savedwrite(old, prot_numa)
        point(cpu, Point.MPROTECT_INVALIDATED)
        # A private page becomes writable by a fault only: somebody else may map it (3.6).
        bug_on(cpu, vma_is_anonymous(vma) and not prot_numa and pte_write(entry),
               "mprotect made an anon pmd writable (value: pmd)", entry, addr)
        set_entry(pmd, entry)
        check_point_with(cpu, Point.HUGE_PMD_SET, vma, addr)
        changed = HPAGE_PMD_NR
    spin_unlock(cpu, ptl)
    return changed


@kernel
def madvise_free_huge_pmd(cpu: Cpu, vma: Vma, pmd: Entry, addr: int, next: int):
    """MADV_FREE on [addr, next) of a huge pmd: clean and old, so that reclaim may drop the page unless it is written.

    Context: mmap_sem read; a gather is open on this CPU; takes the pmd ptl and, by trylock, the page lock. May sleep,
    in the split of a page of which only a part is meant.
    Return: 1 when done; 0: not done. The pmd may still be huge then, and the caller leaves it alone.
    Linux: mm/huge_memory.c madvise_free_huge_pmd
    Differs: asks for the mapcount with the page locked: half-way through a migration it is 1 for a shared page too. Leaves
    a page alone that another mm maps in part, or needs in the swap cache (K18).
    """
    if not pmd_trans_huge_lock(cpu, pmd):
        return 0
    ptl = pmd_lockptr(pmd)
    point(cpu, Point.MADV_FREE_LOCKED)
    old = pmd.val.load()
    done = 0
    if pmd_present(old) and not is_huge_zero_pmd(old):
        page = mem_map[entry_pfn(old)]
        if trylock_page(cpu, page):  # Locked: somebody is at work on it.
            if next - addr != HPAGE_PMD_SIZE and page_mapcount(page) == 1:
                get_page(cpu, page)
                spin_unlock(cpu, ptl)
                split_huge_page(cpu, page)  # Whether that works or not, the caller looks at the pmd again.
                unlock_page(cpu, page)
                put_page(cpu, page)
                return 0
            alone = next - addr == HPAGE_PMD_SIZE and nobody_else_needs(cpu, page)
            if alone and TestFlag(page, PG_dirty):
                ClearFlag(page, PG_dirty)
            unlock_page(cpu, page)
            if alone:
                make_pmd_lazyfree(cpu, mms[vma.vm_mm], pmd, addr, old)
                mark_page_lazyfree(cpu, page)
                done = 1
    spin_unlock(cpu, ptl)
    return done


@inline
def nobody_else_needs(cpu: Cpu, page: Page):
    """Is our pmd all that maps the THP or any part of it, and no slot of it in use? Then it is ours to clean; page lock held.

    Not page_mapcount(), which is the head's alone: another mm may map other subpages, by ptes that are clean because its
    pmd split has left Dirty with the page. And in the swap cache clean means: it is on the device.
    """
    return total_mapcount(page) == 1 and (not PageSwapCache(page) or try_to_free_swap(cpu, page))


@inline
def make_pmd_lazyfree(cpu: Cpu, mm: Mm, pmd: Entry, addr: int, old: int):
    """Old and clean, if it is not; invalidated first, so that a write after this sets Dirty again (race 26)."""
    if old & (_PAGE_ACCESSED | _PAGE_DIRTY) != 0:
        entry = pmdp_invalidate(cpu, mm, addr, pmd)
        set_entry(pmd, entry & ~(_PAGE_ACCESSED | _PAGE_DIRTY))
        tlb_record(cpu, addr, HPAGE_PMD_SIZE)


__all__ = [
    "__split_huge_pmd", "change_huge_pmd", "copy_huge_pmd", "do_huge_pmd_anonymous_page", "do_huge_pmd_wp_page",
    "huge_pmd_set_accessed", "madvise_free_huge_pmd", "move_huge_pmd", "split_huge_pmd", "split_huge_pmd_address",
    "vma_adjust_trans_huge", "zap_huge_pmd",
]
