"""Two huge pmds at once: fork copies one into the child, mremap moves one. (Linux: mm/huge_memory.c)

Both hold two pmd ptls. fork takes the child's first, which nobody else uses yet; mremap takes the old place's first,
which is safe because mmap_sem is held for write.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point_with, point
from concur_thp.arch.points import Point
from concur_thp.arch.tlbflush import flush_tlb_mm_range
from concur_thp.config import HPAGE_PMD_MASK, HPAGE_PMD_NR, HPAGE_PMD_SIZE
from concur_thp.mm.errno import EAGAIN, ENOMEM
from concur_thp.mm.huge_entry import is_huge_zero_pmd, vma_is_anonymous
from concur_thp.mm.huge_fault import set_huge_zero_page
from concur_thp.mm.huge_zero import mm_get_huge_zero_page
from concur_thp.mm.mm_types import MM_ANONPAGES, NIL, Entry, Mm, Vma, mem_map, mms
from concur_thp.mm.page_flags import PageHead
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_RW,
    entry_pfn,
    get_and_clear,
    is_pmd_migration_entry,
    is_swap_pmd,
    pmd_lockptr,
    pmd_present,
    pmd_trans_huge,
    pte_write,
    set_entry,
)
from concur_thp.mm.pgtable_alloc import (
    pgtable_trans_huge_deposit,
    pgtable_trans_huge_withdraw,
    pte_alloc_one,
    pte_free,
)
from concur_thp.mm.pgtable_generic import pmd_trans_huge_lock, ptep_set_wrprotect
from concur_thp.mm.rmap import page_dup_rmap
from concur_thp.mm.vma_tree import find_vma
from concur_thp.mm.vmstat import Stat, count_vm_event
from concur_thp.sync.spinlock import SpinLock, spin_lock, spin_lock_nested, spin_unlock


@kernel
def copy_huge_pmd(cpu: Cpu, dst_mm: Mm, src_mm: Mm, dst_pmd: Entry, src_pmd: Entry, addr: int, vma: Vma):
    """Copy a huge pmd to a forked child; both are read-only afterwards. The flush comes once, at the end of fork.

    Context: mmap_sem of both write held; takes both pmd ptls. `vma` is the parent's.
    Return: 0; -EAGAIN when the pmd is no longer huge; -ENOMEM.
    Linux: mm/huge_memory.c copy_huge_pmd
    Differs: as copy_pte_range().
    """
    if not vma_is_anonymous(vma):
        return 0  # 3.13: a fault can bring it back
    table = pte_alloc_one(cpu, dst_mm)
    if table == NIL:
        return -ENOMEM
    dst_ptl = pmd_lockptr(dst_pmd)
    src_ptl = pmd_lockptr(src_pmd)
    spin_lock(cpu, dst_ptl)
    spin_lock_nested(cpu, src_ptl)
    point(cpu, Point.FORK_PMD_LOCKED)
    # The rmap lock alone is enough to split a pmd, so only now it is certain what the parent's is.
    pmd = src_pmd.val.load()
    result = 0
    if is_swap_pmd(pmd):
        copy_migration_pmd(cpu, dst_mm, dst_pmd, src_pmd, table, pmd)
    elif not pmd_trans_huge(pmd):
        result = -EAGAIN
    elif is_huge_zero_pmd(pmd):
        # The parent has a reference of the zero page, so this one never allocates.
        set_huge_zero_page(cpu, dst_mm, vma, dst_pmd, table, mm_get_huge_zero_page(cpu, dst_mm))
    else:
        copy_anon_pmd(cpu, dst_mm, dst_pmd, src_pmd, table, pmd)
    spin_unlock(cpu, src_ptl)
    spin_unlock(cpu, dst_ptl)
    if result != 0:
        pte_free(cpu, table)
    return result


@inline
def copy_migration_pmd(cpu: Cpu, dst_mm: Mm, dst_pmd: Entry, src_pmd: Entry, table: int, pmd: int):
    """3.13.3: counted in rss, but it has no reference and no mapcount to copy (X13)."""
    bug_on(cpu, not is_pmd_migration_entry(pmd), "huge pmd neither present nor migrating (value: pmd)", pmd, 0)
    if pte_write(pmd):
        pmd = pmd & ~_PAGE_RW
        set_entry(src_pmd, pmd)
    add_huge_pmd(cpu, dst_mm, dst_pmd, table, pmd)


@inline
def copy_anon_pmd(cpu: Cpu, dst_mm: Mm, dst_pmd: Entry, src_pmd: Entry, table: int, pmd: int):
    """3.13.6: a reference and a mapping more, before the entry that has them; neither may write any more."""
    page = mem_map[entry_pfn(pmd)]
    bug_on(cpu, not PageHead(page), "huge pmd of a page that is no head (value: pfn)", entry_pfn(pmd), pmd)
    get_page(cpu, page)
    page_dup_rmap(cpu, page, 1)
    # Atomic: the parent's other threads are running, and their hardware sets Accessed and Dirty. What they have set is the
    # child's, too, as in copy_one_pte().
    pmd = ptep_set_wrprotect(src_pmd)
    add_huge_pmd(cpu, dst_mm, dst_pmd, table, pmd & ~(_PAGE_RW | _PAGE_ACCESSED))


@inline
def add_huge_pmd(cpu: Cpu, mm: Mm, pmd: Entry, table: int, entry: int):
    """Give the child an entry, its rss and the table for its split."""
    mm.rss[MM_ANONPAGES].add(HPAGE_PMD_NR)
    mm.nr_ptes.add(1)
    pgtable_trans_huge_deposit(cpu, mm, pmd, table)
    set_entry(pmd, entry)


@kernel
def move_huge_pmd(cpu: Cpu, vma: Vma, old_addr: int, new_addr: int, old_end: int, old_pmd: Entry, new_pmd: Entry):
    """Move a huge pmd to another address of the mm, if both places are fit for it. No count changes.

    Context: mmap_sem write; rmap locks if the caller needs them; takes both pmd ptls.
    Return: 1 when moved; 0: not aligned, not a whole page, or no longer huge: split it and move the ptes.
    Linux: mm/huge_memory.c move_huge_pmd
    """
    if (old_addr | new_addr) & ~HPAGE_PMD_MASK != 0 or old_end - old_addr < HPAGE_PMD_SIZE:
        return 0
    if new_pmd.val.load() != 0:
        bug_on(cpu, pmd_trans_huge(new_pmd.val.read()), "mremap: destination is huge (values: address, pmd)", new_addr,
               new_pmd.val.read())
        return 0
    if not pmd_trans_huge_lock(cpu, old_pmd):
        return 0
    old_ptl = pmd_lockptr(old_pmd)
    new_ptl = pmd_lockptr(new_pmd)
    if new_ptl != old_ptl:
        spin_lock_nested(cpu, new_ptl)
    move_pmd_locked(cpu, vma, old_addr, old_pmd, new_pmd, old_ptl, new_ptl)
    check_point_with(cpu, Point.HUGE_PMD_SET, find_vma(mms[vma.vm_mm], new_addr), new_addr)
    if new_ptl != old_ptl:
        spin_unlock(cpu, new_ptl)
    spin_unlock(cpu, old_ptl)
    count_vm_event(cpu, Stat.mremap_huge)
    return 1


@inline
def move_pmd_locked(cpu: Cpu, vma: Vma, old_addr: int, old_pmd: Entry, new_pmd: Entry, old_ptl: SpinLock,
                    new_ptl: SpinLock):
    """The move itself, both ptls held."""
    mm = mms[vma.vm_mm]
    pmd = get_and_clear(old_pmd)
    point(cpu, Point.MREMAP_CLEARED)
    bug_on(cpu, new_pmd.val.read() != 0, "mremap: destination filled under mmap_sem write (value: pmd)",
           new_pmd.val.read(), old_addr)
    if new_ptl != old_ptl and vma_is_anonymous(vma):
        # Another PMD table: the table reserved for the split goes with the entry (X5).
        pgtable_trans_huge_deposit(cpu, mm, new_pmd, pgtable_trans_huge_withdraw(cpu, mm, old_pmd))
    set_entry(new_pmd, pmd)
    point(cpu, Point.MREMAP_SET)
    if pmd_present(pmd):
        # Before either ptl is released: from then on others may change or free the page at its new place, and a CPU
        # with a translation of the old one would not notice (X9).
        flush_tlb_mm_range(cpu, mm.id, old_addr, old_addr + HPAGE_PMD_SIZE)
