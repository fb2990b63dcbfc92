"""Instant invariants of page tables, seen by who holds their lock (I5, I6, I7, I8, I10, I21).

check_release() is the one that sees most: whoever gives a page table lock back leaves a table that others may rely on.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.system import system
from concur_thp.check.instant_pages import check_double_map, check_lru_lists, check_split_queue, check_tail
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
from concur_thp.mm.mm_types import NIL, PAGE_MAPPING_ANON, PAGE_TYPE_NONE, PAGE_TYPE_TABLE, Page, Vma, mem_map, mms
from concur_thp.mm.page_flags import (
    PageHead,
    PG_head,
    PG_locked,
    PG_mlocked,
    TestFlag,
    compound_head,
    page_to_pfn,
    tail_page,
)
from concur_thp.mm.pgtable import (
    _PAGE_SPECIAL,
    entry_pfn,
    is_migration_entry,
    is_swap_entry,
    mm_pmd,
    pmd_trans_huge,
    pte_present,
    table_entry,
)
from concur_thp.mm.pgtable_alloc import PMD_LEVEL, PTE_LEVEL
from concur_thp.sync.lock_classes import LRU_LOCK, PMD_PTL, PTE_PTL, SPLIT_QUEUE_LOCK
from concur_thp.sync.spinlock import SpinLock, assert_spin_locked

PTL_OFFSET = Page.FIELDS["ptl"].offset


@kernel
def check_release(cpu: Cpu, lock: SpinLock):
    """A spinlock is about to be released: is what it guards in order?

    Sound: the lock keeps the others out of what it guards.

    Context: the lock is held by this CPU.
    Emulator: I5, I6, I7, I10, I17, I18, I20, I21 at the moment from which on others may rely on them.
    """
    if lock.cls in (PMD_PTL, PTE_PTL):
        assert_spin_locked(cpu, lock)
        table = Page(int(lock) - PTL_OFFSET)
        if table.page_type == PAGE_TYPE_TABLE:
            if table.pt_level == PMD_LEVEL:
                check_pmd_table(cpu, page_to_pfn(table))
            elif table.pt_level == PTE_LEVEL:
                check_pte_table(cpu, page_to_pfn(table))
    elif lock.cls == LRU_LOCK:
        check_lru_lists(cpu)
    elif lock.cls == SPLIT_QUEUE_LOCK:
        check_split_queue(cpu)


@kernel
def check_pmd_table(cpu: Cpu, table_pfn: int):
    """I5 and I6 for a PMD table: its huge pmds are good, and each has a deposited table.

    Sound: the ptl guards entries and deposits.

    Context: the table's pmd ptl held.
    Emulator: I5, I6, I10.
    """
    huge = 0
    for i in range(PTRS_PER_UPPER):
        pmd = table_entry(table_pfn, i).val.read()
        if pmd_trans_huge(pmd):
            huge += 1
            check_pmd(cpu, pmd)
        elif is_migration_entry(pmd):
            huge += 1
            check_migration_entry(cpu, pmd)
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

    Sound: the entry owns a reference and a mapcount as long as its ptl is held, so the page is neither split nor freed.

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
    check_double_map(cpu, head)
    bug_on(cpu, tail_page(head, 1).compound_mapcount.read() < 0,
           "I6: huge pmd of a page that no pmd maps (values: pfn, pmd)", pfn, pmd)
    check_tail(cpu, tail_page(head, 1), head)
    check_tail(cpu, tail_page(head, HPAGE_PMD_NR - 1), head)
    return 0


@kernel
def check_pte_table(cpu: Cpu, table_pfn: int):
    """I7 for a PTE table: what is present maps a page that has a reference and a mapcount for it.

    Sound: as check_pmd(), for each entry.

    Context: the table's pte ptl held.
    Emulator: I7, I10, I21.
    """
    for i in range(PTRS_PER_PTE):
        pte = table_entry(table_pfn, i).val.read()
        if is_migration_entry(pte):
            check_migration_entry(cpu, pte)
        elif pte_present(pte) and pte & _PAGE_SPECIAL == 0 and not is_swap_entry(pte):
            check_pte(cpu, pte)


@inline
def check_pte(cpu: Cpu, pte: int):
    """I7 for one present pte that is not special, and I21."""
    pfn = entry_pfn(pte)
    bug_on(cpu, not 0 <= pfn < system.nr_frames, "I7: pte of a frame that is not there (values: pfn, pte)", pfn, pte)
    page = mem_map[pfn]
    bug_on(cpu, page.page_type != PAGE_TYPE_NONE, "I7: pte of a page that is free or a table (values: pfn, page type)",
           pfn, page.page_type)
    head = compound_head(page)
    bug_on(cpu, head._refcount.read() < 1,
           "I7: pte of a page without references (values: pfn, pte)", pfn, pte)
    bug_on(cpu, page._mapcount.read() < 0, "I7: pte of a page that no pte maps (values: pfn, mapcount)",
           pfn, page._mapcount.read())
    check_not_mlocked(cpu, head, pfn)


@inline
def check_not_mlocked(cpu: Cpu, head: Page, pfn: int):
    """I21: a THP that this pte maps is not mlocked.

    Sound: mlock asks under the page lock whether ptes map the page; a pmd split, which makes ptes, has the page lock too
    and clears the bit before others see the ptes, and so does who replaces migration entries.
    """
    flags = head.flags.read()
    bug_on(cpu, flags & (1 << PG_head | 1 << PG_mlocked) == 1 << PG_head | 1 << PG_mlocked
           and head.mapping & PAGE_MAPPING_ANON != 0, "I21: a mlocked THP is mapped by a pte (values: pfn, flags)", pfn,
           flags)


@kernel
def check_migration_entry(cpu: Cpu, entry: int):
    """I10: the page of a migration entry is locked.

    Sound: who unlocks it has replaced every entry first, and for this one he needs our ptl. A tail that is just being
    split is locked like its head before it stops being a tail.

    Context: the entry's ptl held.
    Emulator: I10.
    """
    pfn = entry_pfn(entry)
    bug_on(cpu, not 0 <= pfn < system.nr_frames or not TestFlag(mem_map[pfn], PG_locked),
           "I10: migration entry of a page that is not locked (values: pfn, entry)", pfn, entry)


@kernel
def check_huge_in_vma(cpu: Cpu, vma: Vma, addr: int):
    """I8: a huge pmd lies inside its vma, at the place that the page's index says.

    Sound: the ptl keeps the entry, the entry its page's index, mmap_sem or the rmap lock the vma's borders.

    Context: mmap_sem or the rmap lock held, and the pmd ptl of the entry.
    Emulator: I8.
    """
    haddr = addr & HPAGE_PMD_MASK
    pmd = mm_pmd(mms[vma.vm_mm], addr).val.load()
    if not pmd_trans_huge(pmd):
        return 0
    bug_on(cpu, haddr < vma.vm_start or haddr + HPAGE_PMD_SIZE > vma.vm_end,
           "I8: huge pmd beyond its vma (values: address, end)", haddr, vma.vm_end)
    head = mem_map[entry_pfn(pmd)]
    linear = ((haddr - vma.vm_start) >> PAGE_SHIFT) + vma.vm_pgoff
    bug_on(cpu, not is_huge_zero_pfn(entry_pfn(pmd)) and head.mapping & PAGE_MAPPING_ANON != 0 and head.index != linear,
           "I8: huge page mapped at another place than its index (values: index, address)", head.index, haddr)
    return 0


__all__ = ["check_huge_in_vma", "check_migration_entry", "check_pmd", "check_pmd_table", "check_pte_table",
           "check_release"]
