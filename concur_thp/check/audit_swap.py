"""Laws about the swap device: who holds each slot, the swap cache, the clusters (Q10)."""

import numpy as np

from concur_thp.check.facts import Facts
from concur_thp.check.report import Law, Report
from concur_thp.check.views import Column, chain, view
from concur_thp.mm.page_flags import PG_head, PG_swapbacked, PG_swapcache, PG_writeback
from concur_thp.mm.pgtable import _PAGE_SWAP
from concur_thp.mm.swap_map import (
    CLUSTER_FLAG_FREE,
    CLUSTER_FLAG_HUGE,
    SWAP_COUNT,
    SWAP_HAS_CACHE,
    swap_clusters,
    swap_info,
    swap_map,
)
from concur_thp.mm.swap_state import swapper_space


def law_swap(facts: Facts, report: Report) -> None:
    """Q10."""
    pmd, pte = facts.walked.pmd, facts.swap_pte
    report.each(pmd.val & _PAGE_SWAP != 0, "pmd {val:#x} at {addr:#x} of mm {mm} is a swap entry", val=pmd.val, addr=pmd.addr,
                mm=pmd.mm)
    slots = facts.config.swap_slots
    outside = (pte.pfn <= 0) | (pte.pfn >= slots)
    report.each(outside, "swap entry {val:#x} at {addr:#x} of mm {mm}: there is no slot {slot}", val=pte.val, addr=pte.addr,
                mm=pte.mm, slot=pte.pfn)
    if slots == 0:
        return
    count = view(swap_map, slots)["count"].astype(np.int64)
    _slots(facts, report, count, pte.pfn[~outside])
    _cache(facts, report)
    _clusters(facts, report, count)


def _slots(facts: Facts, report: Report, count: Column, held: Column) -> None:
    """Each slot's word: the ptes that hold it, and whether the cache does."""
    slots = np.arange(len(count))
    ptes = np.bincount(held, minlength=len(count))
    cached = np.bincount(facts.swap_cached[0], minlength=len(count)) > 0
    said = count & SWAP_COUNT
    has = count & SWAP_HAS_CACHE != 0
    report.each((said != ptes)[1:], "slot {slot}: its count is {said}, {ptes} swap ptes hold it", slot=slots[1:], said=said[1:],
                ptes=ptes[1:])
    report.each((has != cached)[1:], "slot {slot}: SWAP_HAS_CACHE is {has:d}, in the swap cache: {cached:d}", slot=slots[1:],
                has=has[1:], cached=cached[1:])
    used, said_used = int((count[1:] != 0).sum()), int(view(swap_info)[0]["inuse_pages"])
    report.check(used == said_used, f"{used} slots are in use, inuse_pages is {said_used}")


def _cache(facts: Facts, report: Report) -> None:
    """A page of the swap cache knows its slots, and what looks like one is one."""
    entry, pfn = facts.swap_cached
    head = facts.head_of[pfn]
    private = facts.page["private"]
    marked = (facts.flags[head] >> PG_swapcache) & (facts.flags[head] >> PG_swapbacked) & 1 != 0
    report.each(private[pfn] != entry, "slot {slot} of the swap cache has pfn {pfn:#x}, whose private is {private}",
                slot=entry, pfn=pfn, private=private[pfn])
    report.each(~marked, "slot {slot} of the swap cache has pfn {pfn:#x}, whose flags deny it", slot=entry, pfn=pfn)
    claims = np.flatnonzero(facts.has(PG_swapcache) & (facts.refcount > 0))
    report.each(~np.isin(claims, pfn), "pfn {pfn:#x} has PG_swapcache and no slot of the swap cache has it", pfn=claims)
    report.each(facts.has(PG_writeback), "pfn {pfn:#x} is under writeback", pfn=np.arange(facts.frames))
    said = int(view(swapper_space)[0]["nrpages"])
    report.check(said == len(entry), f"the swap cache has {len(entry)} filled slots, nrpages is {said}")


def _clusters(facts: Facts, report: Report, count: Column) -> None:
    """Clusters: slots in use, the free list, and huge ones as a whole one THP's."""
    nr = facts.nr
    number = len(count) // nr
    rows = view(swap_clusters, number)
    used = (count.reshape(number, nr) != 0).sum(axis=1)
    which = np.arange(number)
    report.each(rows["count"] != used, "cluster {cluster}: {used} slots in use, it says {said}", cluster=which, used=used,
                said=rows["count"])
    head = int(view(swap_info)[0]["free_clusters_head"])
    listed, wrong = chain(rows["next"], head, number)
    if wrong:
        report.broken(f"the list of free clusters: {wrong}")
    free = rows["flags"] & CLUSTER_FLAG_FREE != 0
    on_list = np.isin(which, listed)
    report.each(free != on_list, "cluster {cluster}: free is {free:d}, on the list: {listed:d}", cluster=which, free=free,
                listed=on_list)
    report.each(free != (used == 0), "cluster {cluster}: free is {free:d} with {used} slots in use", cluster=which, free=free,
                used=used)
    _huge_clusters(facts, report, rows["flags"] & CLUSTER_FLAG_HUGE != 0)


def _huge_clusters(facts: Facts, report: Report, huge: Column) -> None:
    """A cluster is flagged huge if and only if one THP in the swap cache owns it."""
    entry, pfn = facts.swap_cached
    owned = np.zeros(len(huge), dtype=bool)
    thp = facts.has(PG_head)[facts.head_of[pfn]]
    aligned = (entry & (facts.nr - 1)) == (pfn - facts.head_of[pfn])
    owned[(entry // facts.nr)[thp]] = True
    report.each(thp & ~aligned, "pfn {pfn:#x}, part of a THP, is in slot {slot} of the swap cache: not its place in a cluster",
                pfn=pfn, slot=entry)
    report.each(huge != owned, "cluster {cluster}: huge is {huge:d}, a THP in the swap cache owns it: {owned:d}",
                cluster=np.arange(len(huge)), huge=huge, owned=owned)


LAWS = (Law("Q10", "swap", "each slot is held by as many ptes as it says, and by the cache if it has a page there", law_swap),)
