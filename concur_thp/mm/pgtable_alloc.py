"""Page table pages: allocation, linking, freeing, and the spare tables behind huge pmds. (Linux: arch/x86/mm/pgtable.c)

A table lives in a frame taken from the buddy allocator as unmovable memory; its struct page holds its lock, its mm and,
for a PMD table, the list of deposited PTE tables: one for every anon huge pmd in it, so that a split never has to
allocate (1.4, I5). A table's zeroes are visible before the pointer to it.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.builtins import clear_bytes, smp_wmb
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import PTRS_PER_PTE, PTRS_PER_UPPER
from concur_thp.mm.errno import ENOMEM
from concur_thp.mm.flags import GFP_KERNEL
from concur_thp.mm.mm_types import (
    MIGRATE_UNMOVABLE,
    NIL,
    PAGE_TYPE_NONE,
    PAGE_TYPE_TABLE,
    Entry,
    Mm,
    mem_map,
    tables,
)
from concur_thp.mm.page_alloc import alloc_pages, free_the_page
from concur_thp.mm.page_flags import page_to_pfn
from concur_thp.mm.page_ref import put_page_testzero
from concur_thp.mm.pgtable import (
    _PAGE_PRESENT,
    _PAGE_RW,
    _PAGE_TABLE,
    entry_table_page,
    mk_entry,
    mm_pmd,
    pgd_offset,
    pmd_lockptr,
    pmd_offset,
    pud_offset,
    set_entry,
)
from concur_thp.mm.pgtable_generic import (
    pmd_trans_huge_lock,
    pmd_trans_unstable,
    pmdp_collapse_flush,
    pmdp_huge_clear_flush,
    pmdp_invalidate,
    ptep_clear_flush,
    ptep_set_wrprotect,
)
from concur_thp.mm.vmstat import Stat, mod_stat
from concur_thp.sync.lock_classes import PMD_PTL, PTE_PTL
from concur_thp.sync.spinlock import assert_spin_locked, spin_lock, spin_lock_init, spin_unlock

PTE_LEVEL, PMD_LEVEL, PUD_LEVEL, PGD_LEVEL = 1, 2, 3, 4
TABLE_BITS = _PAGE_TABLE | _PAGE_PRESENT | _PAGE_RW
"""Of an entry that points to a lower table."""


@inline
def mm_inc_nr_ptes(mm: Mm):
    mm.nr_ptes.add(1)


@inline
def mm_dec_nr_ptes(mm: Mm):
    mm.nr_ptes.sub(1)


@inline
def mm_inc_nr_pmds(mm: Mm):
    mm.nr_pmds.add(1)


@inline
def mm_dec_nr_pmds(mm: Mm):
    mm.nr_pmds.sub(1)


@kernel
def pgtable_alloc_one(cpu: Cpu, mm: Mm, level: int):
    """Allocate an empty table.

    Context: may reclaim: no spinlock held.
    Return: its pfn, or NIL.
    Linux: arch/x86/mm/pgtable.c pte_alloc_one; include/linux/mm.h pgtable_page_ctor
    """
    page = alloc_pages(cpu, 0, MIGRATE_UNMOVABLE, GFP_KERNEL)
    if not page:
        return NIL
    pfn = page_to_pfn(page)
    clear_bytes(tables[pfn], (PTRS_PER_PTE if level == PTE_LEVEL else PTRS_PER_UPPER) * 8)
    spin_lock_init(page.ptl, PTE_PTL if level == PTE_LEVEL else PMD_PTL)
    page.pmd_huge_pte = NIL
    page.pt_mm = mm.id
    page.pt_level = level
    page.lru_next = NIL
    page.page_type = PAGE_TYPE_TABLE
    mod_stat(cpu, Stat.NR_PAGETABLE, 1)
    return pfn


@kernel
def pgtable_free(cpu: Cpu, pfn: int):
    """Free a table of any level that nothing points to any more.

    Context: no CPU can be walking it: it was never linked, or was flushed since (tlb_remove_table).
    Linux: include/linux/mm.h pgtable_page_dtor, __free_page
    """
    page = mem_map[pfn]
    bug_on(cpu, page.page_type != PAGE_TYPE_TABLE, "freeing a table that is none (value: pfn)", pfn, page.page_type)
    bug_on(cpu, page.pmd_huge_pte != NIL, "freeing a PMD table with deposited tables (value: pfn)", pfn,
           page.pmd_huge_pte)
    bug_on(cpu, page.ptl.word.read() != 0, "freeing a table whose lock is held (value: pfn)", pfn, page.ptl.word.read())
    page.mapping = 0
    page.index = 0
    page.private = 0
    page.page_type = PAGE_TYPE_NONE
    mod_stat(cpu, Stat.NR_PAGETABLE, -1)
    if put_page_testzero(cpu, page):
        free_the_page(cpu, page, 0)


@inline
def pte_alloc_one(cpu: Cpu, mm: Mm):
    """An empty PTE table's pfn, or NIL. The caller counts nr_ptes when it links or deposits it."""
    return pgtable_alloc_one(cpu, mm, PTE_LEVEL)


@inline
def pte_free(cpu: Cpu, pfn: int):
    """Free a PTE table that was never linked or is no longer walked."""
    pgtable_free(cpu, pfn)


@inline
def pgd_alloc(cpu: Cpu, mm: Mm):
    """An empty top table's pfn, or NIL; the caller stores it in mm.pgd."""
    return pgtable_alloc_one(cpu, mm, PGD_LEVEL)


@inline
def pgd_free(cpu: Cpu, mm: Mm):
    """Free the top table of an mm that nobody runs in."""
    pgtable_free(cpu, mm.pgd)


@inline
def pmd_populate(cpu: Cpu, pmd: Entry, table_pfn: int):
    """Point a pmd to a PTE table (release: whoever walks into it sees its entries); pmd ptl held."""
    assert_spin_locked(cpu, pmd_lockptr(pmd))
    set_entry(pmd, mk_entry(table_pfn, TABLE_BITS))


@kernel
def __table_alloc(cpu: Cpu, mm: Mm, entry: Entry, level: int):
    """Give an empty pgd or pud entry a table of `level`; the loser of a race frees its own.

    Context: mmap_sem held; may reclaim; takes page_table_lock.
    Return: 0 or -ENOMEM.
    Linux: mm/memory.c __pud_alloc, __pmd_alloc
    """
    pfn = pgtable_alloc_one(cpu, mm, level)
    if pfn == NIL:
        return -ENOMEM
    smp_wmb()  # Walkers on other CPUs take no lock: zeroes before the pointer (3.3.1).
    spin_lock(cpu, mm.page_table_lock)
    if entry.val.read() == 0:
        if level == PMD_LEVEL:
            mm_inc_nr_pmds(mm)
        set_entry(entry, mk_entry(pfn, TABLE_BITS))
        pfn = NIL
    spin_unlock(cpu, mm.page_table_lock)
    if pfn != NIL:
        pgtable_free(cpu, pfn)
    return 0


@kernel
def __pmd_alloc(cpu: Cpu, mm: Mm, addr: int) -> Entry:
    """The pmd of `addr`, with the tables above it made where they are missing.

    Context: mmap_sem held; may reclaim.
    Return: the pmd, NULL without memory.
    Linux: mm/memory.c __handle_mm_fault, its p4d_alloc to pmd_alloc
    """
    pgd = pgd_offset(mm, addr)
    if pgd.val.load() == 0 and __table_alloc(cpu, mm, pgd, PUD_LEVEL) != 0:
        return Entry(0)
    pud = pud_offset(pgd.val.load(), addr)
    if pud.val.load() == 0 and __table_alloc(cpu, mm, pud, PMD_LEVEL) != 0:
        return Entry(0)
    return pmd_offset(pud.val.load(), addr)


@inline
def pmd_alloc(cpu: Cpu, mm: Mm, addr: int) -> Entry:
    """The pmd of `addr`, NULL without memory."""
    pmd = mm_pmd(mm, addr)
    return pmd if pmd else __pmd_alloc(cpu, mm, addr)


@kernel
def pgtable_trans_huge_deposit(cpu: Cpu, mm: Mm, pmd: Entry, table_pfn: int):
    """Park a spare, empty PTE table behind a huge pmd.

    Context: pmd ptl held.
    Linux: mm/pgtable-generic.c pgtable_trans_huge_deposit
    Differs: last in, first out.
    """
    assert_spin_locked(cpu, pmd_lockptr(pmd))
    table = mem_map[table_pfn]
    bug_on(cpu, table.page_type != PAGE_TYPE_TABLE or table.pt_mm != mm.id or table.lru_next != NIL,
           "deposit: not a free PTE table of this mm (values: pfn, mm)", table_pfn, mm.id)
    pmd_page = entry_table_page(pmd)
    table.lru_next = pmd_page.pmd_huge_pte
    pmd_page.pmd_huge_pte = table_pfn


@kernel
def pgtable_trans_huge_withdraw(cpu: Cpu, mm: Mm, pmd: Entry):
    """Take back one table that was deposited in this PMD table; any will do.

    Context: pmd ptl held.
    Return: its pfn.
    Linux: mm/pgtable-generic.c pgtable_trans_huge_withdraw
    """
    assert_spin_locked(cpu, pmd_lockptr(pmd))
    pmd_page = entry_table_page(pmd)
    table_pfn = pmd_page.pmd_huge_pte
    bug_on(cpu, table_pfn == NIL, "withdraw: nothing is deposited (values: pfn of the PMD table, mm)",
           page_to_pfn(pmd_page), mm.id)
    table = mem_map[table_pfn]
    pmd_page.pmd_huge_pte = table.lru_next
    table.lru_next = NIL
    return table_pfn


__all__ = [
    "PGD_LEVEL", "PMD_LEVEL", "PTE_LEVEL", "PUD_LEVEL", "TABLE_BITS", "__pmd_alloc", "mm_dec_nr_pmds",
    "mm_dec_nr_ptes", "mm_inc_nr_pmds", "mm_inc_nr_ptes", "pgd_alloc", "pgd_free", "pgtable_alloc_one",
    "pgtable_free", "pgtable_trans_huge_deposit", "pgtable_trans_huge_withdraw", "pmd_alloc", "pmd_populate",
    "pmd_trans_huge_lock", "pmd_trans_unstable", "pmdp_collapse_flush", "pmdp_huge_clear_flush",
    "pmdp_invalidate", "pte_alloc_one", "pte_free", "ptep_clear_flush", "ptep_set_wrprotect",
]
