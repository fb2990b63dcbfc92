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
    NR_MM_COUNTERS,
    PAGE_MAPPING_ANON,
    PAGE_TYPE_BUDDY,
    PAGE_TYPE_PCP,
    PAGE_TYPE_RESERVED,
    PAGE_TYPE_TABLE,
)
from concur_thp.mm.page_flags import PG_double_map, PG_head, PG_mlocked, PG_reserved, PG_swapbacked
from concur_thp.mm.vmstat import Stat

RSS_NAMES = {
    MM_FILEPAGES: "MM_FILEPAGES",
    MM_ANONPAGES: "MM_ANONPAGES",
    MM_SWAPENTS: "MM_SWAPENTS",
    MM_SHMEMPAGES: "MM_SHMEMPAGES",
}


def pagevec_entries(facts: Facts) -> Column:
    """How many pagevec entries name each frame. They wait for the next drain and hold references."""
    pvec = facts.percpu["pagevec"]
    slots = pvec["pages"].shape[2]
    valid = np.arange(slots)[None, None, :] < np.clip(pvec["nr"], 0, slots)[:, :, None]
    pfn = pvec["pages"][valid].astype(np.int64)
    return np.bincount(pfn[(pfn >= 0) & (pfn < facts.frames)], minlength=facts.frames)


def expected_references(facts: Facts) -> dict[str, Column]:
    """Who holds references, each as a column over frames; what tails are owed is on their heads."""

    def to_heads(column: Column) -> Column:
        at = np.flatnonzero(column)
        return np.bincount(facts.head_of[at], weights=column[at], minlength=facts.frames).astype(np.int64)

    cache = np.bincount(facts.cached[2], minlength=facts.frames)
    kept = (
        (facts.page_type == PAGE_TYPE_TABLE)
        | (facts.page_type == PAGE_TYPE_RESERVED)
        | facts.has(PG_reserved)
    )
    for pfn in (facts.zero_pfn, facts.huge_zero_pfn):
        if 0 < pfn < facts.frames:
            kept[pfn] = True
    pins = np.zeros(facts.frames, dtype=np.int64)
    for pfn, count in facts.pins.items():
        pins[pfn] += count
    return {
        "pmds": facts.pmd_maps,
        "ptes": to_heads(facts.pte_maps),
        "page cache": to_heads(cache),
        "pagevecs": to_heads(pagevec_entries(facts)),
        "pins": to_heads(pins),
        "own": kept.astype(np.int64),
    }


def law_references(facts: Facts, report: Report) -> None:
    """Q4."""
    parts = expected_references(facts)
    want = sum(parts.values(), start=np.zeros(facts.frames, dtype=np.int64))
    count = facts.refcount
    wrong = (count != want) & ~facts.is_tail

    def describe(pfn: int) -> str:
        who = ", ".join(f"{name} {column[pfn]}" for name, column in parts.items() if column[pfn]) or "nobody"
        return f"pfn {pfn:#x} has _refcount {count[pfn]}, should be {want[pfn]} ({who})"

    report.each(wrong, describe, pfn=np.arange(facts.frames))


def law_mapcount(facts: Facts, report: Report) -> None:
    """Q5."""
    _huge_mapcounts(facts, report)
    small = ~facts.is_tail & ~facts.has(PG_head)
    want = facts.pte_maps - 1
    got = facts.mapcount
    report.each(
        small & (got != want),
        lambda pfn: f"pfn {pfn:#x} has _mapcount {got[pfn]}, {want[pfn] + 1} ptes map it",
        pfn=np.arange(facts.frames),
    )
    stray = np.flatnonzero((facts.pmd_maps > 0) & ~facts.has(PG_head))
    report.each(
        np.ones(len(stray), dtype=bool),
        lambda i: f"pfn {stray[i]:#x} is mapped by a pmd and is no head",
        pfn=stray,
    )
    unowned = np.isin(facts.page_type, (PAGE_TYPE_TABLE, PAGE_TYPE_BUDDY, PAGE_TYPE_PCP, PAGE_TYPE_RESERVED))
    unowned &= facts.pte_maps > 0
    report.each(
        unowned,
        lambda pfn: (
            f"pfn {pfn:#x} is mapped by {facts.pte_maps[pfn]} ptes and has page type {facts.page_type[pfn]}"
        ),
        pfn=np.arange(facts.frames),
    )


def _huge_mapcounts(facts: Facts, report: Report) -> None:
    heads = facts.heads
    rows = facts.tails_of(heads)
    mapped = facts.pmd_maps[heads]
    stored = facts.page["compound_mapcount"][heads + 1].astype(np.int64) + 1
    report.each(
        stored != mapped,
        lambda i: f"head pfn {heads[i]:#x} has compound_mapcount {stored[i] - 1}, {mapped[i]} pmds map it",
        pfn=heads,
    )
    double = double_map(facts, heads)
    anon = (facts.mapping[heads] & PAGE_MAPPING_ANON) != 0
    offset = np.where(anon, double, mapped)
    got = facts.mapcount[rows].astype(np.int64)
    want = facts.pte_maps[rows] - 1 + offset[:, None]
    wrong = got != want

    def describe(i: int) -> str:
        at = int(np.flatnonzero(wrong[i])[0])
        return (
            f"subpage {at} of head pfn {heads[i]:#x} has _mapcount {got[i, at]}, should be {want[i, at]} "
            f"({facts.pte_maps[rows[i, at]]} ptes, {mapped[i]} pmds, DoubleMap {double[i]}); "
            f"{int(wrong[i].sum())} subpages are wrong"
        )

    report.each(wrong.any(axis=1), describe, pfn=heads)
    alone = anon & (double != 0) & (mapped == 0)
    report.each(alone, lambda i: f"head pfn {heads[i]:#x} has DoubleMap set, but no pmd maps it", pfn=heads)


def double_map(facts: Facts, heads: Column) -> Column:
    """PageDoubleMap of each head, as 0 or 1."""
    found: Column = (facts.flags[heads + 1] >> PG_double_map) & 1
    return found


def law_rss(facts: Facts, report: Report) -> None:
    """Q9."""
    mms = facts.live_mms
    size = facts.config.mms + 1
    want = np.zeros((size, NR_MM_COUNTERS), dtype=np.int64)
    for entries, weight in ((facts.pte, 1), (facts.thp, facts.nr)):
        np.add.at(want, (entries.mm, _kind(facts, entries.pfn)), weight)
    got = facts.mm["rss"][mms]
    for kind, name in RSS_NAMES.items():
        report.each(
            got[:, kind] != want[mms, kind],
            lambda i, k=kind, n=name: f"mm {mms[i]}: {n} is {got[i, k]}, its entries say {want[mms[i], k]}",  # type: ignore[misc]
            mm=mms,
        )


def _kind(facts: Facts, pfn: Column) -> Column:
    """The MM_* counter of each mapped page: anon, else by swapbacked."""
    head = facts.head_of[pfn]
    anon = (facts.mapping[head] & PAGE_MAPPING_ANON) != 0
    shmem = (facts.flags[head] >> PG_swapbacked) & 1 != 0
    return np.where(anon, MM_ANONPAGES, np.where(shmem, MM_SHMEMPAGES, MM_FILEPAGES))


def law_stats(facts: Facts, report: Report) -> None:
    """Q16, and the other levels of vmstat."""
    got = view(cpus, NR_CPUS)["vmstat"].sum(axis=0)
    heads = facts.heads[facts.heads != facts.huge_zero_pfn]
    anon_head = (facts.mapping[heads] & PAGE_MAPPING_ANON) != 0
    compound = facts.page["compound_mapcount"][heads + 1] >= 0
    small = (facts.pte_maps > 0) & ~facts.is_tail & ~facts.has(PG_head)
    anon = (facts.mapping & PAGE_MAPPING_ANON) != 0
    subpages = (facts.pte_maps[facts.tails_of(heads[anon_head])] > 0).sum(axis=1)
    whole = facts.pmd_maps[heads[anon_head]] > 0
    mlocked = np.flatnonzero(facts.has(PG_mlocked))
    want = {
        Stat.NR_ANON_THPS: int((anon_head & compound).sum()),
        Stat.NR_ANON_MAPPED: int((small & anon).sum()) + int(np.where(whole, facts.nr, subpages).sum()),
        Stat.NR_FILE_MAPPED: int((small & ~anon).sum()),
        Stat.NR_FILE_PAGES: len(facts.cached[2]),
        Stat.NR_SHMEM_THPS: 0,
        Stat.NR_SHMEM_PMDMAPPED: 0,
        Stat.NR_PAGETABLE: int((facts.page_type == PAGE_TYPE_TABLE).sum()),
        Stat.NR_MLOCK: int(np.where(facts.has(PG_head)[mlocked], facts.nr, 1).sum()),
    }
    for stat, count in want.items():
        report.check(int(got[stat]) == count, f"{stat.name} is {int(got[stat])}, should be {count}")
    isolated = int(facts.pgdat["isolated"])
    report.check(isolated == 0, f"NR_ISOLATED is {isolated} with nobody at work")


LAWS = (
    Law(
        "Q4",
        "references",
        "_refcount is the number of those who hold references: entries, cache, pagevecs, pins",
        law_references,
    ),
    Law("Q5", "mapcounts", "_mapcount and compound_mapcount say how many entries map the page", law_mapcount),
    Law("Q9", "rss", "the rss counters are what the page tables hold", law_rss),
    Law("Q16", "statistics", "the node's levels are what there is", law_stats),
)
