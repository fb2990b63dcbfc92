"""Laws about frames: each is in exactly one place, free ones are clean and merged, tails are tails (Q1, Q2, Q3, Q20)."""

import functools

import numpy as np

from concur_thp.check.facts import Facts
from concur_thp.check.report import Law, Report
from concur_thp.check.views import Column, chain, column, view
from concur_thp.config import MAX_ORDER
from concur_thp.mm.mm_types import (
    MIGRATE_TYPES,
    NIL,
    NR_ZONES,
    PAGE_TYPE_BUDDY,
    PAGE_TYPE_NONE,
    PAGE_TYPE_PCP,
    PAGE_TYPE_RESERVED,
    PAGE_TYPE_TABLE,
    TAIL_MAPPING,
    mm_globals,
    zones,
)
from concur_thp.mm.page_flags import PG_head, PG_reserved

STATES = ("in a free block", "on a pcp list", "small page in use", "head", "tail", "page table", "reserved")


class FreeLists:
    """The buddy and pcp lists of a machine, followed once."""

    def __init__(self, facts: Facts):
        self.errors: list[str] = []
        self.zone = view(zones, NR_ZONES)
        pfns, orders, owners, types = [], [], [], []
        for zone in range(NR_ZONES):
            for order in range(int(MAX_ORDER)):
                for kind in range(MIGRATE_TYPES):
                    head = int(self.zone["free_area"]["head"][zone, order, kind])
                    found = self._follow(facts, head, f"free list zone {zone} order {order} type {kind}")
                    pfns += found
                    orders += [order] * len(found)
                    owners += [zone] * len(found)
                    types += [kind] * len(found)
        self.pfn, self.order = np.array(pfns, dtype=np.int64), np.array(orders, dtype=np.int64)
        self.owner, self.kind = np.array(owners, dtype=np.int64), np.array(types, dtype=np.int64)
        self.pcp, self.pcp_count = self._pcp(facts)

    def _follow(self, facts: Facts, head: int, what: str) -> list[int]:
        if head == 0 and not self._is_used():
            return []  # zones without an allocator: a machine whose memory is not set up
        found, wrong = chain(facts.lru_next, head, facts.frames, NIL)
        if wrong:
            self.errors.append(f"{what}: {wrong}")
        return found

    @functools.cache  # noqa: B019 - lives as long as one audit
    def _is_used(self) -> bool:
        return bool((self.zone["end_pfn"] > 0).any())

    def _pcp(self, facts: Facts) -> tuple[Column, list[tuple[int, int, int, int]]]:
        """Frames on pcp lists, and for each list (cpu, list, length, count word)."""
        pfns: list[int] = []
        counts = []
        if not self._is_used():
            return np.zeros(0, np.int64), []
        for cpu in range(facts.config.cpus):
            heads = facts.percpu["pcp"]["head"][cpu].tolist()
            words = facts.percpu["pcp"]["count"][cpu].tolist()
            for number, (head, count) in enumerate(zip(heads, words, strict=True)):
                found = self._follow(facts, head, f"pcp list {number} of cpu {cpu}")
                pfns += found
                counts.append((cpu, number, len(found), count))
        return np.array(pfns, dtype=np.int64), counts


def free_lists(facts: Facts) -> FreeLists:
    """The free lists, followed once for each audit."""
    found = vars(facts).get("free_lists")
    if found is None:
        found = vars(facts)["free_lists"] = FreeLists(facts)
    assert isinstance(found, FreeLists)
    return found


def free_mask(facts: Facts) -> tuple[Column, Column]:
    """How many free blocks, and how many pcp entries, each frame is in."""
    lists = free_lists(facts)
    edges = np.zeros(facts.frames + 1, dtype=np.int64)
    np.add.at(edges, lists.pfn, 1)
    np.add.at(edges, np.minimum(lists.pfn + (1 << lists.order), facts.frames), -1)
    return np.cumsum(edges)[:-1], np.bincount(lists.pcp, minlength=facts.frames)


def states(facts: Facts) -> Column:
    """One row for each of STATES: how often each frame is in it."""
    blocks, pcp = free_mask(facts)
    head, tail, kind = facts.has(PG_head), facts.is_tail, facts.page_type
    reserved = facts.has(PG_reserved) | (kind == PAGE_TYPE_RESERVED)
    table = kind == PAGE_TYPE_TABLE
    small = (facts.refcount != 0) & ~head & ~tail & ~table & ~reserved
    return np.stack([blocks, pcp, small, head, tail, table, reserved]).astype(np.int64)


def law_frames(facts: Facts, report: Report) -> None:
    """Q1. Also the one half of Q20: no frame is lost."""
    table = states(facts)
    total = table.sum(axis=0)

    def describe(pfn: int) -> str:
        at = [STATES[n] for n in np.flatnonzero(table[:, pfn])]
        twice = " (more than once)" if (table[:, pfn] > 1).any() else ""
        return f"pfn {pfn:#x} is {' and '.join(at) + twice if at else 'in no state: nobody has it and it is not free'}"

    report.each(total != 1, describe, pfn=np.arange(facts.frames))


def law_buddy(facts: Facts, report: Report) -> None:
    """Q2."""
    lists = free_lists(facts)
    for wrong in lists.errors:
        report.broken(wrong)
    _blocks(facts, report, lists)
    _unmerged(facts, report, lists)
    _free_pages_clean(facts, report, lists)
    _free_counts(report, lists)
    lost = np.flatnonzero(facts.page_type == PAGE_TYPE_BUDDY)
    on_list = np.zeros(facts.frames, dtype=bool)
    on_list[lists.pfn] = True
    report.each(~on_list[lost], lambda i: f"pfn {lost[i]:#x} is PageBuddy but on no free list", pfn=lost)


def _blocks(facts: Facts, report: Report, lists: FreeLists) -> None:
    """Each block: aligned, inside its zone, PageBuddy of its order, of the type of its list."""
    pfn, order, zone = lists.pfn, lists.order, lists.owner
    private = facts.page["private"][pfn]
    good = (pfn & ((1 << order) - 1)) == 0
    good &= (facts.page_type[pfn] == PAGE_TYPE_BUDDY) & (private == order)
    good &= (pfn >= lists.zone["start_pfn"][zone]) & (pfn + (1 << order) <= lists.zone["end_pfn"][zone])
    good &= facts.page["_free_type"][pfn] == lists.kind

    def describe(i: int) -> str:
        return (f"free block pfn {pfn[i]:#x} on the list of order {order[i]}, zone {zone[i]}, type {lists.kind[i]}: "
                f"page type {facts.page_type[pfn[i]]}, private {private[i]}, "
                f"its type {facts.page['_free_type'][pfn[i]]}, or not aligned, or outside the zone")

    report.each(~good, describe, pfn=pfn)


def _unmerged(facts: Facts, report: Report, lists: FreeLists) -> None:
    """No two buddies of one order are both free."""
    order_of = np.full(facts.frames, -1, dtype=np.int64)
    order_of[lists.pfn] = lists.order
    lower = (lists.order < int(MAX_ORDER) - 1) & (lists.pfn & (1 << lists.order) == 0)
    buddy = lists.pfn + (1 << lists.order)
    same_zone = buddy < lists.zone["end_pfn"][lists.owner]
    free = order_of[np.minimum(buddy, facts.frames - 1)] == lists.order
    report.each(lower & same_zone & free,
                lambda i: f"free buddies pfn {lists.pfn[i]:#x} and {buddy[i]:#x} of order {lists.order[i]} are not merged",
                pfn=lists.pfn)


def _free_pages_clean(facts: Facts, report: Report, lists: FreeLists) -> None:
    """A free page carries nothing of its last life."""
    blocks, pcp = free_mask(facts)
    pfn = np.flatnonzero((blocks > 0) | (pcp > 0))
    first = np.zeros(facts.frames, dtype=bool)
    first[lists.pfn] = True
    kind = np.where(pcp[pfn] > 0, PAGE_TYPE_PCP, np.where(first[pfn], PAGE_TYPE_BUDDY, PAGE_TYPE_NONE))
    columns = (
        ("_refcount", facts.refcount[pfn], 0), ("_mapcount", facts.mapcount[pfn], -1),
        ("mapping", facts.mapping[pfn], 0), ("flags", facts.flags[pfn], 0),
        ("compound_head", facts.compound_head[pfn], 0), ("page_type", facts.page_type[pfn], kind),
    )
    for name, values, want in columns:
        report.each(values != want, lambda i, n=name, v=values: f"free pfn {pfn[i]:#x} has {n} {v[i]:#x}",  # type: ignore[misc]
                    pfn=pfn)


def _free_counts(report: Report, lists: FreeLists) -> None:
    """nr_free of each area, nr_free_pages of each zone, the counts of the pcp lists."""
    for zone in range(NR_ZONES):
        mine = lists.owner == zone
        pages = int((1 << lists.order[mine]).sum())
        word = int(lists.zone["nr_free_pages"][zone])
        report.check(pages == word, f"zone {zone}: {pages} pages on its free lists, nr_free_pages {word}", zone=zone)
        for order in range(int(MAX_ORDER)):
            blocks = int((lists.order[mine] == order).sum())
            word = int(lists.zone["free_area"]["nr_free"][zone, order])
            report.check(blocks == word, f"zone {zone} order {order}: {blocks} free blocks, nr_free {word}", zone=zone)
    for cpu, number, length, count in lists.pcp_count:
        report.check(length == count, f"pcp list {number} of cpu {cpu}: {length} pages, count {count}", cpu=cpu)


def law_tails(facts: Facts, report: Report) -> None:
    """Q3 and I12."""
    tails = np.flatnonzero(facts.is_tail)
    count = facts.refcount[tails]
    report.each(count != 0, lambda i: f"tail pfn {tails[i]:#x} has _refcount {count[i]}", pfn=tails)
    heads = facts.heads
    rows = facts.tails_of(heads)
    right = facts.compound_head[rows[:, 1:]] == ((heads << 1) | 1)[:, None]
    report.each(~right.all(axis=1), lambda i: f"head pfn {heads[i]:#x}: not all tails point to it", pfn=heads)
    report.each(heads & (facts.nr - 1) != 0, lambda i: f"head pfn {heads[i]:#x} is not aligned", pfn=heads)
    order = facts.page["compound_order"][heads + 1]
    report.each(order != facts.order, lambda i: f"head pfn {heads[i]:#x} has compound_order {order[i]}", pfn=heads)
    own = ~facts.has(PG_head)[facts.head_of[tails]]
    report.each(own, lambda i: f"tail pfn {tails[i]:#x} points to {facts.head_of[tails[i]]:#x}, which is no head", pfn=tails)
    poisoned = np.delete(rows, [0, 2], axis=1)
    intact = (facts.mapping[poisoned] == TAIL_MAPPING).all(axis=1)
    report.each(~intact, lambda i: f"head pfn {heads[i]:#x}: a tail's mapping is not TAIL_MAPPING", pfn=heads)
    report.each(facts.refcount[heads] == 0, lambda i: f"head pfn {heads[i]:#x} has no reference", pfn=heads)


def law_leak(facts: Facts, report: Report) -> None:
    """Q20: with `expect_empty`, every frame that is nobody's by design is free, and blocks have merged."""
    report.check(int(mm_globals.nr_frames) == facts.frames, f"nr_frames {int(mm_globals.nr_frames)}, booted with {facts.frames}")
    if not facts.expect_empty:
        return
    blocks, pcp = free_mask(facts)
    lists = free_lists(facts)
    kept = facts.has(PG_reserved) | (facts.page_type == PAGE_TYPE_RESERVED)
    kept[[facts.zero_pfn]] = True
    if facts.huge_zero_pfn != NIL:
        kept[facts.huge_zero_pfn : facts.huge_zero_pfn + facts.nr] = True
    pfns = np.arange(facts.frames)
    lost = (blocks == 0) & (pcp == 0) & ~kept
    report.each(lost, lambda i: f"pfn {i:#x} is not free on an empty machine (_refcount {facts.refcount[i]})", pfn=pfns)
    top = int(MAX_ORDER) - 1
    block = pfns >> top << top
    spoiled = np.zeros(facts.frames, dtype=bool)
    spoiled[block[kept | (pcp > 0)]] = True
    whole = np.zeros(facts.frames, dtype=bool)
    whole[lists.pfn[lists.order == top]] = True
    firsts = np.flatnonzero((pfns == block) & ~spoiled & _in_one_zone(lists, pfns, 1 << top))
    report.each(~whole[firsts], lambda i: f"block pfn {firsts[i]:#x} has not merged to order {top}", pfn=firsts)


def _in_one_zone(lists: FreeLists, pfns: Column, size: int) -> Column:
    found = np.zeros(len(pfns), dtype=bool)
    for start, end in zip(column(lists.zone, "start_pfn"), column(lists.zone, "end_pfn"), strict=True):
        found |= (pfns >= start) & (pfns + size <= end)
    return found


LAWS = (
    Law("Q1", "frames", "every frame is in exactly one state", law_frames),
    Law("Q2", "buddy", "free blocks are aligned, merged, counted, and carry nothing of their last life", law_buddy),
    Law("Q3", "tails", "tails have no references and belong to the head in front of them", law_tails),
    Law("Q20", "leak", "when everything has exited every frame is free and merged", law_leak),
)
