"""Collapse: N small pages of a range become one huge page (3.28.3). (Linux: mm/khugepaged.c)

mmap_sem is released to allocate, held for read to look again, and held for write for the collapse itself; everything is
looked at anew in each window. Between the flush that follows "pmd none" and the new pmd, the old table is out of
everybody's reach (R15, R16); if any page turns out to be in use, the same table is put back and nothing has changed.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.builtins import smp_wmb
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point, check_point_with, point
from concur_thp.arch.points import Point
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.config import HPAGE_PMD_NR, PAGE_SHIFT
from concur_thp.mm.anon_vma import anon_vma_lock_write, anon_vma_unlock_write
from concur_thp.mm.collapse_check import Scan, hugepage_vma_revalidate, mm_find_pmd
from concur_thp.mm.collapse_copy import __collapse_huge_page_copy, __collapse_huge_page_isolate
from concur_thp.mm.flags import (
    FAULT_FLAG_ALLOW_RETRY,
    GFP_TRANSHUGE,
    GFP_TRANSHUGE_LIGHT,
    VM_FAULT_ERROR,
    VM_FAULT_RETRY,
)
from concur_thp.mm.huge_entry import new_anon_pmd
from concur_thp.mm.huge_fault import alloc_transhuge_page, map_new_huge_page
from concur_thp.mm.mm_types import Entry, Mm, Page, Vma, anon_vmas, mem_map
from concur_thp.mm.page_flags import __SetPageUptodate
from concur_thp.mm.pgtable import entry_pfn, pmd_lockptr, pte_none, pte_present, set_entry, table_entry
from concur_thp.mm.pgtable_alloc import pgtable_trans_huge_deposit, pmd_populate
from concur_thp.mm.pgtable_generic import pmdp_collapse_flush
from concur_thp.mm.put_page import put_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.swapin import do_swap_page
from concur_thp.mm.thp_sysfs import thp
from concur_thp.mm.vma_tree import find_vma
from concur_thp.mm.vmstat import Stat, count_vm_event
from concur_thp.sync.rwsem import down_read, down_write, up_read, up_write
from concur_thp.sync.spinlock import spin_lock, spin_unlock


@inline
def khugepaged_alloc_page(cpu: Cpu) -> Page:
    """A huge page for khugepaged, NULL when there is none."""
    page = alloc_transhuge_page(cpu, GFP_TRANSHUGE if thp.kh_defrag else GFP_TRANSHUGE_LIGHT)
    count_vm_event(cpu, Stat.thp_collapse_alloc if page else Stat.thp_collapse_alloc_failed)
    return page


@kernel
def collapse_huge_page(cpu: Cpu, mm: Mm, address: int, referenced: int):
    """Make the huge range at `address` one huge page, if it still can be. `referenced` ptes were found in use.

    Context: enters with mmap_sem read, leaves without. May sleep.
    Return: SCAN_SUCCEED, or why not.
    Linux: mm/khugepaged.c collapse_huge_page
    """
    up_read(cpu, mm.mmap_sem)  # 3.28.3.1: the allocation may take long
    point(cpu, Point.COLLAPSE_UNLOCKED)
    result = Scan.SCAN_ALLOC_HUGE_PAGE_FAIL
    new_page = khugepaged_alloc_page(cpu)
    if new_page:
        result = collapse_into(cpu, mm, address, referenced, new_page)
        if result != Scan.SCAN_SUCCEED:
            put_page(cpu, new_page)
    trace(cpu, Tracepoint.mm_collapse_huge_page, mm.id, address, result)
    count_vm_event(cpu, Stat.scan_result + result)
    return result


@kernel
def collapse_into(cpu: Cpu, mm: Mm, address: int, referenced: int, new_page: Page):
    """Look again, then collapse under mmap_sem write.

    Context: no lock held; may sleep.
    Return: SCAN_SUCCEED when new_page is mapped, or why not.
    Linux: mm/khugepaged.c collapse_huge_page, from its second look on
    """
    down_read(cpu, mm.mmap_sem)
    pmd = Entry(0)
    result = hugepage_vma_revalidate(cpu, mm, address)  # 3.28.3.2
    if result == Scan.SCAN_SUCCEED:
        pmd = mm_find_pmd(mm, address)
        if not pmd:
            result = Scan.SCAN_PMD_NULL
        elif not __collapse_huge_page_swapin(cpu, mm, address, pmd, referenced):
            result = Scan.SCAN_FAIL
    up_read(cpu, mm.mmap_sem)
    if result != Scan.SCAN_SUCCEED:
        return result
    # From here on no fault, no zap, no fork: nothing else changes these tables (3.28.3.4). What happened in the gap
    # between the two holds is found by looking again (X16).
    down_write(cpu, mm.mmap_sem)
    result = hugepage_vma_revalidate(cpu, mm, address)
    if result == Scan.SCAN_SUCCEED:
        point(cpu, Point.COLLAPSE_WRITE)
        check_point(cpu, Point.COLLAPSE_WRITE, mm)
        if mm_find_pmd(mm, address) != pmd:
            result = Scan.SCAN_FAIL
        else:
            result = collapse_pmd(cpu, mm, find_vma(mm, address), address, pmd, new_page)
    up_write(cpu, mm.mmap_sem)
    return result


@kernel
def __collapse_huge_page_swapin(cpu: Cpu, mm: Mm, address: int, pmd: Entry, referenced: int):
    """Bring the swapped pages of a range in, if the range is used enough. 4.20 asks that even when none is swapped (K5).

    Context: mmap_sem read, the range just validated, `pmd` its table. May sleep; may release mmap_sem and take it again.
    Return: 1, or 0: the range cannot be collapsed any more, or its pages do not come.
    Linux: mm/khugepaged.c __collapse_huge_page_swapin
    Differs: drains this CPU's pagevecs at the end, as since v5.8: they hold references of the pages just read.
    """
    if thp.k5_young_half != 0 and referenced < HPAGE_PMD_NR // 2:
        return 0
    swapped_in = 0
    for i in range(HPAGE_PMD_NR):
        pte = table_entry(entry_pfn(pmd.val.load()), i).val.load()
        if pte_none(pte) or pte_present(pte):
            continue
        swapped_in += 1
        vma = find_vma(mm, address)
        fault = do_swap_page(cpu, vma, address + (i << PAGE_SHIFT), pmd, pte, FAULT_FLAG_ALLOW_RETRY)
        if fault & VM_FAULT_RETRY:
            # Waited for the page without mmap_sem: anything may have happened to the range (X16).
            down_read(cpu, mm.mmap_sem)
            if hugepage_vma_revalidate(cpu, mm, address) != Scan.SCAN_SUCCEED or mm_find_pmd(mm, address) != pmd:
                return 0
        if fault & VM_FAULT_ERROR:
            return 0
    if swapped_in:
        lru_add_drain(cpu)
    return 1


@kernel
def collapse_pmd(cpu: Cpu, mm: Mm, vma: Vma, address: int, pmd: Entry, new_page: Page):
    """The collapse itself.

    Context: mmap_sem write, range and pmd just validated. Takes the anon_vma for write, both ptls one after the other,
    and the page locks of the range.
    Return: SCAN_SUCCEED, or SCAN_FAIL with everything as it was.
    Linux: mm/khugepaged.c collapse_huge_page, under mmap_sem write
    """
    anon_vma = anon_vmas[vma.anon_vma]
    anon_vma_lock_write(cpu, anon_vma)  # 3.28.3.5: no rmap walk is in the table, and none will come (R16)
    point(cpu, Point.COLLAPSE_ANON_VMA)
    pmd_ptl = pmd_lockptr(pmd)
    spin_lock(cpu, pmd_ptl)
    # 3.28.3.6: waits for every CPU with its irqs on, so for every gup-fast; later ones see none (X14).
    table = entry_pfn(pmdp_collapse_flush(cpu, mm, address, pmd))
    spin_unlock(cpu, pmd_ptl)
    point(cpu, Point.COLLAPSE_FLUSHED)
    pte_ptl = mem_map[table].ptl
    spin_lock(cpu, pte_ptl)
    isolated = __collapse_huge_page_isolate(cpu, table)
    spin_unlock(cpu, pte_ptl)
    if isolated != Scan.SCAN_SUCCEED:
        collapse_undo(cpu, pmd, table)
        anon_vma_unlock_write(cpu, anon_vma)
        return Scan.SCAN_FAIL
    # 3.28.3.8: every page is locked and its pte unreachable, so rmap walks can do no harm any more.
    anon_vma_unlock_write(cpu, anon_vma)
    point(cpu, Point.COLLAPSE_ISOLATED)
    check_point_with(cpu, Point.COLLAPSE_ISOLATED, pmd, table)
    __collapse_huge_page_copy(cpu, mm, table, new_page)
    __SetPageUptodate(new_page)
    point(cpu, Point.COLLAPSE_COPIED)
    check_point_with(cpu, Point.COLLAPSE_COPIED, pmd, table)
    collapse_install(cpu, mm, vma, address, pmd, table, new_page)
    point(cpu, Point.COLLAPSE_DONE)
    return Scan.SCAN_SUCCEED


@kernel
def collapse_undo(cpu: Cpu, pmd: Entry, table: int):
    """A page was in use: link the same table again.

    Context: mmap_sem and anon_vma write, so nothing can have filled the pmd; takes the pmd ptl.
    Linux: mm/khugepaged.c collapse_huge_page, its undo
    """
    pmd_ptl = pmd_lockptr(pmd)
    spin_lock(cpu, pmd_ptl)
    bug_on(cpu, pmd.val.read() != 0, "collapse undo: pmd is not none (value: pmd)", pmd.val.read(), table)
    pmd_populate(cpu, pmd, table)
    spin_unlock(cpu, pmd_ptl)


@inline
def collapse_install(cpu: Cpu, mm: Mm, vma: Vma, address: int, pmd: Entry, table: int, new_page: Page):
    """Map the huge page; the emptied table becomes its reserve for a split. No flush: nothing was there."""
    smp_wmb()  # 3.28.3.10: the copy before the pmd; a CPU that walks hardware's way takes no lock (X18)
    pmd_ptl = pmd_lockptr(pmd)
    spin_lock(cpu, pmd_ptl)
    bug_on(cpu, pmd.val.read() != 0, "collapse: pmd is not none (values: pmd, address)", pmd.val.read(), address)
    map_new_huge_page(cpu, vma, address, new_page)
    pgtable_trans_huge_deposit(cpu, mm, pmd, table)
    set_entry(pmd, new_anon_pmd(new_page, vma))
    check_point_with(cpu, Point.HUGE_PMD_SET, vma, address)
    spin_unlock(cpu, pmd_ptl)
    count_vm_event(cpu, Stat.khugepaged_pages_collapsed)
