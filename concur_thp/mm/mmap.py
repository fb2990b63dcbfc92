"""Making mappings: mmap, brk, the growth of stacks. (Linux: mm/mmap.c)"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, TASK_SIZE
from concur_thp.mm.anon_vma import (
    anon_vma_interval_tree_post_update_vma,
    anon_vma_interval_tree_pre_update_vma,
    anon_vma_lock_write,
    anon_vma_prepare,
    anon_vma_unlock_write,
)
from concur_thp.mm.errno import EINVAL, ENOMEM
from concur_thp.mm.file_table import file_alloc, get_file
from concur_thp.mm.flags import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_STACK,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    VM_ACCESS,
    VM_ACCOUNT,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
)
from concur_thp.mm.mm_slots import khugepaged_enter_vma_merge
from concur_thp.mm.mm_types import Mm, Vma, anon_vmas, files, mms
from concur_thp.mm.munmap import PAGE_ALIGN, do_munmap, exit_mmap, vm_munmap
from concur_thp.mm.vma_adjust import map_count_reached, split_vma, vm_area_alloc, vm_area_free, vma_adjust
from concur_thp.mm.vma_merge import vma_merge
from concur_thp.mm.vma_prot import mlock_limit_reached, mmap_switches, vma_prot_bits
from concur_thp.mm.vma_tree import find_vma, find_vma_index, vma_at, vma_interval_tree_insert, vma_link
from concur_thp.sync.rwsem import assert_held, assert_held_write, down_write, up_write
from concur_thp.sync.spinlock import spin_lock, spin_unlock

VM_MAYACCESS = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
VM_DATA_DEFAULT_FLAGS = VM_READ | VM_WRITE | VM_MAYACCESS | VM_ACCOUNT
STACK_GUARD_GAP = 256 * PAGE_SIZE
"""What a growing stack leaves free below it (stack_guard_gap)."""


@inline
def calc_vm_flags(prot: int, flags: int):
    """VM_* bits of a new mapping. PROT_* and VM_READ.. have the same values."""
    vm_flags = (prot & (PROT_READ | PROT_WRITE | PROT_EXEC)) | VM_MAYACCESS
    if flags & MAP_SHARED != 0:
        vm_flags = vm_flags | VM_SHARED | VM_MAYSHARE
    if flags & MAP_GROWSDOWN != 0:
        vm_flags = vm_flags | VM_GROWSDOWN
    if flags & MAP_STACK != 0 and mmap_switches.map_stack_nohuge != 0:
        vm_flags = vm_flags | VM_NOHUGEPAGE
    if flags & MAP_NORESERVE != 0:
        vm_flags = vm_flags | VM_NORESERVE
    return vm_flags


@inline
def accountable_mapping(vm_flags: int):
    """Does the mapping count as memory that was promised? Nothing is counted here, but only what does merges with its like."""
    return vm_flags & (VM_NORESERVE | VM_SHARED | VM_WRITE) == VM_WRITE


@inline
def vm_start_gap(vma: Vma):
    """Where the space of a vma begins, the room below a stack included."""
    if vma.vm_flags & VM_GROWSDOWN != 0:
        return max(vma.vm_start - STACK_GUARD_GAP, 0)
    return vma.vm_start


@inline
def vma_before(mm: Mm, addr: int) -> Vma:
    """The last vma below `addr`, which lies in a hole; NULL when there is none."""
    k = find_vma_index(mm, addr)
    prev = Vma(0)
    if k > 0:
        prev = vma_at(mm, k - 1)
    return prev


@kernel
def get_unmapped_area(cpu: Cpu, mm: Mm, addr: int, length: int, fixed: int):
    """Where a mapping of `length` bytes goes: to `addr` if fixed, else the highest hole below mmap_base.

    Context: mmap_sem.
    Return: an address, -EINVAL, -ENOMEM.
    Linux: mm/mmap.c get_unmapped_area, arch_get_unmapped_area_topdown
    Differs: an address that is not fixed is no hint; nothing is sought above mmap_base when there is no room below.
    """
    if length <= 0 or length > TASK_SIZE:
        return -ENOMEM
    if fixed:
        if addr & ~PAGE_MASK != 0:
            return -EINVAL
        return addr if 0 <= addr <= TASK_SIZE - length else -ENOMEM
    high = mm.mmap_base
    k = find_vma_index(mm, high)
    if k < mm.map_count:
        high = min(high, vm_start_gap(vma_at(mm, k)))
    while k > 0:
        if high - vma_at(mm, k - 1).vm_end >= length:
            return high - length
        k -= 1
        high = vm_start_gap(vma_at(mm, k))
    return high - length if high >= length else -ENOMEM


@kernel
def do_mmap(cpu: Cpu, mm: Mm, addr: int, length: int, prot: int, flags: int, file: int, pgoff: int):
    """mmap: anonymous (private, or shared: a file of its own) or of `file` from page `pgoff`.

    Context: mmap_sem write.
    Return: the address, -EINVAL, -ENOMEM.
    Linux: mm/mmap.c do_mmap
    Differs: nothing is populated; MAP_STACK means something only with the switch map_stack_nohuge; max_map_count is the most,
    where v4.20 looks for more than that before it adds one.
    """
    assert_held_write(cpu, mm.mmap_sem)
    length = PAGE_ALIGN(length)
    if length <= 0 or (flags & MAP_SHARED != 0) == (flags & MAP_PRIVATE != 0):
        return -EINVAL
    if (flags & MAP_ANONYMOUS != 0) != (file == 0) or pgoff < 0:
        return -EINVAL
    if map_count_reached(mm, 1):
        return -ENOMEM
    addr = get_unmapped_area(cpu, mm, addr, length, flags & MAP_FIXED)
    if addr < 0:
        return addr
    if file == 0:
        pgoff = addr >> PAGE_SHIFT if flags & MAP_SHARED == 0 else 0
    return mmap_region(cpu, mm, addr, length, calc_vm_flags(prot, flags), file, pgoff)


@kernel
def mmap_region(cpu: Cpu, mm: Mm, addr: int, length: int, vm_flags: int, file: int, pgoff: int):
    """Put a mapping to its place; what was there goes.

    Context: mmap_sem write.
    Return: the address, or -ENOMEM.
    Linux: mm/mmap.c mmap_region
    """
    if do_munmap(cpu, mm, addr, length) != 0:
        return -ENOMEM
    if accountable_mapping(vm_flags):
        vm_flags = vm_flags | VM_ACCOUNT
    if vma_merge(cpu, mm, vma_before(mm, addr), addr, addr + length, vm_flags, 0, file, pgoff):
        return addr
    # The vma first: a file that no vma ever mapped would have nobody whose end is its own.
    vma = vm_area_alloc(cpu, mm)
    if not vma:
        return -ENOMEM
    if file == 0 and vm_flags & VM_SHARED != 0:  # shmem_zero_setup
        file = file_alloc(cpu, length >> PAGE_SHIFT, 0)
        if file < 0:
            vm_area_free(cpu, vma)
            return -ENOMEM
    vma.vm_start = addr
    vma.vm_end = addr + length
    vma.vm_flags = vm_flags
    vma.vm_pgoff = pgoff
    vma.vm_file = file
    get_file(file)
    insert_vm_struct(cpu, mm, vma)
    return addr


@kernel
def insert_vm_struct(cpu: Cpu, mm: Mm, vma: Vma):
    """A vma that is ready goes into the mm's tree and its file's.

    Context: mmap_sem write; takes i_mmap_rwsem.
    Linux: mm/mmap.c vma_link
    """
    file = vma.vm_file
    if file != 0:
        down_write(cpu, files[file].i_mmap_rwsem)
    vma_link(cpu, mm, vma)
    if file != 0:
        vma_interval_tree_insert(cpu, vma)
        up_write(cpu, files[file].i_mmap_rwsem)


@kernel
def vm_mmap(cpu: Cpu, mm: Mm, addr: int, length: int, prot: int, flags: int, file: int, pgoff: int):
    """mmap.

    Context: takes mmap_sem write.
    Return: as do_mmap().
    Linux: mm/util.c vm_mmap_pgoff
    """
    down_write(cpu, mm.mmap_sem)
    result = do_mmap(cpu, mm, addr, length, prot, flags, file, pgoff)
    up_write(cpu, mm.mmap_sem)
    return result


@kernel
def do_brk_flags(cpu: Cpu, mm: Mm, addr: int, length: int):
    """Map anonymous memory at `addr`, as part of the vma before it if that can be.

    Context: mmap_sem write.
    Return: 0 or -errno.
    Linux: mm/mmap.c do_brk_flags
    """
    error = get_unmapped_area(cpu, mm, addr, length, MAP_FIXED)
    if error < 0:
        return error
    if do_munmap(cpu, mm, addr, length) != 0 or map_count_reached(mm, 1):
        return -ENOMEM
    pgoff = addr >> PAGE_SHIFT
    if vma_merge(cpu, mm, vma_before(mm, addr), addr, addr + length, VM_DATA_DEFAULT_FLAGS, 0, 0, pgoff):
        return 0
    vma = vm_area_alloc(cpu, mm)
    if not vma:
        return -ENOMEM
    vma.vm_start = addr
    vma.vm_end = addr + length
    vma.vm_pgoff = pgoff
    vma.vm_flags = VM_DATA_DEFAULT_FLAGS
    insert_vm_struct(cpu, mm, vma)
    return 0


@kernel
def do_brk(cpu: Cpu, mm: Mm, brk: int):
    """Move the end of the heap.

    Context: takes mmap_sem write.
    Return: where the end of the heap is now: `brk`, or where it was when that cannot be.
    Linux: mm/mmap.c brk (v4.19)
    """
    down_write(cpu, mm.mmap_sem)
    newbrk = PAGE_ALIGN(brk)
    oldbrk = PAGE_ALIGN(mm.brk)
    good = brk >= mm.start_brk and brk <= TASK_SIZE
    if good and newbrk < oldbrk:
        good = do_munmap(cpu, mm, newbrk, oldbrk - newbrk) == 0
    elif good and newbrk > oldbrk:
        next = find_vma(mm, oldbrk)
        if int(next) != 0 and newbrk + PAGE_SIZE > vm_start_gap(next):
            good = 0
        else:
            good = do_brk_flags(cpu, mm, oldbrk, newbrk - oldbrk) == 0
    if good:
        mm.brk = brk
    result = mm.brk
    up_write(cpu, mm.mmap_sem)
    return result


@kernel
def expand_stack(cpu: Cpu, vma: Vma, addr: int):
    """A fault just below a stack: let it grow down to `addr`.

    Context: mmap_sem read, so others fault and grow at the same time; the anon_vma's rwsem and, for stacks of different
    roots in this mm, page_table_lock keep growers apart. Those who fault meanwhile: stack_page_index().
    Return: 0, or -ENOMEM when it may not grow so far.
    Linux: mm/mmap.c expand_downwards
    Differs: nothing is accounted or limited.
    """
    mm = mms[vma.vm_mm]
    assert_held(cpu, mm.mmap_sem)
    bug_on(cpu, vma.vm_flags & VM_GROWSDOWN == 0, "expand_stack: not a stack (value: address)", addr, vma.vm_start)
    addr = addr & PAGE_MASK
    prev = vma_before(mm, vma.vm_start)
    if prev and prev.vm_flags & VM_GROWSDOWN == 0 and prev.vm_flags & VM_ACCESS != 0:
        if addr - prev.vm_end < STACK_GUARD_GAP:
            return -ENOMEM
    elif prev and addr < prev.vm_end:
        return -ENOMEM
    if anon_vma_prepare(cpu, vma) != 0:
        return -ENOMEM
    error = 0
    anon_vma_lock_write(cpu, anon_vmas[vma.anon_vma])
    if addr < vma.vm_start:  # Else somebody was faster.
        grow = (vma.vm_start - addr) >> PAGE_SHIFT
        if grow <= vma.vm_pgoff and not (vma.vm_flags & VM_LOCKED and mlock_limit_reached(mm, grow)):
            spin_lock(cpu, mm.page_table_lock)
            anon_vma_interval_tree_pre_update_vma(cpu, vma)
            vma.vm_start = addr
            vma.vm_pgoff = vma.vm_pgoff - grow
            if vma.vm_flags & VM_LOCKED:
                mm.locked_vm = mm.locked_vm + grow
            anon_vma_interval_tree_post_update_vma(cpu, vma)
            spin_unlock(cpu, mm.page_table_lock)
        else:
            error = -ENOMEM
    anon_vma_unlock_write(cpu, anon_vmas[vma.anon_vma])
    khugepaged_enter_vma_merge(cpu, vma, vma.vm_flags)
    return error


__all__ = ["do_brk", "do_mmap", "do_munmap", "exit_mmap", "expand_stack", "split_vma", "vm_mmap", "vm_munmap",
           "vma_adjust", "vma_merge", "vma_prot_bits"]
