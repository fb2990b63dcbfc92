"""Page table entries: their bits, the predicates on them, and the tables. (Linux: arch/x86/include/asm/pgtable.h)

One 64-bit word for every level. A pmd is one of: none; a table; huge; huge being split (HUGE without PRESENT: present to
software, absent to hardware); huge protnone; migration entry. See semantics 1.4.
"""

from concur_thp.arch.linker import inline
from concur_thp.config import (
    PAGE_SHIFT,
    PGDIR_SHIFT,
    PMD_SHIFT,
    PTRS_PER_PTE,
    PTRS_PER_UPPER,
    PUD_SHIFT,
    TABLE_WORDS,
)
from concur_thp.mm.mm_types import Entry, Mm, Page, mem_map, tables
from concur_thp.sync.spinlock import SpinLock

_PAGE_PRESENT = 1 << 0
_PAGE_RW = 1 << 1
_PAGE_ACCESSED = 1 << 2
_PAGE_DIRTY = 1 << 3
_PAGE_HUGE = 1 << 4
_PAGE_PROTNONE = 1 << 5
_PAGE_SPECIAL = 1 << 6
_PAGE_SOFT_DIRTY = 1 << 7
_PAGE_TABLE = 1 << 8
_PAGE_SWAP = 1 << 9
_PAGE_MIGRATION = 1 << 10
_PAGE_HWPOISON = 1 << 11
PFN_SHIFT = 12
"""The pfn (or the swap offset) is above the flags. A migration entry is "write" when it has _PAGE_RW."""

TABLES = tables.base


@inline
def entry_pfn(entry: int):
    return entry >> PFN_SHIFT


@inline
def mk_entry(pfn: int, bits: int):
    return (pfn << PFN_SHIFT) | bits


@inline
def pte_none(pte: int):
    return pte == 0


@inline
def pte_present(pte: int):
    return pte & (_PAGE_PRESENT | _PAGE_PROTNONE) != 0


@inline
def pte_write(pte: int):
    return pte & _PAGE_RW != 0


@inline
def pte_young(pte: int):
    return pte & _PAGE_ACCESSED != 0


@inline
def pte_dirty(pte: int):
    return pte & _PAGE_DIRTY != 0


@inline
def pte_special(pte: int):
    return pte & _PAGE_SPECIAL != 0


@inline
def is_migration_entry(entry: int):
    return entry & _PAGE_MIGRATION != 0


@inline
def is_swap_entry(entry: int):
    return entry & _PAGE_SWAP != 0


@inline
def is_hwpoison_entry(entry: int):
    return entry & _PAGE_HWPOISON != 0


@inline
def pmd_none(pmd: int):
    return pmd == 0


@inline
def pmd_present(pmd: int):
    """To software: also while it is being split or protnone."""
    return pmd & (_PAGE_PRESENT | _PAGE_HUGE | _PAGE_PROTNONE) != 0 and pmd & _PAGE_MIGRATION == 0


@inline
def pmd_trans_huge(pmd: int):
    return pmd & _PAGE_HUGE != 0 and pmd & _PAGE_MIGRATION == 0


@inline
def pmd_table(pmd: int):
    return pmd & _PAGE_TABLE != 0


@inline
def is_swap_pmd(pmd: int):
    """Not none and not present: a migration entry."""
    return pmd != 0 and not pmd_present(pmd)


@inline
def is_pmd_migration_entry(pmd: int):
    return pmd & _PAGE_MIGRATION != 0


@inline
def hardware_walks(entry: int):
    """Would a TLB miss load this entry?"""
    return entry & (_PAGE_PRESENT | _PAGE_PROTNONE) == _PAGE_PRESENT


@inline
def pte_index(addr: int):
    return (addr >> PAGE_SHIFT) & (PTRS_PER_PTE - 1)


@inline
def table_entry(pfn: int, index: int) -> Entry:
    """Entry `index` of the table in frame `pfn`."""
    return Entry(int(tables[pfn]) + index * 8)


@inline
def entry_table_pfn(entry: Entry):
    """The frame of the table that an entry is in."""
    return (int(entry) - int(TABLES)) // (8 * TABLE_WORDS)


@inline
def entry_table_page(entry: Entry) -> Page:
    return mem_map[entry_table_pfn(entry)]


@inline
def pte_offset(pmd: int, addr: int) -> Entry:
    """The pte of `addr` in the table that the pmd value points to."""
    return table_entry(entry_pfn(pmd), pte_index(addr))


@inline
def pmd_lockptr(pmd: Entry) -> SpinLock:
    """The pmd ptl: one for each PMD table page."""
    return entry_table_page(pmd).ptl


@inline
def pte_lockptr(pmd: int) -> SpinLock:
    """The pte ptl of the table that the pmd value points to."""
    return mem_map[entry_pfn(pmd)].ptl


@inline
def pgd_offset(mm: Mm, addr: int) -> Entry:
    return table_entry(mm.pgd, (addr >> PGDIR_SHIFT) & (PTRS_PER_UPPER - 1))


@inline
def pud_offset(pgd: int, addr: int) -> Entry:
    return table_entry(entry_pfn(pgd), (addr >> PUD_SHIFT) & (PTRS_PER_UPPER - 1))


@inline
def pmd_offset(pud: int, addr: int) -> Entry:
    return table_entry(entry_pfn(pud), (addr >> PMD_SHIFT) & (PTRS_PER_UPPER - 1))


@inline
def mm_pmd(mm: Mm, addr: int) -> Entry:
    """The pmd of `addr`, NULL when an upper table is missing."""
    pmd = Entry(0)
    pgd = pgd_offset(mm, addr).val.load()
    if pgd != 0:
        pud = pud_offset(pgd, addr).val.load()
        if pud != 0:
            pmd = pmd_offset(pud, addr)
    return pmd


@inline
def set_entry(entry: Entry, value: int):
    """Write an entry (set_pte_at, set_pmd_at): one store, release."""
    entry.val.store(value)


@inline
def get_and_clear(entry: Entry):
    """Take an entry down and return it (ptep_get_and_clear): atomic against the Accessed and Dirty bits of hardware."""
    return entry.val.xchg(0)
