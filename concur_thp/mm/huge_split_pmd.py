"""split_huge_pmd: one huge entry becomes a table of small ones; the page itself stays huge. (Linux: mm/huge_memory.c)

It never fails and does not care how many references the page has (R37): the table was reserved when the huge entry was
made. Software sees the pmd as huge, so as locked, until the finished table replaces it; hardware sees nothing in
between, so no CPU ever has a huge and a small translation of one address (X1).

    H T T T ... T   <- huge pmd        becomes        H T T T ... T
                                                      ^ ^ ^ ^     ^   N ptes, N references, N mapcounts
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.config import HPAGE_PMD_MASK, HPAGE_PMD_SIZE, PAGE_SHIFT
from concur_thp.mm.huge_split_locked import __split_huge_pmd_locked
from concur_thp.mm.mm_types import Entry, Page, Vma, mem_map, mms
from concur_thp.mm.page_flags import PageAnon, PG_mlocked, TestFlag, page_to_pfn
from concur_thp.mm.page_lock import PageLocked, lock_page, trylock_page, unlock_page
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.pgtable import (
    entry_pfn,
    is_pmd_migration_entry,
    is_swap_pmd,
    mm_pmd,
    pmd_lockptr,
    pmd_trans_huge,
)
from concur_thp.mm.rmap import clear_page_mlock
from concur_thp.mm.swap import put_page
from concur_thp.mm.thp_sysfs import thp
from concur_thp.mm.vma_tree import vma_next
from concur_thp.sync.spinlock import SpinLock, spin_lock, spin_unlock


@inline
def split_huge_pmd(cpu: Cpu, vma: Vma, pmd: Entry, addr: int):
    """Make sure that a pmd is not huge: a table, or none (file), or what others make of it at once (3.1.5)."""
    seen = pmd.val.load()
    if is_swap_pmd(seen) or pmd_trans_huge(seen):
        __split_huge_pmd(cpu, vma, pmd, addr, 0, Page(0))


@inline
def split_if_unaware(cpu: Cpu, vma: Vma, pmd: Entry, addr: int):
    """With the switch force_split_pmd this walker knows nothing of huge pmds, and this is the line that makes it right."""
    if thp.force_split_pmd != 0:
        split_huge_pmd(cpu, vma, pmd, addr)


@kernel
def __split_huge_pmd(cpu: Cpu, vma: Vma, pmd: Entry, addr: int, freeze: int, page: Page):
    """Split a huge pmd, or the migration entry of one; with `freeze` into migration entries.

    Context: mmap_sem in any mode, or the rmap lock. With `page` (which freeze needs) its page lock is held, and only a
    pmd that maps this page is split. Without, takes the page lock of an anon page; takes the pmd ptl.
    Linux: mm/huge_memory.c __split_huge_pmd
    Differs: takes the page lock, as Linux does since 5.8 (K1): else reuse_swap_page() in another mm could sum the
    mapcounts while they move from the huge to the small entries and miss one. Unlike Linux with a reference: from
    pmd_populate() on a DONTNEED of another thread can zap the ptes, and would free a locked page.
    """
    bug_on(cpu, freeze != 0 and not page, "__split_huge_pmd: freeze without a page", addr, freeze)
    bug_on(cpu, page and not PageLocked(page), "__split_huge_pmd: page is not locked (value: pfn)", page_to_pfn(page),
           addr)
    point(cpu, Point.SPLIT_PMD_ENTRY)
    ptl = pmd_lockptr(pmd)
    spin_lock(cpu, ptl)
    locked = Page(0)
    if not page:
        locked = lock_anon_pmd_page(cpu, pmd, ptl)
    seen = pmd.val.load()
    other = page and entry_pfn(seen) != page_to_pfn(page)  # 3.16.1: split_huge_page() must not hit another page
    if not other and (pmd_trans_huge(seen) or is_pmd_migration_entry(seen)):
        if pmd_trans_huge(seen) and TestFlag(mem_map[entry_pfn(seen)], PG_mlocked):
            clear_page_mlock(cpu, mem_map[entry_pfn(seen)])  # 3.16.2: no pte-mapped THP is mlocked (I21)
        __split_huge_pmd_locked(cpu, vma, pmd, addr & HPAGE_PMD_MASK, freeze)
    spin_unlock(cpu, ptl)
    if locked:
        unlock_page(cpu, locked)
        put_page(cpu, locked)


@kernel
def lock_anon_pmd_page(cpu: Cpu, pmd: Entry, ptl: SpinLock) -> Page:
    """Take the page lock of the anon page that a huge pmd maps.

    Context: pmd ptl held; dropped and taken again when the page lock has to be waited for.
    Return: the locked page, with a reference, which the pmd still maps; NULL when the pmd maps no anon huge page.
    Linux: mm/huge_memory.c __split_huge_pmd, since 5.8
    """
    while True:
        seen = pmd.val.load()
        page = mem_map[entry_pfn(seen)]
        if not pmd_trans_huge(seen) or not PageAnon(page):  # the huge zero page is not anon either
            return Page(0)
        get_page(cpu, page)
        if trylock_page(cpu, page):
            return page
        spin_unlock(cpu, ptl)
        lock_page(cpu, page)
        spin_lock(cpu, ptl)
        if pmd.val.load() == seen:
            return page
        # While we slept the pmd was zapped, copied, split, or only touched by hardware: look again.
        unlock_page(cpu, page)
        put_page(cpu, page)


@kernel
def split_huge_pmd_address(cpu: Cpu, vma: Vma, addr: int, freeze: int, page: Page):
    """Split the huge pmd around an address, if there is one.

    Context: as __split_huge_pmd().
    Linux: mm/huge_memory.c split_huge_pmd_address
    """
    pmd = mm_pmd(mms[vma.vm_mm], addr)
    if pmd:
        __split_huge_pmd(cpu, vma, pmd, addr, freeze, page)


@kernel
def vma_adjust_trans_huge(cpu: Cpu, vma: Vma, start: int, end: int, adjust_next: int):
    """A vma is about to get new borders: split the huge pmds that would reach across them (I8).

    Context: mmap_sem write, before any border moves and before the rmap locks. `adjust_next` is by how many pages the
    start of the next vma moves up, 0 or less when it does not.
    Linux: mm/huge_memory.c vma_adjust_trans_huge
    """
    split_at_border(cpu, vma, start)
    split_at_border(cpu, vma, end)
    if adjust_next > 0:
        after = vma_next(mms[vma.vm_mm], vma)
        split_at_border(cpu, after, after.vm_start + (adjust_next << PAGE_SHIFT))


@inline
def split_at_border(cpu: Cpu, vma: Vma, addr: int):
    """Split a huge pmd that has `addr` inside, and that the vma contained so far."""
    haddr = addr & HPAGE_PMD_MASK
    if addr != haddr and haddr >= vma.vm_start and haddr + HPAGE_PMD_SIZE <= vma.vm_end:
        split_huge_pmd_address(cpu, vma, addr, 0, Page(0))


