"""Each CPU's own translation cache: small and huge entries, direct mapped.

A context is an mm as the hardware sees it: a generation that every flush raises and the set of CPUs that may hold its
translations. (Linux: mm_context_t.tlb_gen and mm_cpumask.) Entries change only on their own CPU.
"""

from concur_thp.arch.cpu import TLB_HUGE, TLB_SMALL, Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I64, Struct, atomic
from concur_thp.config import PAGE_SHIFT, PAGE_SIZE, PMD_MASK, PMD_SHIFT, PMD_SIZE

FLUSH_ALL_CEILING = 33
"""A longer range (in pages) drops the whole TLB (Linux: tlb_single_page_flush_ceiling)."""


class TlbContext(Struct, size=64):
    """What the hardware keeps of an mm."""

    generation = atomic(I64, "raised by every flush, before the requests are sent")
    cpumask = atomic(I64, "a bit for each CPU that may hold translations")


tlb_contexts = SharedArray("tlb_contexts", TlbContext, lambda config: config.mms + 1)


@inline
def tlb_lookup(cpu: Cpu, addr: int):
    """The cached entry for `addr`, 0 when there is none; huge entries first. Returns the slot in cpu.scratch[0]."""
    vpn = addr >> PAGE_SHIFT
    huge = cpu.tlb_huge[(addr >> PMD_SHIFT) & (TLB_HUGE - 1)]
    if huge.tag == ((addr & PMD_MASK) >> PAGE_SHIFT) + 1:
        return huge.entry
    small = cpu.tlb_small[vpn & (TLB_SMALL - 1)]
    return small.entry if small.tag == vpn + 1 else 0


@inline
def tlb_fill_small(cpu: Cpu, addr: int, entry: int):
    """Cache the translation of one small page."""
    vpn = addr >> PAGE_SHIFT
    slot = cpu.tlb_small[vpn & (TLB_SMALL - 1)]
    slot.tag = vpn + 1
    slot.entry = entry


@inline
def tlb_fill_huge(cpu: Cpu, addr: int, entry: int):
    """Cache the translation of one huge page."""
    slot = cpu.tlb_huge[(addr >> PMD_SHIFT) & (TLB_HUGE - 1)]
    slot.tag = ((addr & PMD_MASK) >> PAGE_SHIFT) + 1
    slot.entry = entry


@kernel
def tlb_drop(cpu: Cpu, addr: int):
    """Drop this CPU's own translations of `addr`, small and huge, because one of them or the tables forbid an access.

    Context: its own CPU.
    Emulator: a page fault does that in the processor (Intel SDM volume 3, 4.10.4.1). Else a huge page's translation that
    somebody's zap has yet to flush stays beside the small one that this access gets.
    """
    slot = cpu.tlb_huge[(addr >> PMD_SHIFT) & (TLB_HUGE - 1)]
    if slot.tag == ((addr & PMD_MASK) >> PAGE_SHIFT) + 1:
        slot.tag = 0
    vpn = addr >> PAGE_SHIFT
    slot = cpu.tlb_small[vpn & (TLB_SMALL - 1)]
    if slot.tag == vpn + 1:
        slot.tag = 0


@kernel
def tlb_flush_all(cpu: Cpu):
    """Drop every translation of this CPU.

    Context: its own CPU.
    Linux: arch/x86/include/asm/tlbflush.h __flush_tlb_all
    """
    for i in range(TLB_SMALL):
        cpu.tlb_small[i].tag = 0
    for i in range(TLB_HUGE):
        cpu.tlb_huge[i].tag = 0


@kernel
def tlb_flush_local(cpu: Cpu, start: int, end: int, generation: int):
    """Drop this CPU's translations of [start, end), small and huge.

    Context: its own CPU. `generation` is the one that the flush made; when it is the next after the CPU's own the CPU
    is up to date behind it, else it stays behind and catches up later.
    Linux: arch/x86/mm/tlb.c flush_tlb_func_common
    """
    if end - start > FLUSH_ALL_CEILING * PAGE_SIZE:
        _flush_long(cpu, start, end)
    else:
        addr = start & ~(PAGE_SIZE - 1)
        while addr < end:
            vpn = addr >> PAGE_SHIFT
            slot = cpu.tlb_small[vpn & (TLB_SMALL - 1)]
            if slot.tag == vpn + 1:
                slot.tag = 0
            addr += PAGE_SIZE
        haddr = start & PMD_MASK
        while haddr < end:
            slot = cpu.tlb_huge[(haddr >> PMD_SHIFT) & (TLB_HUGE - 1)]
            if slot.tag == (haddr >> PAGE_SHIFT) + 1:
                slot.tag = 0
            haddr += PMD_SIZE
    if generation == cpu.generation + 1:
        cpu.generation = generation


@inline
def _flush_long(cpu: Cpu, start: int, end: int):
    """A long range: look at every entry rather than at every page, so that what is outside stays cached."""
    first = (start >> PAGE_SHIFT) + 1
    last = ((end - 1) >> PAGE_SHIFT) + 1
    for i in range(TLB_SMALL):
        slot = cpu.tlb_small[i]
        if slot.tag >= first and slot.tag <= last:
            slot.tag = 0
    first = ((start & PMD_MASK) >> PAGE_SHIFT) + 1
    for i in range(TLB_HUGE):
        slot = cpu.tlb_huge[i]
        if slot.tag >= first and slot.tag <= last:
            slot.tag = 0


@kernel
def tlb_catch_up(cpu: Cpu):
    """After parking: if the context was flushed meanwhile, drop everything.

    Context: its own CPU, state RUNNING already visible.
    Linux: arch/x86/mm/tlb.c flush_tlb_func_common, the full flush when generations were missed
    """
    if cpu.context != 0:
        generation = tlb_contexts[cpu.context].generation.load()
        if generation != cpu.generation:
            tlb_flush_all(cpu)
            cpu.generation = generation
