"""madvise: DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE. (Linux: mm/madvise.c; mm/khugepaged.c hugepage_madvise)"""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import PAGE_MASK, PAGE_SHIFT
from concur_thp.mm.errno import EAGAIN, EINVAL, ENOMEM
from concur_thp.mm.flags import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    VM_HUGEPAGE,
    VM_LOCKED,
    VM_NOHUGEPAGE,
)
from concur_thp.mm.madvise_free import madvise_free_single_vma
from concur_thp.mm.mm_slots import khugepaged_enter_vma_merge
from concur_thp.mm.mm_types import Mm, Vma, mms
from concur_thp.mm.munmap import PAGE_ALIGN
from concur_thp.mm.vma_adjust import __split_vma, map_count_reached
from concur_thp.mm.vma_merge import vma_merge
from concur_thp.mm.vma_tree import find_vma, vma_next, vma_prev
from concur_thp.mm.zap import zap_page_range
from concur_thp.sync.rwsem import assert_held_write, down_read, down_write, up_read, up_write


@inline
def madvise_need_mmap_write(advice: int):
    """DONTNEED and FREE change entries only, and run beside faults and beside each other."""
    return advice not in (MADV_DONTNEED, MADV_FREE)


@inline
def split_for_advice(cpu: Cpu, mm: Mm, vma: Vma, addr: int, new_below: int):
    """split_vma() that tells a limit, which stays (-ENOMEM), from memory that is short right now (-EAGAIN)."""
    if map_count_reached(mm, 1):
        return -ENOMEM
    return 0 if __split_vma(cpu, mm, vma, addr, new_below) == 0 else -EAGAIN


@kernel
def madvise_behavior(cpu: Cpu, vma: Vma, prev: Vma, start: int, end: int, advice: int):
    """HUGEPAGE, NOHUGEPAGE: flags of the vma, which may be merged or split for it. No entry changes but by the split.

    Context: mmap_sem write.
    Return: 0 with the vma that has the range now in cpu.scratch[0]; -ENOMEM: too many vmas; -EAGAIN: out of memory.
    Linux: mm/madvise.c madvise_behavior, mm/khugepaged.c hugepage_madvise
    """
    mm = mms[vma.vm_mm]
    assert_held_write(cpu, mm.mmap_sem)
    if advice == MADV_HUGEPAGE:
        new_flags = (vma.vm_flags & ~VM_NOHUGEPAGE) | VM_HUGEPAGE
        # The vma may just have become one for khugepaged; not every vma takes another huge fault that would register.
        khugepaged_enter_vma_merge(cpu, vma, new_flags)
    else:
        new_flags = (vma.vm_flags & ~VM_HUGEPAGE) | VM_NOHUGEPAGE
    if new_flags != vma.vm_flags:
        pgoff = vma.vm_pgoff + ((start - vma.vm_start) >> PAGE_SHIFT)
        merged = vma_merge(cpu, mm, prev, start, end, new_flags, vma.anon_vma, vma.vm_file, pgoff)
        if merged:
            vma = merged
        else:
            error = 0
            if start != vma.vm_start:
                error = split_for_advice(cpu, mm, vma, start, 1)
            if error == 0 and end != vma.vm_end:
                error = split_for_advice(cpu, mm, vma, end, 0)
            if error != 0:
                return error
        vma.vm_flags = new_flags
    cpu.scratch[0] = int(vma)
    return 0


@kernel
def madvise_vma(cpu: Cpu, vma: Vma, prev: Vma, start: int, end: int, advice: int):
    """The advice for a part of one vma.

    Context: mmap_sem, write for HUGEPAGE and NOHUGEPAGE.
    Return: 0 with the vma that has the range now in cpu.scratch[0]; -EINVAL, -ENOMEM, -EAGAIN.
    Linux: mm/madvise.c madvise_vma, madvise_dontneed_free
    """
    error = 0
    if madvise_need_mmap_write(advice):
        return madvise_behavior(cpu, vma, prev, start, end, advice)
    if vma.vm_flags & VM_LOCKED != 0:
        return -EINVAL
    if advice == MADV_DONTNEED:
        zap_page_range(cpu, vma, start, end - start)
    else:
        error = madvise_free_single_vma(cpu, vma, start, end)
    cpu.scratch[0] = int(vma)
    return error


@kernel
def madvise_range(cpu: Cpu, mm: Mm, start: int, end: int, advice: int):
    """The advice vma by vma; holes are passed over, and make it -ENOMEM in the end.

    Context: mmap_sem, write for HUGEPAGE and NOHUGEPAGE.
    Return: 0, -EINVAL, -ENOMEM, -EAGAIN.
    Linux: mm/madvise.c madvise
    """
    unmapped_error = 0
    vma = find_vma(mm, start)
    prev = Vma(0)
    if vma:
        prev = vma if start > vma.vm_start else vma_prev(mm, vma)
    while True:
        if not vma:
            return -ENOMEM
        if start < vma.vm_start:
            unmapped_error = -ENOMEM
            start = vma.vm_start
            if start >= end:
                return unmapped_error
        upto = min(vma.vm_end, end)
        error = madvise_vma(cpu, vma, prev, start, upto, advice)
        if error != 0:
            return error
        prev = Vma(cpu.scratch[0])
        start = max(upto, prev.vm_end)
        if start >= end:
            return unmapped_error
        vma = vma_next(mm, prev)


@kernel
def do_madvise(cpu: Cpu, mm: Mm, start: int, length: int, advice: int):
    """madvise.

    Context: takes mmap_sem: read for DONTNEED and FREE, else write.
    Return: 0, -EINVAL, -ENOMEM, -EAGAIN.
    Linux: mm/madvise.c madvise
    Differs: four advices; the others are -EINVAL.
    """
    if advice not in (MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MADV_NOHUGEPAGE):
        return -EINVAL
    end = start + PAGE_ALIGN(length)
    if start & ~PAGE_MASK != 0 or start < 0 or length < 0 or end < start:
        return -EINVAL
    if end == start:
        return 0
    if madvise_need_mmap_write(advice):
        down_write(cpu, mm.mmap_sem)
        error = madvise_range(cpu, mm, start, end, advice)
        up_write(cpu, mm.mmap_sem)
    else:
        down_read(cpu, mm.mmap_sem)
        error = madvise_range(cpu, mm, start, end, advice)
        up_read(cpu, mm.mmap_sem)
    return error
