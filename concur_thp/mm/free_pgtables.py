"""Freeing page tables: below a range that was unmapped, and not beyond the neighbours. (Linux: mm/memory.c)

A table goes when all that it covers lies in [floor, ceiling), the gap between the vmas that stay. Tables are
unlinked here and freed by the gather behind its flush: hardware of another CPU may be walking them right now,
without a lock.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import PGDIR_SHIFT, PMD_MASK, PMD_SIZE, PUD_SHIFT
from concur_thp.mm.anon_vma import unlink_anon_vmas
from concur_thp.mm.i_mmap import unlink_file_vma
from concur_thp.mm.mm_types import NIL, Entry, Mm, Vma, mem_map
from concur_thp.mm.mmu_gather import tlb_remove_table
from concur_thp.mm.pgtable import (
    entry_pfn,
    get_and_clear,
    pgd_offset,
    pmd_none,
    pmd_offset,
    pmd_table,
    pud_offset,
)
from concur_thp.mm.pgtable_alloc import mm_dec_nr_pmds, mm_dec_nr_ptes
from concur_thp.mm.vma_tree import vma_at


@inline
def span_end(addr: int, shift: int, end: int):
    """The end of what one entry of a level covers, or `end` if that comes first."""
    return min(((addr >> shift) + 1) << shift, end)


@inline
def span_is_free(addr: int, shift: int, floor: int, ceiling: int):
    """Does nothing but the gap lie below the entry of this level?"""
    start = (addr >> shift) << shift
    return start >= floor and start + (1 << shift) <= ceiling


@kernel
def free_pgtables(cpu: Cpu, mm: Mm, first: int, behind: int, floor: int, ceiling: int):
    """Take vmas first .. behind-1 of the array out of the rmap trees, and free the tables that only they needed.

    Context: inside the caller's gather, everything of them unmapped; mmap_sem write, or mm_users is 0. Takes
    the rmap locks one by one. `floor` and `ceiling` are the end of the vma before and the start of the one
    behind.
    Linux: mm/memory.c free_pgtables
    """
    k = first
    while k < behind:
        start = vma_at(mm, k).vm_start
        # Out of the trees first: this waits for rmap walkers, and none can come in any more that would walk
        # the tables.
        unlink_vma(cpu, vma_at(mm, k))
        # Neighbours share tables: free those once, behind the last of them.
        while k + 1 < behind and vma_at(mm, k + 1).vm_start <= vma_at(mm, k).vm_end + PMD_SIZE:
            k += 1
            unlink_vma(cpu, vma_at(mm, k))
        above = vma_at(mm, k + 1).vm_start if k + 1 < behind else ceiling
        free_pgd_range(cpu, mm, start, vma_at(mm, k).vm_end, floor, above)
        k += 1


@inline
def unlink_vma(cpu: Cpu, vma: Vma):
    """Out of the trees by which pages lead to it."""
    unlink_anon_vmas(cpu, vma)
    unlink_file_vma(cpu, vma)


@kernel
def free_pgd_range(cpu: Cpu, mm: Mm, addr: int, end: int, floor: int, ceiling: int):
    """Free the tables below [addr, end) that cover nothing outside of [floor, ceiling).

    Context: inside the caller's gather; mmap_sem write, or mm_users is 0; every entry is down, and the vmas
    are out of the rmap trees, so that no rmap walker can be in the tables.
    Linux: mm/memory.c free_pgd_range
    Differs: `ceiling` is an address, not 0, when there is no vma above.
    """
    bug_on(cpu, floor > addr or ceiling < end, "free_pgd_range: outside of the gap (values: start, end)", addr, end)
    addr = addr & PMD_MASK
    if addr < floor:
        addr += PMD_SIZE
    end = (end + PMD_SIZE - 1) & PMD_MASK
    if end > ceiling:
        end -= PMD_SIZE
    while addr < end:
        pgd = pgd_offset(mm, addr)
        following = span_end(addr, PGDIR_SHIFT, end)
        if pgd.val.read() != 0:
            free_pud_range(cpu, mm, pgd, addr, following, floor, ceiling)
        addr = following


@kernel
def free_pud_range(cpu: Cpu, mm: Mm, pgd: Entry, addr: int, end: int, floor: int, ceiling: int):
    """Free the PMD tables below one PUD table, and it.

    Context: as free_pgd_range().
    Linux: mm/memory.c free_pud_range
    """
    first = addr
    while addr < end:
        pud = pud_offset(pgd.val.read(), addr)
        following = span_end(addr, PUD_SHIFT, end)
        if pud.val.read() != 0:
            free_pmd_range(cpu, mm, pud, addr, following, floor, ceiling)
        addr = following
    if span_is_free(first, PGDIR_SHIFT, floor, ceiling):
        tlb_remove_table(cpu, entry_pfn(get_and_clear(pgd)))


@kernel
def free_pmd_range(cpu: Cpu, mm: Mm, pud: Entry, addr: int, end: int, floor: int, ceiling: int):
    """Free the PTE tables below one PMD table, and it.

    Context: as free_pgd_range().
    Linux: mm/memory.c free_pmd_range, free_pte_range
    """
    first = addr
    while addr < end:
        pmd = pmd_offset(pud.val.read(), addr)
        if not pmd_none(pmd.val.read()):
            old = get_and_clear(pmd)
            bug_on(cpu, not pmd_table(old), "free_pgtables: a pmd is still mapped (values: address, pmd)", addr, old)
            mm_dec_nr_ptes(mm)
            tlb_remove_table(cpu, entry_pfn(old))
        addr += PMD_SIZE
    if span_is_free(first, PUD_SHIFT, floor, ceiling):
        old = get_and_clear(pud)
        bug_on(cpu, mem_map[entry_pfn(old)].pmd_huge_pte != NIL,
               "free_pgtables: a PMD table has deposited tables left (value: pfn)", entry_pfn(old), addr)
        mm_dec_nr_pmds(mm)
        tlb_remove_table(cpu, entry_pfn(old))
