"""May this range be collapsed? khugepaged's results, and the looks that need no page lock. (Linux: mm/khugepaged.c)"""

from enum import IntEnum

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import HPAGE_PMD_MASK, HPAGE_PMD_SIZE
from concur_thp.mm.huge_entry import vma_is_anonymous
from concur_thp.mm.mm_slots import khugepaged_test_exit
from concur_thp.mm.mm_types import Entry, Mm, Vma
from concur_thp.mm.pgtable import mm_pmd, pmd_table
from concur_thp.mm.thp_sysfs import transparent_hugepage_enabled
from concur_thp.mm.vma_tree import find_vma


class Scan(IntEnum):
    """Why khugepaged gave up, or did not. (Linux: enum scan_result, in its order)"""

    SCAN_FAIL = 0
    SCAN_SUCCEED = 1
    SCAN_PMD_NULL = 2
    SCAN_EXCEED_NONE_PTE = 3
    SCAN_PTE_NON_PRESENT = 4
    SCAN_PAGE_RO = 5
    SCAN_LACK_REFERENCED_PAGE = 6
    SCAN_PAGE_NULL = 7
    SCAN_SCAN_ABORT = 8
    SCAN_PAGE_COUNT = 9
    SCAN_PAGE_LRU = 10
    SCAN_PAGE_LOCK = 11
    SCAN_PAGE_ANON = 12
    SCAN_PAGE_COMPOUND = 13
    SCAN_ANY_PROCESS = 14
    SCAN_VMA_NULL = 15
    SCAN_VMA_CHECK = 16
    SCAN_ADDRESS_RANGE = 17
    SCAN_SWAP_CACHE_PAGE = 18
    SCAN_DEL_PAGE_LRU = 19
    SCAN_ALLOC_HUGE_PAGE_FAIL = 20
    SCAN_CGROUP_CHARGE_FAIL = 21
    SCAN_EXCEED_SWAP_PTE = 22
    SCAN_TRUNCATED = 23


@inline
def hugepage_vma_check(mm: Mm, vma: Vma):
    """Does khugepaged work on this vma?"""
    return transparent_hugepage_enabled(mm, vma) and vma.anon_vma != 0 and vma_is_anonymous(vma)


@inline
def mm_find_pmd(mm: Mm, address: int) -> Entry:
    """The pmd of an address if it is a table, else NULL. Reads it once."""
    pmd = mm_pmd(mm, address)
    if pmd and not pmd_table(pmd.val.load()):
        pmd = Entry(0)
    return pmd


@kernel
def hugepage_vma_revalidate(cpu: Cpu, mm: Mm, address: int):
    """mmap_sem was not held for a while: can the huge range at `address` still be collapsed?

    Context: mmap_sem held in any mode.
    Return: SCAN_SUCCEED, or why not.
    Linux: mm/khugepaged.c hugepage_vma_revalidate
    Differs: returns SCAN_SUCCEED, not 0; the caller finds the vma again.
    """
    # First of all: once mm_users is 0 exit_mmap() tears the tables down without mmap_sem (I23).
    if khugepaged_test_exit(mm):
        return Scan.SCAN_ANY_PROCESS
    vma = find_vma(mm, address)
    if not vma:
        return Scan.SCAN_VMA_NULL
    hstart = (vma.vm_start + HPAGE_PMD_SIZE - 1) & HPAGE_PMD_MASK
    hend = vma.vm_end & HPAGE_PMD_MASK
    if address < hstart or address + HPAGE_PMD_SIZE > hend:
        return Scan.SCAN_ADDRESS_RANGE
    if not hugepage_vma_check(mm, vma):
        return Scan.SCAN_VMA_CHECK
    return Scan.SCAN_SUCCEED
