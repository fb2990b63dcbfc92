"""Invariants that hold at every instant, checked natively by the CPU that has the right to look (semantics 4a).

Each function names the lock its caller holds; without that lock the answer would be a guess. `check_release()` is the
one that sees most: whoever gives a page table lock back leaves a table in which I5, I6 and I7 hold. A failure is a
bug() whose text begins with the invariant's name, so the machine stops on the CPU that did it.

`check_at()` is what a listener calls at a point; the point says what `subject` is:

    SPIN_UNLOCK      a spinlock about to be released
    PUT_PAGE_ZERO    a head or small page whose last reference is gone, on its way to the free lists
    USER             nothing: between two operations of a program
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import TLB_HUGE, TLB_SMALL, Cpu, cpus
from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.arch.points import Point
from concur_thp.arch.random import random_below
from concur_thp.arch.system import system
from concur_thp.arch.tlb import tlb_contexts
from concur_thp.config import (
    HPAGE_PMD_MASK,
    HPAGE_PMD_NR,
    HPAGE_PMD_ORDER,
    HPAGE_PMD_SIZE,
    PAGE_SHIFT,
    PTRS_PER_PTE,
    PTRS_PER_UPPER,
)
from concur_thp.mm.huge_zero import is_huge_zero_pfn
from concur_thp.mm.mm_types import NIL, PAGE_MAPPING_ANON, PAGE_TYPE_NONE, PAGE_TYPE_TABLE, Page, Vma, mem_map
from concur_thp.mm.page_flags import (
    PageDoubleMap,
    PageHead,
    PageTail,
    PG_lru,
    compound_head,
    page_to_pfn,
    tail_page,
)
from concur_thp.mm.pgtable import (
    _PAGE_SPECIAL,
    entry_pfn,
    is_migration_entry,
    is_swap_entry,
    pmd_trans_huge,
    pte_present,
    table_entry,
)
from concur_thp.mm.pgtable_alloc import PMD_LEVEL, PTE_LEVEL
from concur_thp.sync.lock_classes import PMD_PTL, PTE_PTL
from concur_thp.sync.spinlock import SpinLock, assert_spin_locked

PTL_OFFSET = Page.FIELDS["ptl"].offset


CHECK_EVERY = 64
"""Stress runs check at one point in so many."""


@kernel
@quiet
def check_at(cpu: Cpu, where: int, subject: int):
    """Check what the point `where` allows to be checked.

    Context: as the point's; takes no lock and changes nothing.
    Emulator: the listener of LISTEN_CHECK.
    """
    if where == Point.SPIN_UNLOCK:
        check_release(cpu, SpinLock(subject))
    elif where == Point.PUT_PAGE_ZERO:
        page = Page(subject)
        check_page(cpu, page)
        check_frame_free(cpu, page_to_pfn(page), HPAGE_PMD_ORDER if PageHead(page) else 0)
    elif where == Point.USER:
        check_tlb(cpu)


@kernel
@quiet
def check_sampled(cpu: Cpu, where: int, subject: int):
    """check_at() at one place in CHECK_EVERY: a whole table is looked at, and most unlocks are a table's.

    Context: as the point's.
    Emulator: what stress runs put behind check_hook().
    """
    if random_below(cpu, CHECK_EVERY) == 0:
        check_at(cpu, where, subject)


@kernel
def check_release(cpu: Cpu, lock: SpinLock):
    """A spinlock is about to be released: is what it guards in order?

    Context: the lock is held by this CPU.
    Emulator: I5, I6, I7 at the moment from which on others may see the table.
    """
    if lock.cls in (PMD_PTL, PTE_PTL):
        assert_spin_locked(cpu, lock)
        table = Page(int(lock) - PTL_OFFSET)
        if table.page_type == PAGE_TYPE_TABLE:
            if table.pt_level == PMD_LEVEL:
                check_pmd_table(cpu, page_to_pfn(table))
            elif table.pt_level == PTE_LEVEL:
                check_pte_table(cpu, page_to_pfn(table))


@kernel
def check_pmd_table(cpu: Cpu, table_pfn: int):
    """I5 and I6 for a PMD table: its huge pmds are good, and each has a deposited table.

    Context: the table's pmd ptl held.
    Emulator: I5, I6.
    """
    huge = 0
    for i in range(PTRS_PER_UPPER):
        pmd = table_entry(table_pfn, i).val.read()
        if pmd_trans_huge(pmd) or is_migration_entry(pmd):
            huge += 1
            check_pmd(cpu, pmd)
    deposited = 0
    pfn = mem_map[table_pfn].pmd_huge_pte
    while pfn != NIL and deposited <= PTRS_PER_UPPER:
        bug_on(cpu, not 0 <= pfn < system.nr_frames or mem_map[pfn].page_type != PAGE_TYPE_TABLE,
               "I5: what is deposited is no table (values: pfn, PMD table)", pfn, table_pfn)
        pfn = mem_map[pfn].lru_next
        deposited += 1
    bug_on(cpu, deposited != huge, "I5: deposited tables are not as many as huge pmds (values: PMD table, difference)",
           table_pfn, deposited - huge)


@kernel
def check_pmd(cpu: Cpu, pmd: int):
    """I6 for the value of one pmd: a huge one maps a huge page that has a reference and a mapcount for it.

    Context: the pmd ptl of the entry held.
    Emulator: I6, and with it I20.
    """
    if not pmd_trans_huge(pmd):
        return 0
    pfn = entry_pfn(pmd)
    bug_on(cpu, not 0 <= pfn < system.nr_frames or pfn & (HPAGE_PMD_NR - 1) != 0,
           "I6: huge pmd of a frame that is not aligned or not there (values: pfn, pmd)", pfn, pmd)
    if is_huge_zero_pfn(pfn):
        return 0
    head = mem_map[pfn]
    bug_on(cpu, not PageHead(head) or tail_page(head, 1).compound_order != HPAGE_PMD_ORDER,
           "I6: huge pmd of a page that is no huge page (values: pfn, pmd)", pfn, pmd)
    bug_on(cpu, head._refcount.read() < 1, "I6: huge pmd of a page without references (values: pfn, refcount)",
           pfn, head._refcount.read())
    bug_on(cpu, tail_page(head, 1).compound_mapcount.read() < 0,
           "I6: huge pmd of a page that no pmd maps (values: pfn, pmd)", pfn, pmd)
    check_tail(cpu, tail_page(head, 1), head)
    check_tail(cpu, tail_page(head, HPAGE_PMD_NR - 1), head)
    return 0


@kernel
def check_pte_table(cpu: Cpu, table_pfn: int):
    """I7 for a PTE table: what is present maps a page that has a reference and a mapcount for it.

    Context: the table's pte ptl held.
    Emulator: I7.
    """
    for i in range(PTRS_PER_PTE):
        pte = table_entry(table_pfn, i).val.read()
        if pte_present(pte) and pte & _PAGE_SPECIAL == 0 and not is_migration_entry(pte) and not is_swap_entry(pte):
            check_pte(cpu, pte)


@inline
def check_pte(cpu: Cpu, pte: int):
    """I7 for one present pte that is not special."""
    pfn = entry_pfn(pte)
    bug_on(cpu, not 0 <= pfn < system.nr_frames, "I7: pte of a frame that is not there (values: pfn, pte)", pfn, pte)
    page = mem_map[pfn]
    bug_on(cpu, page.page_type != PAGE_TYPE_NONE, "I7: pte of a page that is free or a table (values: pfn, page type)",
           pfn, page.page_type)
    bug_on(cpu, compound_head(page)._refcount.read() < 1,
           "I7: pte of a page without references (values: pfn, pte)", pfn, pte)
    bug_on(cpu, page._mapcount.read() < 0, "I7: pte of a page that no pte maps (values: pfn, mapcount)",
           pfn, page._mapcount.read())


@kernel
def check_page(cpu: Cpu, page: Page):
    """I1, I2, I12 and I18 for a page that cannot be split or freed now.

    Context: the caller has a reference, or a mapping of the page under its ptl, or has dropped the last reference.
    Emulator: I1, I2, I12, I18.
    """
    pfn = page_to_pfn(page)
    bug_on(cpu, page.page_type == PAGE_TYPE_NONE and page._mapcount.read() < -1,
           "I2: mapcount below -1 (values: pfn, mapcount)", pfn, page._mapcount.read())
    if PageTail(page):
        check_tail(cpu, page, compound_head(page))
    elif PageHead(page):
        bug_on(cpu, pfn & (HPAGE_PMD_NR - 1) != 0, "I12: head is not aligned (value: pfn)", pfn, 0)
        bug_on(cpu, tail_page(page, 1).compound_mapcount.read() < -1,
               "I2: compound_mapcount below -1 (values: pfn, count)", pfn, tail_page(page, 1).compound_mapcount.read())
        for i in range(1, HPAGE_PMD_NR):
            check_tail(cpu, tail_page(page, i), page)


@inline
def check_tail(cpu: Cpu, tail: Page, head: Page):
    """One subpage against its head."""
    pfn = page_to_pfn(tail)
    bug_on(cpu, tail.compound_head != (page_to_pfn(head) << 1 | 1) or not PageHead(head),
           "I12: tail and head do not belong together (values: pfn, compound_head)", pfn, tail.compound_head)
    bug_on(cpu, tail._refcount.read() != 0,
           "I1: tail has references (values: pfn, refcount)", pfn, tail._refcount.read())
    bug_on(cpu, tail._mapcount.read() < -1,
           "I2: mapcount of a tail below -1 (values: pfn, mapcount)", pfn, tail._mapcount.read())
    bug_on(cpu, tail.flags.read() & (1 << PG_lru) != 0,
           "I18: tail has PG_lru (values: pfn, flags)", pfn, tail.flags.read())


@kernel
def check_frame_free(cpu: Cpu, pfn: int, order: int):
    """I15: frames become free, so no CPU may have a translation of them.

    A CPU that is behind its mm's generation does not count: it drops everything before it uses its TLB again
    (arch/cpu.py). The frames are mapped nowhere any more, so nobody can load such a translation while we look.

    Context: the last reference is gone, the frames are not on a free list yet.
    Emulator: I15.
    """
    end = pfn + (1 << order)
    for number in range(system.nr_cpus):
        other = cpus[number]
        context = other.context
        if context != 0 and other.generation == tlb_contexts[context].generation.load():
            found = _translates(other, pfn, end)
            # Again: a CPU that came up to date while we looked has dropped what we saw.
            if found != 0 and _translates(other, pfn, end) != 0:
                bug_on(cpu, other.context == context, "I15: a freed frame is in a TLB (values: pfn, cpu)", pfn, number)


@inline
def _translates(other: Cpu, first: int, end: int):
    """Has this CPU's TLB an entry of a frame in [first, end)?"""
    found = 0
    for i in range(TLB_SMALL):
        slot = other.tlb_small[i]
        if slot.tag != 0 and first <= entry_pfn(slot.entry) < end:
            found = 1
    for i in range(TLB_HUGE):
        slot = other.tlb_huge[i]
        if slot.tag != 0 and entry_pfn(slot.entry) < end and first < entry_pfn(slot.entry) + HPAGE_PMD_NR:
            found = 1
    return found


@kernel
def check_tlb(cpu: Cpu):
    """I14: this CPU holds no address both small and huge.

    Context: its own CPU.
    Emulator: I14.
    """
    for i in range(TLB_HUGE):
        tag = cpu.tlb_huge[i].tag
        if tag != 0:
            for k in range(TLB_SMALL):
                small = cpu.tlb_small[k].tag
                bug_on(cpu, small != 0 and tag <= small < tag + HPAGE_PMD_NR,
                       "I14: an address is in the TLB small and huge (values: small tag, huge tag)", small, tag)


@kernel
def check_huge_in_vma(cpu: Cpu, vma: Vma, addr: int, pmd: int):
    """I8: a huge pmd lies inside its vma, at the place that the page's index says.

    Context: mmap_sem held, and the pmd ptl of the entry.
    Emulator: I8.
    """
    haddr = addr & HPAGE_PMD_MASK
    if not pmd_trans_huge(pmd):
        return 0
    bug_on(cpu, haddr < vma.vm_start or haddr + HPAGE_PMD_SIZE > vma.vm_end,
           "I8: huge pmd beyond its vma (values: address, end)", haddr, vma.vm_end)
    head = mem_map[entry_pfn(pmd)]
    linear = ((haddr - vma.vm_start) >> PAGE_SHIFT) + vma.vm_pgoff
    bug_on(cpu, not is_huge_zero_pfn(entry_pfn(pmd)) and head.mapping & PAGE_MAPPING_ANON != 0 and head.index != linear,
           "I8: huge page mapped at another place than its index (values: index, address)", head.index, haddr)
    return 0


@kernel
def check_queued(cpu: Cpu, head: Page):
    """I17: what is on the deferred split queue is a huge page.

    Context: split_queue_lock held.
    Emulator: I17.
    """
    bug_on(cpu, not PageHead(head) or tail_page(head, 1).compound_order != HPAGE_PMD_ORDER,
           "I17: queued for deferred split and no huge page (values: pfn, flags)", page_to_pfn(head), head.flags.read())


@kernel
def check_double_map(cpu: Cpu, head: Page):
    """I20: DoubleMap of an anonymous page means that a pmd maps it.

    Context: the pmd ptl of a pmd that maps the page, so that its compound_mapcount cannot reach -1.
    Emulator: I20.
    """
    bug_on(cpu, head.mapping & PAGE_MAPPING_ANON != 0 and PageDoubleMap(head)
           and tail_page(head, 1).compound_mapcount.read() < 0,
           "I20: DoubleMap of a page that no pmd maps (value: pfn)", page_to_pfn(head), 0)


__all__ = ["check_at", "check_double_map", "check_frame_free", "check_huge_in_vma", "check_page", "check_pmd",
           "check_pmd_table", "check_pte_table", "check_queued", "check_release", "check_tlb"]
