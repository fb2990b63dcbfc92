"""Faults on empty ptes: anonymous memory, and small pages of files. (Linux: mm/memory.c)

What can fail or sleep comes first; then, under the pte ptl, one look decides whether the pte is still empty. Reclaim on
another CPU may have emptied it and not have flushed yet; a third CPU would go on reading the old frame from its TLB while
the program writes to the new one. So whoever fills a pte flushes first on reclaim's behalf (K19).
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.mm.anon_vma import anon_vma_prepare
from concur_thp.mm.filemap import filemap_fault, mm_counter_file
from concur_thp.mm.flags import (
    __GFP_ZERO,
    FAULT_FLAG_WRITE,
    GFP_HIGHUSER_MOVABLE,
    VM_FAULT_ERROR,
    VM_FAULT_NOPAGE,
    VM_FAULT_OOM,
    VM_FAULT_SIGBUS,
    VM_SHARED,
    VM_WRITE,
)
from concur_thp.mm.highmem import copy_page
from concur_thp.mm.huge_entry import maybe_mkwrite
from concur_thp.mm.mm_types import MM_ANONPAGES, Entry, Page, Vma, mms, pgdat
from concur_thp.mm.page_alloc import alloc_page
from concur_thp.mm.page_flags import PG_dirty, PG_uptodate, SetFlag, TestFlag, __SetPageUptodate, page_to_pfn
from concur_thp.mm.page_lock import PageLocked, unlock_page
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_RW,
    _PAGE_SPECIAL,
    mk_entry,
    pte_lockptr,
    pte_none,
    pte_offset,
    set_entry,
)
from concur_thp.mm.pgtable_generic import pmd_trans_unstable
from concur_thp.mm.pte import mk_pte, pte_alloc
from concur_thp.mm.rmap import page_add_file_rmap, page_add_new_anon_rmap
from concur_thp.mm.swap import lru_cache_add_active_or_unevictable, put_page
from concur_thp.mm.tlb_batch import flush_tlb_batched_pending
from concur_thp.mm.vma_prot import vma_prot_bits
from concur_thp.mm.vma_tree import linear_page_index
from concur_thp.sync.spinlock import spin_lock, spin_unlock


@kernel
def do_anonymous_page(cpu: Cpu, vma: Vma, addr: int, flags: int, pmd: Entry):
    """First touch of a page of private anonymous memory: the zero page for a read, else a page of zeroes.

    Context: mmap_sem read. May sleep. Takes the pte ptl. No flush of its own: nothing was present.
    Return: 0, VM_FAULT_OOM or VM_FAULT_SIGBUS.
    Linux: mm/memory.c do_anonymous_page
    Differs: no oom reaper, so the address space is always stable. Flushes for reclaim (K19), here and in finish_fault().
    """
    if vma.vm_flags & VM_SHARED:
        return VM_FAULT_SIGBUS
    if pte_alloc(cpu, mms[vma.vm_mm], pmd) != 0:  # 3.3.1
        return VM_FAULT_OOM
    if pmd_trans_unstable(pmd):
        return 0  # 3.3.2: a huge page appeared. A table stays one while we hold mmap_sem (I9).
    if flags & FAULT_FLAG_WRITE == 0:
        map_zero_page(cpu, vma, addr, pmd)
        return 0
    if anon_vma_prepare(cpu, vma) != 0:
        return VM_FAULT_OOM
    page = alloc_page(cpu, GFP_HIGHUSER_MOVABLE | __GFP_ZERO)
    if not page:
        return VM_FAULT_OOM
    __SetPageUptodate(page)
    point(cpu, Point.PTE_FAULT_ALLOCATED)
    pmdval = pmd.val.load()
    pte = pte_offset(pmdval, addr)
    ptl = pte_lockptr(pmdval)
    spin_lock(cpu, ptl)
    point(cpu, Point.PTE_FAULT_LOCKED)
    if not pte_none(pte.val.read()):
        # Another thread faulted on the same page while ours was made ready.
        spin_unlock(cpu, ptl)
        put_page(cpu, page)
        return 0
    flush_tlb_batched_pending(cpu, mms[vma.vm_mm])
    map_new_anon_page(cpu, vma, addr, page)
    entry = mk_pte(page, vma)
    if vma.vm_flags & VM_WRITE:  # Without it this is FOLL_FORCE, and the retry finds a clean read-only pte.
        entry = entry | _PAGE_RW | _PAGE_DIRTY
    set_entry(pte, entry)
    spin_unlock(cpu, ptl)
    return 0


@inline
def map_zero_page(cpu: Cpu, vma: Vma, addr: int, pmd: Entry):
    """3.3.3: nobody counts mappings of the zero page, so it is special."""
    pmdval = pmd.val.load()
    pte = pte_offset(pmdval, addr)
    ptl = pte_lockptr(pmdval)
    spin_lock(cpu, ptl)
    point(cpu, Point.PTE_FAULT_LOCKED)
    if pte_none(pte.val.read()):
        flush_tlb_batched_pending(cpu, mms[vma.vm_mm])
        set_entry(pte, mk_entry(pgdat.zero_pfn, vma_prot_bits(vma) | _PAGE_ACCESSED | _PAGE_SPECIAL))
    spin_unlock(cpu, ptl)


@inline
def map_new_anon_page(cpu: Cpu, vma: Vma, addr: int, page: Page):
    """Counts and LRU of a small page whose first entry is about to be set; pte ptl held."""
    mms[vma.vm_mm].rss[MM_ANONPAGES].add(1)
    page_add_new_anon_rmap(cpu, page, vma, addr, 0)
    lru_cache_add_active_or_unevictable(cpu, page, vma)


@kernel
def do_fault(cpu: Cpu, vma: Vma, addr: int, flags: int, pmd: Entry):
    """First touch of a page of a file mapping.

    Context: mmap_sem read. May sleep. Takes the page lock, the pte ptl.
    Return: VM_FAULT_* bits.
    Linux: mm/memory.c do_fault
    """
    if flags & FAULT_FLAG_WRITE == 0:
        return do_read_fault(cpu, vma, addr, flags, pmd)
    if vma.vm_flags & VM_SHARED == 0:
        return do_cow_fault(cpu, vma, addr, flags, pmd)
    return do_shared_fault(cpu, vma, addr, flags, pmd)


@inline
def __do_fault(cpu: Cpu, vma: Vma, addr: int):
    """The page of the file: locked, with a reference, in cpu.scratch[0]; else an error."""
    return filemap_fault(cpu, vma, linear_page_index(cpu, vma, addr))


@kernel
def do_read_fault(cpu: Cpu, vma: Vma, addr: int, flags: int, pmd: Entry):
    """Map the file's own page for reading; writable if the mapping is shared and may write.

    Context: as do_fault().
    Return: VM_FAULT_* bits.
    Linux: mm/memory.c do_read_fault
    Differs: no fault-around.
    """
    fault = __do_fault(cpu, vma, addr)
    if fault & VM_FAULT_ERROR:
        return fault
    page = Page(cpu.scratch[0])
    fault = finish_fault(cpu, vma, addr, flags, pmd, page)
    unlock_page(cpu, page)
    if fault & (VM_FAULT_ERROR | VM_FAULT_NOPAGE):
        put_page(cpu, page)  # Not mapped, so the reference is still ours.
    return fault


@kernel
def do_cow_fault(cpu: Cpu, vma: Vma, addr: int, flags: int, pmd: Entry):
    """A write to a private mapping of a page never touched: map a copy at once.

    Context: as do_fault().
    Return: VM_FAULT_* bits.
    Linux: mm/memory.c do_cow_fault
    """
    if anon_vma_prepare(cpu, vma) != 0:
        return VM_FAULT_OOM
    new_page = alloc_page(cpu, GFP_HIGHUSER_MOVABLE)
    if not new_page:
        return VM_FAULT_OOM
    fault = __do_fault(cpu, vma, addr)
    if fault & VM_FAULT_ERROR:
        put_page(cpu, new_page)
        return fault
    page = Page(cpu.scratch[0])
    copy_page(new_page, page)
    __SetPageUptodate(new_page)
    fault = finish_fault(cpu, vma, addr, flags, pmd, new_page)
    unlock_page(cpu, page)
    put_page(cpu, page)
    if fault & (VM_FAULT_ERROR | VM_FAULT_NOPAGE):
        put_page(cpu, new_page)
    return fault


@kernel
def do_shared_fault(cpu: Cpu, vma: Vma, addr: int, flags: int, pmd: Entry):
    """A write to a shared mapping: map the file's own page, writable and dirty.

    Context: as do_fault().
    Return: VM_FAULT_* bits.
    Linux: mm/memory.c do_shared_fault
    Differs: no file system that wants to be told (page_mkwrite).
    """
    fault = __do_fault(cpu, vma, addr)
    if fault & VM_FAULT_ERROR:
        return fault
    page = Page(cpu.scratch[0])
    fault = finish_fault(cpu, vma, addr, flags, pmd, page)
    if fault & (VM_FAULT_ERROR | VM_FAULT_NOPAGE):
        unlock_page(cpu, page)
        put_page(cpu, page)
        return fault
    SetFlag(page, PG_dirty)  # fault_dirty_shared_page
    unlock_page(cpu, page)
    return fault


@kernel
def finish_fault(cpu: Cpu, vma: Vma, addr: int, flags: int, pmd: Entry, page: Page):
    """Map a page, taking over a reference, unless another CPU was faster.

    Context: mmap_sem read; the file's page is locked. Takes the pte ptl. No flush of its own: nothing was present.
    Return: 0; VM_FAULT_NOPAGE: not mapped, look anew; VM_FAULT_OOM.
    Linux: mm/memory.c finish_fault, alloc_set_pte
    Differs: files have small pages only. Flushes for reclaim (K19).
    """
    bug_on(cpu, not TestFlag(page, PG_uptodate), "finish_fault: page has no content (values: pfn, address)",
           page_to_pfn(page), addr)
    if pte_alloc(cpu, mms[vma.vm_mm], pmd) != 0:
        return VM_FAULT_OOM
    if pmd_trans_unstable(pmd):
        return VM_FAULT_NOPAGE
    point(cpu, Point.PTE_FAULT_ALLOCATED)
    pmdval = pmd.val.load()
    pte = pte_offset(pmdval, addr)
    ptl = pte_lockptr(pmdval)
    spin_lock(cpu, ptl)
    point(cpu, Point.PTE_FAULT_LOCKED)
    if not pte_none(pte.val.read()):
        spin_unlock(cpu, ptl)
        return VM_FAULT_NOPAGE
    flush_tlb_batched_pending(cpu, mms[vma.vm_mm])
    entry = mk_pte(page, vma)
    if flags & FAULT_FLAG_WRITE:
        entry = maybe_mkwrite(entry | _PAGE_DIRTY, vma)
    if flags & FAULT_FLAG_WRITE and vma.vm_flags & VM_SHARED == 0:
        map_new_anon_page(cpu, vma, addr, page)
    else:
        map_file_page(cpu, vma, page)
    set_entry(pte, entry)
    spin_unlock(cpu, ptl)
    return 0


@inline
def map_file_page(cpu: Cpu, vma: Vma, page: Page):
    """Counts of a page cache page that is about to be mapped by a pte; page lock and pte ptl held."""
    bug_on(cpu, not PageLocked(page), "mapping a cached page that is not locked (value: pfn)", page_to_pfn(page), 0)
    mms[vma.vm_mm].rss[mm_counter_file(page)].add(1)
    page_add_file_rmap(cpu, page, 0)


