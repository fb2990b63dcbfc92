"""Counting mappings as they come and go. (Linux: mm/rmap.c, mm/mlock.c)

What the counts mean is told in mapcount.py. Adding is done before the entry is visible (but for remove_migration_pte(), whose
page is locked), removing after it was taken down; the caller's reference of the page spans both, so the references are never
fewer than the mappings (I3).
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.config import HPAGE_PMD_NR
from concur_thp.mm.deferred_split import deferred_split_huge_page
from concur_thp.mm.mapcount import (
    compound_mapcount,
    page_mapcount,
    page_mapped,
    total_mapcount,
)
from concur_thp.mm.mm_types import MAPPING_SHIFT, PAGE_MAPPING_ANON, Page, Vma, anon_vmas, vmas
from concur_thp.mm.page_account import MAP, account
from concur_thp.mm.page_flags import (
    PageAnon,
    PageCompound,
    PageHead,
    PG_locked,
    PG_mlocked,
    PG_swapbacked,
    SetFlag,
    TestClearFlag,
    TestClearPageDoubleMap,
    TestFlag,
    TestSetPageDoubleMap,
    compound_head,
    hpage_nr_pages,
    page_anon_vma_nr,
    page_to_pfn,
    tail_page,
)
from concur_thp.mm.swap import isolate_lru_page, putback_lru_page
from concur_thp.mm.vma_tree import linear_page_index, page_to_pgoff
from concur_thp.mm.vmstat import Stat, mod_stat

# -- mapping, index ---------------------------------------------------------------------------------------------------


@inline
def anon_mapping(nr: int):
    """The word that `mapping` holds in a page of anon_vma number `nr`."""
    return (nr << MAPPING_SHIFT) | PAGE_MAPPING_ANON


@inline
def __page_set_anon_rmap(cpu: Cpu, page: Page, vma: Vma, addr: int, exclusive: int):
    """Tell the page where it is mapped, unless it knows: of what is shared only the oldest anon_vma is sure to last."""
    bug_on(cpu, vma.anon_vma == 0, "anon rmap: the vma has no anon_vma (values: pfn, vma)", page_to_pfn(page),
           vmas.index(vma))
    if not PageAnon(page):
        nr = vma.anon_vma
        page.mapping = anon_mapping(nr if exclusive else anon_vmas[nr].root)
        page.index = linear_page_index(cpu, vma, addr)


@inline
def __page_check_anon_rmap(cpu: Cpu, page: Page, vma: Vma, addr: int):
    """A page mapped already: this vma must be one that a walk from the page would find."""
    root = anon_vmas[page_anon_vma_nr(page)].root
    bug_on(cpu, root != anon_vmas[vma.anon_vma].root, "anon rmap: another root (values: pfn, vma)", page_to_pfn(page),
           vmas.index(vma))
    index = linear_page_index(cpu, vma, addr)
    bug_on(cpu, page_to_pgoff(page) != index, "anon rmap: another index (values: pfn, address)", page_to_pfn(page), addr)


@inline
def page_move_anon_rmap(page: Page, vma: Vma):
    """The page belongs to this vma alone: move it from the parent's anon_vma to the vma's own, so that later walks stay
    in this process. Page lock held, and the ptl of the one mapping. (Linux: mm/rmap.c page_move_anon_rmap)"""
    compound_head(page).mapping = anon_mapping(vma.anon_vma)


# -- adding -----------------------------------------------------------------------------------------------------------


@inline
def add_one(count_before: int):
    """inc_and_test: was that the first mapping? Takes what add(1) returned."""
    return count_before == -1


@kernel
def page_add_new_anon_rmap(cpu: Cpu, page: Page, vma: Vma, addr: int, compound: int):
    """Count the first mapping of a page that nobody else can reach yet.

    Context: the entry's ptl held, the entry not yet set. A THP is always mapped first by a pmd.
    Linux: mm/rmap.c page_add_new_anon_rmap
    """
    bug_on(cpu, addr < vma.vm_start or addr >= vma.vm_end, "page_add_new_anon_rmap: outside the vma (values: pfn, vma)",
           page_to_pfn(page), vmas.index(vma))
    account(cpu, page, MAP)
    SetFlag(page, PG_swapbacked)
    if compound:
        bug_on(cpu, not PageHead(page), "page_add_new_anon_rmap: not a head (value: pfn)", page_to_pfn(page), compound)
        tail_page(page, 1).compound_mapcount.write(0)
        mod_stat(cpu, Stat.NR_ANON_THPS, 1)
        mod_stat(cpu, Stat.NR_ANON_MAPPED, HPAGE_PMD_NR)
    else:
        bug_on(cpu, PageCompound(page), "page_add_new_anon_rmap: part of a THP (value: pfn)", page_to_pfn(page), 0)
        page._mapcount.write(0)
        mod_stat(cpu, Stat.NR_ANON_MAPPED, 1)
    __page_set_anon_rmap(cpu, page, vma, addr, 1)


@kernel
def page_add_anon_rmap(cpu: Cpu, page: Page, vma: Vma, addr: int, compound: int, exclusive: int):
    """Count one more mapping of an anon page, by a pmd if `compound`, else by a pte.

    Context: page lock and the entry's ptl held.
    Linux: mm/rmap.c do_page_add_anon_rmap
    """
    bug_on(cpu, not TestFlag(page, PG_locked), "page_add_anon_rmap: not locked (value: pfn)", page_to_pfn(page), addr)
    account(cpu, compound_head(page), MAP)
    if compound:
        bug_on(cpu, not PageHead(page), "page_add_anon_rmap: not a head (value: pfn)", page_to_pfn(page), compound)
        first = add_one(tail_page(page, 1).compound_mapcount.add(1))
    else:
        first = add_one(page._mapcount.add(1))
    if first:
        if compound:
            mod_stat(cpu, Stat.NR_ANON_THPS, 1)
        mod_stat(cpu, Stat.NR_ANON_MAPPED, HPAGE_PMD_NR if compound else 1)
        # The address may by now be in the next vma: remove_migration_pte() races with __vma_adjust().
        __page_set_anon_rmap(cpu, page, vma, addr, exclusive)
    else:
        __page_check_anon_rmap(cpu, page, vma, addr)


@inline
def page_dup_rmap(cpu: Cpu, page: Page, compound: int):
    """Count a copy of an entry that the caller sees under its ptl, so that the count is not -1."""
    account(cpu, compound_head(page), MAP)
    if compound:
        tail_page(page, 1).compound_mapcount.add(1)
    else:
        page._mapcount.add(1)


@kernel
def page_add_file_rmap(cpu: Cpu, page: Page, compound: int):
    """Count one more mapping of a page cache page.

    Context: the entry's ptl held; for a subpage of a THP the page lock too.
    Linux: mm/rmap.c page_add_file_rmap
    """
    account(cpu, compound_head(page), MAP)
    nr = 1
    if compound:
        bug_on(cpu, not PageHead(page), "page_add_file_rmap: not a head (value: pfn)", page_to_pfn(page), compound)
        nr = 0
        for i in range(HPAGE_PMD_NR):
            nr += add_one(tail_page(page, i)._mapcount.add(1))
        if not add_one(tail_page(page, 1).compound_mapcount.add(1)):
            return 0
        mod_stat(cpu, Stat.NR_SHMEM_PMDMAPPED, 1)
    else:
        if PageCompound(page):
            head = compound_head(page)
            bug_on(cpu, not TestFlag(head, PG_locked), "page_add_file_rmap: page not locked (value: pfn)",
                   page_to_pfn(page), compound)
            TestSetPageDoubleMap(head)  # R30: before the count, so that who sees that looks at the subpages too.
            clear_page_mlock(cpu, head)
        if not add_one(page._mapcount.add(1)):
            return 0
    mod_stat(cpu, Stat.NR_FILE_MAPPED, nr)
    return 0


# -- removing ---------------------------------------------------------------------------------------------------------


@inline
def sub_one(cpu: Cpu, page: Page, count_before: int):
    """add_negative(-1): was that the last mapping? Takes what sub(1) returned. Full barrier, by the sub()."""
    bug_on(cpu, count_before < 0, "page_remove_rmap: mapcount below -1 (value: pfn)", page_to_pfn(page), count_before)
    return count_before == 0


@inline
def sub_one_everywhere(cpu: Cpu, head: Page):
    """One less in every subpage; returns how many have no mapping left."""
    nr = 0
    for i in range(HPAGE_PMD_NR):
        nr += sub_one(cpu, tail_page(head, i), tail_page(head, i)._mapcount.sub(1))
    return nr


@kernel
def page_remove_rmap(cpu: Cpu, page: Page, compound: int):
    """Take one mapping of a page out of its counts.

    Context: the ptl of the entry held, the entry already taken down; the caller keeps its reference until the TLBs are
    flushed. Takes split_queue_lock, lru_lock for a mlocked page. Never sleeps.
    Linux: mm/rmap.c page_remove_rmap
    """
    trace(cpu, Tracepoint.page_remove_rmap, page_to_pfn(page), compound, page._mapcount.read())
    bug_on(cpu, compound and not PageHead(page), "page_remove_rmap: not a head (value: pfn)", page_to_pfn(page), 0)
    account(cpu, compound_head(page), -MAP)
    if not PageAnon(page):
        page_remove_file_rmap(cpu, page, compound)
    elif compound:
        page_remove_anon_compound_rmap(cpu, page)
    elif sub_one(cpu, page, page._mapcount.sub(1)):
        mod_stat(cpu, Stat.NR_ANON_MAPPED, -1)
        clear_page_mlock(cpu, page)
        if PageCompound(page):
            deferred_split_huge_page(cpu, compound_head(page))
        # `mapping` and `index` stay, although they are of no use now: a racing page_add_anon_rmap() may still look at
        # them. They are reset when the page is freed.


@kernel
def page_remove_anon_compound_rmap(cpu: Cpu, head: Page):
    """A pmd mapping of an anon THP goes; with the last one also the offset that PG_double_map means.

    Context: as page_remove_rmap().
    Linux: mm/rmap.c page_remove_anon_compound_rmap
    """
    if not sub_one(cpu, head, tail_page(head, 1).compound_mapcount.sub(1)):
        return 0
    mod_stat(cpu, Stat.NR_ANON_THPS, -1)
    nr = int(HPAGE_PMD_NR)
    # Each decrement of the offset finds exactly the subpages without a mapping; a pte unmap on another CPU either comes
    # before it (and leaves >= 0 behind) or after it (and finds the last mapping itself). So every subpage counts once.
    if TestClearPageDoubleMap(head):
        nr = sub_one_everywhere(cpu, head)
    clear_page_mlock(cpu, head)
    if nr != 0:
        mod_stat(cpu, Stat.NR_ANON_MAPPED, -nr)
        deferred_split_huge_page(cpu, head)  # Also when none is left (K6): the last put takes it off the queue again.
    return 0


@kernel
def page_remove_file_rmap(cpu: Cpu, page: Page, compound: int):
    """A mapping of a page cache page goes.

    Context: as page_remove_rmap().
    Linux: mm/rmap.c page_remove_file_rmap
    """
    nr = 1
    if compound:
        nr = sub_one_everywhere(cpu, page)
        if not sub_one(cpu, page, tail_page(page, 1).compound_mapcount.sub(1)):
            return 0
        mod_stat(cpu, Stat.NR_SHMEM_PMDMAPPED, -1)
    elif not sub_one(cpu, page, page._mapcount.sub(1)):
        return 0
    mod_stat(cpu, Stat.NR_FILE_MAPPED, -nr)
    clear_page_mlock(cpu, page)
    return 0


@inline
def clear_page_mlock(cpu: Cpu, page: Page):
    """PG_mlocked goes with the last mapping. Looks before it writes: hardly any page has it."""
    if TestFlag(page, PG_mlocked):
        __clear_page_mlock(cpu, compound_head(page))


@kernel
def __clear_page_mlock(cpu: Cpu, head: Page):
    """Make a mlocked page evictable again, and move it to the list where it belongs now.

    Context: a ptl may be held; takes lru_lock.
    Linux: mm/mlock.c clear_page_mlock
    """
    if not TestClearFlag(head, PG_mlocked):
        return 0
    mod_stat(cpu, Stat.NR_MLOCK, -hpage_nr_pages(head))
    # Isolated right now by somebody else? Then that one puts it back where it belongs: it looks at PG_mlocked after it
    # has set PG_lru, and we have cleared PG_mlocked (full barrier) before we look at PG_lru.
    if isolate_lru_page(cpu, head):
        putback_lru_page(cpu, head)
    return 0


__all__ = [
    "anon_mapping",
    "clear_page_mlock",
    "compound_mapcount",
    "page_add_anon_rmap",
    "page_add_file_rmap",
    "page_add_new_anon_rmap",
    "page_dup_rmap",
    "page_mapcount",
    "page_mapped",
    "page_move_anon_rmap",
    "page_remove_rmap",
    "total_mapcount",
]
