"""Address spaces: made, copied, replaced, given up. (Linux: kernel/fork.c, fs/exec.c, kernel/exit.c)"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.arch.tlbflush import flush_tlb_mm, switch_mm
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.config import PAGE_MASK, TASK_SIZE
from concur_thp.mm.anon_vma import anon_vma_fork
from concur_thp.mm.copy import copy_page_range
from concur_thp.mm.errno import ENOMEM
from concur_thp.mm.flags import MMF_DISABLE_THP, VM_DONTCOPY, VM_LOCKED
from concur_thp.mm.huge_zero import mm_put_huge_zero_page
from concur_thp.mm.mm_slots import khugepaged_exit, khugepaged_fork, mmdrop
from concur_thp.mm.mm_types import NIL, NR_MM_COUNTERS, POOL_MM, Mm, Vma, files, mms, percpu
from concur_thp.mm.munmap import exit_mmap
from concur_thp.mm.pgtable_alloc import pgd_alloc
from concur_thp.mm.slab import kmem_cache_alloc, kmem_cache_free
from concur_thp.mm.vma_adjust import vm_area_dup, vm_area_free
from concur_thp.mm.vma_tree import vma_at, vma_interval_tree_insert_after, vma_link
from concur_thp.sync.lock_classes import MMAP_SEM, PAGE_TABLE_LOCK
from concur_thp.sync.rwsem import assert_held_write, down_write, down_write_nested, init_rwsem, up_write
from concur_thp.sync.spinlock import spin_lock_init


@kernel
def mm_alloc(cpu: Cpu) -> Mm:
    """A new, empty address space with one user, the caller.

    Context: may sleep.
    Return: the mm, NULL without memory.
    Linux: kernel/fork.c mm_alloc, mm_init
    """
    number = kmem_cache_alloc(cpu, POOL_MM)
    if number == 0:
        return Mm(0)
    mm = mms[number]
    mm.id = number
    pgd = pgd_alloc(cpu, mm)
    if pgd == NIL:
        kmem_cache_free(cpu, POOL_MM, number)
        return Mm(0)
    mm.pgd = pgd
    mm_init(mm)
    return mm


@inline
def mm_init(mm: Mm):
    """Every field of an mm nobody knows yet. Not its TLB context: that one's generation only ever grows."""
    mm.mm_users.write(1)
    mm.mm_count.write(1)
    init_rwsem(mm.mmap_sem, MMAP_SEM)
    spin_lock_init(mm.page_table_lock, PAGE_TABLE_LOCK)
    mm.map_count = 0
    for kind in range(NR_MM_COUNTERS):
        mm.rss[kind].write(0)
    mm.nr_ptes.write(0)
    mm.nr_pmds.write(0)
    mm.flags.write(0)
    mm.tlb_flush_pending.write(0)
    mm.tlb_flush_batched.write(0)
    mm.locked_vm = 0
    mm.start_brk = 0
    mm.brk = 0
    mm.mmap_base = (TASK_SIZE - (TASK_SIZE >> 3)) & PAGE_MASK
    mm.slot_next = 0
    mm.slot_prev = 0
    mm.oracle = 0
    mm.faults.write(0)


@inline
def mmget(mm: Mm):
    """One more user, by somebody who is one."""
    mm.mm_users.add(1)


@kernel
def mmget_not_zero(mm: Mm):
    """Become a user of an mm that may be exiting; the caller has a reference to the struct. Returns 1 when it is one.

    Context: any.
    Linux: include/linux/sched/mm.h mmget_not_zero
    """
    seen = mm.mm_users.load()
    while seen != 0:
        now = mm.mm_users.cas(seen, seen + 1)
        if now == seen:
            return 1
        seen = now
    return 0


@kernel
def mmput(cpu: Cpu, mm: Mm):
    """A user leaves; the last one takes the address space down.

    Context: may sleep; nothing held. Whoever still ran in it on this CPU has left by switch_mm().
    Linux: kernel/fork.c mmput
    """
    old = mm.mm_users.sub(1)
    bug_on(cpu, old <= 0, "mmput: mm has no user (value: mm)", mm.id, old)
    if old == 1:
        __mmput(cpu, mm)


@kernel
def __mmput(cpu: Cpu, mm: Mm):
    """The last user is gone.

    Context: as mmput().
    Linux: kernel/fork.c __mmput
    """
    # 3.37. khugepaged first: afterwards it is in none of the tables that exit_mmap() frees, and stays out (I23).
    khugepaged_exit(cpu, mm)
    exit_mmap(cpu, mm)
    # Behind exit_mmap(): its pmds may still have mapped the huge zero page, which they do not count.
    mm_put_huge_zero_page(cpu, mm)
    mmdrop(cpu, mm)


@kernel
def dup_mm(cpu: Cpu, oldmm: Mm) -> Mm:
    """A copy of an address space, with one user. Both share every private page until one of them writes.

    Context: a user of oldmm; takes its mmap_sem write. The child may run from the return on.
    Return: the copy, NULL without memory; the parent is as it was, but for write faults it will take.
    Linux: kernel/fork.c dup_mm
    """
    mm = mm_alloc(cpu)
    if not mm:
        return Mm(0)
    mm.flags.write(oldmm.flags.read() & (1 << MMF_DISABLE_THP))
    if dup_mmap(cpu, mm, oldmm) != 0:
        mmput(cpu, mm)
        return Mm(0)
    trace(cpu, Tracepoint.sched_process_fork, oldmm.id, mm.id, 0)
    return mm


@kernel
def dup_mmap(cpu: Cpu, mm: Mm, oldmm: Mm):
    """Copy vmas and entries.

    Context: takes mmap_sem write of the parent, then of the child, which nobody else can reach but by rmap.
    Return: 0 or -ENOMEM; then the child is incomplete, and good for mmput() only.
    Linux: kernel/fork.c dup_mmap
    """
    # 3.12.1
    down_write(cpu, oldmm.mmap_sem)
    down_write_nested(cpu, mm.mmap_sem)
    mm.start_brk = oldmm.start_brk
    mm.brk = oldmm.brk
    mm.mmap_base = oldmm.mmap_base
    error = khugepaged_fork(cpu, mm, oldmm)
    k = 0
    while error == 0 and k < oldmm.map_count:
        mpnt = vma_at(oldmm, k)
        if mpnt.vm_flags & VM_DONTCOPY == 0:
            error = dup_vma(cpu, mm, oldmm, mpnt)
        k += 1
    # 3.12.4: failed or not, entries of the parent have lost their write bit, and until this flush its other threads may
    # write by their TLBs to pages that the child has, too (X11).
    up_write(cpu, mm.mmap_sem)
    point(cpu, Point.FORK_BEFORE_FLUSH)
    flush_tlb_mm(cpu, oldmm.id)
    up_write(cpu, oldmm.mmap_sem)
    return error


@kernel
def dup_vma(cpu: Cpu, mm: Mm, oldmm: Mm, mpnt: Vma):
    """One vma of the parent's, with what it maps.

    Context: mmap_sem write of both.
    Return: 0 or -ENOMEM.
    Linux: kernel/fork.c dup_mmap, the body of its loop
    Differs: no VM_WIPEONFORK.
    """
    assert_held_write(cpu, mm.mmap_sem)
    # 3.12.2
    tmp = vm_area_dup(cpu, mpnt)
    if not tmp:
        return -ENOMEM
    tmp.vm_mm = mm.id
    tmp.vm_flags = tmp.vm_flags & ~VM_LOCKED
    if anon_vma_fork(cpu, tmp, mpnt) != 0:
        vm_area_free(cpu, tmp)
        return -ENOMEM
    file = tmp.vm_file
    if file != 0:
        down_write(cpu, files[file].i_mmap_rwsem)
        vma_interval_tree_insert_after(cpu, tmp, mpnt)
        up_write(cpu, files[file].i_mmap_rwsem)
    vma_link(cpu, mm, tmp)
    # The child's vma is in the trees before its first entry, behind the parent's: a walker that takes entries down
    # (split, migration) comes to the parent's first, and finds each page there, or in the child, or in both (X12).
    point(cpu, Point.FORK_VMA_LINKED)
    return copy_page_range(cpu, mm, oldmm, mpnt)  # 3.12.3


@kernel
def switch_to_mm(cpu: Cpu, mm_number: int):
    """This CPU runs in another mm from now on, or in none (0). References are the caller's business.

    Context: irqs on, nothing held.
    Emulator: what the scheduler's context switch does to the mm.
    """
    percpu[cpu.id].mm = mm_number
    switch_mm(cpu, mm_number)


@kernel
def exec_mmap(cpu: Cpu, start_brk: int):
    """Leave the current mm, if any, and start in an empty one whose heap begins at `start_brk`.

    Context: nothing held; may sleep.
    Return: 0, or -ENOMEM and nothing has changed.
    Linux: fs/exec.c exec_mmap
    """
    mm = mm_alloc(cpu)
    if not mm:
        return -ENOMEM
    mm.start_brk = start_brk
    mm.brk = start_brk
    old = percpu[cpu.id].mm
    if old != 0:
        mm.flags.write(mms[old].flags.read() & (1 << MMF_DISABLE_THP))
    switch_to_mm(cpu, mm.id)
    if old != 0:
        mmput(cpu, mms[old])
    return 0


@kernel
def exit_mm(cpu: Cpu):
    """The task on this CPU leaves its mm for good; the last one takes it down.

    Context: nothing held; may sleep.
    Linux: kernel/exit.c exit_mm
    Differs: leaves at once, Linux keeps the mm loaded (lazy TLB) until it switches.
    """
    number = percpu[cpu.id].mm
    bug_on(cpu, number == 0, "exit_mm: this CPU runs in no mm (value: cpu)", cpu.id, 0)
    switch_to_mm(cpu, 0)
    trace(cpu, Tracepoint.sched_process_exit, number, 0, 0)
    mmput(cpu, mms[number])
