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
    """Count the vmas through which a page was used, and make their entries old.

    Context: the caller has a reference, and with `is_locked` the page lock; takes the rmap lock. May sleep.
    Return: how many had a young entry; 1 for a file page that is mapped and locked by another. In cpu.scratch[0] the VM_* bits
    of those vmas, and VM_LOCKED as soon as one has it: then the others are not asked.
    Linux: mm/rmap.c page_referenced
    Differs: no memory cgroups, so every vma counts. Goes on to the last vma; Linux stops when it has met all mappings.
    """
    referenced = 0
    vm_flags = 0
    we_locked = 0
    mapped = page_mapped(page)
    # A file page has no rmap lock without the page lock; who waits for it here gains nothing.
    if mapped and not is_locked and not PageAnon(page):
        we_locked = trylock_page(cpu, page)
        if not we_locked:
            cpu.scratch[0] = 0
            return 1
    if mapped and rmap_walk_lock(cpu, page):
        rmap_walk_begin(cpu, page, 0)
        while rmap_walk_next(cpu) and vm_flags & VM_LOCKED == 0:
            young = page_referenced_one(cpu)
            if young < 0:
                vm_flags = vm_flags | VM_LOCKED
            elif young > 0:
                vm_flags = vm_flags | pvmw_vma(cpu).vm_flags
                referenced += 1
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
    Differs: flushes not even for a huge pmd, for which x86 does: who has it cached may use it unnoticed. No VM_SEQ_READ.
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
