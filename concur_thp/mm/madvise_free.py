"""MADV_FREE: pages whose contents may go when memory is short, unless they are written again. (Linux: mm/madvise.c)"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import PAGE_SIZE
from concur_thp.mm.errno import EINVAL
from concur_thp.mm.huge_entry import vma_is_anonymous
from concur_thp.mm.huge_memory import madvise_free_huge_pmd
from concur_thp.mm.huge_split_pmd import split_if_unaware
from concur_thp.mm.mm_types import MM_SWAPENTS, Entry, Page, Vma, mms
from concur_thp.mm.mmu_gather import tlb_finish_mmu, tlb_gather_mmu, tlb_record
from concur_thp.mm.page_flags import ClearFlag, PageCompound, PageSwapCache, PG_dirty, TestFlag
from concur_thp.mm.page_lock import trylock_page, unlock_page
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    get_and_clear,
    is_swap_entry,
    mm_pmd,
    pmd_none,
    pmd_trans_huge,
    pte_lockptr,
    pte_offset,
    pte_present,
    set_entry,
)
from concur_thp.mm.pgtable_generic import pmd_trans_unstable
from concur_thp.mm.pte import next_pmd_table, pmd_addr_end, vm_normal_page
from concur_thp.mm.rmap import page_mapcount
from concur_thp.mm.split_huge_page import split_huge_page
from concur_thp.mm.swap import lru_add_drain, mark_page_lazyfree, put_page
from concur_thp.mm.swap_state import free_swap_and_cache, try_to_free_swap
from concur_thp.mm.swapops import pte_to_swp_entry
from concur_thp.mm.tlb_batch import flush_tlb_batched_pending
from concur_thp.sync.rwsem import assert_held
from concur_thp.sync.spinlock import SpinLock, spin_lock, spin_unlock


@kernel
def madvise_free_single_vma(cpu: Cpu, vma: Vma, start: int, end: int):
    """Mark the anonymous pages of a part of one vma lazily free.

    Context: mmap_sem read. Opens a gather, which flushes at the end.
    Return: 0, -EINVAL for a vma that is not anonymous.
    Linux: mm/madvise.c madvise_free_single_vma
    """
    mm = mms[vma.vm_mm]
    assert_held(cpu, mm.mmap_sem)
    if not vma_is_anonymous(vma):
        return -EINVAL
    bug_on(cpu, start < vma.vm_start or end > vma.vm_end, "madvise_free: outside the vma", start, end)
    lru_add_drain(cpu)
    tlb_gather_mmu(cpu, mm, start, end)
    addr = next_pmd_table(mm, start, end)
    while addr < end:
        next = pmd_addr_end(addr, end)
        madvise_free_pmd(cpu, vma, mm_pmd(mm, addr), addr, next)
        addr = next_pmd_table(mm, next, end)
    tlb_finish_mmu(cpu)
    return 0


@inline
def madvise_free_pmd(cpu: Cpu, vma: Vma, pmd: Entry, addr: int, end: int):
    """What one pmd covers of the range."""
    split_if_unaware(cpu, vma, pmd, addr)
    old = pmd.val.load()
    done = pmd_none(old)
    if pmd_trans_huge(old):
        done = madvise_free_huge_pmd(cpu, vma, pmd, addr, end)
    # A huge page that was left alone, or put there by a fault just now, is no table of ptes.
    if not done and not pmd_trans_unstable(pmd):
        madvise_free_pte_range(cpu, vma, pmd, addr, end)


@kernel
def madvise_free_pte_range(cpu: Cpu, vma: Vma, pmd: Entry, addr: int, end: int):
    """The ptes of one table.

    Context: mmap_sem read, a gather is open; takes the pte ptl and, by trylock, page locks. May sleep, to split a THP.
    Linux: mm/madvise.c madvise_free_pte_range
    """
    mm = mms[vma.vm_mm]
    table = pmd.val.load()
    ptl = pte_lockptr(table)
    spin_lock(cpu, ptl)
    flush_tlb_batched_pending(cpu, mm)
    stop = 0
    while addr < end and not stop:
        pte = pte_offset(table, addr)
        entry = pte.val.load()
        page = Page(0)
        if pte_present(entry):
            page = vm_normal_page(entry)
        elif is_swap_entry(entry):
            set_entry(pte, 0)
            mm.rss[MM_SWAPENTS].sub(1)
            free_swap_and_cache(cpu, pte_to_swp_entry(entry))
        if page and PageCompound(page):
            stop = not split_mapped_page(cpu, page, ptl)
            continue  # The same pte again: it maps a small page now, or what others have put there meanwhile.
        if page and make_page_clean(cpu, page):
            make_pte_lazyfree(cpu, pte, addr, entry)
            mark_page_lazyfree(cpu, page)
        addr += PAGE_SIZE
    spin_unlock(cpu, ptl)


@inline
def split_mapped_page(cpu: Cpu, page: Page, ptl: SpinLock):
    """Split a THP that a pte maps, the ptl dropped meanwhile. 0 when others map the page too, lock it or pin it."""
    if page_mapcount(page) != 1 or not trylock_page(cpu, page):
        return 0
    get_page(cpu, page)
    spin_unlock(cpu, ptl)
    result = split_huge_page(cpu, page)
    unlock_page(cpu, page)
    put_page(cpu, page)
    spin_lock(cpu, ptl)
    return result == 0


@inline
def make_page_clean(cpu: Cpu, page: Page):
    """Returns 1 when the page is clean and not in the swap cache; one that others map too, or work on, is left alone."""
    if not TestFlag(page, PG_dirty) and not PageSwapCache(page):
        return 1
    if not trylock_page(cpu, page):
        return 0
    alone = page_mapcount(page) == 1 and (not PageSwapCache(page) or try_to_free_swap(cpu, page))
    if alone:
        ClearFlag(page, PG_dirty)
    unlock_page(cpu, page)
    return alone


@inline
def make_pte_lazyfree(cpu: Cpu, pte: Entry, addr: int, entry: int):
    """Old and clean. Down in between, so that a CPU that writes through its TLB must come here to set Dirty again."""
    if entry & (_PAGE_ACCESSED | _PAGE_DIRTY) != 0:
        set_entry(pte, get_and_clear(pte) & ~(_PAGE_ACCESSED | _PAGE_DIRTY))
        tlb_record(cpu, addr, PAGE_SIZE)
