"""Laws about lists and locks: deferred splits, LRU, the huge zero page, khugepaged, locks, data (Q11-Q14, Q18, Q19)."""

import sys

import numpy as np

from concur_thp.arch.cpu import cpus
from concur_thp.arch.shared import SharedArray
from concur_thp.check.audit_counts import pagevec_entries
from concur_thp.check.facts import Facts
from concur_thp.check.report import Law, Report, Violation
from concur_thp.check.views import chain, view
from concur_thp.mm.flags import MMF_HUGE_ZERO_PAGE, MMF_VM_HUGEPAGE
from concur_thp.mm.lru import (
    LRU_ACTIVE_ANON,
    LRU_ACTIVE_FILE,
    LRU_INACTIVE_ANON,
    LRU_INACTIVE_FILE,
    LRU_UNEVICTABLE,
)
from concur_thp.mm.mm_slots import KhugepagedScan
from concur_thp.mm.mm_types import NIL, NR_LRU_LISTS, PAGE_MAPPING_ANON, PAGE_TYPE_TABLE, mem_map
from concur_thp.mm.page_flags import (
    PG_active,
    PG_head,
    PG_locked,
    PG_lru,
    PG_reserved,
    PG_swapbacked,
    PG_unevictable,
    PG_waiters,
)
from concur_thp.sync.rwsem import RwSem
from concur_thp.sync.spinlock import SpinLock

LRU_NAMES = {
    LRU_INACTIVE_ANON: "inactive_anon",
    LRU_ACTIVE_ANON: "active_anon",
    LRU_INACTIVE_FILE: "inactive_file",
    LRU_ACTIVE_FILE: "active_file",
    LRU_UNEVICTABLE: "unevictable",
}


def law_deferred(facts: Facts, report: Report) -> None:
    """Q11: who is on the deferred split queue, and who has to be (K6 and K7: more may be)."""
    from concur_thp.mm.deferred_split import QUEUED

    links = facts.page["deferred_next"]
    queue: list[int] = []
    at = int(facts.pgdat["split_queue_head"])
    heads = set(facts.heads.tolist())
    while at != NIL and len(queue) <= facts.frames:
        if at not in heads:
            report.broken(f"the deferred split queue leads to pfn {at:#x}, which is no THP", pfn=at)
            break
        queue.append(at)
        link = int(links[at + 2])
        if link & QUEUED == 0:
            report.broken(f"pfn {at:#x} stands on the deferred split queue and has no link", pfn=at)
            break
        at = (link & (QUEUED - 1)) - 1
    length = int(facts.pgdat["split_queue_len"])
    report.check(length == len(queue), f"split_queue_len is {length}, the queue has {len(queue)}")
    tail = int(facts.pgdat["split_queue_tail"])
    report.check(tail == (queue[-1] if queue else NIL), f"split_queue_tail is {tail:#x}")
    members = np.array(queue, dtype=np.int64)
    alive = (facts.refcount[members] > 0) & (facts.mapping[members] & PAGE_MAPPING_ANON != 0)
    report.each(
        ~alive,
        lambda i: f"pfn {members[i]:#x} on the deferred split queue is no live anonymous THP",
        pfn=members,
    )
    thps = facts.heads[facts.mapping[facts.heads] & PAGE_MAPPING_ANON != 0]
    maps = facts.pte_maps[facts.tails_of(thps)]
    holes = (facts.pmd_maps[thps] == 0) & (maps.sum(axis=1) > 0) & (maps == 0).any(axis=1)
    queued = np.isin(thps, members)
    report.each(
        holes & ~queued,
        lambda i: f"THP pfn {thps[i]:#x} has unmapped subpages and is not on the deferred split queue",
        pfn=thps,
    )
    linked = links[thps + 2] != 0
    report.each(
        linked & ~queued,
        lambda i: f"THP pfn {thps[i]:#x} looks queued and the queue does not have it",
        pfn=thps,
    )


def law_lru(facts: Facts, report: Report) -> None:
    """Q12 and I18."""
    lists = facts.pgdat["lru"]
    count = np.zeros(facts.frames, dtype=np.int64)
    head = facts.has(PG_head)
    flags = facts.flags
    for number in range(NR_LRU_LISTS):
        name = LRU_NAMES[number]
        pages, wrong = chain(facts.lru_next, int(lists["head"][number]), facts.frames, NIL)
        if wrong:
            report.broken(f"LRU list {name}: {wrong}")
        pfn = np.array(pages, dtype=np.int64)
        count += np.bincount(pfn, minlength=facts.frames)
        size = int(np.where(head[pfn], facts.nr, 1).sum())
        report.check(
            size == int(lists["size"][number]),
            f"LRU list {name} has {size} pages, its size is {lists['size'][number]}",
        )
        last = pages[-1] if pages else NIL
        report.check(
            last == int(lists["tail"][number]),
            f"LRU list {name} ends at {last:#x}, its tail is {lists['tail'][number]:#x}",
        )
        before = np.concatenate([[NIL], pfn[:-1]])
        report.each(
            facts.page["lru_prev"][pfn] != before,
            lambda i, p=pfn, n=name: (
                f"LRU list {n}: lru_prev of pfn {p[i]:#x} "  # type: ignore[misc]
                "is wrong"
            ),
            pfn=pfn,
        )
        kind = np.where(
            flags[pfn] >> PG_unevictable & 1,
            LRU_UNEVICTABLE,
            (1 - (flags[pfn] >> PG_swapbacked & 1)) * 2 + (flags[pfn] >> PG_active & 1),
        )
        report.each(
            kind != number,
            lambda i, p=pfn, k=kind, n=name: (
                f"pfn {p[i]:#x} is on {n} with the flags of "  # type: ignore[misc]
                f"{LRU_NAMES[int(k[i])]}"
            ),
            pfn=pfn,
        )
    _lru_flags(facts, report, count)


def _lru_flags(facts: Facts, report: Report, count: np.ndarray) -> None:
    """PG_lru says who is on a list, and everything that is mapped or cached is, or waits in a pagevec."""
    marked = facts.has(PG_lru)
    everyone = np.arange(facts.frames)
    report.each(
        (count == 1) != marked,
        lambda i: f"pfn {i:#x} is on {count[i]} LRU lists and its PG_lru is {int(marked[i])}",
        pfn=everyone,
    )
    report.each(marked & facts.is_tail, lambda i: f"tail pfn {i:#x} has PG_lru", pfn=everyone)
    used = np.zeros(facts.frames, dtype=bool)
    used[facts.head_of[facts.pte.pfn]] = True
    used[facts.thp.pfn] = True
    used[facts.head_of[facts.cached[2]]] = True
    used &= ~facts.has(PG_reserved) & (facts.page_type != PAGE_TYPE_TABLE)
    if facts.huge_zero_pfn != NIL:  # split into ptes it is mapped, and never on a list
        used[facts.huge_zero_pfn] = False
    waiting = pagevec_entries(facts) > 0
    report.each(used & ~marked & ~waiting, lambda i: f"pfn {i:#x} is in use and on no LRU list", pfn=everyone)


def law_huge_zero(facts: Facts, report: Report) -> None:
    """Q13."""
    pfn = facts.huge_zero_pfn
    count = int(facts.pgdat["huge_zero_refcount"])
    users = int((facts.mm["flags"][facts.live_mms] >> MMF_HUGE_ZERO_PAGE & 1).sum())
    if pfn == NIL:
        report.check(count == 0, f"no huge zero page, its refcount is {count}")
        report.check(users == 0, f"no huge zero page, and {users} mms have MMF_HUGE_ZERO_PAGE")
    else:
        report.check(
            count == 1 + users,
            f"huge_zero_refcount is {count}, with {users} mms that have MMF_HUGE_ZERO_PAGE",
        )
        whole = 0 <= pfn < facts.frames and bool(facts.has(PG_head)[pfn])
        report.check(whole, f"the huge zero page pfn {pfn:#x} is no huge page", pfn=pfn)
        mine = facts.huge.mm[facts.huge.pfn == pfn]
        marked = facts.mm["flags"][mine] >> MMF_HUGE_ZERO_PAGE & 1 != 0
        report.each(
            ~marked, lambda i: f"mm {mine[i]} maps the huge zero page and has no reference to it", mm=mine
        )


def law_khugepaged(facts: Facts, report: Report) -> None:
    """Q14, and mm_count as a whole."""
    scan = view(SharedArray.all["khugepaged_scan"])[0]
    slots, wrong = chain(facts.mm["slot_next"], int(scan["head"]), facts.config.mms + 1)
    if wrong:
        report.broken(f"khugepaged's list of mms: {wrong}")
    report.check(
        int(scan["tail"]) == (slots[-1] if slots else 0),
        f"khugepaged's list ends at {slots[-1:]}, its tail is {scan['tail']}",
    )
    report.check(
        int(scan["mm_slot"]) in (0, *slots),
        f"khugepaged's cursor is at mm {scan['mm_slot']}, which is not on its list",
    )
    mms = facts.live_mms
    marked = facts.mm["flags"][mms] >> MMF_VM_HUGEPAGE & 1 != 0
    listed = np.isin(mms, slots)
    report.each(
        marked != listed,
        lambda i: f"mm {mms[i]}: MMF_VM_HUGEPAGE {int(marked[i])}, on khugepaged's list {int(listed[i])}",
        mm=mms,
    )
    dead = np.setdiff1d(np.array(slots, dtype=np.int64), mms)
    report.each(
        np.ones(len(dead), dtype=bool), lambda i: f"mm {dead[i]} on khugepaged's list is dead", mm=dead
    )
    users = facts.mm["mm_users"][mms]
    count = facts.mm["mm_count"][mms]
    want = (users > 0).astype(np.int64) + listed
    report.each(
        count != want,
        lambda i: f"mm {mms[i]} has mm_count {count[i]}, should be {want[i]} (mm_users {users[i]})",
        mm=mms,
    )
    pending = facts.mm["tlb_flush_pending"][mms]
    report.each(
        pending != 0, lambda i: f"mm {mms[i]} has tlb_flush_pending {pending[i]} with nobody at work", mm=mms
    )


def law_locks(facts: Facts, report: Report) -> None:
    """Q18."""
    everyone = np.arange(facts.frames)
    for flag, name in ((PG_locked, "locked"), (PG_waiters, "waiters")):
        report.each(facts.has(flag), lambda i, n=name: f"pfn {i:#x} has PG_{n}", pfn=everyone)  # type: ignore[misc]
    pages = np.flatnonzero(facts.page_type == PAGE_TYPE_TABLE)
    word = facts.page["ptl"]["word"][pages]
    report.each(word != 0, lambda i: f"the ptl of table pfn {pages[i]:#x} is held: {word[i]:#x}", pfn=pages)
    _embedded_locks(facts, report)
    cpu = view(cpus, facts.config.cpus)
    for number in range(facts.config.cpus):
        for name in ("depth", "page_locks", "held_mask", "irq_off", "preempt_off", "acquiring"):
            value = int(cpu[name][number])
            report.check(value == 0, f"cpu {number}: {name} is {value:#x}", cpu=number)


def _embedded_locks(facts: Facts, report: Report) -> None:
    """Every lock in every struct but the pages: their rows say where they are."""
    for array in SharedArray.all.values():
        fields = {
            n: f
            for n, f in getattr(array.struct, "FIELDS", {}).items()
            if f.struct in (SpinLock, RwSem) and not f.overlay
        }
        if not fields or array is SharedArray.all[mem_map.name]:
            continue
        count = array.count(facts.config)
        rows = view(array, count)
        # Pools: what was never used is not resident; anon_vmas are asked for by number.
        which = facts.live_anon_vmas if array.name == "anon_vmas" else np.arange(count)
        for name, row in fields.items():
            word = "word" if row.struct is SpinLock else "count"
            held = rows[name][word][which]
            held = held if held.ndim == 1 else held.any(axis=1)
            report.each(
                held != 0,
                lambda i, a=array.name, n=name, h=held, w=which: f"{n} of {a} {w[i]} is held: {int(h[i]):#x}",
            )  # type: ignore[misc]


def law_data(facts: Facts, report: Report) -> None:
    """Q19: check/oracle.py knows what programs wrote, if the machine was booted with it."""
    audit_data = getattr(sys.modules.get("concur_thp.check.oracle"), "audit_data", None)
    if audit_data is None:
        return
    for found in audit_data(facts.config) or ():
        if isinstance(found, Violation):
            report.broken(found.what, **found.where)
        else:
            report.broken(str(found))


LAWS = (
    Law("Q11", "deferred split", "every THP with holes is queued, and only live THPs are", law_deferred),
    Law("Q12", "LRU", "what is mapped or cached is on the one LRU list its flags say", law_lru),
    Law(
        "Q13",
        "huge zero page",
        "one reference for the shrinker and one for each mm that uses it",
        law_huge_zero,
    ),
    Law(
        "Q14",
        "khugepaged",
        "its list has the mms with MMF_VM_HUGEPAGE, each with one mm_count",
        law_khugepaged,
    ),
    Law("Q18", "locks", "no lock is held, no page locked, irqs are on", law_locks),
    Law("Q19", "data", "every address contains what the model says", law_data),
)
assert KhugepagedScan.FIELDS["head"].width == 4
