"""Taking entries down: munmap, DONTNEED, exit. (Linux: mm/memory.c)

Inside a gather (mmu_gather.py) that has the flush and the references. mmap_sem may be held for read only, so
other threads fault, zap and split in the same range meanwhile.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.config import HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.mm.filemap import mm_counter_file
from concur_thp.mm.huge_memory import __split_huge_pmd, zap_huge_pmd
from concur_thp.mm.huge_split_pmd import split_if_unaware
from concur_thp.mm.migration_entry import assert_migrating, migration_entry_to_page
from concur_thp.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, Entry, Mm, Page, Vma, mms
from concur_thp.mm.mmu_gather import (
    tlb_finish_mmu,
    tlb_flush_mmu,
    tlb_flush_mmu_tlbonly,
    tlb_gather_mmu,
    tlb_record,
    tlb_remove_page,
)
from concur_thp.mm.page_flags import PageAnon, PG_dirty, SetFlag
from concur_thp.mm.pgtable import (
    get_and_clear,
    is_hwpoison_entry,
    is_swap_entry,
    is_swap_pmd,
    mm_pmd,
    pmd_trans_huge,
    pte_dirty,
    pte_lockptr,
    pte_none,
    pte_offset,
    pte_present,
    pte_young,
    set_entry,
)
from concur_thp.mm.pgtable_generic import pmd_trans_unstable
from concur_thp.mm.pte import mm_counter, next_pmd_table, pmd_addr_end, vm_normal_page
from concur_thp.mm.rmap import page_remove_rmap
from concur_thp.mm.swap import lru_add_drain, mark_page_accessed
from concur_thp.mm.swap_state import free_swap_and_cache
from concur_thp.mm.swapops import pte_to_swp_entry
from concur_thp.mm.tlb_batch import flush_tlb_batched_pending
from concur_thp.sync.rwsem import assert_held
from concur_thp.sync.spinlock import spin_lock, spin_unlock


@kernel
def zap_page_range(cpu: Cpu, vma: Vma, start: int, size: int):
    """Unmap [start, start + size) of one vma, with a gather of its own.

    Context: mmap_sem held, any mode.
    Linux: mm/memory.c zap_page_range
    Differs: one vma.
    """
    mm = mms[vma.vm_mm]
    assert_held(cpu, mm.mmap_sem)
    lru_add_drain(cpu)
    tlb_gather_mmu(cpu, mm, start, start + size)
    unmap_page_range(cpu, vma, max(start, vma.vm_start), min(start + size, vma.vm_end))
    tlb_finish_mmu(cpu)


@kernel
def unmap_page_range(cpu: Cpu, vma: Vma, addr: int, end: int):
    """Take every entry of [addr, end) down; huge pmds that lie in it only partly are split.

    Context: inside the caller's gather; mmap_sem held, or mm_users is 0. No spinlock held.
    Linux: mm/memory.c unmap_page_range
    """
    mm = mms[vma.vm_mm]
    bug_on(cpu, addr < vma.vm_start or end > vma.vm_end, "unmap_page_range: outside of the vma", addr, end)
    addr = next_pmd_table(mm, addr, end)
    while addr < end:
        following = pmd_addr_end(addr, end)
        zap_pmd(cpu, vma, mm_pmd(mm, addr), addr, following)
        addr = next_pmd_table(mm, following, end)


@inline
def zap_pmd(cpu: Cpu, vma: Vma, pmd: Entry, addr: int, end: int):
    """What one pmd covers of the range. (Linux: zap_pmd_range, the body of its loop)"""
    split_if_unaware(cpu, vma, pmd, addr)
    value = pmd.val.load()
    if value != 0:
        point(cpu, Point.ZAP_PMD_LOOKED)
        done = 0
        if pmd_trans_huge(value) or is_swap_pmd(value):
            if end - addr != HPAGE_PMD_SIZE:
                __split_huge_pmd(cpu, vma, pmd, addr, 0, Page(0))
            else:
                done = zap_huge_pmd(cpu, vma, pmd, addr)
        # mmap_sem may be held for read only: a parallel DONTNEED may have emptied the pmd, and a fault may
        # have put a huge page there. Then it came after us, as if it had come after the whole call.
        if not done and not pmd_trans_unstable(pmd):
            zap_pte_range(cpu, vma, pmd, addr, end)


@kernel
def zap_pte_range(cpu: Cpu, vma: Vma, pmd: Entry, addr: int, end: int):
    """Take the ptes of [addr, end) down.

    Context: as unmap_page_range(); the pmd is a table. Takes the pte ptl.
    Linux: mm/memory.c zap_pte_range
    Differs: a full gather is flushed and released with the ptl held; the ptl is not dropped for it.
    """
    mm = mms[vma.vm_mm]
    pmdval = pmd.val.load()
    pte = pte_offset(pmdval, addr)
    ptl = pte_lockptr(pmdval)
    force_flush = 0
    anon = 0
    spin_lock(cpu, ptl)
    flush_tlb_batched_pending(cpu, mm)
    while addr < end:
        value = pte.val.read()
        if pte_present(value):
            # With one exchange, or a Dirty bit that hardware sets right now would be lost.
            value = get_and_clear(pte)
            tlb_record(cpu, addr, PAGE_SIZE)
            page = vm_normal_page(value)
            if page:
                if PageAnon(page):
                    anon += 1
                elif zap_file_page(cpu, mm, page, value):
                    force_flush = 1
                page_remove_rmap(cpu, page, 0)
                tlb_remove_page(cpu, page)
        elif not pte_none(value):
            anon += zap_nonpresent_pte(cpu, mm, pte, value)
        addr += PAGE_SIZE
        pte = Entry(int(pte) + 8)
    point(cpu, Point.ZAP_PTE_CLEARED)
    if anon != 0:
        mm.rss[MM_ANONPAGES].sub(anon)
    if force_flush:
        # page_mkclean and truncation on another CPU look for dirty ptes under this ptl: once it is free, no
        # CPU may still write through a translation that we took down.
        tlb_flush_mmu_tlbonly(cpu)
    spin_unlock(cpu, ptl)
    if force_flush:
        tlb_flush_mmu(cpu)
    return 0


@inline
def zap_file_page(cpu: Cpu, mm: Mm, page: Page, value: int):
    """A pte of a page cache page is down. Returns whether CPUs must forget it before the ptl is released."""
    mm.rss[mm_counter_file(page)].sub(1)
    if pte_young(value):
        mark_page_accessed(cpu, page)
    if pte_dirty(value):
        SetFlag(page, PG_dirty)
    return pte_dirty(value)


@kernel
def zap_nonpresent_pte(cpu: Cpu, mm: Mm, pte: Entry, value: int):
    """Take a swap entry down, and with the last one its slot; or a migration entry, which is counted in rss, but has no
    reference, no mapcount and no translation.

    Context: pte ptl held.
    Return: 1 for an anon page, whose rss the caller counts.
    Linux: mm/memory.c zap_pte_range, its branch for swap ptes
    """
    set_entry(pte, 0)
    if is_hwpoison_entry(value):
        return 0  # Its rss went when the page did.
    if is_swap_entry(value):
        mm.rss[MM_SWAPENTS].sub(1)
        free_swap_and_cache(cpu, pte_to_swp_entry(value))
        return 0
    assert_migrating(cpu, value)
    counter = mm_counter(migration_entry_to_page(value))
    if counter != MM_ANONPAGES:
        mm.rss[counter].sub(1)
    return counter == MM_ANONPAGES
