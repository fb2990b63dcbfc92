"""fork: the child's page tables. (Linux: mm/memory.c)

Private pages stay shared until somebody writes: both sides lose the write bit. Other threads of the parent
may write through their TLBs until fork's one flush at the end (3.12.4); the child must not run before it.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.mm.errno import ENOMEM
from concur_thp.mm.flags import VM_MAYWRITE, VM_SHARED
from concur_thp.mm.huge_memory import copy_huge_pmd
from concur_thp.mm.huge_split_pmd import split_if_unaware
from concur_thp.mm.migration_entry import (
    assert_migrating,
    is_write_migration_entry,
    make_migration_entry_read,
    migration_entry_to_page,
)
from concur_thp.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, Entry, Mm, Vma
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_RW,
    is_hwpoison_entry,
    is_swap_entry,
    is_swap_pmd,
    mm_pmd,
    pmd_none,
    pmd_trans_huge,
    pte_lockptr,
    pte_none,
    pte_offset,
    pte_present,
    pte_write,
    set_entry,
)
from concur_thp.mm.pgtable_alloc import pmd_alloc
from concur_thp.mm.pgtable_generic import pmd_trans_unstable, ptep_set_wrprotect
from concur_thp.mm.pte import mm_counter, next_pmd_table, pmd_addr_end, pte_alloc, vm_normal_page
from concur_thp.mm.rmap import page_dup_rmap
from concur_thp.mm.swapfile import swap_duplicate
from concur_thp.mm.swapops import pte_to_swp_entry
from concur_thp.sync.rwsem import assert_held_write
from concur_thp.sync.spinlock import spin_lock, spin_lock_nested, spin_unlock


@inline
def is_cow_mapping(vm_flags: int):
    """May a write ever have to copy here?"""
    return vm_flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE


@kernel
def copy_page_range(cpu: Cpu, dst_mm: Mm, src_mm: Mm, vma: Vma):
    """Copy the entries of one vma of the parent.

    Context: both mmap_sems held for write; the child's vma is in the rmap trees already. Allocates; takes
    ptls.
    Return: 0 or -ENOMEM (what was copied so far is for exit_mmap() to take down).
    Linux: mm/memory.c copy_page_range
    """
    assert_held_write(cpu, src_mm.mmap_sem)
    if vma.anon_vma == 0:
        return 0  # Nothing but page cache pages: the child faults them in itself.
    addr = next_pmd_table(src_mm, vma.vm_start, vma.vm_end)
    while addr < vma.vm_end:
        following = pmd_addr_end(addr, vma.vm_end)
        error = copy_pmd(cpu, dst_mm, src_mm, vma, addr, following)
        if error != 0:
            return error
        addr = next_pmd_table(src_mm, following, vma.vm_end)
    return 0


@inline
def copy_pmd(cpu: Cpu, dst_mm: Mm, src_mm: Mm, vma: Vma, addr: int, end: int):
    """What one pmd covers of the vma. (Linux: copy_pmd_range, the body of its loop)"""
    src_pmd = mm_pmd(src_mm, addr)
    split_if_unaware(cpu, vma, src_pmd, addr)
    value = src_pmd.val.load()
    error = 0
    if not pmd_none(value):
        dst_pmd = pmd_alloc(cpu, dst_mm, addr)
        if not dst_pmd:
            error = -ENOMEM
        else:
            pending = 1
            if pmd_trans_huge(value) or is_swap_pmd(value):
                bug_on(cpu, end - addr != HPAGE_PMD_SIZE, "fork: a huge pmd crosses the end of its vma", addr, end)
                error = copy_huge_pmd(cpu, dst_mm, src_mm, dst_pmd, src_pmd, addr, vma)
                # Anything else: split by an rmap walker before we had the ptl; go on with its ptes.
                pending = error != 0 and error != -ENOMEM
            if pending:
                error = copy_pte_range(cpu, dst_mm, src_mm, dst_pmd, src_pmd, vma, addr, end)
    return error


@kernel
def copy_pte_range(cpu: Cpu, dst_mm: Mm, src_mm: Mm, dst_pmd: Entry, src_pmd: Entry, vma: Vma, addr: int, end: int):
    """Copy the ptes of [addr, end), which one table holds.

    Context: as copy_page_range(). Takes the child's pte ptl, then the parent's, and keeps both throughout:
    whoever locks the parent's pte finds an entry either copied or not.
    Return: 0 or -ENOMEM.
    Linux: mm/memory.c copy_pte_range
    Differs: the locks are not dropped now and then for others. The child has the Dirty that hardware set until the parent's
    write bit went, also in copy_huge_pmd(); v4.20 copies what it had read before. No continuations of swap counts.
    """
    if pmd_trans_unstable(src_pmd):
        return 0
    if pte_alloc(cpu, dst_mm, dst_pmd) != 0:
        return -ENOMEM
    src_table = src_pmd.val.load()
    dst_table = dst_pmd.val.load()
    src_pte = pte_offset(src_table, addr)
    dst_pte = pte_offset(dst_table, addr)
    spin_lock(cpu, pte_lockptr(dst_table))
    spin_lock_nested(cpu, pte_lockptr(src_table))
    anon = 0
    while addr < end:
        if not pte_none(src_pte.val.read()):
            anon += copy_one_pte(cpu, dst_mm, dst_pte, src_pte, vma, addr)
        addr += PAGE_SIZE
        src_pte = Entry(int(src_pte) + 8)
        dst_pte = Entry(int(dst_pte) + 8)
    spin_unlock(cpu, pte_lockptr(src_table))
    if anon != 0:
        dst_mm.rss[MM_ANONPAGES].add(anon)
    spin_unlock(cpu, pte_lockptr(dst_table))
    return 0


@kernel
def copy_nonpresent_pte(cpu: Cpu, dst_mm: Mm, dst_pte: Entry, src_pte: Entry, vma: Vma, addr: int):
    """Copy a swap entry: one more pte holds the slot. Or a migration entry: it is counted in rss, but has no reference and
    no mapcount to copy (X13).

    Context: both ptls held.
    Return: 1 for an anon page, whose rss the caller counts.
    Linux: mm/memory.c copy_one_pte, its branch for swap ptes
    """
    pte = src_pte.val.load()
    if is_hwpoison_entry(pte):
        set_entry(dst_pte, pte)
        return 0
    if is_swap_entry(pte):
        swap_duplicate(cpu, pte_to_swp_entry(pte))
        dst_mm.rss[MM_SWAPENTS].add(1)
        set_entry(dst_pte, pte)
        return 0
    assert_migrating(cpu, pte)
    if is_write_migration_entry(pte) and is_cow_mapping(vma.vm_flags):
        pte = make_migration_entry_read(pte)  # Shared from now on: whoever writes first has to copy.
        set_entry(src_pte, pte)
    set_entry(dst_pte, pte)
    counter = mm_counter(migration_entry_to_page(pte))
    if counter != MM_ANONPAGES:
        dst_mm.rss[counter].add(1)
    return counter == MM_ANONPAGES


@inline
def copy_one_pte(cpu: Cpu, dst_mm: Mm, dst_pte: Entry, src_pte: Entry, vma: Vma, addr: int):
    """Copy one entry; both ptls held. Returns 1 for an anon page, whose rss the caller counts."""
    pte = src_pte.val.load()
    if not pte_present(pte):
        return copy_nonpresent_pte(cpu, dst_mm, dst_pte, src_pte, vma, addr)
    if is_cow_mapping(vma.vm_flags) and pte_write(pte):
        # Atomic: hardware may set Dirty in the parent's entry right now. A Dirty that has come in since the load above is the
        # child's, too: when the parent lets go of a lazily free page, nobody else would know that it was written.
        pte = ptep_set_wrprotect(src_pte)
        pte = pte & ~_PAGE_RW
    if vma.vm_flags & VM_SHARED:
        pte = pte & ~_PAGE_DIRTY
    page = vm_normal_page(pte)
    counter = 0
    anon = 0
    if page:
        # The reference first: rc >= mappings at every instant (I3).
        get_page(cpu, page)
        page_dup_rmap(cpu, page, 0)
        counter = mm_counter(page)
        anon = counter == MM_ANONPAGES
        if not anon:
            dst_mm.rss[counter].add(1)
    set_entry(dst_pte, pte & ~_PAGE_ACCESSED)
    return anon
