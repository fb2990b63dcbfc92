"""mmu_gather: entries go down, then every CPU forgets them, then the pages go back (3.20). (Linux: mm/mmu_gather.c)

    tlb_gather_mmu(cpu, mm, start, end)     tlb_flush_pending += 1, before any ptl is taken
      under ptls: take entries down, tlb_record() their range, tlb_remove_page() what they mapped
    tlb_finish_mmu(cpu)                     flush; drop the references; tlb_flush_pending -= 1

Two CPUs that zap the same mm can hide entries from each other: the second finds none, flushes nothing, and its caller
would believe that no CPU can reach the pages. tlb_flush_pending > 1 tells it to flush its whole range all the same.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, I64, Struct, embed, field
from concur_thp.arch.tlbflush import flush_tlb_mm, flush_tlb_mm_range
from concur_thp.config import NR_CPUS, TASK_SIZE
from concur_thp.mm.mm_types import Mm, Page, Slot, mem_map, mms
from concur_thp.mm.page_flags import page_to_pfn
from concur_thp.mm.pgtable_alloc import pgtable_free
from concur_thp.mm.put_page import release_pages
from concur_thp.mm.swap_state import free_swap_cache
from concur_thp.sync.lock_classes import PMD_PTL, PTE_PTL

MMU_GATHER_PAGES = 512
MMU_GATHER_TABLES = 64
PTLS = 1 << PMD_PTL | 1 << (PMD_PTL + 1) | 1 << PTE_PTL | 1 << (PTE_PTL + 1)
FULL_MM_END = -1
"""With start 0, the `end` that says: the whole mm goes."""


class MmuGather(Struct, align=64):
    """A CPU's mmu_gather; one at a time."""

    mm = field(I32, "cpu", "the mm that is zapped, 0 when there is none")
    fullmm = field(I32, "cpu", "1 when the whole mm goes: flush everything, not ranges")
    limit_start = field(I64, "cpu", "what the caller set out to zap")
    limit_end = field(I64, "cpu", "the same: first byte behind")
    start = field(I64, "cpu", "entries taken down since the last flush: lowest address")
    end = field(I64, "cpu", "first byte behind them, 0 when there are none")
    nr = field(I32, "cpu", "pages gathered")
    nr_tables = field(I32, "cpu", "tables gathered")
    pages = embed(Slot, "pfns, a reference each", count=MMU_GATHER_PAGES)
    tables = embed(Slot, "pfns of page tables", count=MMU_GATHER_TABLES)


mmu_gathers = SharedArray("mmu_gathers", MmuGather, lambda config: NR_CPUS)


@inline
def reset_range(tlb: MmuGather):
    tlb.start = TASK_SIZE
    tlb.end = 0


@kernel
def tlb_gather_mmu(cpu: Cpu, mm: Mm, start: int, end: int):
    """Set out to take down entries of [start, end); (0, FULL_MM_END) for all of an mm that exits.

    Context: no ptl held: a CPU that takes a ptl after us and finds an entry gone must also find tlb_flush_pending.
    Linux: mm/mmu_gather.c tlb_gather_mmu
    """
    tlb = mmu_gathers[cpu.id]
    bug_on(cpu, tlb.mm != 0, "tlb_gather_mmu: this CPU has a gather already (values: mm, new mm)", tlb.mm, mm.id)
    bug_on(cpu, cpu.held_mask & PTLS != 0, "tlb_gather_mmu under a ptl (value: mm)", mm.id, cpu.held_mask)
    tlb.mm = mm.id
    tlb.fullmm = start == 0 and end == FULL_MM_END
    tlb.limit_start = start
    tlb.limit_end = TASK_SIZE if tlb.fullmm else end
    tlb.nr = 0
    tlb.nr_tables = 0
    reset_range(tlb)
    mm.tlb_flush_pending.add(1)


@inline
def adjust_range(tlb: MmuGather, start: int, end: int):
    tlb.start = min(tlb.start, start)
    tlb.end = max(tlb.end, end)


@inline
def tlb_record(cpu: Cpu, addr: int, size: int):
    """An entry for [addr, addr + size) was taken down; under its ptl."""
    adjust_range(mmu_gathers[cpu.id], addr, addr + size)


@inline
def tlb_remove_page(cpu: Cpu, page: Page):
    """Take over the reference that an entry held; the entry is down and recorded. May flush and free when full."""
    tlb = mmu_gathers[cpu.id]
    nr = tlb.nr
    tlb.pages[nr].value = page_to_pfn(page)
    tlb.nr = nr + 1
    if nr + 1 == MMU_GATHER_PAGES:
        tlb_flush_mmu(cpu)


@kernel
def tlb_remove_table(cpu: Cpu, pfn: int):
    """Take over an unlinked table. Lockless walkers (hardware, gup-fast) may be in it until the flush.

    Context: mmap_sem write, or nobody runs in the mm.
    Linux: arch/x86/include/asm/pgalloc.h pte_free_tlb
    """
    tlb = mmu_gathers[cpu.id]
    bug_on(cpu, tlb.mm == 0, "tlb_remove_table: no gather (value: pfn)", pfn, 0)
    if tlb.end == 0:
        # Nothing was mapped by it; the flush is still needed, for those walkers.
        adjust_range(tlb, tlb.limit_start, tlb.limit_end)
    nr = tlb.nr_tables
    bug_on(cpu, nr >= MMU_GATHER_TABLES, "tlb_remove_table: the gather is full (values: pfn, tables)", pfn, nr)
    tlb.tables[nr].value = pfn
    tlb.nr_tables = nr + 1
    if nr + 1 == MMU_GATHER_TABLES:
        tlb_flush_mmu(cpu)


@kernel
def tlb_flush_mmu_tlbonly(cpu: Cpu):
    """Make every CPU forget what was taken down so far.

    Context: a gather is open; ptls may be held; irqs on.
    Linux: mm/mmu_gather.c tlb_flush_mmu_tlbonly
    """
    tlb = mmu_gathers[cpu.id]
    if tlb.end == 0:
        return 0
    if tlb.fullmm:
        flush_tlb_mm(cpu, tlb.mm)
    else:
        flush_tlb_mm_range(cpu, tlb.mm, tlb.start, tlb.end)
    reset_range(tlb)
    return 0


@kernel
def tlb_flush_mmu(cpu: Cpu):
    """Flush, then drop the references gathered so far: never the other way round (I15).

    Context: a gather is open; may be called under a ptl; takes lru_lock and zone.lock.
    Linux: mm/mmu_gather.c tlb_flush_mmu
    """
    tlb = mmu_gathers[cpu.id]
    bug_on(cpu, tlb.mm == 0, "tlb_flush_mmu: no gather (value: pages)", tlb.nr, tlb.nr_tables)
    tlb_flush_mmu_tlbonly(cpu)
    point(cpu, Point.ZAP_FLUSHED)
    nr = tlb.nr
    tlb.nr = 0
    for i in range(nr):
        free_swap_cache(cpu, mem_map[tlb.pages[i].value])
    if nr != 0:
        release_pages(cpu, tlb.pages[0], nr)
    for i in range(tlb.nr_tables):
        pgtable_free(cpu, tlb.tables[i].value)
    tlb.nr_tables = 0


@kernel
def tlb_finish_mmu(cpu: Cpu):
    """Flush what is left, drop the references, and say that we are done.

    Context: no ptl held.
    Linux: mm/mmu_gather.c tlb_finish_mmu
    """
    tlb = mmu_gathers[cpu.id]
    mm = mms[tlb.mm]
    bug_on(cpu, tlb.mm == 0 or mm.tlb_flush_pending.read() <= 0, "tlb_finish_mmu: no gather (value: mm)", tlb.mm, 0)
    # A parallel zap or protection change may have taken down entries in our range and not have flushed them yet: we saw
    # none there, and our caller counts on there being no translation left.
    if mm.tlb_flush_pending.load() > 1:
        adjust_range(tlb, tlb.limit_start, tlb.limit_end)
    tlb_flush_mmu(cpu)
    tlb.mm = 0
    mm.tlb_flush_pending.sub(1)
