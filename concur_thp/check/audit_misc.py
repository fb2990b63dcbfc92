"""Laws about the rest: the huge zero page, khugepaged and mms, locks, data (Q13, Q14, Q18, Q19)."""

import sys

import numpy as np

from concur_thp.arch.cpu import cpus
from concur_thp.arch.shared import SharedArray
from concur_thp.check.facts import Facts
from concur_thp.check.report import Law, Report, Violation
from concur_thp.check.views import chain, view
from concur_thp.mm.flags import MMF_HUGE_ZERO_PAGE, MMF_VM_HUGEPAGE
from concur_thp.mm.mm_slots import khugepaged_scan
from concur_thp.mm.mm_types import NIL, PAGE_TYPE_TABLE, anon_vmas, mem_map
from concur_thp.mm.page_flags import PG_head, PG_locked, PG_waiters
from concur_thp.sync.rwsem_queue import RwSem
from concur_thp.sync.spinlock import SpinLock


def law_huge_zero(facts: Facts, report: Report) -> None:
    """Q13."""
    pfn, count = facts.huge_zero_pfn, int(facts.pgdat["huge_zero_refcount"])
    users = int((facts.mm["flags"][facts.live_mms] >> MMF_HUGE_ZERO_PAGE & 1).sum())
    if pfn == NIL:
        report.check(count == 0, f"there is no huge zero page, its refcount is {count}")
        report.check(users == 0, f"there is no huge zero page, and {users} mms have MMF_HUGE_ZERO_PAGE")
        return
    report.check(count == 1 + users, f"huge_zero_refcount is {count}, with {users} mms that have MMF_HUGE_ZERO_PAGE")
    whole = 0 <= pfn < facts.frames and bool(facts.has(PG_head)[pfn])
    report.check(whole, "the huge zero page pfn {pfn:#x} is no huge page", pfn=pfn)
    mine = facts.huge.mm[facts.huge.pfn == pfn]
    without = facts.mm["flags"][mine] >> MMF_HUGE_ZERO_PAGE & 1 == 0
    report.each(without, "mm {mm} maps the huge zero page and has no reference to it", mm=mine)


def law_khugepaged(facts: Facts, report: Report) -> None:
    """Q14, and mm_count and tlb_flush_pending as a whole."""
    scan = view(khugepaged_scan)[0]
    slots, wrong = chain(facts.mm["slot_next"], int(scan["head"]), facts.config.mms + 1)
    if wrong:
        report.broken(f"khugepaged's list of mms: {wrong}")
    tail, cursor = int(scan["tail"]), int(scan["mm_slot"])
    report.check(tail == (slots[-1] if slots else 0), f"khugepaged's list {slots} has tail {tail}")
    report.check(cursor in (0, *slots), "khugepaged's cursor is at mm {mm}, which is not on its list", mm=cursor)
    mms = facts.live_mms
    marked = facts.mm["flags"][mms] >> MMF_VM_HUGEPAGE & 1 != 0
    listed = np.isin(mms, slots)
    report.each(marked != listed, "mm {mm}: MMF_VM_HUGEPAGE is {marked:d}, on khugepaged's list: {listed:d}",
                mm=mms, marked=marked, listed=listed)
    dead = np.setdiff1d(np.array(slots, dtype=np.int64), mms)
    report.each(np.ones(len(dead), dtype=bool), "mm {mm} on khugepaged's list is dead", mm=dead)
    rows = facts.mm[mms]
    want = (rows["mm_users"] > 0).astype(np.int64) + listed
    report.each(rows["mm_count"] != want, "mm {mm} has mm_count {got}, should be {want} (mm_users {users})",
                mm=mms, got=rows["mm_count"], want=want, users=rows["mm_users"])
    report.each(rows["tlb_flush_pending"] != 0, "mm {mm} has tlb_flush_pending {got} with nobody at work",
                mm=mms, got=rows["tlb_flush_pending"])


def law_locks(facts: Facts, report: Report) -> None:
    """Q18."""
    for flag, name in ((PG_locked, "locked"), (PG_waiters, "waiters")):
        report.each(facts.has(flag), "pfn {pfn:#x} has PG_{name}", pfn=np.arange(facts.frames), name=name)
    tables = np.flatnonzero(facts.page_type == PAGE_TYPE_TABLE)
    word = facts.page["ptl"]["word"][tables]
    report.each(word != 0, "the ptl of table pfn {pfn:#x} is held: {word:#x}", pfn=tables, word=word)
    _embedded_locks(facts, report)
    rows = view(cpus, facts.config.cpus)
    number = np.arange(facts.config.cpus)
    for name in ("depth", "page_locks", "held_mask", "irq_off", "preempt_off", "acquiring"):
        report.each(rows[name] != 0, "cpu {cpu}: {name} is {value:#x}", cpu=number, name=name, value=rows[name])


def _embedded_locks(facts: Facts, report: Report) -> None:
    """Every lock in every struct but the pages: the structs' rows say where they are."""
    for array in SharedArray.all.values():
        rows = getattr(array.struct, "FIELDS", {})
        fields = {name: row for name, row in rows.items() if row.struct in (SpinLock, RwSem)}
        if not fields or array is mem_map:
            continue
        count = array.count(facts.config)
        # Most anon_vmas were never used and are not resident.
        which = facts.live_anon_vmas if array is anon_vmas else np.arange(count)
        for name, row in fields.items():
            held = view(array, count)[name]["word" if row.struct is SpinLock else "count"][which]
            held = held if held.ndim == 1 else held.max(axis=1)
            report.each(held != 0, "{name} of {array} {number} is held: {word:#x}",
                        name=name, array=array.name, number=which, word=held)


def law_data(facts: Facts, report: Report) -> None:
    """Q19: check/oracle.py knows what programs wrote, if the machine was booted with it."""
    audit_data = getattr(sys.modules.get("concur_thp.check.oracle"), "audit_data", None)
    for found in audit_data(facts.config) or () if audit_data else ():
        if isinstance(found, Violation):
            report.broken(found.what, **found.where)
        else:
            report.broken(str(found))


LAWS = (
    Law("Q13", "huge zero page", "one reference for the shrinker and one for each mm that uses it", law_huge_zero),
    Law("Q14", "khugepaged", "its list has the mms with MMF_VM_HUGEPAGE, each with one mm_count", law_khugepaged),
    Law("Q18", "locks", "no lock is held, no page locked, irqs are on", law_locks),
    Law("Q19", "data", "every address contains what the model says", law_data),
)
