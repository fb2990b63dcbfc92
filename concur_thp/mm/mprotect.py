"""mprotect: other rights for a range, in its vmas and in its entries. (Linux: mm/mprotect.c)"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.tlbflush import flush_tlb_mm_range
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_SIZE, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from concur_thp.mm.do_mlock import populate_vma_page_range
from concur_thp.mm.errno import EACCES, EINVAL, ENOMEM
from concur_thp.mm.flags import (
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    VM_ACCESS,
    VM_ACCOUNT,
    VM_LOCKED,
    VM_NORESERVE,
    VM_SHARED,
    VM_WRITE,
)
from concur_thp.mm.huge_entry import PROTECTION, savedwrite
from concur_thp.mm.huge_memory import __split_huge_pmd, change_huge_pmd
from concur_thp.mm.huge_split_pmd import split_if_unaware
from concur_thp.mm.mm_types import Entry, Mm, Page, Vma, mms
from concur_thp.mm.munmap import PAGE_ALIGN
from concur_thp.mm.pgtable import (
    _PAGE_RW,
    get_and_clear,
    is_migration_entry,
    is_swap_pmd,
    mm_pmd,
    pmd_none,
    pmd_trans_huge,
    pte_lockptr,
    pte_offset,
    pte_present,
    pte_write,
    set_entry,
)
from concur_thp.mm.pgtable_generic import pmd_trans_unstable
from concur_thp.mm.pte import next_pmd_table, pmd_addr_end
from concur_thp.mm.tlb_batch import flush_tlb_batched_pending
from concur_thp.mm.vma_adjust import split_vma
from concur_thp.mm.vma_merge import vma_merge
from concur_thp.mm.vma_prot import vma_prot_bits
from concur_thp.mm.vma_tree import find_vma, vma_next, vma_prev
from concur_thp.sync.rwsem import assert_held, assert_held_write, down_write, up_write
from concur_thp.sync.spinlock import spin_lock, spin_unlock

PROT_ACCESS = PROT_READ | PROT_WRITE | PROT_EXEC


@inline
def pte_modify(pte: int, newprot: int):
    """The entry with other rights; page, Accessed, Dirty and the rest stay. A private one is read-only: the next write makes
    it writable (3.7)."""
    return (pte & ~PROTECTION) | newprot


@inline
def change_pte(pte: Entry, newprot: int, prot_numa: int):
    """One entry, pte ptl held. Returns 1 when it changed."""
    old = pte.val.load()
    if pte_present(old):
        # Down and up again under the ptl: from the exchange on hardware cannot set a bit in the old value (1.4).
        set_entry(pte, pte_modify(get_and_clear(pte), newprot) | savedwrite(old, prot_numa))
        return 1
    if is_migration_entry(old) and pte_write(old) and not prot_numa:
        set_entry(pte, old & ~_PAGE_RW)
        return 1
    return 0


@kernel
def change_pte_range(cpu: Cpu, vma: Vma, pmd: Entry, addr: int, end: int, newprot: int, prot_numa: int):
    """The ptes of one table.

    Context: mmap_sem; takes the pte ptl. The caller flushes.
    Return: entries changed.
    Linux: mm/mprotect.c change_pte_range
    Differs: a hint is given to zero pages too, and to entries that have one, and leaves migration entries their write bit; no
    file system that wants to be told of writes (dirty_accountable).
    """
    if pmd_trans_unstable(pmd):
        return 0
    table = pmd.val.load()
    ptl = pte_lockptr(table)
    pages = 0
    spin_lock(cpu, ptl)
    flush_tlb_batched_pending(cpu, mms[vma.vm_mm])
    while addr < end:
        pages += change_pte(pte_offset(table, addr), newprot, prot_numa)
        addr += PAGE_SIZE
    spin_unlock(cpu, ptl)
    return pages


@inline
def change_pmd(cpu: Cpu, vma: Vma, pmd: Entry, addr: int, end: int, newprot: int, prot_numa: int):
    """What one pmd covers of the range. Returns the pages changed."""
    split_if_unaware(cpu, vma, pmd, addr)
    old = pmd.val.load()
    if pmd_none(old):
        return 0
    if is_swap_pmd(old) or pmd_trans_huge(old):
        if end - addr != HPAGE_PMD_SIZE:
            __split_huge_pmd(cpu, vma, pmd, addr, 0, Page(0))
        else:
            changed = change_huge_pmd(cpu, vma, pmd, addr, newprot, prot_numa)
            if changed != 0:
                return changed if changed == HPAGE_PMD_NR else 0
        # Not huge any more (R19), or just split: the ptes, if there are any.
    return change_pte_range(cpu, vma, pmd, addr, end, newprot, prot_numa)


@kernel
def change_protection(cpu: Cpu, vma: Vma, start: int, end: int, newprot: int, prot_numa: int):
    """Give every entry of a range the rights `newprot` (_PAGE_* bits); `prot_numa`: for a NUMA hint, that is, for a while.

    Context: mmap_sem write, for a hint read. Takes ptls, flushes.
    Return: pages changed.
    Linux: mm/mprotect.c change_protection_range
    """
    mm = mms[vma.vm_mm]
    assert_held(cpu, mm.mmap_sem)
    bug_on(cpu, start < vma.vm_start or end > vma.vm_end or newprot & ~PROTECTION != 0,
           "change_protection: outside the vma, or bad bits (values: start, bits)", start, newprot)
    # A zap of another thread that finds an entry changed but not yet flushed must flush for us (3.20, 3.23).
    mm.tlb_flush_pending.add(1)
    pages = 0
    addr = next_pmd_table(mm, start, end)
    while addr < end:
        next = pmd_addr_end(addr, end)
        pages += change_pmd(cpu, vma, mm_pmd(mm, addr), addr, next, newprot, prot_numa)
        addr = next_pmd_table(mm, next, end)
    if pages != 0:
        flush_tlb_mm_range(cpu, mm.id, start, end)
    mm.tlb_flush_pending.sub(1)
    return pages


@kernel
def mprotect_fixup(cpu: Cpu, vma: Vma, prev: Vma, start: int, end: int, newflags: int):
    """Other rights for [start, end), a part of one vma: merge or split it, then change the entries.

    Context: mmap_sem write. `prev` is the vma before `start`, which may be `vma` itself.
    Return: 0 with the vma that has the range now in cpu.scratch[0]; -ENOMEM.
    Linux: mm/mprotect.c mprotect_fixup
    Differs: memory that becomes writable is marked as accounted (which vmas merge depends on it), but nothing counts it.
    """
    mm = mms[vma.vm_mm]
    cpu.scratch[0] = int(vma)
    oldflags = vma.vm_flags
    if newflags == oldflags:
        return 0
    if newflags & VM_WRITE != 0 and oldflags & (VM_ACCOUNT | VM_WRITE | VM_SHARED | VM_NORESERVE) == 0:
        newflags = newflags | VM_ACCOUNT
    pgoff = vma.vm_pgoff + ((start - vma.vm_start) >> PAGE_SHIFT)
    merged = vma_merge(cpu, mm, prev, start, end, newflags, vma.anon_vma, vma.vm_file, pgoff)
    if merged:
        vma = merged
        bug_on(cpu, vma.vm_flags != newflags, "mprotect: merged with other flags (values: flags)", vma.vm_flags,
               newflags)
    else:
        if start != vma.vm_start and split_vma(cpu, mm, vma, start, 1) != 0:
            return -ENOMEM
        if end != vma.vm_end and split_vma(cpu, mm, vma, end, 0) != 0:
            return -ENOMEM
    # From here on faults would use the new rights, if mmap_sem let them.
    vma.vm_flags = newflags
    change_protection(cpu, vma, start, end, vma_prot_bits(vma), 0)
    # Locked memory takes no fault that could be avoided: what was populated to be read gets its own pages now.
    if oldflags & (VM_WRITE | VM_SHARED | VM_LOCKED) == VM_LOCKED and newflags & VM_WRITE != 0:
        populate_vma_page_range(cpu, vma, start, end)
    cpu.scratch[0] = int(vma)
    return 0


@kernel
def mprotect_range(cpu: Cpu, mm: Mm, start: int, end: int, prot: int):
    """mprotect of a range that must be mapped without holes.

    Context: mmap_sem write.
    Return: 0, -ENOMEM (a hole, or out of vmas: what is before it has changed), -EACCES.
    Linux: mm/mprotect.c do_mprotect_pkey
    """
    assert_held_write(cpu, mm.mmap_sem)
    vma = find_vma(mm, start)
    if not vma or vma.vm_start > start:
        return -ENOMEM
    prev = vma if start > vma.vm_start else vma_prev(mm, vma)
    while True:
        newflags = (vma.vm_flags & ~VM_ACCESS) | prot
        if newflags & ~(newflags >> 4) & VM_ACCESS != 0:  # VM_MAY*, shifted to their place.
            return -EACCES
        upto = min(vma.vm_end, end)
        error = mprotect_fixup(cpu, vma, prev, start, upto, newflags)
        if error != 0:
            return error
        prev = Vma(cpu.scratch[0])
        start = max(upto, prev.vm_end)
        if start >= end:
            return 0
        vma = vma_next(mm, prev)
        if not vma or vma.vm_start != start:
            return -ENOMEM


@kernel
def do_mprotect(cpu: Cpu, mm: Mm, start: int, length: int, prot: int):
    """mprotect.

    Context: takes mmap_sem write.
    Return: 0, -EINVAL, -ENOMEM, -EACCES.
    Linux: mm/mprotect.c mprotect
    """
    if start & ~PAGE_MASK != 0 or prot & ~PROT_ACCESS != 0 or length < 0:
        return -EINVAL
    end = start + PAGE_ALIGN(length)
    if end == start:
        return 0
    if start < 0 or end < start:
        return -ENOMEM
    down_write(cpu, mm.mmap_sem)
    error = mprotect_range(cpu, mm, start, end, prot)
    up_write(cpu, mm.mmap_sem)
    return error


__all__ = ["change_protection", "do_mprotect"]
