"""Laws about mlock: marks and vmas agree, the unevictable list has the marked pages, limits are counted (I21, Q12)."""

import numpy as np

from concur_thp.check.facts import Facts
from concur_thp.check.report import Law, Report
from concur_thp.config import PAGE_SHIFT
from concur_thp.mm.flags import VM_LOCKED
from concur_thp.mm.page_flags import PG_head, PG_lru, PG_mlocked, PG_unevictable


def law_mlock(facts: Facts, report: Report) -> None:
    """I21, and what follows from 3.24."""
    marked, pfns = facts.has(PG_mlocked), np.arange(facts.frames)
    report.each(marked & facts.is_tail, "tail pfn {pfn:#x} has PG_mlocked", pfn=pfns)
    heads = facts.heads[marked[facts.heads]]
    maps = facts.pte_maps[facts.subpages(heads)].sum(axis=1)
    report.each(maps > 0, "THP pfn {pfn:#x} has PG_mlocked and {maps} ptes map it", pfn=heads, maps=maps)
    on_list = facts.has(PG_lru)
    report.each(on_list & (marked != facts.has(PG_unevictable)),
                "pfn {pfn:#x} on the LRU has PG_mlocked {marked:d} and PG_unevictable {list:d}",
                pfn=pfns, marked=marked, list=facts.has(PG_unevictable))
    # Not so for a THP: v4.20 leaves the mark when its mlocked mapping goes by a huge COW and others keep theirs.
    small = marked & ~facts.has(PG_head) & ~facts.is_tail
    report.each(small & ~_mapped_locked(facts), "pfn {pfn:#x} has PG_mlocked and no VM_LOCKED vma maps it", pfn=pfns)


def _mapped_locked(facts: Facts) -> np.ndarray:
    """Which frames a pte of a VM_LOCKED vma maps."""
    vma = facts.find_vma(facts.pte.mm, facts.pte.addr)
    locked = facts.vma["vm_flags"][vma] & VM_LOCKED != 0
    found = np.zeros(facts.frames, dtype=bool)
    found[facts.pte.pfn[locked]] = True
    return found


def law_locked_vm(facts: Facts, report: Report) -> None:
    """mm.locked_vm, which the limit is held against."""
    locked = facts.vma["vm_flags"][facts.vma_list] & VM_LOCKED != 0
    pages = (facts.vma_end - facts.vma_start) >> PAGE_SHIFT
    want = np.bincount(facts.vma_mm[locked], weights=pages[locked], minlength=facts.config.mms + 1).astype(np.int64)
    mms = facts.live_mms
    got = facts.mm["locked_vm"][mms]
    report.each(got != want[mms], "mm {mm}: locked_vm is {got}, its VM_LOCKED vmas have {want} pages",
                mm=mms, got=got, want=want[mms])


LAWS = (
    Law("I21", "mlocked pages", "marked pages are mapped by a mlocked vma, never by ptes if huge, and unevictable", law_mlock),
    Law("locked_vm", "mlock limit", "locked_vm counts the pages of VM_LOCKED vmas", law_locked_vm),
)
