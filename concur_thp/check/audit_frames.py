"""Laws about frames: each is in one place, free ones are clean and merged, tails are tails (Q1, Q2, Q3, Q20)."""

import numpy as np

from concur_thp.arch.system import system
from concur_thp.check.facts import Facts
from concur_thp.check.free_lists import FreeLists, free_counts, free_lists
from concur_thp.check.report import Law, Report
from concur_thp.check.views import Column
from concur_thp.config import MAX_ORDER
from concur_thp.mm.buddy import ZONE_MOVABLE
from concur_thp.mm.mm_types import (
    NIL,
    NR_ZONES,
    PAGE_TYPE_BUDDY,
    PAGE_TYPE_NONE,
    PAGE_TYPE_PCP,
    PAGE_TYPE_RESERVED,
    PAGE_TYPE_TABLE,
    TAIL_MAPPING,
    zones,
)
from concur_thp.mm.page_flags import PG_head, PG_reserved

STATES = ("in a free block", "on a pcp list", "small page in use", "head", "tail", "page table", "reserved")


def states(facts: Facts) -> Column:
    """One row for each of STATES: how often each frame is in it."""
    blocks, pcp = free_counts(facts)
    head, tail, kind = facts.has(PG_head), facts.is_tail, facts.page_type
    reserved = facts.has(PG_reserved) | (kind == PAGE_TYPE_RESERVED)
    table = kind == PAGE_TYPE_TABLE
    small = (facts.refcount != 0) & ~head & ~tail & ~table & ~reserved
    return np.stack([blocks, pcp, small, head, tail, table, reserved]).astype(np.int8)


def law_frames(facts: Facts, report: Report) -> None:
    """Q1."""
    table = states(facts)
    total = table.sum(axis=0)
    report.checks += facts.frames
    for pfn in np.flatnonzero(total != 1):
        places = [STATES[n] for n in np.flatnonzero(table[:, pfn])]
        twice = " (more than once)" if (table[:, pfn] > 1).any() else ""
        what = " and ".join(places) + twice if places else "in no state: nobody has it and it is not free"
        report.broken("pfn {pfn:#x} is {what}", pfn=int(pfn), what=what)
    # R4: what cannot be moved has no business in ZONE_MOVABLE.
    fixed = np.flatnonzero(facts.page_type == PAGE_TYPE_TABLE)
    report.each(fixed >= zones[ZONE_MOVABLE].start_pfn, "page table pfn {pfn:#x} is in ZONE_MOVABLE", pfn=fixed)


def law_buddy(facts: Facts, report: Report) -> None:
    """Q2."""
    lists = free_lists(facts)
    for wrong in lists.errors:
        report.broken(wrong)
    _blocks(facts, report, lists)
    _unmerged(facts, report, lists)
    _free_pages_clean(facts, report, lists)
    _free_counts(report, lists)
    marked = np.flatnonzero(facts.page_type == PAGE_TYPE_BUDDY)
    on_list = np.zeros(facts.frames, dtype=bool)
    on_list[lists.pfn] = True
    report.each(~on_list[marked], "pfn {pfn:#x} is PageBuddy but on no free list", pfn=marked)


def _blocks(facts: Facts, report: Report, lists: FreeLists) -> None:
    """Each block: aligned, inside its zone, PageBuddy of its order, of the type of its list."""
    pfn, order, zone = lists.pfn, lists.order, lists.owner
    private, kind, listed_as = facts.page["private"][pfn], facts.page_type[pfn], facts.page["_free_type"][pfn]
    good = (pfn & ((1 << order) - 1)) == 0
    good &= (kind == PAGE_TYPE_BUDDY) & (private == order) & (listed_as == lists.kind)
    good &= facts.page["free_cpu"][pfn] == lists.number
    good &= (pfn >= lists.zone["start_pfn"][zone]) & (pfn + (1 << order) <= lists.zone["end_pfn"][zone])
    report.each(~good, "free block pfn {pfn:#x} on the list of order {order}, zone {zone}, type {kind}, cpu {cpu}: page "
                "type {is_a}, private {private}, its type {listed_as}, or of another cpu, or not aligned, or outside the zone",
                pfn=pfn, order=order, zone=zone, kind=lists.kind, cpu=lists.number - 1, is_a=kind, private=private,
                listed_as=listed_as)


def _unmerged(facts: Facts, report: Report, lists: FreeLists) -> None:
    """No two buddies of one order are both free."""
    order_of = np.full(facts.frames, -1, dtype=np.int64)
    order_of[lists.pfn] = lists.order
    lower = (lists.order < int(MAX_ORDER) - 1) & (lists.pfn & (1 << lists.order) == 0)
    buddy = lists.pfn + (1 << lists.order)
    same_zone = buddy < lists.zone["end_pfn"][lists.owner]
    free = order_of[np.minimum(buddy, facts.frames - 1)] == lists.order
    report.each(lower & same_zone & free, "free buddies pfn {pfn:#x} and {buddy:#x} of order {order} are not merged",
                pfn=lists.pfn, buddy=buddy, order=lists.order)


def _free_pages_clean(facts: Facts, report: Report, lists: FreeLists) -> None:
    """A free page carries nothing of its last life."""
    blocks, pcp = free_counts(facts)
    free = (blocks > 0) | (pcp > 0)
    kind = np.full(facts.frames, PAGE_TYPE_NONE)
    kind[lists.pfn] = PAGE_TYPE_BUDDY
    kind[pcp > 0] = PAGE_TYPE_PCP
    columns = (("_refcount", facts.refcount, 0), ("_mapcount", facts.mapcount, -1), ("mapping", facts.mapping, 0),
               ("flags", facts.flags, 0), ("compound_head", facts.compound_head, 0),
               ("page_type", facts.page_type, kind))
    pfn = np.arange(facts.frames)
    for name, values, want in columns:
        report.each(free & (values != want), "free pfn {pfn:#x} has {name} {value:#x}",
                    pfn=pfn, name=name, value=values)


def _free_counts(report: Report, lists: FreeLists) -> None:
    """nr_free of each area, nr_free_pages of each zone, the counts of the pcp lists."""
    for zone in range(NR_ZONES):
        mine = lists.order[lists.owner == zone]
        pages, word = int((1 << mine).sum()), int(lists.zone["nr_free_pages"][zone])
        report.check(pages == word, f"zone {zone}: {pages} pages on its free lists, nr_free_pages {word}")
        for order in range(int(MAX_ORDER)):
            blocks, word = int((mine == order).sum()), int(lists.areas["nr_free"][zone, :, order].sum())
            report.check(blocks == word, f"zone {zone} order {order}: {blocks} free blocks, nr_free {word}")
        for number, kind in np.argwhere(lists.held[zone]).tolist():
            report.check(lists.zone["holders"][zone, kind] >> number & 1 == 1,
                         f"zone {zone}: cpu {number - 1} has free blocks of type {kind}, and `holders` does not say so")
    for cpu, number, length, count in lists.pcp_counts:
        report.check(length == count, "pcp list {number} of cpu {cpu}: {length} pages, count {count}",
                     cpu=cpu, number=number, length=length, count=count)


def law_tails(facts: Facts, report: Report) -> None:
    """Q3 and I12."""
    tails = np.flatnonzero(facts.is_tail)
    count = facts.refcount[tails]
    report.each(count != 0, "tail pfn {pfn:#x} has _refcount {count}", pfn=tails, count=count)
    owner = facts.head_of[tails]
    report.each(~facts.has(PG_head)[owner], "tail pfn {pfn:#x} points to {owner:#x}, which is no head",
                pfn=tails, owner=owner)
    heads = facts.heads
    rows = facts.subpages(heads)
    right = facts.compound_head[rows[:, 1:]] == ((heads << 1) | 1)[:, None]
    order = facts.page["compound_order"][heads + 1]
    # The third page has the deferred split link in its place.
    poisoned = facts.mapping[np.delete(rows, [0, 2], axis=1)] == TAIL_MAPPING
    for bad, text in (
        (~right.all(axis=1), "head pfn {pfn:#x}: not all tails point to it"),
        (heads & (facts.nr - 1) != 0, "head pfn {pfn:#x} is not aligned"),
        (order != facts.order, "head pfn {pfn:#x} has compound_order {order}"),
        (~poisoned.all(axis=1), "head pfn {pfn:#x}: a tail's mapping is not TAIL_MAPPING"),
        (facts.refcount[heads] <= 0, "head pfn {pfn:#x} has _refcount {count}"),
    ):
        report.each(bad, text, pfn=heads, order=order, count=facts.refcount[heads])


def law_leak(facts: Facts, report: Report) -> None:
    """Q20: with `expect_empty`, every frame that is nobody's by design is free, and blocks have merged."""
    report.check(system.nr_frames == facts.frames, f"nr_frames is {system.nr_frames}, the machine has {facts.frames}")
    if not facts.expect_empty:
        return
    blocks, pcp = free_counts(facts)
    kept = facts.has(PG_reserved) | (facts.page_type == PAGE_TYPE_RESERVED)
    kept[facts.zero_pfn] = True
    if facts.huge_zero_pfn != NIL:
        kept[facts.huge_zero_pfn : facts.huge_zero_pfn + facts.nr] = True
    pfns = np.arange(facts.frames)
    report.each((blocks == 0) & (pcp == 0) & ~kept, "pfn {pfn:#x} is not free on an empty machine (_refcount {count})",
                pfn=pfns, count=facts.refcount)
    _all_merged(facts, report, pfns[kept | (pcp > 0)])


def _all_merged(facts: Facts, report: Report, exempt: Column) -> None:
    """Every block of the largest order without `exempt` frames is on its free list as a whole."""
    lists = free_lists(facts)
    top = int(MAX_ORDER) - 1
    first = np.arange(0, facts.frames, 1 << top)
    zone_start, zone_end = lists.zone["start_pfn"], lists.zone["end_pfn"]
    inside = (first[:, None] >= zone_start) & (first[:, None] + (1 << top) <= zone_end)
    whole = lists.pfn[lists.order == top]
    bad = inside.any(axis=1) & ~np.isin(first, exempt >> top << top) & ~np.isin(first, whole)
    report.each(bad, "block pfn {pfn:#x} has not merged to order {order}", pfn=first, order=top)


LAWS = (
    Law("Q1", "frames", "every frame is in exactly one state", law_frames),
    Law("Q2", "buddy", "free blocks are aligned, merged, counted, and carry nothing of their last life", law_buddy),
    Law("Q3", "tails", "tails have no references and belong to the head in front of them", law_tails),
    Law("Q20", "leak", "when everything has exited every frame is free and merged", law_leak),
)
