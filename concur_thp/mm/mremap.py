"""mremap: a mapping gets another size or another place, and its pages go with it. (Linux: mm/mremap.c)

Pages change their address but not their counts. rmap must see each of them at the old place, at the new one, or at
both, never at neither: walkers visit a source before its destination, because the destination entered the trees later;
where that does not hold (need_rmap_locks) the rmap locks keep them out during the move.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import PAGE_MASK, PAGE_SHIFT, TASK_SIZE
from concur_thp.mm.anon_vma import anon_vma_clone
from concur_thp.mm.do_mlock import mm_populate
from concur_thp.mm.errno import EAGAIN, EFAULT, EINVAL, ENOMEM
from concur_thp.mm.flags import VM_LOCKED, VM_MAYSHARE, VM_SHARED
from concur_thp.mm.huge_entry import vma_is_anonymous
from concur_thp.mm.mm_types import Mm, Vma, mms
from concur_thp.mm.mmap import get_unmapped_area, insert_vm_struct, vma_before
from concur_thp.mm.move_page_tables import move_page_tables
from concur_thp.mm.munmap import PAGE_ALIGN, do_munmap
from concur_thp.mm.vma_adjust import map_count_reached, vm_area_dup, vm_area_free, vma_adjust
from concur_thp.mm.vma_merge import vma_merge
from concur_thp.mm.vma_prot import mlock_limit_reached
from concur_thp.mm.vma_tree import find_vma, vma_next
from concur_thp.sync.rwsem import assert_held_write, down_write, up_write


@kernel
def vma_to_resize(cpu: Cpu, mm: Mm, addr: int, old_len: int, new_len: int):
    """The vma that a mapping to be resized or moved lies in.

    Context: mmap_sem write.
    Return: 0 with the vma in cpu.scratch[0]; -EFAULT, -EINVAL, -EAGAIN (over the limit of mlock).
    Linux: mm/mremap.c vma_to_resize
    Differs: of what an mm may have only mlocked pages are limited.
    """
    vma = find_vma(mm, addr)
    if not vma or vma.vm_start > addr:
        return -EFAULT
    if old_len == 0 and vma.vm_flags & (VM_SHARED | VM_MAYSHARE) == 0:
        return -EINVAL  # A second mapping of the same pages: shared ones only.
    if old_len > vma.vm_end - addr:
        return -EFAULT
    # Who only moves is not asked, whatever the limit has become since.
    if new_len != old_len and vma.vm_flags & VM_LOCKED and mlock_limit_reached(mm, (new_len - old_len) >> PAGE_SHIFT):
        return -EAGAIN
    cpu.scratch[0] = int(vma)
    return 0


@inline
def vma_expandable(mm: Mm, vma: Vma, delta: int):
    """Is there room right behind the vma?"""
    next = vma_next(mm, vma)
    end = vma.vm_end + delta
    return end <= TASK_SIZE and (not next or next.vm_start >= end)


@kernel
def copy_vma(cpu: Cpu, vma: Vma, addr: int, length: int, pgoff: int) -> Vma:
    """The vma that pages of `vma` will move to: a neighbour of the new place that can be extended, or a copy.

    Context: mmap_sem write; nothing is mapped at the new place.
    Return: NULL without memory; else the new vma, with need_rmap_locks in cpu.scratch[0] and the source, which may have
    been merged away into the new one, in cpu.scratch[1].
    Linux: mm/mmap.c copy_vma
    """
    mm = mms[vma.vm_mm]
    vma_start = vma.vm_start
    faulted = 1
    if vma_is_anonymous(vma) and vma.anon_vma == 0:
        # Never faulted: no page has its index from this pgoff, so it may be one that suits the new neighbours.
        pgoff = addr >> PAGE_SHIFT
        faulted = 0
    new_vma = vma_merge(cpu, mm, vma_before(mm, addr), addr, addr + length, vma.vm_flags, vma.anon_vma, vma.vm_file,
                        pgoff)
    if new_vma:
        if vma_start >= new_vma.vm_start and vma_start < new_vma.vm_end:
            bug_on(cpu, faulted, "mremap merged a vma with itself (values: start, new address)", vma_start, addr)
            vma = new_vma
        # In the tree a destination with a smaller pgoff comes before its source: walkers could miss a page on its way.
        cpu.scratch[0] = int(new_vma.vm_pgoff <= vma.vm_pgoff)
        cpu.scratch[1] = int(vma)
        return new_vma
    new_vma = vm_area_dup(cpu, vma)
    if not new_vma:
        return Vma(0)
    new_vma.vm_start = addr
    new_vma.vm_end = addr + length
    new_vma.vm_pgoff = pgoff
    if anon_vma_clone(cpu, new_vma, vma) != 0:
        vm_area_free(cpu, new_vma)
        return Vma(0)
    insert_vm_struct(cpu, mm, new_vma)
    cpu.scratch[0] = 0
    cpu.scratch[1] = int(vma)
    return new_vma


@kernel
def move_vma(cpu: Cpu, mm: Mm, vma: Vma, old_addr: int, old_len: int, new_len: int, new_addr: int):
    """Move [old_addr, old_addr + old_len) of a vma to `new_addr`, where there is room for `new_len`.

    Context: mmap_sem write.
    Return: new_addr, or -ENOMEM; then everything is at its old place again.
    Linux: mm/mremap.c move_vma
    """
    if map_count_reached(mm, 4):  # The unmap at the end may split one vma into three.
        return -ENOMEM
    new_pgoff = vma.vm_pgoff + ((old_addr - vma.vm_start) >> PAGE_SHIFT)
    locked = vma.vm_flags & VM_LOCKED
    all_of_it = new_len >> PAGE_SHIFT
    new_vma = copy_vma(cpu, vma, new_addr, new_len, new_pgoff)
    if not new_vma:
        return -ENOMEM
    need_rmap_locks = cpu.scratch[0]
    vma = Vma(cpu.scratch[1])
    moved_len = move_page_tables(cpu, vma, old_addr, new_vma, new_addr, old_len, need_rmap_locks)
    result = new_addr
    if moved_len < old_len:
        # Out of tables. Back again, which cannot fail: the old tables are still there. Now the source is the younger
        # vma, so the rmap locks are needed.
        moved_back = move_page_tables(cpu, new_vma, new_addr, vma, old_addr, moved_len, 1)
        bug_on(cpu, moved_back != moved_len, "mremap could not undo (values: bytes moved, moved back)", moved_len,
               moved_back)
        old_addr = new_addr
        old_len = new_len
        result = -ENOMEM
    if old_len != 0:
        # Of the vmas only: nothing is mapped there any more. Failing for want of a vma struct leaves an empty mapping.
        do_munmap(cpu, mm, old_addr, old_len)
    if locked:
        mm.locked_vm = mm.locked_vm + all_of_it  # The unmap has subtracted the other one.
    return result


@kernel
def mremap_to(cpu: Cpu, mm: Mm, addr: int, old_len: int, new_len: int, new_addr: int):
    """MREMAP_FIXED: what is at the new place goes.

    Context: mmap_sem write.
    Return: new_addr or -errno.
    Linux: mm/mremap.c mremap_to
    """
    if new_addr & ~PAGE_MASK != 0 or new_addr < 0 or new_len > TASK_SIZE or new_addr > TASK_SIZE - new_len:
        return -EINVAL
    if addr + old_len > new_addr and new_addr + new_len > addr:
        return -EINVAL
    error = do_munmap(cpu, mm, new_addr, new_len)
    if error == 0 and old_len > new_len:
        error = do_munmap(cpu, mm, addr + new_len, old_len - new_len)
        old_len = new_len
    if error == 0:
        error = vma_to_resize(cpu, mm, addr, old_len, new_len)
    if error != 0:
        return error
    return move_vma(cpu, mm, Vma(cpu.scratch[0]), addr, old_len, new_len, new_addr)


@kernel
def mremap_grow(cpu: Cpu, mm: Mm, addr: int, old_len: int, new_len: int, may_move: int):
    """More room: in place if there is some behind, else elsewhere.

    Context: mmap_sem write.
    Return: the address, or -errno.
    Linux: mm/mremap.c mremap, its growing half
    """
    error = vma_to_resize(cpu, mm, addr, old_len, new_len)
    if error != 0:
        return error
    vma = Vma(cpu.scratch[0])
    if old_len == vma.vm_end - addr and vma_expandable(mm, vma, new_len - old_len):
        if vma_adjust(cpu, vma, vma.vm_start, addr + new_len, vma.vm_pgoff, Vma(0)) != 0:
            return -ENOMEM
        if vma.vm_flags & VM_LOCKED:
            mm.locked_vm = mm.locked_vm + ((new_len - old_len) >> PAGE_SHIFT)
        return addr
    if not may_move:
        return -ENOMEM
    new_addr = get_unmapped_area(cpu, mm, 0, new_len, 0)
    return new_addr if new_addr < 0 else move_vma(cpu, mm, vma, addr, old_len, new_len, new_addr)


@kernel
def mremap_locked(cpu: Cpu, mm: Mm, addr: int, old_len: int, new_len: int, new_addr: int):
    """The body of do_mremap().

    Context: mmap_sem write.
    Return: as do_mremap().
    Linux: mm/mremap.c mremap
    """
    assert_held_write(cpu, mm.mmap_sem)
    if new_addr != 0 and new_addr != addr:
        return mremap_to(cpu, mm, addr, old_len, new_len, new_addr)
    if old_len >= new_len:
        error = 0
        if old_len > new_len:
            error = do_munmap(cpu, mm, addr + new_len, old_len - new_len)
        return addr if error == 0 else error
    return mremap_grow(cpu, mm, addr, old_len, new_len, new_addr == 0)


@kernel
def do_mremap(cpu: Cpu, mm: Mm, addr: int, old_len: int, new_len: int, new_addr: int):
    """mremap. `new_addr` 0: may move (MREMAP_MAYMOVE); `addr` itself: may not; else it goes there (MREMAP_FIXED).

    Context: takes mmap_sem write.
    Return: the new address, -EINVAL, -EFAULT, -ENOMEM.
    Linux: mm/mremap.c mremap
    """
    if addr & ~PAGE_MASK != 0 or addr < 0 or old_len < 0 or new_len <= 0 or new_len > TASK_SIZE:
        return -EINVAL
    down_write(cpu, mm.mmap_sem)
    old_len = PAGE_ALIGN(old_len)
    new_len = PAGE_ALIGN(new_len)
    result = mremap_locked(cpu, mm, addr, old_len, new_len, new_addr)
    vma = find_vma(mm, result) if result >= 0 and new_len > old_len else Vma(0)
    grown = vma and vma.vm_flags & VM_LOCKED
    up_write(cpu, mm.mmap_sem)
    if grown:
        mm_populate(cpu, mm, result + old_len, result + new_len)
    return result
