"""Where in one vma is a page mapped? (Linux: mm/page_vma_mapped.c)

    page_vma_mapped_walk_init(cpu, page, vma, address, PVMW_SYNC)
    while page_vma_mapped_walk(cpu):
        ...   # one entry that maps (a part of) the page; its ptl is held
              # to stop early: page_vma_mapped_walk_done(cpu), then break

Each CPU has one walk, the row pvmws[cpu.id]; pvmw_pmd(), pvmw_pte() and friends read it. An rmap lock, or mmap_sem,
keeps the vma and its page tables. Entries, though, may come and go under their ptl at any time, so each is looked at
again there.

Two holes of v4.20 are closed here. K3: with PVMW_SYNC nothing is skipped without its ptl, so whoever has taken down an
entry has also counted it off when the walk has passed it. K16: a page that mremap has moved may straddle two pmds; a
first one without a table, or with another page's huge pmd, does not end the walk.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, I64, Struct, field
from concur_thp.config import NR_CPUS, PAGE_SHIFT, PAGE_SIZE, PMD_MASK, PMD_SIZE
from concur_thp.mm.mm_types import NIL, Entry, Page, Vma, mem_map, mms, vmas
from concur_thp.mm.page_flags import PageCompound, PageTail, hpage_nr_pages, page_to_pfn
from concur_thp.mm.pgtable import (
    TABLES,
    entry_pfn,
    entry_table_pfn,
    is_migration_entry,
    is_pmd_migration_entry,
    mm_pmd,
    pmd_lockptr,
    pmd_table,
    pmd_trans_huge,
    pte_offset,
    pte_present,
)
from concur_thp.mm.vma_tree import __vma_address
from concur_thp.sync.spinlock import spin_lock, spin_unlock

PVMW_SYNC = 1
"""Look at no pte without its ptl."""
PVMW_MIGRATION = 2
"""Look for migration entries instead of present ones."""


class Pvmw(Struct, size=64):
    """struct page_vma_mapped_walk. Entries are offsets in the table pages, NIL for none."""

    page = field(I32, "cpu", "pfn of the page looked for, a head or small page")
    vma = field(I32, "cpu", "number of the vma")
    address = field(I64, "cpu", "where the walk is")
    end = field(I64, "cpu", "where the page, or the vma, ends")
    pmd = field(I64, "cpu", "the pmd entry of `address`")
    pte = field(I64, "cpu", "the pte entry of `address`; NIL while at pmd level")
    ptl = field(I32, "cpu", "pfn of the table page whose ptl is held, or NIL")
    flags = field(I32, "cpu", "PVMW_* bits")
    nr = field(I32, "cpu", "pages from `page` on that are looked for")


pvmws = SharedArray("pvmws", Pvmw, lambda config: NR_CPUS)

NOT_HERE, HIT, AT_TABLE = 0, 1, 2
"""What pvmw_look_at_pmd() found."""


@inline
def pvmw_entry(offset: int) -> Entry:
    return Entry(int(TABLES) + offset)


@inline
def pvmw_pmd(cpu: Cpu) -> Entry:
    """The pmd of the hit."""
    return pvmw_entry(pvmws[cpu.id].pmd)


@inline
def pvmw_pte(cpu: Cpu) -> Entry:
    """The pte of the hit, NULL if it is the pmd that maps the page."""
    offset = pvmws[cpu.id].pte
    return pvmw_entry(offset) if offset != NIL else Entry(0)


@inline
def pvmw_address(cpu: Cpu):
    """The address of the hit."""
    return pvmws[cpu.id].address


@inline
def pvmw_vma(cpu: Cpu) -> Vma:
    """The vma of the walk."""
    return vmas[pvmws[cpu.id].vma]


@kernel
def page_vma_mapped_walk_init(cpu: Cpu, page: Page, vma: Vma, address: int, flags: int):
    """Prepare to look for a page in a vma, from `address` (which vma_address() gives) to the end of either.

    Context: an rmap lock that covers the vma, or mmap_sem of its mm. This CPU is in no other walk.
    Linux: struct page_vma_mapped_walk, initialized
    """
    bug_on(cpu, PageTail(page), "page_vma_mapped_walk: a tail (value: pfn)", page_to_pfn(page), address)
    pvmw_init(cpu, page, hpage_nr_pages(page), vma, __vma_address(page, vma), flags)
    pvmws[cpu.id].address = address


@inline
def pvmw_init(cpu: Cpu, page: Page, nr: int, vma: Vma, start: int, flags: int):
    """Prepare to look for `nr` pages from `page` on, the first of which the vma would map at `start`."""
    pvmw = pvmws[cpu.id]
    pvmw.page = page_to_pfn(page)
    pvmw.nr = nr
    pvmw.vma = vmas.index(vma)
    pvmw.address = max(start, vma.vm_start)
    pvmw.end = min(vma.vm_end, start + (nr << PAGE_SHIFT))
    pvmw.pmd = NIL
    pvmw.pte = NIL
    pvmw.ptl = NIL
    pvmw.flags = flags


@inline
def pvmw_lock(cpu: Cpu, pvmw: Pvmw, table: int):
    """Take the ptl of a table page."""
    spin_lock(cpu, mem_map[table].ptl)
    pvmw.ptl = table


@inline
def pvmw_unlock(cpu: Cpu, pvmw: Pvmw):
    if pvmw.ptl != NIL:
        spin_unlock(cpu, mem_map[pvmw.ptl].ptl)
        pvmw.ptl = NIL


@inline
def page_vma_mapped_walk_done(cpu: Cpu):
    """End a walk before page_vma_mapped_walk() has returned 0."""
    pvmw_unlock(cpu, pvmws[cpu.id])


@kernel
def page_vma_mapped_walk(cpu: Cpu):
    """The next entry that maps the page of this CPU's walk.

    Context: page_vma_mapped_walk_init() was called. Takes and keeps the ptl of the hit, drops that of the last one.
    Return: 1 with the ptl held; 0 with none held, when there are no more.
    Linux: mm/page_vma_mapped.c page_vma_mapped_walk
    Differs: K3 and K16 closed, as in v5.13.
    """
    pvmw = pvmws[cpu.id]
    if pvmw.ptl != NIL and pvmw.pte == NIL:
        pvmw_unlock(cpu, pvmw)  # The one pmd that can map all of it was the last hit.
        pvmw.address = pvmw.end
        return 0
    if pvmw.pte != NIL and pvmw_next_pte(cpu, pvmw) and pvmw_scan_table(cpu, pvmw):
        return 1
    while pvmw.address < pvmw.end:
        found = pvmw_look_at_pmd(cpu, pvmw)
        if found == HIT or found == AT_TABLE and pvmw_scan_table(cpu, pvmw):
            return 1
        if found == NOT_HERE:
            pvmw.address = (pvmw.address & PMD_MASK) + PMD_SIZE  # K16: the rest may be behind the next pmd.
    return 0


@kernel
def pvmw_look_at_pmd(cpu: Cpu, pvmw: Pvmw):
    """3.11.1 and 2: the pmd of the walk's address.

    Context: no ptl held.
    Return: HIT with the pmd ptl held; AT_TABLE or NOT_HERE with none.
    Linux: mm/page_vma_mapped.c page_vma_mapped_walk, from "restart"
    """
    mm = mms[vmas[pvmw.vma].vm_mm]
    pmd = mm_pmd(mm, pvmw.address)
    if not pmd:
        return NOT_HERE
    pvmw.pmd = int(pmd) - int(TABLES)
    seen = pmd.val.load()
    if pmd_table(seen):
        return AT_TABLE
    if not (pmd_trans_huge(seen) or is_pmd_migration_entry(seen)):
        if pvmw.flags & PVMW_SYNC != 0 and PageCompound(mem_map[pvmw.page]):
            # zap_huge_pmd() may have cleared the pmd but not yet compound_mapcount: both are done under the ptl.
            spin_lock(cpu, pmd_lockptr(pmd))
            spin_unlock(cpu, pmd_lockptr(pmd))
        return NOT_HERE
    pvmw_lock(cpu, pvmw, entry_table_pfn(pmd))
    # Before the lock it may have been split, zapped, migrated, or have become another page's.
    seen = pmd.val.load()
    wanted = is_pmd_migration_entry(seen) if pvmw.flags & PVMW_MIGRATION else pmd_trans_huge(seen)
    if wanted and entry_pfn(seen) == pvmw.page:
        return HIT
    pvmw_unlock(cpu, pvmw)
    return AT_TABLE if pmd_table(seen) else NOT_HERE


@inline
def pte_wanted(pvmw: Pvmw, pte: int):
    """Is this the kind of pte that the walk looks for?"""
    return is_migration_entry(pte) if pvmw.flags & PVMW_MIGRATION else pte_present(pte)


@inline
def check_pte(pvmw: Pvmw, pte: int):
    """Does this pte lead to the page or one of its subpages?"""
    pfn = entry_pfn(pte)
    return pte_wanted(pvmw, pte) and pfn >= pvmw.page and pfn < pvmw.page + pvmw.nr


@inline
def pvmw_next_pte(cpu: Cpu, pvmw: Pvmw):
    """One page on. 0 when that is beyond the table or the end of the walk: then at no pte, with no ptl."""
    pvmw.address = pvmw.address + PAGE_SIZE
    if pvmw.address >= pvmw.end or pvmw.address & ~PMD_MASK == 0:
        pvmw_unlock(cpu, pvmw)
        pvmw.pte = NIL
        return 0
    pvmw.pte = pvmw.pte + 8
    return 1


@kernel
def pvmw_scan_table(cpu: Cpu, pvmw: Pvmw):
    """3.11.3: from the walk's address on through its PTE table.

    Context: the pmd is a table, which the caller's rmap lock (or mmap_sem) keeps; its ptl may be held already.
    Return: 1 with the pte ptl held; 0 with none, and the address behind the table or at the end.
    Linux: mm/page_vma_mapped.c map_pte, check_pte, and the loop in page_vma_mapped_walk
    """
    if pvmw.pte == NIL:
        pmd = pvmw_entry(pvmw.pmd).val.load()
        # "A table" is stable; but its ptl protects what is in it, so it must be this table's.
        bug_on(cpu, not pmd_table(pmd), "page_vma_mapped_walk: the table went away (values: pmd, address)", pmd,
               pvmw.address)
        pvmw.pte = int(pte_offset(pmd, pvmw.address)) - int(TABLES)
    more = 1
    while more:
        pte = pvmw_entry(pvmw.pte)
        if pvmw.ptl == NIL and (pvmw.flags & PVMW_SYNC != 0 or pte_wanted(pvmw, pte.val.read())):
            pvmw_lock(cpu, pvmw, entry_table_pfn(pte))
        if pvmw.ptl != NIL and check_pte(pvmw, pte.val.load()):
            return 1
        more = pvmw_next_pte(cpu, pvmw)
    return 0


@kernel
def page_mapped_in_vma(cpu: Cpu, page: Page, vma: Vma):
    """Does any entry of this vma map (a part of) the page?

    Context: an rmap lock that covers the vma, or mmap_sem of its mm. The page is a head or small page.
    Return: 1 or 0.
    Linux: mm/page_vma_mapped.c page_mapped_in_vma
    """
    start = __vma_address(page, vma)
    end = start + ((hpage_nr_pages(page) - 1) << PAGE_SHIFT)
    if end < vma.vm_start or start >= vma.vm_end:
        return 0
    page_vma_mapped_walk_init(cpu, page, vma, max(start, vma.vm_start), PVMW_SYNC)
    if not page_vma_mapped_walk(cpu):
        return 0
    page_vma_mapped_walk_done(cpu)
    return 1
