"""Instant invariants of the windows in which somebody works undisturbed (I9, I19, I22, I23, I24).

Some of them speak of two moments: what a reader of mmap_sem found, and that it is still so when he leaves.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import HELD_READ, Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.random import random_below
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, I64, Struct, atomic, field
from concur_thp.check.instant_tlb import frames_translated
from concur_thp.config import HPAGE_PMD_MASK, HPAGE_PMD_NR, NR_CPUS, PAGE_SHIFT
from concur_thp.mm.anon_vma_ref import page_anon_vma
from concur_thp.mm.anon_vma_tree import anon_vma_first, anon_vma_next
from concur_thp.mm.i_mmap import vma_last_pgoff
from concur_thp.mm.mm_types import Entry, Mm, Page, Vma, mem_map, mms, vmas
from concur_thp.mm.page_flags import page_to_pfn
from concur_thp.mm.pgtable import (
    TABLES,
    entry_pfn,
    mm_pmd,
    pmd_table,
    pmd_trans_huge,
    pte_offset,
    pte_present,
    pte_special,
    table_entry,
)
from concur_thp.sync.lockdep import SEGMENT
from concur_thp.sync.rwsem_queue import RwSem

TABLE_BASE = TABLES
SOME_PTES = 4
"""So many pages of a collapse are looked for in the TLBs."""


class Seen(Struct, size=32):
    """What a CPU found when it began to use a table under mmap_sem."""

    pmd = field(I64, "cpu", "the pmd: its offset in the tables")
    table = field(I64, "cpu", "the PTE table that it led to (pfn)")
    vma = field(I32, "cpu", "the vma")
    anon_vma = field(I32, "cpu", "its anon_vma, 0 when it had none yet")
    mm = field(I32, "cpu", "whose mmap_sem is held for reading; 0: nothing is noted")


class Exiting(Struct, size=4, align=4):
    """Of one mm."""

    started = atomic(I32, "1 from the beginning of its exit_mmap to the end")


seen_tables = SharedArray("seen_tables", Seen, lambda config: NR_CPUS)
exiting_mms = SharedArray("exiting_mms", Exiting, lambda config: config.mms + 1)


@inline
def holds_read(cpu: Cpu, sem: RwSem):
    """Is this one of the locks that the CPU holds, for reading?"""
    found = 0
    for i in range(cpu.depth):
        if cpu.held[i] & HELD_READ != 0 and (cpu.held[i] & ~HELD_READ) >> 8 == int(sem) - SEGMENT:
            found = 1
    return found


@kernel
def note_table_seen(cpu: Cpu, pmd: Entry, vma: Vma):
    """Note what a reader of mmap_sem relies on, for check_table_kept(). A writer may change all of it.

    Sound: whoever passes here has found a table, and under mmap_sem in any mode that stays one; only its writers collapse.

    Context: mmap_sem held.
    Emulator: the first moment of I9 and I24.
    """
    row = seen_tables[cpu.id]
    mm = mms[vma.vm_mm]
    value = pmd.val.load()
    bug_on(cpu, not pmd_table(value), "I9: taken for a table, and is none (values: pmd, mm)", value, mm.id)
    row.mm = 0
    if pmd_table(value) and holds_read(cpu, mm.mmap_sem):
        row.pmd = int(pmd) - int(TABLE_BASE)
        row.table = entry_pfn(value)
        row.vma = vmas.index(vma)
        row.anon_vma = vma.anon_vma
        row.mm = mm.id


@kernel
def check_table_kept(cpu: Cpu, sem: RwSem):
    """I9 and I24: what was a table is the same table, what was the vma's anon_vma still is.

    Sound: mmap_sem was held all the time, and only its writers may free or replace tables or change vmas.

    Context: mmap_sem held for reading, about to be released.
    Emulator: I9, I24.
    """
    row = seen_tables[cpu.id]
    if row.mm != 0 and int(mms[row.mm].mmap_sem) == int(sem):
        now = Entry(row.pmd + int(TABLE_BASE)).val.load()
        bug_on(cpu, not pmd_table(now) or entry_pfn(now) != row.table,
               "I9: a table under mmap_sem did not stay (values: pmd, table)", now, row.table)
        bug_on(cpu, row.anon_vma != 0 and vmas[row.vma].anon_vma != row.anon_vma,
               "I24: a vma's anon_vma changed under mmap_sem (values: vma, anon_vma)", row.vma, vmas[row.vma].anon_vma)
        row.mm = 0


# -- split and collapse -----------------------------------------------------------------------------------------------


@kernel
def check_unmapped(cpu: Cpu, head: Page):
    """I19: no entry maps a page that split_huge_page() has unmapped.

    Sound: the page lock and the migration entries keep everybody from mapping it again, so an entry seen present has been
    there all the time. The anon_vma lock keeps the vmas, and so their tables, where they are.

    Context: page lock and anon_vma write held, the page just unmapped.
    Emulator: I19.
    """
    first = head.index
    last = first + HPAGE_PMD_NR - 1
    avc = anon_vma_first(page_anon_vma(head), first, last)
    while avc:
        vma = vmas[avc.vma]
        check_vma_unmapped(cpu, head, vma, max(first, vma.vm_pgoff), min(last, vma_last_pgoff(vma)))
        avc = anon_vma_next(avc, first, last)


@kernel
def check_vma_unmapped(cpu: Cpu, head: Page, vma: Vma, first: int, last: int):
    """No entry of one vma, of its pages first .. last, maps the page.

    Sound: as check_unmapped().

    Context: as check_unmapped().
    Emulator: I19.
    """
    pfn = page_to_pfn(head)
    value = 0
    for index in range(first, last + 1):
        addr = vma.vm_start + ((index - vma.vm_pgoff) << PAGE_SHIFT)
        if index == first or addr & ~HPAGE_PMD_MASK == 0:
            pmd = mm_pmd(mms[vma.vm_mm], addr)
            value = pmd.val.load() if pmd else 0
            bug_on(cpu, pmd_trans_huge(value) and entry_pfn(value) == pfn,
                   "I19: a pmd maps an unmapped page (values: pfn, address)", pfn, addr)
        if pmd_table(value):
            pte = pte_offset(value, addr).val.load()
            bug_on(cpu, pte_present(pte) and not pte_special(pte) and pfn <= entry_pfn(pte) < pfn + HPAGE_PMD_NR,
                   "I19: a pte maps an unmapped page (values: pfn, address)", entry_pfn(pte), addr)


@kernel
def check_detached(cpu: Cpu, pmd: Entry, table: int):
    """I22: nobody but khugepaged can reach the table that it has detached.

    Sound: mmap_sem is held for write, so no fault fills the pmd and no other CPU may take the table's lock; the pages were
    found mapped by this table only, so no CPU can load them again, and those of this mm were flushed.

    Context: collapse_pmd() with mmap_sem write, pages isolated, the table's ptl not held.
    Emulator: I22.
    """
    mm = mms[mem_map[table].pt_mm]
    bug_on(cpu, mm.mmap_sem.writer != cpu.id + 1, "I22: collapse without mmap_sem write (values: mm, writer)", mm.id,
           mm.mmap_sem.writer)
    bug_on(cpu, pmd.val.load() != 0, "I22: the pmd of a detached table was filled (values: pmd, table)", pmd.val.load(),
           table)
    bug_on(cpu, mem_map[table].ptl.word.load() != 0, "I22: somebody is in a detached table (values: table, ptl)", table,
           mem_map[table].ptl.word.load())
    for _ in range(SOME_PTES):
        pte = table_entry(table, random_below(cpu, HPAGE_PMD_NR)).val.load()
        if pte_present(pte) and not pte_special(pte):
            bug_on(cpu, frames_translated(entry_pfn(pte), entry_pfn(pte) + 1, mm.id),
                   "I22: a page of a detached table is in a TLB (values: pfn, table)", entry_pfn(pte), table)


# -- exit -------------------------------------------------------------------------------------------------------------


@kernel
def note_exit_mmap(mm: Mm, started: int):
    """Note that an mm's tables are being taken down, or are gone.

    Context: exit_mmap().
    Emulator: the first moment of I23.
    """
    exiting_mms[mm.id].started.store(started)


@kernel
def check_not_exiting(cpu: Cpu, mm: Mm):
    """I23: khugepaged is in the tables of an mm: its exit_mmap has not started.

    Sound: exit_mmap() starts behind khugepaged_exit(), which waits for mmap_sem; khugepaged holds that and has looked at
    mm_users since it took it.

    Context: khugepaged, mmap_sem held.
    Emulator: I23.
    """
    bug_on(cpu, exiting_mms[mm.id].started.load() != 0, "I23: khugepaged in the tables of an mm that exits (value: mm)",
           mm.id, mm.mm_users.read())


__all__ = ["check_detached", "check_not_exiting", "check_table_kept", "check_unmapped", "note_exit_mmap",
           "note_table_seen"]
