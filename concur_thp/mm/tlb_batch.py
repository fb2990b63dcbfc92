"""Unmapping without flushing at once: reclaim takes many entries down and makes the CPUs forget them together. (3.33)

    try_to_unmap, under the ptl   entry down; set_tlb_ubc_flush_pending()
    before IO on a dirty page     try_to_unmap_flush_dirty(): no CPU writes to the page any more
    before a page is freed        try_to_unmap_flush(): no CPU reads it any more
    anybody else under a ptl      flush_tlb_batched_pending(mm), before it trusts an entry to be gone, or fills it (K19)

(Linux: mm/rmap.c; arch/x86/include/asm/tlbflush.h, struct arch_tlbflush_unmap_batch)
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, Struct, field
from concur_thp.arch.tlbflush import flush_tlb_mm
from concur_thp.config import NR_CPUS
from concur_thp.mm.mm_types import Mm

UBC_MMS = 14
PENDING_MASK = 0x7FFF
FLUSHED_SHIFT = 16
PENDING_LARGE = PENDING_MASK // 2
"""mm.tlb_flush_batched: batched unmaps so far, and above FLUSHED_SHIFT how many of them a flush has covered."""


class TlbflushUnmapBatch(Struct, size=64):
    """struct tlbflush_unmap_batch: the mms whose entries this CPU has taken down without flushing."""

    nr = field(I32, "cpu", "mms in it")
    writable = field(I32, "cpu", "1 when a CPU may still write through one of the entries")
    mms = field(I32, "cpu", "their numbers", count=UBC_MMS)


tlb_ubcs = SharedArray("tlb_ubcs", TlbflushUnmapBatch, lambda config: NR_CPUS)


@kernel
def set_tlb_ubc_flush_pending(cpu: Cpu, mm: Mm, writable: int):
    """An entry of this mm is down and no CPU has been told.

    Context: the entry's ptl held; irqs on.
    Linux: mm/rmap.c set_tlb_ubc_flush_pending
    Differs: counts as since v5.17: with v4.20's flag a flush that has begun before this unmap could clear it.
    """
    ubc = tlb_ubcs[cpu.id]
    known = 0
    for i in range(ubc.nr):
        if ubc.mms[i] == mm.id:
            known = 1
    if not known:
        if ubc.nr == UBC_MMS:
            try_to_unmap_flush(cpu)
        ubc.mms[ubc.nr] = mm.id
        ubc.nr = ubc.nr + 1
    if writable:
        ubc.writable = 1
    batch = mm.tlb_flush_batched.load()
    while True:
        # Pending starts anew before it could catch up with flushed from behind.
        more = batch + 1 if batch & PENDING_MASK <= PENDING_LARGE else 1
        seen = mm.tlb_flush_batched.cas(batch, more)
        if seen == batch:
            break
        batch = seen


@kernel
def try_to_unmap_flush(cpu: Cpu):
    """Make all CPUs forget the entries that this CPU has taken down in batches.

    Context: irqs on; before any page so unmapped is freed (I15).
    Linux: mm/rmap.c try_to_unmap_flush
    """
    ubc = tlb_ubcs[cpu.id]
    for i in range(ubc.nr):
        flush_tlb_mm(cpu, ubc.mms[i])
    ubc.nr = 0
    ubc.writable = 0


@inline
def try_to_unmap_flush_dirty(cpu: Cpu):
    """Flush if a CPU may still write to one of the pages: they are about to be written to the device."""
    if tlb_ubcs[cpu.id].writable != 0:
        try_to_unmap_flush(cpu)


@inline
def flush_tlb_batched_pending(cpu: Cpu, mm: Mm):
    """Under a ptl: entries that reclaim took down here may still be cached; flush on its behalf before relying on them."""
    batch = mm.tlb_flush_batched.load()
    if batch & PENDING_MASK != batch >> FLUSHED_SHIFT:
        __flush_tlb_batched_pending(cpu, mm, batch)


@kernel
def __flush_tlb_batched_pending(cpu: Cpu, mm: Mm, batch: int):
    """Flush the mm and note that everything up to `batch` is covered.

    Context: a ptl of the mm may be held; irqs on.
    Linux: mm/rmap.c flush_tlb_batched_pending
    Differs: counts as since v5.17, see set_tlb_ubc_flush_pending().
    """
    flush_tlb_mm(cpu, mm.id)
    pending = batch & PENDING_MASK
    bug_on(cpu, pending == 0 and batch != 0, "tlb_flush_batched counts backwards (values: mm, count)", mm.id, batch)
    # Not if another unmap has been added meanwhile: our flush may have missed it.
    mm.tlb_flush_batched.cas(batch, pending | pending << FLUSHED_SHIFT)


__all__ = ["flush_tlb_batched_pending", "set_tlb_ubc_flush_pending", "try_to_unmap_flush",
           "try_to_unmap_flush_dirty"]
