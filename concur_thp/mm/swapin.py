"""Bringing a page back from the swap device: a fault on a swap entry. (Linux: mm/memory.c do_swap_page, mm/swap_state.c)

The page is found in the swap cache or read into it; with its lock, and then the ptl, everything is looked at again, because
until then reclaim, another fault or a zap may have been faster. (semantics 3.29)
"""

from concur_thp.arch.bug import bug_on, panic_check
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.futex import sched_yield
from concur_thp.arch.irq import ipi_poll
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.mm.errno import EEXIST
from concur_thp.mm.flags import (
    FAULT_FLAG_ALLOW_RETRY,
    FAULT_FLAG_WRITE,
    GFP_HIGHUSER_MOVABLE,
    VM_FAULT_ERROR,
    VM_FAULT_HWPOISON,
    VM_FAULT_MAJOR,
    VM_FAULT_OOM,
    VM_FAULT_RETRY,
    VM_FAULT_WRITE,
    VM_LOCKED,
)
from concur_thp.mm.huge_entry import maybe_mkwrite
from concur_thp.mm.migration_entry import migration_entry_wait
from concur_thp.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, Entry, Mm, Page, Vma, mms
from concur_thp.mm.page_alloc import alloc_page
from concur_thp.mm.page_flags import (
    PageHWPoison,
    PageSwapCache,
    PG_mlocked,
    PG_swapbacked,
    PG_uptodate,
    PG_workingset,
    SetFlag,
    TestFlag,
    page_to_pfn,
)
from concur_thp.mm.page_lock import lock_page, trylock_page, unlock_page, wait_on_page_locked
from concur_thp.mm.pgtable import (
    _PAGE_DIRTY,
    _PAGE_SOFT_DIRTY,
    is_hwpoison_entry,
    is_migration_entry,
    pte_lockptr,
    pte_offset,
    set_entry,
)
from concur_thp.mm.pte import mk_pte
from concur_thp.mm.rmap import page_add_anon_rmap
from concur_thp.mm.swap import activate_page, lru_cache_add, put_page
from concur_thp.mm.swap_io import swap_readpage
from concur_thp.mm.swap_map import swap_info, vm_swap_full
from concur_thp.mm.swap_reuse import reuse_swap_page
from concur_thp.mm.swap_state import add_to_swap_cache, lookup_swap_cache, try_to_free_swap
from concur_thp.mm.swapfile import swap_free, swapcache_prepare
from concur_thp.mm.swapops import pte_to_swp_entry
from concur_thp.mm.tlb_batch import flush_tlb_batched_pending
from concur_thp.mm.vmstat import Stat, count_vm_event
from concur_thp.mm.wp import do_wp_page
from concur_thp.sync.rwsem import up_read
from concur_thp.sync.spinlock import SpinLock, spin_lock, spin_unlock


@kernel
def read_swap_cache_async(cpu: Cpu, entry: int) -> Page:
    """The page of a slot, read in if the cache has none.

    Context: may sleep. The slot may be given up meanwhile.
    Return: the page with a reference, perhaps a tail, perhaps still being read (then it is locked); NULL without memory,
    or when no pte needs the slot any more.
    Linux: mm/swap_state.c read_swap_cache_async
    Differs: no readahead; the device is synchronous.
    """
    new_page = Page(0)
    page = lookup_swap_cache(cpu, entry)
    while not page:
        if not new_page:
            new_page = alloc_page(cpu, GFP_HIGHUSER_MOVABLE)
            if not new_page:
                break
        error = swapcache_prepare(cpu, entry)
        if error == 0:
            add_new_to_swap_cache(cpu, new_page, entry)
            swap_readpage(cpu, new_page)
            return new_page
        if error != -EEXIST:
            break
        # Another CPU has marked the slot and not yet filled it, or emptied it and not yet given it up.
        ipi_poll(cpu)
        panic_check(cpu)
        sched_yield()
        page = lookup_swap_cache(cpu, entry)
    if new_page:
        put_page(cpu, new_page)
    return page


@inline
def add_new_to_swap_cache(cpu: Cpu, page: Page, entry: int):
    """A fresh page goes into its slot, locked and not uptodate: who finds it waits for its contents."""
    bug_on(cpu, not trylock_page(cpu, page), "swap in: a fresh page is locked (value: pfn)", page_to_pfn(page), entry)
    SetFlag(page, PG_swapbacked)
    add_to_swap_cache(cpu, page, entry)
    SetFlag(page, PG_workingset)
    lru_cache_add(cpu, page)


@inline
def lock_page_or_retry(cpu: Cpu, page: Page, mm: Mm, flags: int):
    """1 with the page locked. 0: the fault may be begun anew, so mmap_sem is released while we wait. (mm/filemap.c)"""
    locked = trylock_page(cpu, page)
    if not locked:
        if flags & FAULT_FLAG_ALLOW_RETRY:
            up_read(cpu, mm.mmap_sem)
            wait_on_page_locked(cpu, page)
        else:
            lock_page(cpu, page)
            locked = 1
    return locked


@kernel
def do_swap_page(cpu: Cpu, vma: Vma, addr: int, pmd: Entry, orig_pte: int, flags: int):
    """A pte that is neither empty nor present: under migration, or swapped out.

    Context: mmap_sem read; no spinlock held. May sleep.
    Return: VM_FAULT_* bits; with VM_FAULT_RETRY, which needs FAULT_FLAG_ALLOW_RETRY, mmap_sem is released.
    Linux: mm/memory.c do_swap_page
    Differs: always by the swap cache (no SWP_SYNCHRONOUS_IO). Asks for a broken frame with the page locked, v4.20 before it:
    what memory_failure() has only just marked is mapped, and it unmaps it when it has the page lock.
    """
    mm = mms[vma.vm_mm]
    if is_migration_entry(orig_pte):
        migration_entry_wait(cpu, mm, pmd, addr)
        return 0  # The access is tried again.
    if is_hwpoison_entry(orig_pte):
        return VM_FAULT_HWPOISON
    entry = pte_to_swp_entry(orig_pte)
    bug_on(cpu, entry <= 0 or entry >= swap_info.max, "do_swap_page: there is no such slot (values: address, pte)", addr,
           orig_pte)
    fault = 0
    page = lookup_swap_cache(cpu, entry)
    if not page:
        page = read_swap_cache_async(cpu, entry)
        if not page:
            return swap_in_failed(cpu, addr, pmd, orig_pte)
        fault = VM_FAULT_MAJOR
        count_vm_event(cpu, Stat.pgmajfault)
    if not lock_page_or_retry(cpu, page, mm, flags):
        put_page(cpu, page)
        return fault | VM_FAULT_RETRY
    point(cpu, Point.SWAPIN_LOCKED)
    # While we waited another fault, or swapoff, may have taken it out of the cache, and the frame may be another page's.
    if PageHWPoison(page) and not TestFlag(page, PG_uptodate):
        fault = fault | VM_FAULT_HWPOISON  # It was broken in the cache: what the slot had is lost.
    elif PageSwapCache(page) and page.private == entry:
        table = pmd.val.load()
        ptl = pte_lockptr(table)
        pte = pte_offset(table, addr)
        spin_lock(cpu, ptl)
        if pte.val.read() == orig_pte:
            return fault | map_swap_page(cpu, vma, addr, pmd, pte, ptl, page, flags)
        spin_unlock(cpu, ptl)
    unlock_page(cpu, page)
    put_page(cpu, page)
    return fault


@inline
def swap_in_failed(cpu: Cpu, addr: int, pmd: Entry, orig_pte: int):
    """No page: out of memory, unless another CPU has resolved the fault."""
    table = pmd.val.load()
    ptl = pte_lockptr(table)
    spin_lock(cpu, ptl)
    same = pte_offset(table, addr).val.read() == orig_pte
    spin_unlock(cpu, ptl)
    return VM_FAULT_OOM if same else 0


@kernel
def map_swap_page(cpu: Cpu, vma: Vma, addr: int, pmd: Entry, pte: Entry, ptl: SpinLock, page: Page, flags: int):
    """Map a page of the swap cache in place of its entry; takes over a reference.

    Context: page lock and pte ptl held, the pte is the page's entry; both are released. May sleep afterwards.
    Return: VM_FAULT_* bits.
    Linux: mm/memory.c do_swap_page, from pte_same() on
    Differs: flushes for reclaim (K19).
    """
    mm = mms[vma.vm_mm]
    entry = page.private
    bug_on(cpu, TestFlag(page, PG_uptodate) == 0, "do_swap_page: not uptodate (values: pfn, slot)", page_to_pfn(page), entry)
    # It may be a new frame: reclaim drops a clean page before it flushes, and another CPU may still read the old one (K19).
    flush_tlb_batched_pending(cpu, mm)
    mm.rss[MM_ANONPAGES].add(1)
    mm.rss[MM_SWAPENTS].sub(1)
    value = mk_pte(page, vma) | pte.val.read() & _PAGE_SOFT_DIRTY
    fault = 0
    # Asked while the entry still counts as a swap pte and not yet as a mapping: exactly one of the two.
    if flags & FAULT_FLAG_WRITE and reuse_swap_page(cpu, page):
        value = maybe_mkwrite(value | _PAGE_DIRTY, vma)
        fault = VM_FAULT_WRITE
    set_entry(pte, value)
    page_add_anon_rmap(cpu, page, vma, addr, 0, fault == VM_FAULT_WRITE)
    activate_page(cpu, page)
    swap_free(cpu, entry)
    if vm_swap_full() or vma.vm_flags & VM_LOCKED or TestFlag(page, PG_mlocked):
        try_to_free_swap(cpu, page)
    unlock_page(cpu, page)
    if flags & FAULT_FLAG_WRITE and fault == 0:
        fault = do_wp_page(cpu, vma, addr, pmd, value)  # Releases the ptl.
        return fault & VM_FAULT_ERROR if fault & VM_FAULT_ERROR else fault
    spin_unlock(cpu, ptl)
    return fault


__all__ = ["do_swap_page", "read_swap_cache_async"]
