"""Was a page used lately? Asks every entry that maps it, and makes them old. (Linux: mm/rmap.c page_referenced)"""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.mm.flags import VM_LOCKED
from concur_thp.mm.mm_types import Entry, Page
from concur_thp.mm.page_flags import PageAnon
from concur_thp.mm.page_lock import trylock_page, unlock_page
from concur_thp.mm.pgtable import _PAGE_ACCESSED
from concur_thp.mm.rmap import page_mapped
from concur_thp.mm.rmap_walk import (
    page_vma_mapped_walk,
    page_vma_mapped_walk_done,
    pvmw_pmd,
    pvmw_pte,
    pvmw_vma,
    rmap_walk_begin,
    rmap_walk_lock,
    rmap_walk_next,
    rmap_walk_unlock,
)


@inline
def clear_flush_young(entry: Entry):
    """Make an entry old; was it young? No flush: a CPU that has it cached may use it unnoticed for a while (3.33)."""
    return entry.val.read() & _PAGE_ACCESSED != 0 and entry.val.and_(~_PAGE_ACCESSED) & _PAGE_ACCESSED != 0


@kernel
def page_referenced(cpu: Cpu, page: Page, is_locked: int):
    """Count the young entries of a page and make them old.

    Context: the caller has a reference, and with `is_locked` the page lock; takes the rmap lock. May sleep.
    Return: how many were young; in cpu.scratch[0] the VM_* bits of their vmas, and VM_LOCKED as soon as one has it.
    Linux: mm/rmap.c page_referenced
    Differs: no memory cgroups, so every vma counts.
    """
    referenced = 0
    vm_flags = 0
    we_locked = 0
    # A file page has no rmap lock without the page lock; who waits for it here gains nothing.
    if not is_locked and not PageAnon(page):
        we_locked = trylock_page(cpu, page)
        if not we_locked:
            cpu.scratch[0] = 0
            return 1
    if page_mapped(page) and rmap_walk_lock(cpu, page):
        rmap_walk_begin(cpu, page, 0)
        while rmap_walk_next(cpu) and vm_flags & VM_LOCKED == 0:
            young = page_referenced_one(cpu)
            if young != 0:
                vm_flags = vm_flags | pvmw_vma(cpu).vm_flags
                referenced += young > 0
        rmap_walk_unlock(cpu, page)
    if we_locked:
        unlock_page(cpu, page)
    cpu.scratch[0] = vm_flags
    return referenced


@kernel
def page_referenced_one(cpu: Cpu):
    """The entries of one vma.

    Context: a walk of this CPU stands at the vma; takes its ptls.
    Return: entries that were young; -1 when the vma is locked.
    Linux: mm/rmap.c page_referenced_one
    """
    young = 0
    while page_vma_mapped_walk(cpu):
        if pvmw_vma(cpu).vm_flags & VM_LOCKED:
            page_vma_mapped_walk_done(cpu)
            return -1
        pte = pvmw_pte(cpu)
        young += clear_flush_young(pte if pte else pvmw_pmd(cpu))
    return young


__all__ = ["page_referenced"]
