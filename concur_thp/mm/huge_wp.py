"""Write faults on a read-only huge pmd: reuse the page, or copy it, whole or into small ones. (Linux: mm/huge_memory.c)

The order in which a copy replaces the old page is what keeps processes apart: entry down and flushed on every CPU, new
page in place, then the old mapcount, then the old reference. If the mapcount fell first, the other process could find
itself alone and write the page that CPUs of this mm still read through their TLBs (X6).
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point_with, point
from concur_thp.arch.points import Point
from concur_thp.arch.shared import SharedArray
from concur_thp.config import HPAGE_PMD_MASK, HPAGE_PMD_NR, NR_CPUS, PAGE_SIZE
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE, VM_FAULT_FALLBACK, VM_FAULT_OOM, VM_FAULT_WRITE
from concur_thp.mm.highmem import clear_huge_page, copy_huge_page, copy_page
from concur_thp.mm.huge_entry import (
    alloc_hugepage_direct_gfpmask,
    is_huge_zero_pmd,
    maybe_mkwrite,
    new_anon_pmd,
)
from concur_thp.mm.huge_fault import alloc_transhuge_page, map_new_huge_page
from concur_thp.mm.huge_split_pmd import split_huge_pmd
from concur_thp.mm.mm_types import MM_ANONPAGES, Entry, Mm, Page, Slot, Vma, mem_map, mms
from concur_thp.mm.page_alloc import alloc_page
from concur_thp.mm.page_flags import PageHead, __SetPageUptodate, page_to_pfn, tail_page
from concur_thp.mm.page_lock import lock_page, trylock_page, unlock_page
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    entry_pfn,
    mk_entry,
    pmd_lockptr,
    set_entry,
    table_entry,
)
from concur_thp.mm.pgtable_alloc import pgtable_trans_huge_withdraw, pmd_populate
from concur_thp.mm.pgtable_generic import pmdp_invalidate
from concur_thp.mm.rmap import page_add_new_anon_rmap, page_remove_rmap
from concur_thp.mm.swap import lru_cache_add_active_or_unevictable, put_page
from concur_thp.mm.swap_reuse import reuse_swap_page
from concur_thp.mm.thp_sysfs import transparent_hugepage_enabled
from concur_thp.mm.vma_prot import vma_prot_bits
from concur_thp.mm.vmstat import Stat, count_vm_event
from concur_thp.sync.spinlock import spin_lock, spin_unlock

fallback_pages = SharedArray("fallback_pages", Slot, lambda config: NR_CPUS << config.order)
"""Each CPU's array of small pages for a copy that found no huge page (Linux: kmalloc)."""

REUSED, CHANGED, COPY = 0, 1, 2


@kernel
def do_huge_pmd_wp_page(cpu: Cpu, vma: Vma, addr: int, pmd: Entry, orig_pmd: int):
    """Make the huge pmd of an anonymous vma writable for this mm alone.

    Context: mmap_sem read. Takes the page lock and the pmd ptl; allocates with neither held.
    Return: VM_FAULT_WRITE, 0 when the pmd changed, or VM_FAULT_FALLBACK: it is a table now, go on there.
    Linux: mm/huge_memory.c do_huge_pmd_wp_page
    """
    bug_on(cpu, vma.anon_vma == 0, "write to a huge pmd in a vma without anon_vma", addr, orig_pmd)
    page = Page(0)
    if not is_huge_zero_pmd(orig_pmd):
        page = mem_map[entry_pfn(orig_pmd)]
        verdict = wp_huge_reuse(cpu, vma, pmd, orig_pmd, page)
        if verdict != COPY:
            return VM_FAULT_WRITE if verdict == REUSED else 0
    new_page = Page(0)
    if transparent_hugepage_enabled(mms[vma.vm_mm], vma):  # 3.6.5
        new_page = alloc_transhuge_page(cpu, alloc_hugepage_direct_gfpmask(vma))
    if not new_page:
        return wp_huge_no_page(cpu, vma, addr, pmd, orig_pmd, page)
    return wp_huge_copy(cpu, vma, addr & HPAGE_PMD_MASK, pmd, orig_pmd, page, new_page)


@kernel
def wp_huge_reuse(cpu: Cpu, vma: Vma, pmd: Entry, orig_pmd: int, page: Page):
    """Write to the page itself if no other mm maps any part of it.

    Context: mmap_sem read; takes the page lock and the pmd ptl.
    Return: REUSED; CHANGED when the pmd is no longer `orig_pmd`; COPY, with a reference of the page taken.
    Linux: mm/huge_memory.c do_huge_pmd_wp_page, up to `alloc:`
    """
    ptl = pmd_lockptr(pmd)
    spin_lock(cpu, ptl)
    if pmd.val.load() != orig_pmd:
        spin_unlock(cpu, ptl)
        return CHANGED
    bug_on(cpu, not PageHead(page), "huge pmd of a page that is no head (value: pfn)", page_to_pfn(page), orig_pmd)
    # 3.6.3: the mapcounts stand still under the page lock only: another mm may be splitting its pmd of this page (K1).
    if not trylock_page(cpu, page):
        get_page(cpu, page)
        spin_unlock(cpu, ptl)
        lock_page(cpu, page)
        spin_lock(cpu, ptl)
        if pmd.val.load() != orig_pmd:
            # Another thread of ours resolved the fault, or zapped or split, while we slept.
            spin_unlock(cpu, ptl)
            unlock_page(cpu, page)
            put_page(cpu, page)
            return CHANGED
        put_page(cpu, page)
    reuse = reuse_swap_page(cpu, page)
    if reuse:  # 3.6.4
        # A plain store: it has every bit that hardware can set on a read-only entry. No flush: more permissive only.
        set_entry(pmd, maybe_mkwrite(orig_pmd | _PAGE_ACCESSED | _PAGE_DIRTY, vma))
        count_vm_event(cpu, Stat.wp_reuse)
    unlock_page(cpu, page)
    if not reuse:
        get_page(cpu, page)  # keeps the source alive while we allocate and copy without locks
    spin_unlock(cpu, ptl)
    return REUSED if reuse else COPY


@kernel
def wp_huge_copy(cpu: Cpu, vma: Vma, haddr: int, pmd: Entry, orig_pmd: int, page: Page, new_page: Page):
    """Replace the huge page of a pmd by a copy, or the huge zero page (`page` NULL) by a cleared one.

    Context: mmap_sem read; takes over the references of `page` and `new_page`; takes the pmd ptl.
    Return: VM_FAULT_WRITE, or 0 when the pmd changed.
    Linux: mm/huge_memory.c do_huge_pmd_wp_page, from the copy on
    Differs: the old pmd goes by pmdp_invalidate(), not through none (K17 in DECISIONS.md).
    """
    mm = mms[vma.vm_mm]
    count_vm_event(cpu, Stat.thp_fault_alloc)  # 3.6.7: also when the race below is lost
    if page:
        copy_huge_page(new_page, page)
    else:
        clear_huge_page(new_page)
    __SetPageUptodate(new_page)
    point(cpu, Point.WP_HUGE_COPIED)
    ptl = pmd_lockptr(pmd)
    spin_lock(cpu, ptl)
    if page:
        put_page(cpu, page)  # 3.6.8: if the pmd is unchanged its mapping still holds one
    if pmd.val.load() != orig_pmd:
        # A thread of ours copied or zapped, or somebody split: what we copied may be stale (X7).
        spin_unlock(cpu, ptl)
        put_page(cpu, new_page)
        return 0
    # Not through none, as v4.20 does: a MADV_DONTNEED of another thread looks at the pmd without the lock, would pass over
    # it and return, and then the copy of the old data appears (K17).
    pmdp_invalidate(cpu, mm, haddr, pmd)
    point(cpu, Point.WP_HUGE_FLUSHED)
    map_new_huge_page(cpu, vma, haddr, new_page)
    set_entry(pmd, new_anon_pmd(new_page, vma))  # the deposited table now belongs to this entry
    check_point_with(cpu, Point.HUGE_PMD_SET, vma, haddr)
    if page:
        # 3.6.9: only now. No CPU of this mm reads the old page any more, so another mm may find it its own.
        page_remove_rmap(cpu, page, 1)
        put_page(cpu, page)
    else:
        mm.rss[MM_ANONPAGES].add(HPAGE_PMD_NR)
    spin_unlock(cpu, ptl)
    count_vm_event(cpu, Stat.wp_huge_copy)
    return VM_FAULT_WRITE


@kernel
def wp_huge_no_page(cpu: Cpu, vma: Vma, addr: int, pmd: Entry, orig_pmd: int, page: Page):
    """No huge page for a copy: use small ones, or split the pmd and let the pte level copy one of them (R2).

    Context: as do_huge_pmd_wp_page(); takes over the reference of `page`.
    Return: VM_FAULT_WRITE, 0 when the pmd changed, or VM_FAULT_FALLBACK.
    Linux: mm/huge_memory.c do_huge_pmd_wp_page, the failed allocation
    """
    result = VM_FAULT_FALLBACK
    if not page:
        split_huge_pmd(cpu, vma, pmd, addr)
    else:
        result = do_huge_pmd_wp_page_fallback(cpu, vma, addr & HPAGE_PMD_MASK, pmd, orig_pmd, page)
        if result & VM_FAULT_OOM:
            split_huge_pmd(cpu, vma, pmd, addr)
            result = VM_FAULT_FALLBACK
        put_page(cpu, page)
    count_vm_event(cpu, Stat.thp_fault_fallback)
    return result


@kernel
def do_huge_pmd_wp_page_fallback(cpu: Cpu, vma: Vma, haddr: int, pmd: Entry, orig_pmd: int, page: Page):
    """Copy a huge page into N small pages and map those.

    Context: mmap_sem read; the caller holds a reference of `page`; takes the pmd ptl.
    Return: VM_FAULT_WRITE, 0 when the pmd changed, VM_FAULT_OOM when there are not N pages.
    Linux: mm/huge_memory.c do_huge_pmd_wp_page_fallback
    Differs: as wp_huge_copy() (K17).
    """
    first = cpu.id * HPAGE_PMD_NR
    for i in range(HPAGE_PMD_NR):
        small = alloc_page(cpu, GFP_HIGHUSER_MOVABLE)
        if not small:
            free_fallback_pages(cpu, first, i)
            return VM_FAULT_OOM
        copy_page(small, tail_page(page, i))
        __SetPageUptodate(small)
        fallback_pages[first + i].value = page_to_pfn(small)
    point(cpu, Point.WP_HUGE_COPIED)
    ptl = pmd_lockptr(pmd)
    spin_lock(cpu, ptl)
    if pmd.val.load() != orig_pmd:
        spin_unlock(cpu, ptl)
        free_fallback_pages(cpu, first, HPAGE_PMD_NR)
        return 0
    mm = mms[vma.vm_mm]
    pmdp_invalidate(cpu, mm, haddr, pmd)  # 3.6.1.3: absent to hardware until all ptes are in place
    point(cpu, Point.WP_HUGE_FLUSHED)
    map_fallback_pages(cpu, mm, vma, haddr, pmd)
    page_remove_rmap(cpu, page, 1)
    spin_unlock(cpu, ptl)
    count_vm_event(cpu, Stat.wp_huge_fallback_pages)
    put_page(cpu, page)  # the mapping's
    return VM_FAULT_WRITE


@kernel
def map_fallback_pages(cpu: Cpu, mm: Mm, vma: Vma, haddr: int, pmd: Entry):
    """Fill the deposited table with this CPU's small pages and link it.

    Context: pmd ptl held, pmd invalidated and flushed.
    Linux: mm/huge_memory.c do_huge_pmd_wp_page_fallback, its loop
    """
    table = pgtable_trans_huge_withdraw(cpu, mm, pmd)
    prot = vma_prot_bits(vma) | _PAGE_ACCESSED | _PAGE_DIRTY
    for i in range(HPAGE_PMD_NR):
        small = mem_map[fallback_pages[cpu.id * HPAGE_PMD_NR + i].value]
        page_add_new_anon_rmap(cpu, small, vma, haddr + i * PAGE_SIZE, 0)
        lru_cache_add_active_or_unevictable(cpu, small, vma)
        pte = table_entry(table, i)
        bug_on(cpu, pte.val.read() != 0, "deposited table is not empty (values: table pfn, pte)", table, pte.val.read())
        set_entry(pte, maybe_mkwrite(mk_entry(page_to_pfn(small), prot), vma))
    pmd_populate(cpu, pmd, table)  # release: a walker that sees the table sees its ptes


@inline
def free_fallback_pages(cpu: Cpu, first: int, count: int):
    """Give back the small pages of a copy that did not happen."""
    for i in range(count):
        put_page(cpu, mem_map[fallback_pages[first + i].value])
