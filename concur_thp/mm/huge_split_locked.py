"""The split of a huge pmd under its lock, by kind: file, huge zero, migration, anon. (Linux: mm/huge_memory.c)

For an anon page every count is moved in an order that no observer can misread: references before ptes, small mapcounts
before the huge one goes, and the table last.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_SIZE
from concur_thp.mm.filemap import mm_counter_file
from concur_thp.mm.flags import VM_WRITE
from concur_thp.mm.huge_entry import is_huge_zero_pmd, vma_is_anonymous
from concur_thp.mm.mm_types import Entry, Mm, Page, Vma, mem_map, mms, pgdat
from concur_thp.mm.page_account import MAP, account
from concur_thp.mm.page_flags import (
    PageHead,
    PG_dirty,
    PG_referenced,
    SetFlag,
    TestClearPageDoubleMap,
    TestSetPageDoubleMap,
    page_to_pfn,
    tail_page,
)
from concur_thp.mm.page_lock import PageLocked
from concur_thp.mm.page_ref import page_ref_add, page_ref_count
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_MIGRATION,
    _PAGE_RW,
    _PAGE_SOFT_DIRTY,
    _PAGE_SPECIAL,
    entry_pfn,
    get_and_clear,
    is_pmd_migration_entry,
    mk_entry,
    pmd_lockptr,
    pte_dirty,
    pte_write,
    pte_young,
    table_entry,
)
from concur_thp.mm.pgtable_alloc import pgtable_trans_huge_withdraw, pmd_populate
from concur_thp.mm.pgtable_generic import pmdp_huge_clear_flush, pmdp_invalidate
from concur_thp.mm.rmap import page_remove_rmap
from concur_thp.mm.swap import put_page
from concur_thp.mm.vma_prot import vma_prot_bits
from concur_thp.mm.vmstat import Stat, count_vm_event, mod_stat
from concur_thp.sync.spinlock import assert_spin_locked


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
    """A huge migration entry becomes N small ones. It has no reference, mapcount or translation, so none changes.

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
    account(cpu, page, (HPAGE_PMD_NR - 1) * MAP)  # The same step for the entries: one goes, N come.
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
