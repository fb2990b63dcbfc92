"""Laws about counts: references, mapcounts, the resident set, statistics (Q4, Q5, Q9, Q16)."""

import numpy as np

from concur_thp.arch.cpu import cpus
from concur_thp.check.facts import Facts
from concur_thp.check.report import Law, Report
from concur_thp.check.views import Column, view
from concur_thp.config import NR_CPUS
from concur_thp.mm.mm_types import (
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_SHMEMPAGES,
    MM_SWAPENTS,
    NIL,
    NR_MM_COUNTERS,
    PAGE_MAPPING_ANON,
    PAGE_TYPE_NONE,
    PAGE_TYPE_RESERVED,
    PAGE_TYPE_TABLE,
)
from concur_thp.mm.page_flags import PG_double_map, PG_head, PG_hwpoison, PG_mlocked, PG_reserved, PG_swapbacked
from concur_thp.mm.vmstat import Stat

RSS_NAMES = {MM_FILEPAGES: "MM_FILEPAGES", MM_ANONPAGES: "MM_ANONPAGES", MM_SWAPENTS: "MM_SWAPENTS",
             MM_SHMEMPAGES: "MM_SHMEMPAGES"}


def pagevec_entries(facts: Facts) -> Column:
    """How many pagevec entries name each frame. They wait for the next drain and hold references."""
    pvec = facts.percpu["pagevec"]
    slots = pvec["pages"].shape[2]
    valid = np.arange(slots)[None, None, :] < np.clip(pvec["nr"], 0, slots)[:, :, None]
    pfn = pvec["pages"][valid].astype(np.int64)
    return np.bincount(pfn[(pfn >= 0) & (pfn < facts.frames)], minlength=facts.frames)


def expected_references(facts: Facts) -> dict[str, Column]:
    """Who holds references, each as a column over frames; what is owed to tails stands on their heads."""
    def to_heads(counts: Column) -> Column:
        at = np.flatnonzero(counts)
        return np.bincount(facts.head_of[at], weights=counts[at], minlength=facts.frames).astype(np.int64)

    kept = (facts.page_type == PAGE_TYPE_TABLE) | (facts.page_type == PAGE_TYPE_RESERVED) | facts.has(PG_reserved)
    for pfn in (facts.zero_pfn, facts.huge_zero_pfn):
        if 0 <= pfn < facts.frames:
            kept[pfn] = True
    pins = np.zeros(facts.frames, dtype=np.int64)
    for pfn, count in facts.pins.items():
        pins[pfn] += count
    return {
        "pmds": facts.pmd_maps,
        "ptes": to_heads(facts.pte_maps),
        "page cache": to_heads(np.bincount(facts.cached[2], minlength=facts.frames)),
        "swap cache": to_heads(np.bincount(facts.swap_cached[1], minlength=facts.frames)),
        "pagevecs": to_heads(pagevec_entries(facts)),
        "pins": to_heads(pins),
        "memory failure": facts.has(PG_hwpoison).astype(np.int64),
        "own": kept.astype(np.int64),
    }


def law_references(facts: Facts, report: Report) -> None:
    """Q4."""
    parts = expected_references(facts)
    want = sum(parts.values(), start=np.zeros(facts.frames, dtype=np.int64))
    count = facts.refcount
    report.checks += facts.frames
    for pfn in np.flatnonzero((count != want) & ~facts.is_tail):
        who = ", ".join(f"{name} {column[pfn]}" for name, column in parts.items() if column[pfn]) or "nobody"
        report.broken("pfn {pfn:#x} has _refcount {count}, should be {want} ({who})",
                      pfn=int(pfn), count=count[pfn], want=want[pfn], who=who)


def law_mapcount(facts: Facts, report: Report) -> None:
    """Q5."""
    _huge_mapcounts(facts, report)
    pfns = np.arange(facts.frames)
    small = ~facts.is_tail & ~facts.has(PG_head)
    maps, got = facts.pte_maps, facts.mapcount
    report.each(small & (got != maps - 1), "pfn {pfn:#x} has _mapcount {got}, {maps} ptes map it",
                pfn=pfns, got=got, maps=maps)
    stray = (facts.pmd_maps > 0) & ~facts.has(PG_head)
    report.each(stray, "pfn {pfn:#x} is mapped by a huge pmd and is no head", pfn=pfns)
    typed = (maps > 0) & (facts.page_type != PAGE_TYPE_NONE)
    report.each(typed, "pfn {pfn:#x} is mapped by {maps} ptes and has page type {kind}",
                pfn=pfns, maps=maps, kind=facts.page_type)


def _huge_mapcounts(facts: Facts, report: Report) -> None:
    heads = facts.heads
    rows = facts.subpages(heads)
    pmds = facts.pmd_maps[heads]
    stored = facts.page["compound_mapcount"][heads + 1]
    report.each(stored != pmds - 1, "head pfn {pfn:#x} has compound_mapcount {got}, {pmds} pmds map it",
                pfn=heads, got=stored, pmds=pmds)
    double = (facts.flags[heads + 1] >> PG_double_map) & 1
    anon = (facts.mapping[heads] & PAGE_MAPPING_ANON) != 0
    ptes, got = facts.pte_maps[rows], facts.mapcount[rows]
    wrong = got != ptes - 1 + np.where(anon, double, pmds)[:, None]
    first = (np.arange(len(heads)), wrong.argmax(axis=1))
    report.each(wrong.any(axis=1), "subpage {i} of head pfn {pfn:#x} has _mapcount {got} with {ptes} ptes, {pmds} "
                "pmds, DoubleMap {double}; {many} subpages are wrong", pfn=heads, i=first[1], got=got[first],
                ptes=ptes[first], pmds=pmds, double=double, many=wrong.sum(axis=1))
    alone = anon & (double != 0) & (pmds == 0)
    report.each(alone, "head pfn {pfn:#x} has DoubleMap set, but no pmd maps it", pfn=heads)


def law_rss(facts: Facts, report: Report) -> None:
    """Q9."""
    mms = facts.live_mms
    want = np.zeros((facts.config.mms + 1, NR_MM_COUNTERS), dtype=np.int64)
    for entries, weight in ((facts.pte, 1), (facts.thp, facts.nr)):
        np.add.at(want, (entries.mm, _rss_kind(facts, entries.pfn)), weight)
    np.add.at(want[:, MM_SWAPENTS], facts.swap_pte.mm, 1)
    got = facts.mm["rss"][mms]
    for kind, name in RSS_NAMES.items():
        report.each(got[:, kind] != want[mms, kind], "mm {mm}: {name} is {got}, its entries say {want}",
                    mm=mms, name=name, got=got[:, kind], want=want[mms, kind])


def _rss_kind(facts: Facts, pfn: Column) -> Column:
    """The MM_* counter of each mapped page: anon, else by swapbacked."""
    head = facts.head_of[pfn]
    anon = (facts.mapping[head] & PAGE_MAPPING_ANON) != 0
    shmem = (facts.flags[head] >> PG_swapbacked) & 1 != 0
    return np.where(anon, MM_ANONPAGES, np.where(shmem, MM_SHMEMPAGES, MM_FILEPAGES))


def law_stats(facts: Facts, report: Report) -> None:
    """Q16, and the other levels of vmstat."""
    got = view(cpus, NR_CPUS)["vmstat"].sum(axis=0)
    heads = facts.heads[facts.heads != facts.huge_zero_pfn]
    thps = heads[(facts.mapping[heads] & PAGE_MAPPING_ANON) != 0]
    pieces = (facts.pte_maps[facts.subpages(thps)] > 0).sum(axis=1)
    small = (facts.pte_maps > 0) & ~facts.is_tail & ~facts.has(PG_head)
    anon = (facts.mapping & PAGE_MAPPING_ANON) != 0
    mlocked = np.flatnonzero(facts.has(PG_mlocked))
    file_thps = heads[(facts.mapping[heads] & PAGE_MAPPING_ANON) == 0]
    file_maps = np.where(facts.pmd_maps[file_thps] > 0, facts.nr, (facts.pte_maps[facts.subpages(file_thps)] > 0).sum(axis=1))
    want = {
        Stat.NR_ANON_THPS: (facts.page["compound_mapcount"][thps + 1] >= 0).sum(),
        Stat.NR_ANON_MAPPED: (small & anon).sum() + np.where(facts.pmd_maps[thps] > 0, facts.nr, pieces).sum(),
        Stat.NR_FILE_MAPPED: (small & ~anon).sum() + file_maps.sum(),
        Stat.NR_FILE_PAGES: len(facts.cached[2]) + len(facts.swap_cached[1]),
        Stat.NR_SHMEM_THPS: np.isin(file_thps, facts.cached[2]).sum(),
        Stat.NR_SHMEM_PMDMAPPED: (facts.pmd_maps[file_thps] > 0).sum(),
        Stat.NR_PAGETABLE: (facts.page_type == PAGE_TYPE_TABLE).sum(),
        Stat.NR_KERNEL_PAGES: 0 if facts.huge_zero_pfn == NIL else facts.nr,
        Stat.NR_MLOCK: np.where(facts.has(PG_head)[mlocked], facts.nr, 1).sum(),
    }
    # K10: a THP mapped by pmds and ptes comes back from a migration, failed or not, without PG_double_map; the ptes are
    # then counted on top of its N, and some of that stays for good.
    if got[Stat.thp_migration_success] + got[Stat.thp_migration_fail] > 0:
        mapped = want.pop(Stat.NR_ANON_MAPPED)
        told = int(got[Stat.NR_ANON_MAPPED])
        report.check(told >= mapped, f"NR_ANON_MAPPED is {told}, should be {mapped} or more")
    for stat, count in want.items():
        report.check(int(got[stat]) == int(count), f"{stat.name} is {got[stat]}, should be {count}")
    isolated = int(facts.pgdat["isolated"])
    report.check(isolated == 0, f"NR_ISOLATED is {isolated} with nobody at work")


LAWS = (
    Law("Q4", "references", "_refcount is the number of those who hold references: entries, caches, pagevecs, pins",
        law_references),
    Law("Q5", "mapcounts", "_mapcount and compound_mapcount say how many entries map the page", law_mapcount),
    Law("Q9", "rss", "the rss counters are what the page tables hold", law_rss),
    Law("Q16", "statistics", "the node's levels are what there is", law_stats),
)
