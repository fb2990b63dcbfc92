"""Entries that go down or change on every CPU at once, and looking at pmds. (Linux: mm/pgtable-generic.c, huge_mm.h)

Each takes the entry away with one exchange, so that the Accessed and Dirty bits which hardware set meanwhile are in the
value returned, and flushes before the caller can write the next one (3.33).
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.tlbflush import flush_tlb_mm_range
from concur_thp.config import HPAGE_PMD_MASK, HPAGE_PMD_SIZE, PAGE_MASK, PAGE_SIZE
from concur_thp.mm.mm_types import Entry, Mm
from concur_thp.mm.pgtable import (
    _PAGE_PRESENT,
    _PAGE_PROTNONE,
    _PAGE_RW,
    get_and_clear,
    is_swap_pmd,
    pmd_lockptr,
    pmd_table,
    pmd_trans_huge,
)
from concur_thp.sync.spinlock import assert_spin_locked, spin_lock, spin_unlock


@inline
def ptep_set_wrprotect(entry: Entry):
    """Take the write bit away, of a pte or a huge pmd; atomic against the Dirty bit of hardware. No flush. Returns the old
    entry, to which hardware can add nothing more."""
    return entry.val.and_(~_PAGE_RW)


@kernel
def ptep_clear_flush(cpu: Cpu, mm: Mm, addr: int, pte: Entry):
    """Take a pte down and make every CPU forget it.

    Context: pte ptl held; irqs on.
    Return: the old pte.
    Linux: mm/pgtable-generic.c ptep_clear_flush
    """
    old = get_and_clear(pte)
    # A protnone pte was never loaded, but its predecessor may be in a TLB while another CPU's flush is on its way.
    if old & _PAGE_PRESENT or (old & _PAGE_PROTNONE and mm.tlb_flush_pending.load() > 0):
        flush_tlb_mm_range(cpu, mm.id, addr & PAGE_MASK, (addr & PAGE_MASK) + PAGE_SIZE)
    return old


@kernel
def pmdp_huge_clear_flush(cpu: Cpu, mm: Mm, haddr: int, pmd: Entry):
    """Take a huge pmd down and make every CPU forget it.

    Context: pmd ptl held; irqs on.
    Return: the old pmd.
    Linux: mm/pgtable-generic.c pmdp_huge_clear_flush
    """
    assert_spin_locked(cpu, pmd_lockptr(pmd))
    old = get_and_clear(pmd)
    bug_on(cpu, not pmd_trans_huge(old) or haddr & ~HPAGE_PMD_MASK != 0,
           "pmdp_huge_clear_flush: not a huge pmd (values: pmd, address)", old, haddr)
    flush_tlb_mm_range(cpu, mm.id, haddr, haddr + HPAGE_PMD_SIZE)
    return old


@kernel
def pmdp_invalidate(cpu: Cpu, mm: Mm, haddr: int, pmd: Entry):
    """Make a huge pmd absent to hardware while it stays huge to software, and make every CPU forget it.

    A software walker of another CPU that meets it takes the pmd ptl and waits; no CPU can load it again (3.16.C.1).

    Context: pmd ptl held; irqs on.
    Return: the old pmd, with all that hardware had set.
    Linux: mm/pgtable-generic.c pmdp_invalidate
    """
    assert_spin_locked(cpu, pmd_lockptr(pmd))
    absent = pmd.val.read() & ~(_PAGE_PRESENT | _PAGE_PROTNONE)
    # Accessed and Dirty may be set between the read and here: they are in `old`, which is what callers use.
    old = pmd.val.xchg(absent)
    bug_on(cpu, not pmd_trans_huge(old) or haddr & ~HPAGE_PMD_MASK != 0,
           "pmdp_invalidate: not a huge pmd (values: pmd, address)", old, haddr)
    flush_tlb_mm_range(cpu, mm.id, haddr, haddr + HPAGE_PMD_SIZE)
    return old


@kernel
def pmdp_collapse_flush(cpu: Cpu, mm: Mm, haddr: int, pmd: Entry):
    """Take the pmd of a PTE table down and make every CPU forget the small translations below it.

    Context: mmap_sem and anon_vma held for write, pmd ptl held; irqs on. Returns when no gup-fast can still be walking
    the table: it walks with irqs off.
    Return: the old pmd.
    Linux: mm/pgtable-generic.c pmdp_collapse_flush
    """
    assert_spin_locked(cpu, pmd_lockptr(pmd))
    old = get_and_clear(pmd)
    bug_on(cpu, not pmd_table(old) or haddr & ~HPAGE_PMD_MASK != 0,
           "pmdp_collapse_flush: not a table (values: pmd, address)", old, haddr)
    flush_tlb_mm_range(cpu, mm.id, haddr, haddr + HPAGE_PMD_SIZE)
    return old


@inline
def pmd_huge_or_swap(pmd: int):
    return pmd_trans_huge(pmd) or is_swap_pmd(pmd)


@inline
def pmd_trans_huge_lock(cpu: Cpu, pmd: Entry):
    """1 with the pmd ptl held when the pmd is huge or a migration entry; else 0 and nothing is held."""
    return pmd_huge_or_swap(pmd.val.load()) and __pmd_trans_huge_lock(cpu, pmd)


@kernel
def __pmd_trans_huge_lock(cpu: Cpu, pmd: Entry):
    """The pmd looked huge: take the ptl and look again (3.1.3).

    Context: mmap_sem or the rmap lock held.
    Return: 1 with the pmd ptl held, 0 without.
    Linux: mm/huge_memory.c __pmd_trans_huge_lock
    """
    ptl = pmd_lockptr(pmd)
    spin_lock(cpu, ptl)
    # Somebody may have split or zapped it before we had the lock.
    if pmd_huge_or_swap(pmd.val.read()):
        return 1
    spin_unlock(cpu, ptl)
    return 0


@inline
def pmd_trans_unstable(pmd: Entry):
    """With mmap_sem held: 1 unless the pmd is a table, which then stays one. Reads the pmd once (3.1.5)."""
    return not pmd_table(pmd.val.load())
