"""mremap's inner half: entries move from one place of an mm to another. (Linux: mm/mremap.c)"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.arch.tlbflush import flush_tlb_mm_range
from concur_thp.config import HPAGE_PMD_SIZE, PAGE_SIZE, PMD_MASK, PMD_SIZE
from concur_thp.mm.anon_vma import anon_vma_lock_write, anon_vma_unlock_write
from concur_thp.mm.huge_memory import move_huge_pmd, split_huge_pmd
from concur_thp.mm.huge_split_pmd import split_if_unaware
from concur_thp.mm.mm_types import Entry, Vma, anon_vmas, files, mms
from concur_thp.mm.pgtable import (
    get_and_clear,
    is_swap_pmd,
    mm_pmd,
    pmd_trans_huge,
    pte_lockptr,
    pte_none,
    pte_offset,
    pte_present,
    set_entry,
)
from concur_thp.mm.pgtable_alloc import __pmd_alloc
from concur_thp.mm.pgtable_generic import pmd_trans_unstable
from concur_thp.mm.pte import pte_alloc
from concur_thp.mm.thp_sysfs import thp
from concur_thp.mm.tlb_batch import flush_tlb_batched_pending
from concur_thp.sync.rwsem import assert_held_write, down_write, up_write
from concur_thp.sync.spinlock import spin_lock, spin_lock_nested, spin_unlock


@inline
def take_rmap_locks(cpu: Cpu, vma: Vma):
    if vma.vm_file != 0:
        down_write(cpu, files[vma.vm_file].i_mmap_rwsem)
    if vma.anon_vma != 0:
        anon_vma_lock_write(cpu, anon_vmas[vma.anon_vma])


@inline
def drop_rmap_locks(cpu: Cpu, vma: Vma):
    if vma.anon_vma != 0:
        anon_vma_unlock_write(cpu, anon_vmas[vma.anon_vma])
    if vma.vm_file != 0:
        up_write(cpu, files[vma.vm_file].i_mmap_rwsem)


@inline
def get_old_pmd(mm_number: int, addr: int) -> Entry:
    """The source's pmd, NULL when there is nothing to move."""
    pmd = mm_pmd(mms[mm_number], addr)
    if pmd and pmd.val.load() == 0:
        pmd = Entry(0)
    return pmd


@kernel
def move_page_tables(cpu: Cpu, vma: Vma, old_addr: int, new_vma: Vma, new_addr: int, length: int, need_rmap_locks: int):
    """Move the entries of [old_addr, old_addr + length) to `new_addr`, in steps that stay within a pmd on both sides.

    Context: mmap_sem write.
    Return: bytes done; less than `length` when there was no memory for a table.
    Linux: mm/mremap.c move_page_tables
    """
    mm = mms[vma.vm_mm]
    assert_held_write(cpu, mm.mmap_sem)
    old_end = old_addr + length
    first = old_addr
    while old_addr < old_end:
        extent = min(((old_addr + PMD_SIZE) & PMD_MASK) - old_addr, old_end - old_addr)
        old_pmd = get_old_pmd(vma.vm_mm, old_addr)
        if old_pmd:
            new_pmd = __pmd_alloc(cpu, mm, new_addr)
            if not new_pmd:
                break
            if not move_whole_pmd(cpu, vma, old_addr, new_addr, old_end, old_pmd, new_pmd, extent, need_rmap_locks):
                if pte_alloc(cpu, mm, new_pmd) != 0:
                    break
                extent = min(extent, ((new_addr + PMD_SIZE) & PMD_MASK) - new_addr)
                move_ptes(cpu, vma, old_pmd, old_addr, old_addr + extent, new_pmd, new_addr, need_rmap_locks)
        old_addr += extent
        new_addr += extent
    return old_addr - first


@kernel
def move_whole_pmd(cpu: Cpu, vma: Vma, old_addr: int, new_addr: int, old_end: int, old_pmd: Entry, new_pmd: Entry,
                   extent: int, need_rmap_locks: int):
    """A huge source pmd moves as it is if it can, else it is split so that its ptes can move.

    Context: mmap_sem write.
    Return: 1 when nothing is left to move; 0: the source is a table of ptes.
    Linux: mm/mremap.c move_page_tables, its huge half
    Differs: with the switch mremap_split it never moves huge pmds, the one-line way of R13.
    """
    split_if_unaware(cpu, vma, old_pmd, old_addr)
    old = old_pmd.val.load()
    if not is_swap_pmd(old) and not pmd_trans_huge(old):
        return 0
    if extent == HPAGE_PMD_SIZE and thp.mremap_split == 0:
        if need_rmap_locks:
            take_rmap_locks(cpu, vma)
        moved = move_huge_pmd(cpu, vma, old_addr, new_addr, old_end, old_pmd, new_pmd)
        if need_rmap_locks:
            drop_rmap_locks(cpu, vma)
        if moved:
            return 1
    # The edge of the range inside a huge page, or a place that is not aligned for one.
    split_huge_pmd(cpu, vma, old_pmd, old_addr)
    return pmd_trans_unstable(old_pmd)


@kernel
def move_ptes(cpu: Cpu, vma: Vma, old_pmd: Entry, old_addr: int, old_end: int, new_pmd: Entry, new_addr: int,
              need_rmap_locks: int):
    """Move ptes from one table to another, or to another place of the same one.

    Context: mmap_sem write, which makes any order of the two ptls safe. Flushes before it releases them.
    Linux: mm/mremap.c move_ptes
    """
    if need_rmap_locks:
        take_rmap_locks(cpu, vma)
    old_table = old_pmd.val.load()
    new_table = new_pmd.val.load()
    old_ptl = pte_lockptr(old_table)
    new_ptl = pte_lockptr(new_table)
    spin_lock(cpu, old_ptl)
    if new_ptl != old_ptl:
        spin_lock_nested(cpu, new_ptl)
    flush_tlb_batched_pending(cpu, mms[vma.vm_mm])
    start = old_addr
    force_flush = 0
    while old_addr < old_end:
        old_pte = pte_offset(old_table, old_addr)
        if not pte_none(old_pte.val.load()):
            force_flush = force_flush | move_pte(cpu, old_pte, pte_offset(new_table, new_addr))
        old_addr += PAGE_SIZE
        new_addr += PAGE_SIZE
    # Before the ptls: from then on a page may be cleaned, remapped or freed at its new place, and nobody would think of
    # translations of the old one (X9).
    if force_flush:
        flush_tlb_mm_range(cpu, vma.vm_mm, start, old_end)
    if new_ptl != old_ptl:
        spin_unlock(cpu, new_ptl)
    spin_unlock(cpu, old_ptl)
    if need_rmap_locks:
        drop_rmap_locks(cpu, vma)


@inline
def move_pte(cpu: Cpu, old_pte: Entry, new_pte: Entry):
    """One entry, both ptls held. Returns 1 when a CPU may have it cached."""
    pte = get_and_clear(old_pte)
    point(cpu, Point.MREMAP_CLEARED)
    bug_on(cpu, not pte_none(new_pte.val.load()), "mremap: destination is mapped (values: entry, old one)",
           new_pte.val.read(), pte)
    set_entry(new_pte, pte)
    point(cpu, Point.MREMAP_SET)
    return pte_present(pte)
