"""A walk over page tables by somebody who knows nothing of huge pages: the graceful fallback. (Linux: mm/pagewalk.c)

Written for ptes only, it needs one line to be right: split_huge_pmd() after the pmd was found (R1, R11). That never fails
(R37); the page itself stays huge. What follows is the look that every walker needs who holds mmap_sem for reading only:
the table may not be there any more (3.1.5).
"""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import ipi_poll
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import PAGE_SIZE
from concur_thp.mm.huge_split_pmd import split_huge_pmd
from concur_thp.mm.mm_types import Entry, Mm, Vma, mms
from concur_thp.mm.pgtable import _PAGE_ACCESSED, mm_pmd, pmd_none, pte_lockptr, pte_offset, pte_present
from concur_thp.mm.pgtable_generic import pmd_trans_unstable
from concur_thp.mm.pte import next_pmd_table, pmd_addr_end
from concur_thp.mm.vma_tree import find_vma, vma_next
from concur_thp.sync.rwsem import assert_held, down_read, up_read
from concur_thp.sync.spinlock import spin_lock, spin_unlock


@kernel
def walk_pte_range(cpu: Cpu, pmd: Entry, addr: int, end: int):
    """The ptes of one table: count those that are present, and make them old.

    Context: mmap_sem held, the pmd is a table. Takes the pte ptl. No flush: an entry that a CPU has cached may be used unseen.
    Return: how many are present.
    Linux: mm/pagewalk.c walk_pte_range; fs/proc/task_mmu.c clear_refs_pte_range
    """
    table = pmd.val.load()
    ptl = pte_lockptr(table)
    present = 0
    spin_lock(cpu, ptl)
    while addr < end:
        pte = pte_offset(table, addr)
        if pte_present(pte.val.load()):
            pte.val.and_(~_PAGE_ACCESSED)
            present += 1
        addr += PAGE_SIZE
    spin_unlock(cpu, ptl)
    return present


@kernel
def walk_pmd(cpu: Cpu, vma: Vma, pmd: Entry, addr: int, end: int):
    """What one pmd covers.

    Context: mmap_sem held.
    Return: ptes present.
    Linux: mm/pagewalk.c walk_pmd_range, the body of its loop, for a caller with a pte callback
    """
    while not pmd_none(pmd.val.load()):
        split_huge_pmd(cpu, vma, pmd, addr)
        if not pmd_trans_unstable(pmd):
            return walk_pte_range(cpu, pmd, addr, end)
        ipi_poll(cpu)  # Emptied by DONTNEED of another thread, and perhaps huge again by a fault: once more.
    return 0


@kernel
def walk_page_range(cpu: Cpu, mm: Mm, start: int, end: int):
    """Walk a range of an mm, vma by vma.

    Context: mmap_sem held in any mode. May sleep.
    Return: ptes present.
    Linux: mm/pagewalk.c walk_page_range
    """
    assert_held(cpu, mm.mmap_sem)
    present = 0
    vma = find_vma(mm, start)
    while vma and vma.vm_start < end:
        addr = next_pmd_table(mm, max(start, vma.vm_start), min(end, vma.vm_end))
        upto = min(end, vma.vm_end)
        while addr < upto:
            following = pmd_addr_end(addr, upto)
            present += walk_pmd(cpu, vma, mm_pmd(mms[vma.vm_mm], addr), addr, following)
            addr = next_pmd_table(mm, following, upto)
        vma = vma_next(mm, vma)
    return present


@inline
def clear_refs(cpu: Cpu, mm: Mm, start: int, end: int):
    """Make a range of an mm old, as one who has never heard of huge pages; returns the pages mapped."""
    down_read(cpu, mm.mmap_sem)
    present = walk_page_range(cpu, mm, start, end)
    up_read(cpu, mm.mmap_sem)
    return present


__all__ = ["clear_refs", "walk_page_range"]
