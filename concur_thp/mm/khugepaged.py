"""khugepaged: walk the registered mms and have ranges worth it collapsed (3.28). (Linux: mm/khugepaged.c)

The cursor (`khugepaged_scan`) is khugepaged's alone between two holds of khugepaged_mm_lock. An mm that exits while the
cursor is on it waits for mmap_sem, and finds khugepaged gone: every look here asks khugepaged_test_exit() first (I23).
"""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point, point
from concur_thp.arch.points import Point
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.config import HPAGE_PMD_MASK, HPAGE_PMD_NR, HPAGE_PMD_SIZE
from concur_thp.mm.collapse import collapse_huge_page
from concur_thp.mm.collapse_check import Scan, hugepage_vma_check, mm_find_pmd
from concur_thp.mm.collapse_copy import pte_none_or_zero, pte_referenced
from concur_thp.mm.mm_slots import collect_mm_slot, khugepaged_scan, khugepaged_test_exit, mmdrop
from concur_thp.mm.mm_types import Mm, Vma, mem_map, mms
from concur_thp.mm.page_flags import PageAnon, PageCompound, PageSwapCache, PG_locked, PG_lru
from concur_thp.mm.page_ref import page_ref_count
from concur_thp.mm.pgtable import entry_pfn, pte_present, pte_write, table_entry
from concur_thp.mm.thp_sysfs import THP_NEVER, thp
from concur_thp.mm.vma_tree import find_vma, vma_next
from concur_thp.mm.vmstat import Stat, count_vm_event, mod_stat
from concur_thp.sync.rwsem import down_read_trylock, up_read
from concur_thp.sync.spinlock import spin_lock, spin_unlock


@inline
def khugepaged_scan_pte(pte: int):
    """Could this pte's page be collapsed? A hint: nothing is locked but the table."""
    if not pte_present(pte):
        return Scan.SCAN_PTE_NON_PRESENT
    page = mem_map[entry_pfn(pte)]
    flags = page.flags.read()
    if PageCompound(page):
        return Scan.SCAN_PAGE_COMPOUND
    if flags & (1 << PG_lru) == 0:
        return Scan.SCAN_PAGE_LRU
    if flags & (1 << PG_locked) != 0:
        return Scan.SCAN_PAGE_LOCK
    if not PageAnon(page):
        return Scan.SCAN_PAGE_ANON
    # Not the mapcount: a pin forbids the collapse as well.
    if page_ref_count(page) != 1 + PageSwapCache(page):
        return Scan.SCAN_PAGE_COUNT
    return Scan.SCAN_SUCCEED


@kernel
def khugepaged_scan_ptes(cpu: Cpu, table: int):
    """Look at every pte of a table, up to the first that rules the range out.

    Context: mmap_sem read; takes the table's ptl.
    Return: SCAN_*; in cpu.scratch[0] the number of referenced ptes.
    Linux: mm/khugepaged.c khugepaged_scan_pmd, its loop
    """
    none_or_zero = 0
    unmapped = 0
    referenced = 0
    writable = 0
    result = Scan.SCAN_SUCCEED
    ptl = mem_map[table].ptl
    spin_lock(cpu, ptl)
    for i in range(HPAGE_PMD_NR):
        pte = table_entry(table, i).val.load()
        if pte_none_or_zero(pte):
            none_or_zero += 1
            if none_or_zero > thp.max_ptes_none:
                result = Scan.SCAN_EXCEED_NONE_PTE
        elif not pte_present(pte):
            unmapped += 1
            if unmapped > thp.max_ptes_swap:
                result = Scan.SCAN_EXCEED_SWAP_PTE
        else:
            writable = writable | pte_write(pte)
            result = khugepaged_scan_pte(pte)
            referenced += pte_referenced(pte, mem_map[entry_pfn(pte)])
        if result != Scan.SCAN_SUCCEED:
            break
    if result == Scan.SCAN_SUCCEED:
        if not writable:
            result = Scan.SCAN_PAGE_RO
        elif referenced == 0:
            result = Scan.SCAN_LACK_REFERENCED_PAGE
    spin_unlock(cpu, ptl)
    cpu.scratch[0] = referenced
    return result


@kernel
def khugepaged_scan_pmd(cpu: Cpu, mm: Mm, address: int):
    """Look at one huge range and collapse it if it is worth it.

    Context: mmap_sem read held; when a collapse was tried it is released.
    Return: SCAN_* of the look or of the collapse; in cpu.scratch[0]: 1 when mmap_sem was released.
    Linux: mm/khugepaged.c khugepaged_scan_pmd
    """
    point(cpu, Point.SCAN_PMD)
    check_point(cpu, Point.SCAN_PMD, mm)
    result = Scan.SCAN_PMD_NULL
    referenced = 0
    pmd = mm_find_pmd(mm, address)
    if pmd:
        # The table stays while we have mmap_sem (I9), so its value may be read again.
        result = khugepaged_scan_ptes(cpu, entry_pfn(pmd.val.load()))
        referenced = cpu.scratch[0]
    trace(cpu, Tracepoint.mm_khugepaged_scan_pmd, mm.id, address, result)
    mod_stat(cpu, Stat.khugepaged_pages_scanned, HPAGE_PMD_NR)
    released = result == Scan.SCAN_SUCCEED
    if released:
        result = collapse_huge_page(cpu, mm, address, referenced)
    else:
        count_vm_event(cpu, Stat.scan_result + result)
    cpu.scratch[0] = released
    return result


@kernel
def khugepaged_scan_vma(cpu: Cpu, mm: Mm, vma: Vma, pages: int):
    """Go on with the cursor through one vma.

    Context: mmap_sem read held; see the result.
    Return: progress << 1 | 1 when mmap_sem was released, by a collapse or because `pages` are done or the mm exits.
    Linux: mm/khugepaged.c khugepaged_scan_mm_slot, the body of its loop over vmas
    """
    progress = 0
    hstart = (vma.vm_start + HPAGE_PMD_SIZE - 1) & HPAGE_PMD_MASK
    hend = vma.vm_end & HPAGE_PMD_MASK
    if not hugepage_vma_check(mm, vma) or hstart >= hend or khugepaged_scan.address > hend:
        return 1 << 1
    if khugepaged_scan.address < hstart:
        khugepaged_scan.address = hstart
    while khugepaged_scan.address < hend:
        released = 0
        if not khugepaged_test_exit(mm):
            khugepaged_scan_pmd(cpu, mm, khugepaged_scan.address)
            released = cpu.scratch[0]
            khugepaged_scan.address = khugepaged_scan.address + HPAGE_PMD_SIZE
            progress += HPAGE_PMD_NR
        if not released and (progress >= pages or khugepaged_test_exit(mm)):
            up_read(cpu, mm.mmap_sem)
            released = 1
        if released:
            return progress << 1 | 1
    return progress << 1


@kernel
def khugepaged_scan_vmas(cpu: Cpu, mm: Mm, pages: int):
    """Go on with the cursor through the vmas of one mm.

    Context: enters with mmap_sem read, leaves without.
    Return: progress << 1 | 1 when the mm is done.
    Linux: mm/khugepaged.c khugepaged_scan_mm_slot, between its two holds of khugepaged_mm_lock
    """
    progress = 1
    vma = Vma(0)
    if not khugepaged_test_exit(mm):
        vma = find_vma(mm, khugepaged_scan.address)
    while vma:
        part = khugepaged_scan_vma(cpu, mm, vma, pages - progress)
        progress += part >> 1
        if part & 1:
            return progress << 1
        vma = vma_next(mm, vma)
    up_read(cpu, mm.mmap_sem)
    return progress << 1 | 1


@kernel
def khugepaged_scan_mm_slot(cpu: Cpu, pages: int):
    """Scan the mm under the cursor for about `pages` pages; when it is done or dead, move on to the next.

    Context: enters with khugepaged_mm_lock held and a non-empty list, leaves without. May sleep.
    Return: progress.
    Linux: mm/khugepaged.c khugepaged_scan_mm_slot
    Differs: drops the lock at the end, because the last reference to an mm cannot be dropped under it.
    """
    if khugepaged_scan.mm_slot == 0:
        khugepaged_scan.mm_slot = khugepaged_scan.head
        khugepaged_scan.address = 0
    mm = mms[khugepaged_scan.mm_slot]  # its struct stays: the list has a reference
    spin_unlock(cpu, khugepaged_scan.lock)
    progress = 0
    finished = 1
    # Not waiting: a busy mm is looked at another time.
    if down_read_trylock(cpu, mm.mmap_sem):
        progress = khugepaged_scan_vmas(cpu, mm, pages)
        finished = progress & 1
        progress = progress >> 1
    spin_lock(cpu, khugepaged_scan.lock)
    dead = 0
    if finished or khugepaged_test_exit(mm):
        # Off the cursor before anything else: khugepaged_exit() must not find a dying mm there after we collected it.
        khugepaged_scan.mm_slot = mm.slot_next
        khugepaged_scan.address = 0
        if mm.slot_next == 0:
            count_vm_event(cpu, Stat.khugepaged_full_scans)
        dead = collect_mm_slot(cpu, mm)
    spin_unlock(cpu, khugepaged_scan.lock)
    if dead:
        mmdrop(cpu, mm)
    return progress


@kernel
def khugepaged_do_scan(cpu: Cpu, pages: int):
    """One round of khugepaged: go on from where it was for about `pages` pages, past the head of the list at most once.

    Context: a CPU without an mm of its own, no lock held. May sleep.
    Return: progress; in cpu.scratch[0]: 1 when there was no huge page: sleep alloc_sleep_millisecs, then go on.
    Linux: mm/khugepaged.c khugepaged_do_scan
    Differs: a failed allocation ends the round. The worker sleeps, where Linux sleeps here and goes on, once each round.
    """
    failed = cpu.vmstat[Stat.thp_collapse_alloc_failed]
    progress = 0
    pass_through_head = 0
    while progress < pages and cpu.vmstat[Stat.thp_collapse_alloc_failed] == failed:
        spin_lock(cpu, khugepaged_scan.lock)
        if khugepaged_scan.mm_slot == 0:
            pass_through_head += 1
        if khugepaged_scan.head == 0 or thp.enabled == THP_NEVER or pass_through_head == 2:
            spin_unlock(cpu, khugepaged_scan.lock)
            break
        progress += khugepaged_scan_mm_slot(cpu, pages - progress)
    cpu.scratch[0] = cpu.vmstat[Stat.thp_collapse_alloc_failed] != failed
    return progress


__all__ = ["Scan", "khugepaged_do_scan", "khugepaged_scan_mm_slot", "khugepaged_scan_pmd"]
