"""Migration entries go: each maps again what its page has become, or the page itself. (Linux: mm/migrate.c)

Nothing was present, so nothing is flushed. The walk looks at every entry under its ptl (PVMW_SYNC): fork, mremap and
zap may be at work on them (3.26.6).
"""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point_with
from concur_thp.arch.points import Point
from concur_thp.mm.anon_vma import anon_vma_lock_read, anon_vma_unlock_read, page_anon_vma
from concur_thp.mm.flags import VM_LOCKED
from concur_thp.mm.huge_entry import maybe_mkwrite, mk_huge_pmd
from concur_thp.mm.mapcount import mapped_by_ptes
from concur_thp.mm.migration_entry import assert_migrating, is_write_migration_entry
from concur_thp.mm.mlock import mlock_vma_page
from concur_thp.mm.mm_types import Entry, Page, Vma
from concur_thp.mm.page_flags import (
    PageAnon,
    PageCompound,
    PageDoubleMap,
    PageHead,
    hpage_nr_pages,
    page_to_pfn,
    tail_page,
)
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.pgtable import _PAGE_ACCESSED, _PAGE_SOFT_DIRTY, entry_pfn, set_entry
from concur_thp.mm.pte import mk_pte
from concur_thp.mm.rmap import clear_page_mlock, page_add_anon_rmap, page_add_file_rmap
from concur_thp.mm.rmap_walk import (
    PVMW_MIGRATION,
    PVMW_SYNC,
    page_vma_mapped_walk,
    pvmw_address,
    pvmw_pmd,
    pvmw_pte,
    pvmw_vma,
    rmap_walk_begin_range,
    rmap_walk_lock,
    rmap_walk_next,
    rmap_walk_unlock,
)


@kernel
def remove_migration_ptes(cpu: Cpu, old: Page, new: Page, locked: int):
    """Make every migration entry of `old` map `new`: the page it was migrated to, or itself.

    Context: both page locks held, and references. Takes the rmap lock for reading unless `locked`.
    Linux: mm/migrate.c remove_migration_ptes
    """
    remove_migration_range(cpu, old, new, hpage_nr_pages(new), locked)


@kernel
def remove_migration_range(cpu: Cpu, old: Page, new: Page, nr: int, locked: int):
    """remove_migration_ptes() for `nr` neighbouring pages at once: the pieces of a split page, or a whole one.

    Context: as it.
    Linux: mm/huge_memory.c remap_page
    Differs: one walk, where Linux makes one for each piece; all pieces have the same vmas, in the same order.
    """
    anon_vma = page_anon_vma(new)
    # Not by rmap_walk_lock(): that asks whether an anon page is mapped, and this one is not. It cannot lose its
    # anon_vma: the vmas with the entries are there, or the caller has a reference of it.
    if not locked and anon_vma:
        anon_vma_lock_read(cpu, anon_vma)
    if not locked and not anon_vma:
        if not rmap_walk_lock(cpu, new):
            return 0
    rmap_walk_begin_range(cpu, new, old, nr, PVMW_SYNC | PVMW_MIGRATION)
    while rmap_walk_next(cpu):
        vma = pvmw_vma(cpu)
        while page_vma_mapped_walk(cpu):
            pte = pvmw_pte(cpu)
            if pte:
                remove_migration_pte(cpu, old, new, vma, pte)
            else:
                remove_migration_pmd(cpu, new, vma, pvmw_address(cpu), pvmw_pmd(cpu))
    if not locked and anon_vma:
        anon_vma_unlock_read(cpu, anon_vma)
    if not locked and not anon_vma:
        rmap_walk_unlock(cpu, new)
    return 0


@inline
def remove_migration_pte(cpu: Cpu, old: Page, new: Page, vma: Vma, pte: Entry):
    """One small entry; its ptl held. No flush: nothing was present."""
    entry = pte.val.load()
    page = tail_page(new, entry_pfn(entry) - page_to_pfn(old))
    get_page(cpu, page)
    # The vma's rights as they are now: mprotect may have run since the entry was made (X20). If it has changed them and
    # not yet come to this entry, it waits for our ptl.
    value = mk_pte(page, vma) & ~_PAGE_ACCESSED | entry & _PAGE_SOFT_DIRTY
    if is_write_migration_entry(entry):
        value = maybe_mkwrite(value, vma)
    set_entry(pte, value)
    if PageAnon(page):
        page_add_anon_rmap(cpu, page, vma, pvmw_address(cpu), 0, 0)
    else:
        page_add_file_rmap(cpu, page, 0)
    if vma.vm_flags & VM_LOCKED and not PageCompound(page):
        mlock_vma_page(cpu, page)
    if PageHead(new):
        clear_page_mlock(cpu, new)


@kernel
def remove_migration_pmd(cpu: Cpu, new: Page, vma: Vma, addr: int, pmd: Entry):
    """One huge entry.

    Context: as remove_migration_ptes(); pmd ptl held.
    Linux: mm/huge_memory.c remove_migration_pmd
    Differs: counts ptes to see whether it may be mlocked, as PG_double_map does not come back here (K10).
    """
    entry = pmd.val.load()
    assert_migrating(cpu, entry)
    get_page(cpu, new)
    value = mk_huge_pmd(new, vma) & ~_PAGE_ACCESSED | entry & _PAGE_SOFT_DIRTY
    if is_write_migration_entry(entry):
        value = maybe_mkwrite(value, vma)
    if PageAnon(new):
        page_add_anon_rmap(cpu, new, vma, addr, 1, 0)
    else:
        page_add_file_rmap(cpu, new, 1)
    set_entry(pmd, value)
    check_point_with(cpu, Point.HUGE_PMD_SET, vma, addr)
    if vma.vm_flags & VM_LOCKED and not PageDoubleMap(new) and not mapped_by_ptes(new):
        mlock_vma_page(cpu, new)
