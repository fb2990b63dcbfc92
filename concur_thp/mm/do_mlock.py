"""mlock and munlock: VM_LOCKED on a range, and then its pages faulted in and marked. (Linux: mm/mlock.c, mm/gup.c)

The flag comes first, under mmap_sem write; the pages after it, under mmap_sem read: a page that comes in meanwhile by a
fault of its own is marked by that fault. What cannot be marked now (its lock is taken, or it is a THP mapped by ptes) is
found by reclaim later, which asks the vma.
"""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import PAGE_MASK, PAGE_SHIFT
from concur_thp.mm.errno import EAGAIN, EINVAL, ENOMEM
from concur_thp.mm.flags import (
    FOLL_FORCE,
    FOLL_MLOCK,
    FOLL_POPULATE,
    FOLL_TOUCH,
    FOLL_WRITE,
    VM_ACCESS,
    VM_LOCKED,
    VM_SHARED,
    VM_WRITE,
)
from concur_thp.mm.gup import get_user_pages
from concur_thp.mm.mm_types import Mm, Slot, Vma, mms
from concur_thp.mm.munlock import munlock_vma_pages_range
from concur_thp.mm.munmap import PAGE_ALIGN
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.vma_adjust import split_vma
from concur_thp.mm.vma_merge import vma_merge
from concur_thp.mm.vma_prot import mlock_limit_reached
from concur_thp.mm.vma_tree import find_vma, vma_next, vma_prev
from concur_thp.sync.rwsem import assert_held, assert_held_write, down_read, down_write, up_read, up_write


@kernel
def mlock_fixup(cpu: Cpu, vma: Vma, prev: Vma, start: int, end: int, newflags: int):
    """[start, end), a part of one vma, becomes VM_LOCKED or ceases to be: merge or split it for that.

    Context: mmap_sem write. `prev` is the vma before `start`, which may be `vma` itself.
    Return: 0 with the vma that has the range now in cpu.scratch[0]; -ENOMEM.
    Linux: mm/mlock.c mlock_fixup
    """
    mm = mms[vma.vm_mm]
    cpu.scratch[0] = int(vma)
    if newflags == vma.vm_flags:
        return 0
    pgoff = vma.vm_pgoff + ((start - vma.vm_start) >> PAGE_SHIFT)
    merged = vma_merge(cpu, mm, prev, start, end, newflags, vma.anon_vma, vma.vm_file, pgoff)
    if merged:
        vma = merged
    else:
        if start != vma.vm_start and split_vma(cpu, mm, vma, start, 1) != 0:
            return -ENOMEM
        if end != vma.vm_end and split_vma(cpu, mm, vma, end, 0) != 0:
            return -ENOMEM
    pages = (end - start) >> PAGE_SHIFT
    if newflags & VM_LOCKED:
        mm.locked_vm = mm.locked_vm + pages
        vma.vm_flags = newflags
    else:
        mm.locked_vm = mm.locked_vm - pages
        munlock_vma_pages_range(cpu, vma, start, end)
    cpu.scratch[0] = int(vma)
    return 0


@kernel
def apply_vma_lock_flags(cpu: Cpu, mm: Mm, start: int, end: int, lock: int):
    """VM_LOCKED, or not, for a range that must be mapped without holes.

    Context: mmap_sem write.
    Return: 0, -ENOMEM (a hole, or out of vmas: what is before it has changed).
    Linux: mm/mlock.c apply_vma_lock_flags
    """
    assert_held_write(cpu, mm.mmap_sem)
    vma = find_vma(mm, start)
    if not vma or vma.vm_start > start:
        return -ENOMEM
    prev = vma if start > vma.vm_start else vma_prev(mm, vma)
    while True:
        upto = min(vma.vm_end, end)
        error = mlock_fixup(cpu, vma, prev, start, upto, (vma.vm_flags & ~VM_LOCKED) | lock)
        if error != 0:
            return error
        prev = Vma(cpu.scratch[0])
        start = max(upto, prev.vm_end)
        if start >= end:
            return 0
        vma = vma_next(mm, prev)
        if not vma or vma.vm_start != start:
            return -ENOMEM


@kernel
def populate_vma_page_range(cpu: Cpu, vma: Vma, start: int, end: int):
    """Fault in a range of one vma, mlocked if the vma is; what a program may write is made its own first.

    Context: mmap_sem read. May sleep.
    Return: pages done, or an error if there was none.
    Linux: mm/gup.c populate_vma_page_range
    Differs: mmap_sem is kept while a page is waited for.
    """
    mm = mms[vma.vm_mm]
    assert_held(cpu, mm.mmap_sem)
    flags = FOLL_TOUCH | FOLL_POPULATE | FOLL_MLOCK
    # Else a page shared since fork would be marked, and the first write would leave it for one that is not.
    if vma.vm_flags & (VM_WRITE | VM_SHARED) == VM_WRITE:
        flags = flags | FOLL_WRITE
    if vma.vm_flags & VM_ACCESS:
        flags = flags | FOLL_FORCE
    return get_user_pages(cpu, mm, start, (end - start) >> PAGE_SHIFT, flags, Slot(0))


@kernel
def mm_populate(cpu: Cpu, mm: Mm, start: int, end: int):
    """Fault in a range; it may change while this runs, what is not mapped is passed over.

    Context: no lock held; takes mmap_sem read, for one vma at a time. May sleep.
    Return: 0, or the first error.
    Linux: mm/gup.c __mm_populate
    """
    error = 0
    while error >= 0 and start < end:
        down_read(cpu, mm.mmap_sem)
        vma = find_vma(mm, start)
        if not vma or vma.vm_start >= end:
            start = end
        else:
            start = max(start, vma.vm_start)
            error = populate_vma_page_range(cpu, vma, start, min(end, vma.vm_end))
            start += error << PAGE_SHIFT
        up_read(cpu, mm.mmap_sem)
    return min(error, 0)


@inline
def count_mm_mlocked_page_nr(mm: Mm, start: int, end: int):
    """Pages of a range that are VM_LOCKED already: they do not count twice against the limit."""
    count = 0
    vma = find_vma(mm, start)
    while vma and vma.vm_start < end:
        if vma.vm_flags & VM_LOCKED:
            count += (min(end, vma.vm_end) - max(start, vma.vm_start)) >> PAGE_SHIFT
        vma = vma_next(mm, vma)
    return count


@kernel
def do_mlock(cpu: Cpu, mm: Mm, start: int, length: int):
    """mlock.

    Context: takes mmap_sem, write and then read. May sleep.
    Return: 0; -EINVAL; -ENOMEM (over the limit, a hole, or not to be faulted in); -EAGAIN: out of memory on the way.
    Linux: mm/mlock.c do_mlock
    Differs: this CPU's pagevecs are drained, not everybody's.
    """
    end = (start & PAGE_MASK) + PAGE_ALIGN(length + (start & ~PAGE_MASK))
    start = start & PAGE_MASK
    if start < 0 or length < 0 or end < start:
        return -EINVAL
    if end == start:
        return 0
    lru_add_drain(cpu)
    error = -ENOMEM
    down_write(cpu, mm.mmap_sem)
    more = ((end - start) >> PAGE_SHIFT) - count_mm_mlocked_page_nr(mm, start, end)
    if not mlock_limit_reached(mm, more):
        error = apply_vma_lock_flags(cpu, mm, start, end, VM_LOCKED)
    up_write(cpu, mm.mmap_sem)
    if error != 0:
        return error
    error = mm_populate(cpu, mm, start, end)
    if error == -ENOMEM:
        return -EAGAIN
    return -ENOMEM if error != 0 else 0  # __mlock_posix_error_return: -EFAULT says what -ENOMEM means here.


@kernel
def do_munlock(cpu: Cpu, mm: Mm, start: int, length: int):
    """munlock.

    Context: takes mmap_sem write. May sleep.
    Return: 0, -EINVAL, -ENOMEM.
    Linux: mm/mlock.c munlock
    """
    end = (start & PAGE_MASK) + PAGE_ALIGN(length + (start & ~PAGE_MASK))
    start = start & PAGE_MASK
    if start < 0 or length < 0 or end < start:
        return -EINVAL
    if end == start:
        return 0
    down_write(cpu, mm.mmap_sem)
    error = apply_vma_lock_flags(cpu, mm, start, end, 0)
    up_write(cpu, mm.mmap_sem)
    return error


__all__ = ["do_mlock", "do_munlock", "mm_populate"]
