"""Page faults: from the pmd down to the pte. (Linux: mm/memory.c)

Every step may find that another thread of the mm was faster: entries are looked at without a lock, and looked
at again under it. Returning 0 then is no error; the access is simply tried again.
"""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point_with, point
from concur_thp.arch.points import Point
from concur_thp.mm.copy import copy_page_range
from concur_thp.mm.fault import do_anonymous_page, do_fault
from concur_thp.mm.flags import FAULT_FLAG_WRITE, VM_ACCESS, VM_FAULT_FALLBACK, VM_FAULT_OOM
from concur_thp.mm.free_pgtables import free_pgtables
from concur_thp.mm.huge_entry import pmd_modify, savedwrite, vma_is_anonymous
from concur_thp.mm.huge_memory import (
    do_huge_pmd_anonymous_page,
    do_huge_pmd_wp_page,
    huge_pmd_set_accessed,
    split_huge_pmd,
)
from concur_thp.mm.migration_entry import pmd_migration_entry_wait
from concur_thp.mm.mm_types import Entry, Vma, mms
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_PROTNONE,
    is_swap_pmd,
    pmd_lockptr,
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
from concur_thp.mm.pgtable_generic import pmd_trans_unstable
from concur_thp.mm.swapin import do_swap_page
from concur_thp.mm.thp_sysfs import transparent_hugepage_enabled
from concur_thp.mm.vma_prot import vma_prot_bits
from concur_thp.mm.vmstat import Stat, count_vm_event
from concur_thp.mm.wp import do_wp_page
from concur_thp.mm.zap import unmap_page_range, zap_page_range
from concur_thp.sync.spinlock import spin_lock, spin_unlock


@inline
def vma_is_accessible(vma: Vma):
    return vma.vm_flags & VM_ACCESS != 0


@kernel
def handle_mm_fault(cpu: Cpu, vma: Vma, addr: int, flags: int):
    """Make the entry of `addr` allow the access, or find that it does already.

    Context: mmap_sem read, access rights checked. May sleep.
    Return: VM_FAULT_* bits; 0 or VM_FAULT_WRITE mean: try the access again.
    Linux: mm/memory.c __handle_mm_fault
    Differs: only do_swap_page() drops mmap_sem and returns VM_FAULT_RETRY; waits for file pages keep it.
    """
    count_vm_event(cpu, Stat.pgfault)
    point(cpu, Point.FAULT_ENTRY)
    pmd = pmd_alloc(cpu, mms[vma.vm_mm], addr)  # 3.2.1
    if not pmd:
        return VM_FAULT_OOM
    orig_pmd = pmd.val.load()  # Read once: DONTNEED and other faults change it meanwhile.
    if pmd_none(orig_pmd):
        if transparent_hugepage_enabled(mms[vma.vm_mm], vma):  # 3.2.2
            fault = create_huge_pmd(cpu, vma, addr, flags, pmd)
            if fault & VM_FAULT_FALLBACK == 0:
                return fault
    elif is_swap_pmd(orig_pmd):
        pmd_migration_entry_wait(cpu, mms[vma.vm_mm], pmd)  # 3.2.3.a
        return 0
    elif pmd_trans_huge(orig_pmd):
        fault = huge_pmd_fault(cpu, vma, addr, flags, pmd, orig_pmd)  # 3.2.3.b
        if fault & VM_FAULT_FALLBACK == 0:
            return fault
    return handle_pte_fault(cpu, vma, addr, flags, pmd)


@inline
def create_huge_pmd(cpu: Cpu, vma: Vma, addr: int, flags: int, pmd: Entry):
    """A huge page for an empty pmd, where the kind of vma has one."""
    if vma_is_anonymous(vma):
        return do_huge_pmd_anonymous_page(cpu, vma, addr, flags, pmd)
    return VM_FAULT_FALLBACK


@inline
def huge_pmd_fault(cpu: Cpu, vma: Vma, addr: int, flags: int, pmd: Entry, orig_pmd: int):
    """A fault on a pmd that is huge."""
    if orig_pmd & _PAGE_PROTNONE != 0 and vma_is_accessible(vma):
        return do_huge_pmd_numa_page(cpu, vma, pmd, orig_pmd)
    if flags & FAULT_FLAG_WRITE and not pte_write(orig_pmd):
        return wp_huge_pmd(cpu, vma, addr, pmd, orig_pmd)
    huge_pmd_set_accessed(cpu, vma, addr, pmd, orig_pmd, flags)
    return 0


@inline
def wp_huge_pmd(cpu: Cpu, vma: Vma, addr: int, pmd: Entry, orig_pmd: int):
    """A write to a huge page that is mapped read-only."""
    if vma_is_anonymous(vma):
        return do_huge_pmd_wp_page(cpu, vma, addr, pmd, orig_pmd)
    split_huge_pmd(cpu, vma, pmd, addr)
    return VM_FAULT_FALLBACK


@kernel
def do_huge_pmd_numa_page(cpu: Cpu, vma: Vma, pmd: Entry, orig_pmd: int):
    """An accessible vma has a huge protnone pmd: give it its protection back.

    Context: mmap_sem read. Takes the pmd ptl.
    Return: 0.
    Linux: mm/huge_memory.c do_huge_pmd_numa_page
    Differs: one node, so there is nowhere to migrate to, and no page lock: it would keep others from migrating the page.
    """
    ptl = pmd_lockptr(pmd)
    spin_lock(cpu, ptl)
    if pmd.val.read() == orig_pmd:
        set_entry(pmd, pmd_modify(orig_pmd, vma_prot_bits(vma)) | _PAGE_ACCESSED | savedwrite(orig_pmd, 1))
    spin_unlock(cpu, ptl)
    return 0


@kernel
def handle_pte_fault(cpu: Cpu, vma: Vma, addr: int, flags: int, pmd: Entry):
    """The pmd is a table or empty: a fault on one small page.

    Context: mmap_sem read. May sleep.
    Return: as handle_mm_fault().
    Linux: mm/memory.c handle_pte_fault
    Differs: a NUMA hint is answered here (do_numa_page), as in do_huge_pmd_numa_page().
    """
    pmdval = pmd.val.load()
    if pmd_none(pmdval):
        return do_pte_missing(cpu, vma, addr, flags, pmd)
    if pmd_trans_unstable(pmd):
        return 0  # 3.2.4.a: it has become huge, or none again: look anew.
    # A table, and under mmap_sem it stays one (I9).
    check_point_with(cpu, Point.TABLE_SEEN, pmd, vma)
    pmdval = pmd.val.load()
    pte = pte_offset(pmdval, addr)
    orig_pte = pte.val.load()  # 3.2.4.b
    if pte_none(orig_pte):
        return do_pte_missing(cpu, vma, addr, flags, pmd)
    if not pte_present(orig_pte):
        return do_swap_page(cpu, vma, addr, pmd, orig_pte, flags)
    ptl = pte_lockptr(pmdval)
    spin_lock(cpu, ptl)
    if pte.val.read() != orig_pte:  # 3.2.4.d: another thread's fault, or the zap of DONTNEED, was faster.
        spin_unlock(cpu, ptl)
        return 0
    entry = orig_pte
    if entry & _PAGE_PROTNONE != 0 and vma_is_accessible(vma):
        # do_numa_page
        set_entry(pte, pmd_modify(entry, vma_prot_bits(vma)) | _PAGE_ACCESSED | savedwrite(entry, 1))
    elif flags & FAULT_FLAG_WRITE:
        if not pte_write(entry):
            return do_wp_page(cpu, vma, addr, pmd, orig_pte)  # Releases the ptl.
        # Only Accessed and Dirty may have come in since the comparison, and both are set here.
        set_entry(pte, entry | _PAGE_ACCESSED | _PAGE_DIRTY)
    spin_unlock(cpu, ptl)
    return 0


@inline
def do_pte_missing(cpu: Cpu, vma: Vma, addr: int, flags: int, pmd: Entry):
    """The pte is empty, or has no table yet."""
    if vma_is_anonymous(vma):
        return do_anonymous_page(cpu, vma, addr, flags, pmd)
    return do_fault(cpu, vma, addr, flags, pmd)


__all__ = ["copy_page_range", "do_swap_page", "free_pgtables", "handle_mm_fault", "handle_pte_fault",
           "unmap_page_range", "zap_page_range"]
