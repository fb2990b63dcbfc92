"""The first touch of a huge range: a cleared huge page, or the huge zero page for a read. (Linux: mm/huge_memory.c)

Everything that may fail or take long (memory, page table, clearing) is done before the pmd ptl; under it one test
decides who of several faulting CPUs installs its page. The losers free theirs, and that is no error.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point_with, point
from concur_thp.arch.points import Point
from concur_thp.config import HPAGE_PMD_MASK, HPAGE_PMD_NR, HPAGE_PMD_ORDER, HPAGE_PMD_SIZE
from concur_thp.mm.anon_vma import anon_vma_prepare
from concur_thp.mm.deferred_split import prep_transhuge_page
from concur_thp.mm.flags import FAULT_FLAG_WRITE, VM_FAULT_FALLBACK, VM_FAULT_OOM
from concur_thp.mm.highmem import clear_huge_page
from concur_thp.mm.huge_entry import (
    alloc_hugepage_direct_gfpmask,
    mk_huge_pmd,
    new_anon_pmd,
)
from concur_thp.mm.huge_zero import mm_get_huge_zero_page
from concur_thp.mm.mm_slots import khugepaged_enter
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, MM_ANONPAGES, NIL, Entry, Mm, Page, Vma, mms
from concur_thp.mm.page_alloc import alloc_pages
from concur_thp.mm.page_flags import PageHead, __SetPageUptodate, page_to_pfn
from concur_thp.mm.page_ref import page_ref_count
from concur_thp.mm.pgtable import _PAGE_ACCESSED, _PAGE_DIRTY, pmd_lockptr, pmd_trans_huge, set_entry
from concur_thp.mm.pgtable_alloc import pgtable_trans_huge_deposit, pte_alloc_one, pte_free
from concur_thp.mm.rmap import page_add_new_anon_rmap
from concur_thp.mm.swap import lru_cache_add_active_or_unevictable, put_page
from concur_thp.mm.thp_sysfs import thp
from concur_thp.mm.vmstat import Stat, count_vm_event
from concur_thp.sync.spinlock import spin_lock, spin_unlock


@inline
def alloc_transhuge_page(cpu: Cpu, gfp: int) -> Page:
    """A fresh huge page with one reference, contents undefined; NULL when there is none."""
    page = alloc_pages(cpu, HPAGE_PMD_ORDER, MIGRATE_MOVABLE, gfp)
    if page:
        prep_transhuge_page(page)
    return page


@inline
def set_huge_zero_page(cpu: Cpu, mm: Mm, vma: Vma, pmd: Entry, table: int, zero_page: Page):
    """Map the huge zero page, read-only. pmd ptl held, pmd none. Nothing counts it: no rss, no rmap, no reference."""
    pgtable_trans_huge_deposit(cpu, mm, pmd, table)
    set_entry(pmd, mk_huge_pmd(zero_page, vma))
    mm.nr_ptes.add(1)


@kernel
def do_huge_pmd_anonymous_page(cpu: Cpu, vma: Vma, addr: int, flags: int, pmd: Entry):
    """A fault in an empty pmd of an anonymous vma that may have huge pages.

    Context: mmap_sem read. Allocates, so no spinlock held; takes the pmd ptl.
    Return: 0, VM_FAULT_FALLBACK (use small pages, no error) or VM_FAULT_OOM.
    Linux: mm/huge_memory.c do_huge_pmd_anonymous_page
    """
    haddr = addr & HPAGE_PMD_MASK
    if haddr < vma.vm_start or haddr + HPAGE_PMD_SIZE > vma.vm_end:  # 3.4.1
        return VM_FAULT_FALLBACK
    if anon_vma_prepare(cpu, vma) != 0:
        return VM_FAULT_OOM
    if khugepaged_enter(cpu, mms[vma.vm_mm]) != 0:
        return VM_FAULT_OOM
    if flags & FAULT_FLAG_WRITE == 0 and thp.use_zero_page != 0:
        return do_huge_zero_page(cpu, vma, pmd, haddr)
    page = alloc_transhuge_page(cpu, alloc_hugepage_direct_gfpmask(vma))
    if not page:
        count_vm_event(cpu, Stat.thp_fault_fallback)
        return VM_FAULT_FALLBACK
    return __do_huge_pmd_anonymous_page(cpu, vma, haddr, pmd, page)


@kernel
def __do_huge_pmd_anonymous_page(cpu: Cpu, vma: Vma, haddr: int, pmd: Entry, page: Page):
    """Clear a huge page and map it, unless another CPU was faster.

    Context: mmap_sem read; takes over the reference of `page`; takes the pmd ptl.
    Return: 0 or VM_FAULT_OOM.
    Linux: mm/huge_memory.c __do_huge_pmd_anonymous_page
    Differs: no memory cgroups; no oom reaper, so the address space is always stable.
    """
    mm = mms[vma.vm_mm]
    # One reference is ours; whoever goes from frame to frame may have one for a moment (R34).
    bug_on(cpu, not PageHead(page) or page_ref_count(page) < 1, "huge fault: bad new page (values: pfn, references)",
           page_to_pfn(page), page_ref_count(page))
    table = pte_alloc_one(cpu, mm)  # 3.4.7: a pmd split may not fail, so its table is reserved now
    if table == NIL:
        put_page(cpu, page)
        return VM_FAULT_OOM
    clear_huge_page(page)
    __SetPageUptodate(page)  # 3.4.8
    point(cpu, Point.HUGE_FAULT_CLEARED)
    ptl = pmd_lockptr(pmd)
    spin_lock(cpu, ptl)
    point(cpu, Point.HUGE_FAULT_LOCKED)
    if pmd.val.load() != 0:
        # 3.4.9: another thread faulted in the same range, huge or small, since handle_mm_fault() saw none.
        spin_unlock(cpu, ptl)
        pte_free(cpu, table)
        put_page(cpu, page)
        return 0
    map_new_huge_page(cpu, vma, haddr, page)
    pgtable_trans_huge_deposit(cpu, mm, pmd, table)
    set_entry(pmd, new_anon_pmd(page, vma))
    check_point_with(cpu, Point.HUGE_PMD_SET, vma, haddr)
    mm.rss[MM_ANONPAGES].add(HPAGE_PMD_NR)
    mm.nr_ptes.add(1)
    spin_unlock(cpu, ptl)
    count_vm_event(cpu, Stat.thp_fault_alloc)
    return 0


@inline
def map_new_huge_page(cpu: Cpu, vma: Vma, haddr: int, page: Page):
    """Counts and LRU of a huge page whose first entry is about to be set; pmd ptl held."""
    page_add_new_anon_rmap(cpu, page, vma, haddr, 1)
    lru_cache_add_active_or_unevictable(cpu, page, vma)


@kernel
def do_huge_zero_page(cpu: Cpu, vma: Vma, pmd: Entry, haddr: int):
    """A read fault: map the huge zero page.

    Context: mmap_sem read; takes the pmd ptl.
    Return: 0, VM_FAULT_FALLBACK or VM_FAULT_OOM.
    Linux: mm/huge_memory.c do_huge_pmd_anonymous_page, its zero page half
    Differs: no oom reaper, so the address space is always stable.
    """
    mm = mms[vma.vm_mm]
    table = pte_alloc_one(cpu, mm)
    if table == NIL:
        return VM_FAULT_OOM
    zero_page = mm_get_huge_zero_page(cpu, mm)
    if not zero_page:
        pte_free(cpu, table)
        count_vm_event(cpu, Stat.thp_fault_fallback)
        return VM_FAULT_FALLBACK
    ptl = pmd_lockptr(pmd)
    spin_lock(cpu, ptl)
    point(cpu, Point.HUGE_FAULT_LOCKED)
    lost = pmd.val.load() != 0
    if not lost:
        set_huge_zero_page(cpu, mm, vma, pmd, table, zero_page)
        check_point_with(cpu, Point.HUGE_PMD_SET, vma, haddr)
    spin_unlock(cpu, ptl)
    if lost:
        pte_free(cpu, table)
    return 0


@kernel
def huge_pmd_set_accessed(cpu: Cpu, vma: Vma, addr: int, pmd: Entry, orig_pmd: int, flags: int):
    """A fault on a huge pmd that allows the access: set young, and dirty for a write.

    Context: mmap_sem read; takes the pmd ptl. No flush: the entry only becomes more permissive.
    Linux: mm/huge_memory.c huge_pmd_set_accessed
    """
    bug_on(cpu, not pmd_trans_huge(orig_pmd), "huge_pmd_set_accessed: not huge (value: pmd)", orig_pmd, addr)
    ptl = pmd_lockptr(pmd)
    spin_lock(cpu, ptl)
    if pmd.val.load() == orig_pmd and flags & FAULT_FLAG_WRITE != 0:
        # A plain store is enough: it has every bit that hardware could set meanwhile.
        set_entry(pmd, orig_pmd | _PAGE_ACCESSED | _PAGE_DIRTY)
    spin_unlock(cpu, ptl)
    return 0
