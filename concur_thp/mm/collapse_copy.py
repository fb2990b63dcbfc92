"""The pages of a range being collapsed: lock and isolate all, give them back, or copy them. (Linux: mm/khugepaged.c)

The table hangs nowhere while this runs: its pmd is none and flushed, mmap_sem and the anon_vma are held for write. So
no fault, no rmap walk, no hardware and no gup-fast can get at a page through it (I22). What is left is whoever has a
page by its pfn or by an older reference: the page lock and the exact reference count keep those out (X15).
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.config import HPAGE_PMD_NR
from concur_thp.mm.collapse_check import Scan
from concur_thp.mm.highmem import clear_page, copy_page
from concur_thp.mm.lru import isolate_lru_page
from concur_thp.mm.mm_types import MM_ANONPAGES, Mm, Page, mem_map, pgdat
from concur_thp.mm.page_flags import PageAnon, PageCompound, PageSwapCache, PG_referenced, page_to_pfn, tail_page
from concur_thp.mm.page_lock import trylock_page, unlock_page
from concur_thp.mm.page_ref import page_ref_count
from concur_thp.mm.pgtable import (
    entry_pfn,
    pte_none,
    pte_present,
    pte_special,
    pte_write,
    pte_young,
    set_entry,
    table_entry,
)
from concur_thp.mm.rmap import page_remove_rmap
from concur_thp.mm.swap import putback_lru_page
from concur_thp.mm.swap_reuse import reuse_swap_page
from concur_thp.mm.swap_state import free_page_and_swap_cache
from concur_thp.mm.thp_sysfs import thp
from concur_thp.sync.spinlock import spin_lock, spin_unlock


@inline
def pte_none_or_zero(pte: int):
    """Nothing there, or the small zero page."""
    return pte_none(pte) or (pte_present(pte) and pte_special(pte))


@inline
def pte_referenced(pte: int, page: Page):
    """Was the page used lately?"""
    return pte_young(pte) or (page.flags.read() >> PG_referenced) & 1 != 0


@kernel
def __collapse_huge_page_isolate(cpu: Cpu, table: int):
    """Lock and isolate every page of a detached table, or none.

    Context: as the module says; the table's ptl held: page locks by trylock only.
    Return: SCAN_SUCCEED, or why not.
    Linux: mm/khugepaged.c __collapse_huge_page_isolate
    """
    none_or_zero = 0
    referenced = 0
    writable = 0
    done = 0
    result = Scan.SCAN_SUCCEED
    while done < HPAGE_PMD_NR:
        pte = table_entry(table, done).val.load()
        if pte_none_or_zero(pte):
            none_or_zero += 1
            if none_or_zero > thp.max_ptes_none:
                result = Scan.SCAN_EXCEED_NONE_PTE
        else:
            result = isolate_pte_page(cpu, pte)
            if result == Scan.SCAN_SUCCEED:
                writable = writable | pte_write(pte)
                referenced += pte_referenced(pte, mem_map[entry_pfn(pte)])
        if result != Scan.SCAN_SUCCEED:
            break
        done += 1
    if result == Scan.SCAN_SUCCEED:
        if not writable:
            result = Scan.SCAN_PAGE_RO
        elif referenced == 0:
            result = Scan.SCAN_LACK_REFERENCED_PAGE
    if result == Scan.SCAN_SUCCEED:
        pgdat.isolated.add(HPAGE_PMD_NR - none_or_zero)
    else:
        release_pte_pages(cpu, table, done)
    first = entry_pfn(table_entry(table, 0).val.read())
    trace(cpu, Tracepoint.mm_collapse_huge_page_isolate, first, none_or_zero, result)
    return result


@kernel
def isolate_pte_page(cpu: Cpu, pte: int):
    """Lock one page, make sure that nobody else has it, take it off the LRU.

    Context: as __collapse_huge_page_isolate().
    Return: SCAN_SUCCEED with page lock and isolation, or why not with neither.
    Linux: mm/khugepaged.c __collapse_huge_page_isolate, the body of its loop
    """
    if not pte_present(pte):
        return Scan.SCAN_PTE_NON_PRESENT
    page = mem_map[entry_pfn(pte)]
    if PageCompound(page):
        return Scan.SCAN_PAGE_COMPOUND
    bug_on(cpu, not PageAnon(page), "collapse: page in an anon vma is not anon (value: pfn)", page_to_pfn(page), pte)
    if not trylock_page(cpu, page):
        return Scan.SCAN_PAGE_LOCK
    result = Scan.SCAN_SUCCEED
    # Again, and now for good: no new pin can come through the tables, and the page lock keeps the swap cache still. A
    # pin that gup-fast took just before the flush is seen here.
    if page_ref_count(page) != 1 + PageSwapCache(page):
        result = Scan.SCAN_PAGE_COUNT
    elif not pte_write(pte) and PageSwapCache(page) and not reuse_swap_page(cpu, page):
        result = Scan.SCAN_SWAP_CACHE_PAGE
    elif not isolate_lru_page(cpu, page):
        result = Scan.SCAN_DEL_PAGE_LRU
    if result != Scan.SCAN_SUCCEED:
        unlock_page(cpu, page)
    return result


@inline
def release_pte_page(cpu: Cpu, page: Page):
    """Undo isolate_pte_page(); who isolated counts `pgdat.isolated`, once for all pages."""
    unlock_page(cpu, page)
    putback_lru_page(cpu, page)


@kernel
def release_pte_pages(cpu: Cpu, table: int, count: int):
    """Give back the pages of the first `count` ptes.

    Context: table's ptl held.
    Linux: mm/khugepaged.c release_pte_pages
    """
    for i in range(count):
        pte = table_entry(table, i).val.load()
        if not pte_none_or_zero(pte):
            release_pte_page(cpu, mem_map[entry_pfn(pte)])


@kernel
def __collapse_huge_page_copy(cpu: Cpu, mm: Mm, table: int, new_page: Page):
    """Copy every page into the huge one and drop it; leaves the table empty.

    Context: mmap_sem write; all pages locked and isolated, which this undoes; takes the table's ptl. Cannot fail.
    Linux: mm/khugepaged.c __collapse_huge_page_copy
    Differs: takes the ptl once, not for each pte: nobody else can reach the table, it is for the rmap accounting only.
    """
    filled = 0
    spin_lock(cpu, mem_map[table].ptl)
    for i in range(HPAGE_PMD_NR):
        pte = table_entry(table, i)
        value = pte.val.load()
        to = tail_page(new_page, i)
        if pte_none_or_zero(value):
            clear_page(to)
            filled += 1
            set_entry(pte, 0)
        else:
            page = mem_map[entry_pfn(value)]
            copy_page(to, page)
            bug_on(cpu, page._mapcount.read() != 0, "collapse: page mapped elsewhere (values: pfn, mapcount)",
                   page_to_pfn(page), page._mapcount.read())
            release_pte_page(cpu, page)
            set_entry(pte, 0)
            page_remove_rmap(cpu, page, 0)
            free_page_and_swap_cache(cpu, page)
    spin_unlock(cpu, mem_map[table].ptl)
    pgdat.isolated.sub(HPAGE_PMD_NR - filled)
    mm.rss[MM_ANONPAGES].add(filled)
