"""Values of ptes, and what all that walk or fill tables of ptes share. (Linux: mm/memory.c, include/linux/mm.h)"""

from concur_thp.arch.builtins import smp_wmb
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import PGDIR_SHIFT, PMD_MASK, PMD_SIZE, PUD_SHIFT
from concur_thp.mm.errno import ENOMEM
from concur_thp.mm.filemap import mm_counter_file
from concur_thp.mm.mm_types import MM_ANONPAGES, NIL, Entry, Mm, Page, Vma, mem_map
from concur_thp.mm.page_flags import PageAnon, page_to_pfn
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    entry_pfn,
    mk_entry,
    pgd_offset,
    pmd_lockptr,
    pmd_none,
    pte_special,
    pud_offset,
)
from concur_thp.mm.pgtable_alloc import mm_inc_nr_ptes, pmd_populate, pte_alloc_one, pte_free
from concur_thp.mm.vma_prot import vma_prot_bits
from concur_thp.sync.spinlock import spin_lock, spin_unlock


@inline
def mk_pte(page: Page, vma: Vma):
    """The entry of a page just touched, read-only in a private vma."""
    return mk_entry(page_to_pfn(page), vma_prot_bits(vma) | _PAGE_ACCESSED)


@inline
def vm_normal_page(pte: int) -> Page:
    """The page of a present pte, NULL for the zero page, which nobody counts."""
    return Page(0) if pte_special(pte) else mem_map[entry_pfn(pte)]


@inline
def mm_counter(page: Page):
    """The rss counter that a mapped page is in."""
    return MM_ANONPAGES if PageAnon(page) else mm_counter_file(page)


@inline
def pmd_addr_end(addr: int, end: int):
    """The end of what one pmd covers, or `end` if that comes first."""
    return min((addr & PMD_MASK) + PMD_SIZE, end)


@inline
def next_pmd_table(mm: Mm, addr: int, end: int):
    """The first address from `addr` on whose PMD table exists; `end` or more when there is none."""
    found = 0
    while not found and addr < end:
        pgd = pgd_offset(mm, addr).val.load()
        if pgd == 0:
            addr = ((addr >> PGDIR_SHIFT) + 1) << PGDIR_SHIFT
        elif pud_offset(pgd, addr).val.load() == 0:
            addr = ((addr >> PUD_SHIFT) + 1) << PUD_SHIFT
        else:
            found = 1
    return addr


@inline
def pte_alloc(cpu: Cpu, mm: Mm, pmd: Entry):
    """See that the pmd is not empty. 0, or -ENOMEM."""
    return __pte_alloc(cpu, mm, pmd) if pmd_none(pmd.val.load()) else 0


@kernel
def __pte_alloc(cpu: Cpu, mm: Mm, pmd: Entry):
    """Give an empty pmd a table, unless another CPU was faster.

    Context: mmap_sem any mode. Allocates, so no spinlock held; takes the pmd ptl.
    Return: 0, and then the pmd may as well be huge: look again; -ENOMEM.
    Linux: mm/memory.c __pte_alloc
    """
    table = pte_alloc_one(cpu, mm)
    if table == NIL:
        return -ENOMEM
    # The table's zeroes before the pointer to it: a CPU that walks takes no lock, and must not follow the new pmd into
    # what the frame held before (3.3.1).
    smp_wmb()
    ptl = pmd_lockptr(pmd)
    spin_lock(cpu, ptl)
    lost = not pmd_none(pmd.val.read())
    if not lost:
        mm_inc_nr_ptes(mm)
        pmd_populate(cpu, pmd, table)
    spin_unlock(cpu, ptl)
    if lost:
        pte_free(cpu, table)
    return 0
