"""May a write fault write to this anon page, or must it copy? (Linux: mm/swapfile.c)

Only who has the page to himself may: one mapping, or one swap pte that is just being mapped, and nobody else's swap pte.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.builtins import smp_rmb
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.config import HPAGE_PMD_NR
from concur_thp.mm.mapcount import compound_mapcount
from concur_thp.mm.mm_types import Page
from concur_thp.mm.page_flags import (
    PageCompound,
    PageDoubleMap,
    PageSwapCache,
    PG_dirty,
    PG_locked,
    PG_writeback,
    SetFlag,
    TestFlag,
    compound_head,
    page_to_pfn,
    tail_page,
)
from concur_thp.mm.swap_map import swap_count, swap_info
from concur_thp.mm.swap_state import delete_from_swap_cache
from concur_thp.mm.swapfile import page_swapcount
from concur_thp.sync.spinlock import spin_lock, spin_unlock


@inline
def subpage_counts(cached: int, head: Page):
    """Over the subpages of an anon THP: sum of mapcounts << 42 | sum of swap counts << 21 | the largest sum of the two."""
    most = 0
    maps = 0
    swaps = 0
    for i in range(HPAGE_PMD_NR):
        page = tail_page(head, i)
        mapcount = page._mapcount.read() + 1
        swapcount = swap_count(page.private) if cached else 0
        most = max(most, mapcount + swapcount)
        maps += mapcount
        swaps += swapcount
    return (maps << 42) + (swaps << 21) + most


@kernel
def page_trans_huge_map_swapcount(cpu: Cpu, page: Page):
    """Mappings and swap ptes of the subpage that has most of them, for a THP; of the page, for a small one.

    Context: page lock held; takes si.lock for a page in the swap cache. Reads in Linux's order (K1).
    Return: the count; in cpu.scratch[0] all mappings of the compound page, in cpu.scratch[1] all its swap ptes.
    Linux: mm/swapfile.c page_trans_huge_map_swapcount
    Differs: with a barrier. Of a page that others map too, a zap on another CPU clears PG_double_map and then takes the
    offset off the mapcounts; with the old flag and the new counts the sum would be one too small.
    """
    cached = PageSwapCache(page)
    if not PageCompound(page):
        mapcount = page._mapcount.read() + 1
        swapcount = page_swapcount(cpu, page) if cached else 0
        cpu.scratch[0] = mapcount
        cpu.scratch[1] = swapcount
        return mapcount + swapcount
    head = compound_head(page)
    if cached:
        spin_lock(cpu, swap_info.lock)
    counts = subpage_counts(cached, head)
    if cached:
        spin_unlock(cpu, swap_info.lock)
    total = counts >> 42
    most = counts & 0x1FFFFF
    smp_rmb()
    if PageDoubleMap(head):
        most -= 1
        total -= HPAGE_PMD_NR
    compound = compound_mapcount(head)
    cpu.scratch[0] = total + compound
    cpu.scratch[1] = (counts >> 21) & 0x1FFFFF
    return most + compound


@kernel
def reuse_swap_page(cpu: Cpu, page: Page):
    """May a write fault write to this anon page, or must it copy?

    Context: page lock held. With it nobody can split a pmd of the page (K1 fixed: the split takes the page lock), so
    no mapping that the sum could miss moves while it is made; and nobody swaps the page in or out.
    Return: 1 when no subpage has more than one mapping or swap pte. cpu.scratch[0] is the total of both: if that is 1 too,
    the whole page belongs to one vma and may be moved to its anon_vma.
    Linux: mm/swapfile.c reuse_swap_page
    Differs: no device that needs stable pages while it writes (SWP_STABLE_WRITES): a page under writeback is reused, and
    stays in the swap cache.
    """
    bug_on(cpu, not TestFlag(page, PG_locked), "reuse_swap_page: page not locked (value: pfn)", page_to_pfn(page), 0)
    point(cpu, Point.REUSE_TEST)
    count = page_trans_huge_map_swapcount(cpu, page)
    total = cpu.scratch[0] + cpu.scratch[1]
    if count == 1 and PageSwapCache(page) and may_leave_cache(cpu, page, cpu.scratch[1]):
        # The slots' contents are about to be old.
        head = compound_head(page)
        delete_from_swap_cache(cpu, head)
        SetFlag(head, PG_dirty)
    cpu.scratch[0] = total
    return count <= 1


@inline
def may_leave_cache(cpu: Cpu, page: Page, swaps: int):
    """Does nobody need the page's slots but perhaps this very (sub)page's pte, which is being mapped? (3.8)"""
    needed = PageCompound(page) and swaps != page_swapcount(cpu, page)
    return not needed and TestFlag(page, PG_writeback) == 0
