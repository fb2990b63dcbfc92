"""Taking down every entry that maps a page. (Linux: mm/rmap.c try_to_unmap)

Per entry: cleared and flushed on every CPU, its Dirty bit moved to the page, something else in its place, and only then
mapcount and reference dropped (3.18.4, 3.26.3). With the page locked nobody maps a page that is unmapped: faults on
migration entries wait for the page lock.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.mm.flags import VM_LOCKED
from concur_thp.mm.huge_split_pmd import split_huge_pmd_address
from concur_thp.mm.migration_entry import make_migration_entry
from concur_thp.mm.mlock import mlock_vma_page
from concur_thp.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, Entry, Mm, Page, Vma, mem_map, mms
from concur_thp.mm.page_flags import (
    PageAnon,
    PageCompound,
    PageSwapCache,
    PG_dirty,
    PG_swapbacked,
    SetFlag,
    TestFlag,
    page_to_pfn,
)
from concur_thp.mm.page_lock import assert_page_locked
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_HWPOISON,
    _PAGE_SOFT_DIRTY,
    entry_pfn,
    get_and_clear,
    mk_entry,
    pte_dirty,
    pte_write,
    pte_young,
    set_entry,
)
from concur_thp.mm.pgtable_generic import pmdp_invalidate, ptep_clear_flush
from concur_thp.mm.pte import mm_counter
from concur_thp.mm.remove_migration import remove_migration_pmd, remove_migration_ptes, remove_migration_range
from concur_thp.mm.rmap import page_remove_rmap, total_mapcount
from concur_thp.mm.rmap_walk import (
    PVMW_SYNC,
    page_vma_mapped_walk,
    page_vma_mapped_walk_done,
    pvmw_address,
    pvmw_pmd,
    pvmw_pte,
    pvmw_vma,
    rmap_walk_begin,
    rmap_walk_lock,
    rmap_walk_next,
    rmap_walk_unlock,
)
from concur_thp.mm.swap import put_page
from concur_thp.mm.swapfile import swap_duplicate
from concur_thp.mm.swapops import swp_entry_to_pte
from concur_thp.mm.tlb_batch import set_tlb_ubc_flush_pending

TTU_MIGRATION = 0x1
"""Leave migration entries, of a huge pmd too."""
TTU_SPLIT_HUGE_PMD = 0x4
"""Split the pmds that map the page first."""
TTU_IGNORE_MLOCK = 0x8
TTU_IGNORE_ACCESS = 0x10
TTU_BATCH_FLUSH = 0x40
TTU_RMAP_LOCKED = 0x80
"""The caller has the rmap lock."""
TTU_SPLIT_FREEZE = 0x100
"""Leave migration entries, of small pages."""
TTU_SYNC = 0x200
"""Wait for zappers that have cleared an entry but not yet its mapcount (K3)."""
TTU_HWPOISON = 0x400
"""The page is broken: leave hwpoison entries. (A flag, as since v6.8: v4.20 looks at the page and so loses a whole THP that is
split for its head.)"""


@kernel
def try_to_unmap(cpu: Cpu, page: Page, flags: int):
    """Take down every entry that maps a page; what is left in their places the TTU_* bits say.

    Context: page lock held and a reference; takes the rmap lock unless TTU_RMAP_LOCKED. May sleep.
    Return: 1 when nothing maps the page any more.
    Linux: mm/rmap.c try_to_unmap
    Differs: there are no temporary stack vmas to skip.
    """
    assert_page_locked(cpu, page)
    if flags & TTU_RMAP_LOCKED == 0 and not rmap_walk_lock(cpu, page):
        return total_mapcount(page) == 0
    rmap_walk_begin(cpu, page, PVMW_SYNC if flags & TTU_SYNC else 0)
    going = 1
    while going and rmap_walk_next(cpu):
        # Once the total is 0 it stays so: who adds a mapping copies one, or holds the page lock.
        going = try_to_unmap_one(cpu, page, pvmw_vma(cpu), flags) and total_mapcount(page) != 0
    if flags & TTU_RMAP_LOCKED == 0:
        rmap_walk_unlock(cpu, page)
    return total_mapcount(page) == 0


@kernel
def try_to_unmap_one(cpu: Cpu, page: Page, vma: Vma, flags: int):
    """Take down the entries of one vma.

    Context: as try_to_unmap(), a walk of this CPU stands at the vma. Takes its ptls.
    Return: 0 when the page cannot be unmapped and the walk ends.
    Linux: mm/rmap.c try_to_unmap_one
    """
    if flags & TTU_SPLIT_HUGE_PMD:
        split_huge_pmd_address(cpu, vma, pvmw_address(cpu), flags & TTU_SPLIT_FREEZE, page)
    while page_vma_mapped_walk(cpu):
        pte = pvmw_pte(cpu)
        if not pte and flags & TTU_MIGRATION:
            set_pmd_migration_entry(cpu, vma, pvmw_address(cpu), pvmw_pmd(cpu), page)
        elif keep_mapped(cpu, page, vma, pte, flags) or not unmap_pte(cpu, page, vma, pte, flags):
            page_vma_mapped_walk_done(cpu)
            return 0
    return 1


@inline
def keep_mapped(cpu: Cpu, page: Page, vma: Vma, pte: Entry, flags: int):
    """Does mlock, or a recent use, forbid to unmap this entry? Its ptl held."""
    bug_on(cpu, not pte, "try_to_unmap: a pmd maps the page (values: pfn, flags)", page_to_pfn(page), flags)
    keep = 0
    if flags & TTU_IGNORE_MLOCK == 0 and vma.vm_flags & VM_LOCKED:
        if not PageCompound(page):
            mlock_vma_page(cpu, page)  # A THP mapped by ptes never is (I21).
        keep = 1
    elif flags & TTU_IGNORE_ACCESS == 0 and pte_young(pte.val.and_(~_PAGE_ACCESSED)):
        keep = 1
    return keep


@kernel
def unmap_pte(cpu: Cpu, page: Page, vma: Vma, pte: Entry, flags: int):
    """Take one pte down.

    Context: its ptl held; the pte maps `page` or a subpage of it.
    Return: 0 when it had to be put back.
    Linux: mm/rmap.c try_to_unmap_one, the body of its loop
    Differs: a flush that may be batched always is, also when no other CPU runs the mm.
    """
    mm = mms[vma.vm_mm]
    if flags & TTU_BATCH_FLUSH:
        # A CPU may still write to the page through a dirty translation; through a clean one it has to come here first.
        old = get_and_clear(pte)
        set_tlb_ubc_flush_pending(cpu, mm, pte_dirty(old))
    else:
        old = ptep_clear_flush(cpu, mm, pvmw_address(cpu), pte)
    subpage = mem_map[entry_pfn(old)]
    # From the value that the exchange returned: hardware sets Dirty until then (X3).
    if pte_dirty(old):
        SetFlag(page, PG_dirty)
    if flags & TTU_HWPOISON:
        unmap_to_hwpoison_entry(mm, page, subpage, pte)
    elif flags & (TTU_MIGRATION | TTU_SPLIT_FREEZE):
        set_entry(pte, make_migration_entry(subpage, pte_write(old)) | old & _PAGE_SOFT_DIRTY)
    elif PageAnon(page):
        if not unmap_to_swap_entry(cpu, mm, page, subpage, pte, old):
            return 0
    else:
        mm.rss[mm_counter(page)].sub(1)
    page_remove_rmap(cpu, subpage, 0)
    put_page(cpu, page)  # Not the last one: the caller has one.
    return 1


@inline
def unmap_to_hwpoison_entry(mm: Mm, page: Page, subpage: Page, pte: Entry):
    """What follows a pte of a broken page: accesses end with SIGBUS."""
    mm.rss[mm_counter(page)].sub(1)
    set_entry(pte, mk_entry(page_to_pfn(subpage), _PAGE_HWPOISON))


@kernel
def unmap_to_swap_entry(cpu: Cpu, mm: Mm, page: Page, subpage: Page, pte: Entry, old: int):
    """What follows an anon pte that reclaim takes down: nothing for a clean lazily freed page, else a swap entry.

    Context: pte ptl held, the pte is empty; its flush may still be pending.
    Return: 0 when the page must stay: the pte is back.
    Linux: mm/rmap.c try_to_unmap_one, its branch for anon pages
    """
    if not TestFlag(page, PG_swapbacked):
        if TestFlag(page, PG_dirty):
            set_entry(pte, old)
            SetFlag(page, PG_swapbacked)  # Written again after MADV_FREE.
            return 0
        mm.rss[MM_ANONPAGES].sub(1)
        return 1
    bug_on(cpu, not PageSwapCache(page), "try_to_unmap: not in the swap cache (value: pfn)", page_to_pfn(page), old)
    # Before the mapcount goes: the slot must be held by somebody at every instant (3.8).
    swap_duplicate(cpu, subpage.private)
    mm.rss[MM_ANONPAGES].sub(1)
    mm.rss[MM_SWAPENTS].add(1)
    set_entry(pte, swp_entry_to_pte(subpage.private) | old & _PAGE_SOFT_DIRTY)
    return 1


@kernel
def set_pmd_migration_entry(cpu: Cpu, vma: Vma, addr: int, pmd: Entry, page: Page):
    """A migration entry takes the place of a huge pmd. The table deposited for its split stays.

    Context: page lock, rmap lock and pmd ptl held.
    Linux: mm/huge_memory.c set_pmd_migration_entry
    Differs: write and dirty are those of the pmd that the invalidate returned (K4).
    """
    old = pmdp_invalidate(cpu, mms[vma.vm_mm], addr, pmd)
    if pte_dirty(old):
        SetFlag(page, PG_dirty)
    set_entry(pmd, make_migration_entry(page, pte_write(old)) | old & _PAGE_SOFT_DIRTY)
    page_remove_rmap(cpu, page, 1)
    put_page(cpu, page)


__all__ = [
    "TTU_BATCH_FLUSH", "TTU_HWPOISON", "TTU_IGNORE_ACCESS", "TTU_IGNORE_MLOCK", "TTU_MIGRATION", "TTU_RMAP_LOCKED",
    "TTU_SPLIT_FREEZE", "TTU_SPLIT_HUGE_PMD", "TTU_SYNC", "remove_migration_pmd", "remove_migration_ptes",
    "remove_migration_range", "set_pmd_migration_entry", "try_to_unmap",
]
