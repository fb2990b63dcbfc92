"""split_huge_pmd: one huge entry becomes a table of small ones; the page itself stays huge. (Linux: mm/huge_memory.c)

It never fails and does not care how many references the page has (R37): the table was reserved when the huge entry was
made. Software sees the pmd as huge, so as locked, until the finished table replaces it; hardware sees nothing in between,
so no CPU ever has a huge and a small translation of one address (X1).

    H T T T ... T   <- huge pmd        becomes        H T T T ... T
                                                      ^ ^ ^ ^     ^   N ptes, N references, N mapcounts
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.config import HPAGE_PMD_MASK, HPAGE_PMD_NR, HPAGE_PMD_SIZE, PAGE_SHIFT
from concur_thp.mm.flags import VM_WRITE
from concur_thp.mm.huge_entry import is_huge_zero_pmd, vma_is_anonymous
from concur_thp.mm.filemap import mm_counter_file
from concur_thp.mm.mm_types import Entry, Mm, Page, Vma, mem_map, mms, pgdat
from concur_thp.mm.page_flags import (
    PageAnon,
    PageHead,
    PG_dirty,
    PG_mlocked,
    PG_referenced,
    SetFlag,
    TestClearPageDoubleMap,
    TestFlag,
    TestSetPageDoubleMap,
    page_to_pfn,
    tail_page,
)
from concur_thp.mm.page_lock import PageLocked, lock_page, trylock_page, unlock_page
from concur_thp.mm.page_ref import get_page, page_ref_add, page_ref_count
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_MIGRATION,
    _PAGE_RW,
    _PAGE_SOFT_DIRTY,
    _PAGE_SPECIAL,
    entry_pfn,
    get_and_clear,
    is_pmd_migration_entry,
    is_swap_pmd,
    mk_entry,
    mm_pmd,
    pmd_lockptr,
    pmd_trans_huge,
    pte_dirty,
    pte_write,
    pte_young,
    table_entry,
)
from concur_thp.mm.pgtable_alloc import pgtable_trans_huge_withdraw, pmd_populate
from concur_thp.mm.pgtable_generic import pmdp_huge_clear_flush, pmdp_invalidate
from concur_thp.mm.rmap import clear_page_mlock, page_remove_rmap
from concur_thp.mm.swap import put_page
from concur_thp.mm.vma_prot import vma_prot_bits
from concur_thp.mm.vma_tree import vma_next
from concur_thp.mm.vmstat import Stat, count_vm_event, mod_stat
from concur_thp.sync.spinlock import SpinLock, assert_spin_locked, spin_lock, spin_unlock


@inline
def split_huge_pmd(cpu: Cpu, vma: Vma, pmd: Entry, addr: int):
    """Make sure that a pmd is not huge: a table, or none (file), or what others make of it at once (3.1.5)."""
    seen = pmd.val.load()
    if is_swap_pmd(seen) or pmd_trans_huge(seen):
        __split_huge_pmd(cpu, vma, pmd, addr, 0, Page(0))


@kernel
def __split_huge_pmd(cpu: Cpu, vma: Vma, pmd: Entry, addr: int, freeze: int, page: Page):
    """Split a huge pmd, or the migration entry of one; with `freeze` into migration entries.

    Context: mmap_sem in any mode, or the rmap lock. With `page` (which freeze needs) its page lock is held, and only a
    pmd that maps this page is split. Without, takes the page lock of an anon page; takes the pmd ptl.
    Linux: mm/huge_memory.c __split_huge_pmd
    Differs: takes the page lock, as Linux does since 5.8 (K1): else reuse_swap_page() in another mm could sum the
    mapcounts while they move from the huge to the small entries and miss one.
    """
    bug_on(cpu, freeze != 0 and not page, "__split_huge_pmd: freeze without a page", addr, freeze)
    bug_on(cpu, page and not PageLocked(page), "__split_huge_pmd: page is not locked (value: pfn)", page_to_pfn(page), addr)
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


@kernel
def lock_anon_pmd_page(cpu: Cpu, pmd: Entry, ptl: SpinLock) -> Page:
    """Take the page lock of the anon page that a huge pmd maps.

    Context: pmd ptl held; dropped and taken again when the page lock has to be waited for.
    Return: the locked page, which the pmd still maps; NULL when the pmd maps no anon huge page.
    Linux: mm/huge_memory.c __split_huge_pmd, since 5.8
    """
    while True:
        seen = pmd.val.load()
        page = mem_map[entry_pfn(seen)]
        if not pmd_trans_huge(seen) or not PageAnon(page):  # the huge zero page is not anon either
            return Page(0)
        if trylock_page(cpu, page):
            return page
        get_page(cpu, page)
        spin_unlock(cpu, ptl)
        lock_page(cpu, page)
        spin_lock(cpu, ptl)
        if pmd.val.load() == seen:
            put_page(cpu, page)
            return page
        # While we slept the pmd was zapped, copied, split, or only touched by hardware: look again.
        unlock_page(cpu, page)
        put_page(cpu, page)


@kernel
def __split_huge_pmd_locked(cpu: Cpu, vma: Vma, pmd: Entry, haddr: int, freeze: int):
    """The split itself, by kind of entry.

    Context: pmd ptl held, pmd huge or a migration entry.
    Linux: mm/huge_memory.c __split_huge_pmd_locked
    Differs: migration entries own no counts, so none change (K2, as Linux since 5.9); a file one is dropped (K14).
    """
    assert_spin_locked(cpu, pmd_lockptr(pmd))
    bug_on(cpu, haddr < vma.vm_start or haddr + HPAGE_PMD_SIZE > vma.vm_end,
           "huge pmd reaches out of its vma (values: address, vm_start)", haddr, vma.vm_start)
    mm = mms[vma.vm_mm]
    old = pmd.val.load()
    count_vm_event(cpu, Stat.thp_split_pmd)
    trace(cpu, Tracepoint.thp_split_pmd, entry_pfn(old), haddr, mm.id)
    if not vma_is_anonymous(vma):
        split_huge_file_pmd(cpu, mm, pmd, haddr, old)
    elif is_huge_zero_pmd(old):
        __split_huge_zero_page_pmd(cpu, mm, vma, haddr, pmd)
    elif is_pmd_migration_entry(old):
        split_migration_pmd(cpu, mm, pmd, old)
    else:
        split_huge_anon_pmd(cpu, mm, vma, haddr, pmd, freeze)


@kernel
def split_huge_file_pmd(cpu: Cpu, mm: Mm, pmd: Entry, haddr: int, old: int):
    """A file's huge pmd is just taken down; faults bring its pages back.

    Context: pmd ptl held.
    Linux: mm/huge_memory.c __split_huge_pmd_locked, the file branch
    """
    # 3.16.A
    page = mem_map[entry_pfn(old)]
    if is_pmd_migration_entry(old):
        get_and_clear(pmd)
    else:
        old = pmdp_huge_clear_flush(cpu, mm, haddr, pmd)
        if pte_dirty(old):
            SetFlag(page, PG_dirty)
        if pte_young(old):
            SetFlag(page, PG_referenced)
        page_remove_rmap(cpu, page, 1)
        put_page(cpu, page)  # not the last: the page cache has N
    mm.rss[mm_counter_file(page)].sub(HPAGE_PMD_NR)


@kernel
def __split_huge_zero_page_pmd(cpu: Cpu, mm: Mm, vma: Vma, haddr: int, pmd: Entry):
    """The huge zero page becomes N mappings of the small one, read-only. Nothing is counted.

    Context: pmd ptl held.
    Linux: mm/huge_memory.c __split_huge_zero_page_pmd
    """
    # 3.16.B
    pmdp_huge_clear_flush(cpu, mm, haddr, pmd)
    table = pgtable_trans_huge_withdraw(cpu, mm, pmd)
    entry = mk_entry(pgdat.zero_pfn, vma_prot_bits(vma) & ~_PAGE_RW | _PAGE_SPECIAL | _PAGE_ACCESSED)
    for i in range(HPAGE_PMD_NR):
        set_split_pte(cpu, table, i, entry)
    pmd_populate(cpu, pmd, table)


@kernel
def split_migration_pmd(cpu: Cpu, mm: Mm, pmd: Entry, old: int):
    """A huge migration entry becomes N small ones. No reference, mapcount or flush: it has none to move, nobody has it cached.

    Context: pmd ptl held; the page being migrated is locked by who migrates it (I10).
    Linux: mm/huge_memory.c __split_huge_pmd_locked, as since 5.9
    """
    bug_on(cpu, not PageLocked(mem_map[entry_pfn(old)]), "migration entry of an unlocked page (value: pfn)",
           entry_pfn(old), old)
    table = pgtable_trans_huge_withdraw(cpu, mm, pmd)
    bits = _PAGE_MIGRATION | old & (_PAGE_RW | _PAGE_SOFT_DIRTY)
    for i in range(HPAGE_PMD_NR):
        set_split_pte(cpu, table, i, mk_entry(entry_pfn(old) + i, bits))
    pmd_populate(cpu, pmd, table)


@kernel
def split_huge_anon_pmd(cpu: Cpu, mm: Mm, vma: Vma, haddr: int, pmd: Entry, freeze: int):
    """An anon THP's huge entry becomes N small ones, with N references and N mapcounts.

    Context: pmd ptl and page lock held.
    Linux: mm/huge_memory.c __split_huge_pmd_locked, the anon branch
    """
    old = pmdp_invalidate(cpu, mm, haddr, pmd)  # 3.16.C.1: absent to hardware, flushed, still huge to software
    point(cpu, Point.SPLIT_PMD_INVALIDATED)
    page = mem_map[entry_pfn(old)]
    bug_on(cpu, not PageHead(page) or page_ref_count(page) <= 0, "huge pmd of a bad page (values: pfn, references)",
           page_to_pfn(page), page_ref_count(page))
    # C.2: from `old` and nothing read earlier: hardware may have set Dirty until the invalidate (X3).
    if pte_dirty(old):
        SetFlag(page, PG_dirty)
    # C.3: before any pte is there to be zapped, or the zapper would take the count to 0 early (X4).
    page_ref_add(page, HPAGE_PMD_NR - 1)
    table = pgtable_trans_huge_withdraw(cpu, mm, pmd)  # C.4
    first = split_pte_value(vma, old, freeze)
    for i in range(HPAGE_PMD_NR):  # C.5
        set_split_pte(cpu, table, i, first + mk_entry(i, 0))
        tail_page(page, i)._mapcount.add(1)
    move_compound_mapcount(cpu, page)
    point(cpu, Point.SPLIT_PMD_REFS)
    # C.8: the populate is a release: who sees the table sees the ptes, and not the zeroes before them (X2).
    pmd_populate(cpu, pmd, table)
    point(cpu, Point.SPLIT_PMD_POPULATED)
    if freeze:
        for i in range(HPAGE_PMD_NR):  # C.9
            page_remove_rmap(cpu, tail_page(page, i), 0)
            put_page(cpu, page)


@inline
def split_pte_value(vma: Vma, old: int, freeze: int):
    """The pte of the first subpage: the rights of the vma now, never more than the huge entry had; clean (C.5)."""
    kept = old & _PAGE_SOFT_DIRTY
    writable = _PAGE_RW if pte_write(old) else 0
    if freeze:
        return mk_entry(entry_pfn(old), _PAGE_MIGRATION | writable | kept)
    if vma.vm_flags & VM_WRITE == 0:
        writable = 0
    return mk_entry(entry_pfn(old), vma_prot_bits(vma) & ~_PAGE_RW | writable | old & _PAGE_ACCESSED | kept)


@inline
def set_split_pte(cpu: Cpu, table: int, i: int, entry: int):
    """Fill one slot of a withdrawn table."""
    pte = table_entry(table, i)
    bug_on(cpu, pte.val.read() != 0, "deposited table is not empty (values: table pfn, pte)", table, pte.val.read())
    pte.val.write(entry)


@inline
def move_compound_mapcount(cpu: Cpu, page: Page):
    """One huge mapping less, now that the small ones count; keep PG_double_map and its offset right."""
    # C.6: another mm maps it whole: from now on small unmaps must not look like the last one (R27). Before our own huge
    # mapping goes, so that nobody sees fewer mappings than there are; and as we still have it, whoever drops the last
    # one comes after us and takes the offset off again (R29).
    if tail_page(page, 1).compound_mapcount.load() > 0 and not TestSetPageDoubleMap(page):
        for i in range(HPAGE_PMD_NR):
            tail_page(page, i)._mapcount.add(1)
    old = tail_page(page, 1).compound_mapcount.sub(1)  # C.7
    bug_on(cpu, old < 0, "pmd split of a page that no pmd maps (values: pfn, mapcount)", page_to_pfn(page), old)
    if old == 0:
        mod_stat(cpu, Stat.NR_ANON_THPS, -1)
        if TestClearPageDoubleMap(page):
            for i in range(HPAGE_PMD_NR):
                tail_page(page, i)._mapcount.sub(1)


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


