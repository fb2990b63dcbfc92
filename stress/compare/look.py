"""What smaps, pagemap and a reader of memory would say of an emulated task's arena. (Linux: fs/proc/task_mmu.c; 3.39)"""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, I64, Struct, field
from concur_thp.config import FRAME_WORDS, HPAGE_PMD_NR, PAGE_SHIFT, PAGE_SIZE
from concur_thp.mm.flags import VM_ACCESS, VM_ACCOUNT, VM_WRITE
from concur_thp.mm.huge_zero import is_huge_zero_pfn
from concur_thp.mm.mapcount import page_mapcount
from concur_thp.mm.mm_types import Entry, Mm, Vma, frames, mem_map, pgdat
from concur_thp.mm.page_flags import PageCompound, compound_head
from concur_thp.mm.page_ref import page_ref_count
from concur_thp.mm.pgtable import (
    entry_pfn,
    mm_pmd,
    pmd_table,
    pmd_trans_huge,
    pte_offset,
    pte_present,
    pte_write,
    pte_young,
)
from concur_thp.mm.thp_sysfs import transparent_hugepage_enabled
from concur_thp.mm.vma_tree import find_vma
from stress.compare.steps import ARENA_PAGES

PRESENT, ZERO, HUGE, SHARED, UNREADABLE, TABLE, PLAIN, EMPTY, NO_HUGE = 1, 2, 4, 8, 16, 32, 64, 128, 256
MAPPED, FIRST, ANON, PROMISED = 512, 1024, 2048, 4096


class LookedAt(Struct, size=80):
    """One page of the arena."""

    state = field(I32, "cpu", "PRESENT, ZERO (a zero page: not in rss), HUGE (by its pmd), SHARED, UNREADABLE, TABLE, "
                  "PLAIN (writable, young, no part of a huge page), EMPTY (not a zero page, but all words 0), "
                  "NO_HUGE (its vma may have no huge page), MAPPED (in a vma), FIRST (a vma's first), "
                  "ANON (its vma has an anon_vma), PROMISED (its vma is accounted for and not writable)")
    word = field(I64, "cpu", "its words, when it is there and may be read", count=FRAME_WORDS)


looked_at = SharedArray("looked_at", LookedAt, lambda c: ARENA_PAGES)


@inline
def page_state(pfn: int, huge: int):
    """smaps_account(): is the page shared? The only reference is its one mapping."""
    if pfn == pgdat.zero_pfn or (huge and is_huge_zero_pfn(pfn & ~(HPAGE_PMD_NR - 1))):
        return PRESENT | ZERO
    page = mem_map[pfn]
    if page_ref_count(compound_head(page)) == 1 or page_mapcount(page) < 2:
        return PRESENT
    return PRESENT | SHARED


@inline
def entry_state(entry: int, addr: int):
    """Of a pmd that is huge, or of a pte: state | pfn << 8."""
    huge = pmd_trans_huge(entry)
    pfn = entry_pfn(entry)
    if huge:
        pfn += (addr >> PAGE_SHIFT) & (HPAGE_PMD_NR - 1)
    return (pfn << 8) | page_state(pfn, huge) | (HUGE if huge else 0)


@inline
def vma_state(vma: Vma):
    """Of all pages of a vma."""
    promised = vma.vm_flags & (VM_ACCOUNT | VM_WRITE) == VM_ACCOUNT
    return (ANON if vma.anon_vma else 0) | (PROMISED if promised else 0)


@kernel
def compare_look(cpu: Cpu, mm: Mm, start: int):
    """Look at every page of the arena that begins at `start`, without touching any.

    Context: the mm is at rest.
    Emulator: smaps and pagemap of a task.
    """
    vma = find_vma(mm, start)
    for i in range(ARENA_PAGES):
        addr = start + i * PAGE_SIZE
        if vma and addr >= vma.vm_end:
            vma = find_vma(mm, addr)
        row = looked_at[i]
        row.state = 0
        for w in range(FRAME_WORDS):
            row.word[w] = 0
        at = Entry(0)
        if vma and addr >= vma.vm_start:
            at = mm_pmd(mm, addr)
            row.state = MAPPED | vma_state(vma) | (FIRST if vma.vm_start == addr else 0)
        entry = at.val.load() if at else 0
        table = pmd_table(entry)
        if table:
            row.state = row.state | TABLE
            entry = pte_offset(entry, addr).val.load()
        if (table and pte_present(entry)) or (not table and pmd_trans_huge(entry)):
            found = entry_state(entry, addr)
            unreadable = vma.vm_flags & VM_ACCESS == 0
            row.state = row.state | (found & 0xFF) | (UNREADABLE if unreadable else 0)
            if not transparent_hugepage_enabled(mm, vma):
                row.state = row.state | NO_HUGE
            if table and pte_write(entry) and pte_young(entry) and not PageCompound(mem_map[found >> 8]):
                row.state = row.state | PLAIN
            words = 0
            for w in range(FRAME_WORDS):
                word = frames[found >> 8].word[w].load()
                row.word[w] = 0 if unreadable else word
                words = words | word
            if words == 0 and found & ZERO == 0:
                row.state = row.state | EMPTY
