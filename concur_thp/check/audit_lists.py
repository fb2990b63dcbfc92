"""Laws about lists of pages: deferred splits and LRU (Q11, Q12)."""

import numpy as np

from concur_thp.check.audit_counts import pagevec_entries
from concur_thp.check.facts import Facts
from concur_thp.check.report import Law, Report
from concur_thp.check.views import Column, chain
from concur_thp.mm.deferred_split import QUEUED
from concur_thp.mm.lru import (
    LRU_ACTIVE_ANON,
    LRU_ACTIVE_FILE,
    LRU_INACTIVE_ANON,
    LRU_INACTIVE_FILE,
    LRU_UNEVICTABLE,
)
from concur_thp.mm.mm_types import NIL, PAGE_MAPPING_ANON, PAGE_TYPE_TABLE
from concur_thp.mm.page_flags import (
    PG_active,
    PG_head,
    PG_hwpoison,
    PG_lru,
    PG_migrated,
    PG_reserved,
    PG_swapbacked,
    PG_unevictable,
)

LRU_NAMES = {LRU_INACTIVE_ANON: "inactive_anon", LRU_ACTIVE_ANON: "active_anon", LRU_INACTIVE_FILE: "inactive_file",
             LRU_ACTIVE_FILE: "active_file", LRU_UNEVICTABLE: "unevictable"}


def split_queue(facts: Facts, report: Report) -> Column:
    """The members of the deferred split queue, in order."""
    links = facts.page["deferred_next"]
    heads = set(facts.heads.tolist())
    queue: list[int] = []
    back = facts.page["deferred_prev"]
    pfn = int(facts.pgdat["split_queue_head"])
    while pfn != NIL and len(queue) <= facts.frames:
        if pfn not in heads:
            report.broken("the deferred split queue leads to pfn {pfn:#x}, which is no THP", pfn=pfn)
            break
        before = queue[-1] if queue else NIL
        report.check((int(back[pfn + 2]) & (QUEUED - 1)) - 1 == before,
                     "THP pfn {pfn:#x} on the deferred split queue does not lead back to {before:#x}", pfn=pfn, before=before)
        queue.append(pfn)
        link = int(links[pfn + 2])
        if link & QUEUED == 0:
            report.broken("pfn {pfn:#x} stands on the deferred split queue and has no link", pfn=pfn)
            break
        pfn = (link & (QUEUED - 1)) - 1
    return np.array(queue, dtype=np.int64)


def law_deferred(facts: Facts, report: Report) -> None:
    """Q11: who is on the deferred split queue, and who has to be (K6, K7: more may be; K15: some are not)."""
    queue = split_queue(facts, report)
    length, tail = int(facts.pgdat["split_queue_len"]), int(facts.pgdat["split_queue_tail"])
    report.check(length == len(queue), f"split_queue_len is {length}, the queue has {len(queue)}")
    report.check(tail == (queue[-1] if len(queue) else NIL), f"split_queue_tail is {tail:#x}, which is not its end")
    alive = (facts.refcount[queue] > 0) & (facts.mapping[queue] & PAGE_MAPPING_ANON != 0)
    report.each(~alive, "pfn {pfn:#x} on the deferred split queue is no live anonymous THP", pfn=queue)
    thps = facts.heads[facts.mapping[facts.heads] & PAGE_MAPPING_ANON != 0]
    maps = facts.pte_maps[facts.subpages(thps)]
    holes = (facts.pmd_maps[thps] == 0) & (maps.sum(axis=1) > 0) & (maps == 0).any(axis=1)
    queued = np.isin(thps, queue)
    moved = facts.flags[thps] >> PG_migrated & 1 != 0  # K15: the old page had the place in the queue.
    report.each(holes & ~queued & ~moved, "THP pfn {pfn:#x} has unmapped subpages and is not on the deferred split "
                "queue", pfn=thps)
    linked = facts.page["deferred_next"][thps + 2] != 0
    report.each(linked & ~queued, "THP pfn {pfn:#x} looks queued and the queue does not have it", pfn=thps)


def law_lru(facts: Facts, report: Report) -> None:
    """Q12 and I18."""
    count = np.zeros(facts.frames, dtype=np.int64)
    size_of = np.where(facts.has(PG_head), facts.nr, 1)
    for number, name in LRU_NAMES.items():
        lru = facts.pgdat["lru"][number]
        pages, wrong = chain(facts.lru_next, int(lru["head"]), facts.frames, NIL)
        if wrong:
            report.broken(f"LRU list {name}: {wrong}")
        pfn = np.array(pages, dtype=np.int64)
        count += np.bincount(pfn, minlength=facts.frames)
        size, last = int(size_of[pfn].sum()), pages[-1] if pages else NIL
        report.check(size == int(lru["size"]), f"LRU list {name} has {size} pages, its size is {lru['size']}")
        report.check(last == int(lru["tail"]), f"LRU list {name} ends at {last:#x}, its tail is {lru['tail']:#x}")
        before = np.concatenate([[NIL], pfn[:-1]])[: len(pfn)]
        report.each(facts.page["lru_prev"][pfn] != before, "LRU list {name}: lru_prev of pfn {pfn:#x} is wrong",
                    name=name, pfn=pfn)
        kind = lru_of(facts.flags[pfn])
        report.each(kind != number, "pfn {pfn:#x} is on {name} with the flags of list {kind}",
                    pfn=pfn, name=name, kind=kind)
    _lru_flags(facts, report, count)


def lru_of(flags: Column) -> Column:
    """The list that a page with these flags belongs to."""
    evictable = (1 - (flags >> PG_swapbacked & 1)) * 2 + (flags >> PG_active & 1)
    return np.where(flags >> PG_unevictable & 1 != 0, LRU_UNEVICTABLE, evictable)


def _lru_flags(facts: Facts, report: Report, count: Column) -> None:
    """PG_lru says who is on a list, and everything that is mapped or cached is, or waits in a pagevec."""
    marked, pfns = facts.has(PG_lru), np.arange(facts.frames)
    report.each(count != marked, "pfn {pfn:#x} is on {count} LRU lists and its PG_lru is {marked:d}",
                pfn=pfns, count=count, marked=marked)
    report.each(marked & facts.is_tail, "tail pfn {pfn:#x} has PG_lru", pfn=pfns)
    used = np.zeros(facts.frames, dtype=bool)
    for pages in (facts.pte.pfn, facts.thp.pfn, facts.cached[2], facts.swap_cached[1]):
        used[facts.head_of[pages]] = True
    # A page that broke in the swap cache stays there while slots lead to it, and is on no list.
    used &= ~facts.has(PG_reserved) & ~facts.has(PG_hwpoison) & (facts.page_type != PAGE_TYPE_TABLE)
    if facts.huge_zero_pfn != NIL:
        used[facts.huge_zero_pfn] = False
    waiting = pagevec_entries(facts) > 0
    report.each(used & ~marked & ~waiting, "pfn {pfn:#x} is in use and on no LRU list", pfn=pfns)


LAWS = (
    Law("Q11", "deferred split", "every THP with holes is queued, and only live THPs are", law_deferred),
    Law("Q12", "LRU", "what is mapped or cached is on the one LRU list its flags say", law_lru),
)
