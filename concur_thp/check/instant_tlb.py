"""Instant invariants of translations (I14, I15, I16)."""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import TLB_HUGE, TLB_SMALL, Cpu, CpuState, cpus
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.system import system
from concur_thp.arch.tlb import tlb_contexts
from concur_thp.config import HPAGE_PMD_NR, PAGE_SHIFT
from concur_thp.mm.mm_types import Mm, mms
from concur_thp.mm.pgtable import (
    _PAGE_DIRTY,
    _PAGE_HUGE,
    _PAGE_RW,
    entry_pfn,
    hardware_walks,
    mm_pmd,
    pmd_lockptr,
    pmd_table,
    pte_lockptr,
    pte_offset,
)
from concur_thp.mm.tlb_batch import FLUSHED_SHIFT, PENDING_MASK
from concur_thp.sync.rwsem_queue import RWSEM_WRITER
from concur_thp.sync.spinlock import WAITERS, SpinLock

CPU_RUNNING = int(CpuState.RUNNING)


@kernel
def check_tlb(cpu: Cpu):
    """I14: this CPU holds no address both small and huge, unless a zap of this mm has its flush still before it.

    DONTNEED takes a huge pmd down, another CPU's fault puts a table there, and this CPU's store wants Dirty, which its huge
    translation has not: it walks, and has both. v4.20 does nothing against that; the zap's flush ends it.

    Sound: a TLB changes on its own CPU only. The zap's tlb_flush_pending is there until we have served its flush.

    Context: its own CPU.
    Emulator: I14.
    """
    for i in range(TLB_HUGE):
        tag = cpu.tlb_huge[i].tag
        if tag != 0:
            for k in range(TLB_SMALL):
                small = cpu.tlb_small[k].tag
                bug_on(cpu, small != 0 and tag <= small < tag + HPAGE_PMD_NR and up_to_date(cpu, cpu.context)
                       and mms[cpu.context].tlb_flush_pending.load() == 0,
                       "I14: an address is in the TLB small and huge (values: small tag, huge tag)", small, tag)


@kernel
def check_frame_free(cpu: Cpu, pfn: int, order: int):
    """I15: frames become free, so no CPU may have a translation of them.

    Sound: a CPU that is behind its mm's generation does not count, it drops everything before it uses its TLB again
    (arch/cpu.py). And the frames are mapped nowhere any more, so nobody can load such a translation while we look.

    Context: the last reference is gone, the frames are not on a free list yet.
    Emulator: I15.
    """
    bug_on(cpu, frames_translated(pfn, pfn + (1 << order), 0),
           "I15: a freed frame is in a TLB (values: pfn, order)", pfn, order)


@kernel
def frames_translated(first: int, end: int, context: int):
    """Has a CPU that is up to date a translation of a frame in [first, end), in the mm `context` (0: any)?

    Context: nobody can load such a translation.
    Return: 1 or 0.
    Emulator: for I15 and I22.
    """
    found = 0
    for number in range(system.nr_cpus):
        other = cpus[number]
        runs = other.context
        if runs != 0 and (context == 0 or runs == context) and up_to_date(other, runs) and _translates(other, first, end):
            # Again: a CPU that came up to date, or into another mm, while we looked has dropped what we saw.
            found = found or (_translates(other, first, end) and other.context == runs)
    return found


@inline
def up_to_date(other: Cpu, context: int):
    return other.generation == tlb_contexts[context].generation.load()


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
def check_translations(cpu: Cpu):
    """I16: each translation that this CPU holds matches its entry, or a flush of it is pending.

    Sound: it asks the entry first and then who may have changed it. He holds something (a ptl, tlb_flush_pending, a
    batch, mmap_sem for fork) from before his change until every running CPU has acknowledged his flush; we do not while
    we are here, so it is still to be seen, or the generation has moved. Tables are not freed before that either.

    Context: its own CPU, RUNNING, no lock held.
    Emulator: I16.
    """
    if cpu.context == 0 or cpu.state.read() != CPU_RUNNING:
        return 0
    mm = mms[cpu.context]
    for i in range(TLB_SMALL):
        slot = cpu.tlb_small[i]
        if slot.tag != 0:
            check_translation(cpu, mm, (slot.tag - 1) << PAGE_SHIFT, slot.entry, 0)
    for i in range(TLB_HUGE):
        slot = cpu.tlb_huge[i]
        if slot.tag != 0:
            check_translation(cpu, mm, (slot.tag - 1) << PAGE_SHIFT, slot.entry, 1)
    return 0


@kernel
def check_translation(cpu: Cpu, mm: Mm, addr: int, cached: int, huge: int):
    """One translation: same frame, same size, nothing allowed (or noted as Dirty) that the entry has not.

    Sound: as check_translations().

    Context: as check_translations().
    Emulator: I16.
    """
    pmd = mm_pmd(mm, addr)
    above = pmd.val.load() if pmd else 0
    now = above
    if pmd_table(above):
        now = 0 if huge else pte_offset(above, addr).val.load()
    if hardware_walks(now) and (now & _PAGE_HUGE != 0) == huge and entry_pfn(now) == entry_pfn(cached):
        if cached & ~now & (_PAGE_RW | _PAGE_DIRTY) == 0:
            return 0
    pending = mm.tlb_flush_pending.load() > 0 or batch_pending(mm) or mm.mmap_sem.count.load() & RWSEM_WRITER != 0
    if pmd:
        pending = pending or taken(pmd_lockptr(pmd))
        if pmd_table(above):
            pending = pending or taken(pte_lockptr(above))
    bug_on(cpu, not pending and up_to_date(cpu, cpu.context),
           "I16: a translation that the entry does not allow, and no flush is pending (values: address, translation)",
           addr, cached)
    return 0


@inline
def batch_pending(mm: Mm):
    """Has reclaim left an unmap that no flush has covered?"""
    batch = mm.tlb_flush_batched.load()
    return batch & PENDING_MASK != batch >> FLUSHED_SHIFT


@inline
def taken(lock: SpinLock):
    return lock.word.load() & ~WAITERS != 0


__all__ = ["check_frame_free", "check_tlb", "check_translations", "frames_translated"]
