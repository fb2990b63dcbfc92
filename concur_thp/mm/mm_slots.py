"""khugepaged's list of mms, and the references that keep an mm's struct alive. (Linux: mm/khugepaged.c, kernel/fork.c)

Two counts: mm_users holds the address space, mm_count the struct. An mm on khugepaged's list has one mm_count for it.
The list hangs in the mms themselves (slot_next, slot_prev), so registering needs no memory and cannot fail.
"""

from typing import Any

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.arch.shared import SharedOne
from concur_thp.arch.struct import I32, I64, Struct, embed, field
from concur_thp.arch.tlb import tlb_contexts
from concur_thp.config import HPAGE_PMD_MASK, HPAGE_PMD_SIZE
from concur_thp.mm.flags import MMF_DISABLE_THP, MMF_VM_HUGEPAGE, VM_HUGEPAGE, VM_NOHUGEPAGE
from concur_thp.mm.mm_types import NR_MM_COUNTERS, POOL_MM, Mm, Vma, mms
from concur_thp.mm.pgtable_alloc import pgd_free
from concur_thp.mm.slab import kmem_cache_free
from concur_thp.mm.thp_sysfs import THP_ALWAYS, THP_MADVISE, THP_NEVER, thp
from concur_thp.sync.lock_classes import KHUGEPAGED_MM_LOCK
from concur_thp.sync.rwsem import down_write, up_write
from concur_thp.sync.spinlock import SpinLock, assert_spin_locked, spin_lock, spin_lock_init, spin_unlock


class KhugepagedScan(Struct, size=64):
    """Where khugepaged is."""

    lock = embed(SpinLock, "khugepaged_mm_lock: guards the list and the cursor")
    head = field(I32, "khugepaged_mm_lock", "first mm of the list, or 0")
    tail = field(I32, "khugepaged_mm_lock", "last mm, or 0")
    mm_slot = field(I32, "khugepaged_mm_lock", "the mm being scanned, or 0: begin at the head")
    address = field(I64, "owner", "where in that mm the scan goes on")


khugepaged_scan = SharedOne("khugepaged_scan", KhugepagedScan)


def init_khugepaged(config: Any) -> None:
    """Boot: an empty list."""
    spin_lock_init(khugepaged_scan.lock, KHUGEPAGED_MM_LOCK)
    for name in ("head", "tail", "mm_slot", "address"):
        setattr(khugepaged_scan, name, 0)


@inline
def test_mm_flag(mm: Mm, flag: int):
    return (mm.flags.read() >> flag) & 1


@inline
def mmgrab(mm: Mm):
    """One more reference to the struct, by somebody who has one or is a user."""
    mm.mm_count.add(1)


@kernel
def mmdrop(cpu: Cpu, mm: Mm):
    """Drop a reference to the struct; the last one frees it.

    Context: no spinlock: freeing the top table may take zone_lock.
    Linux: include/linux/sched/mm.h mmdrop
    """
    old = mm.mm_count.sub(1)
    bug_on(cpu, old <= 0, "mmdrop: mm has no reference (value: mm)", mm.id, old)
    if old == 1:
        __mmdrop(cpu, mm)


@kernel
def __mmdrop(cpu: Cpu, mm: Mm):
    """The last reference to an mm is gone: check that nothing is left in it and free it.

    Context: nobody else can reach the mm. Its TLB context keeps its generation for the next mm of this number: a CPU
    may remember the old one, so it must only ever grow.
    Linux: kernel/fork.c __mmdrop, check_mm
    """
    bug_on(cpu, mm.mm_users.read() != 0, "__mmdrop: mm still has users (value: mm)", mm.id, mm.mm_users.read())
    bug_on(cpu, test_mm_flag(mm, MMF_VM_HUGEPAGE), "__mmdrop: mm is on khugepaged's list (value: mm)", mm.id, 0)
    bug_on(cpu, tlb_contexts[mm.id].cpumask.load() != 0, "__mmdrop: a CPU still runs in the mm (values: mm, CPUs)",
           mm.id, tlb_contexts[mm.id].cpumask.read())
    for kind in range(NR_MM_COUNTERS):
        bug_on(cpu, mm.rss[kind].read() != 0, "__mmdrop: bad rss-counter state (values: mm, kind)", mm.id, kind)
    bug_on(cpu, mm.nr_ptes.read() + mm.nr_pmds.read() != 0, "__mmdrop: non-zero page tables (values: mm, ptes)", mm.id,
           mm.nr_ptes.read())
    pgd_free(cpu, mm)
    kmem_cache_free(cpu, POOL_MM, mm.id)


@inline
def khugepaged_test_exit(mm: Mm):
    """Has this mm lost its last user? Then its page tables are nobody's but exit_mmap()'s."""
    return mm.mm_users.load() == 0


@kernel
def __khugepaged_enter(cpu: Cpu, mm: Mm):
    """Put an mm on khugepaged's list. Returns 0.

    Context: mm has a user; takes khugepaged_mm_lock.
    Linux: mm/khugepaged.c __khugepaged_enter
    Differs: no slot to allocate. Nor is khugepaged woken: while the list is empty it looks every few milliseconds.
    """
    # 3.28.1
    bug_on(cpu, khugepaged_test_exit(mm), "__khugepaged_enter: mm is exiting (value: mm)", mm.id, 0)
    if (mm.flags.or_(1 << MMF_VM_HUGEPAGE) >> MMF_VM_HUGEPAGE) & 1:
        return 0
    # The list's reference comes first: from the unlock on, khugepaged may drop it.
    mmgrab(mm)
    spin_lock(cpu, khugepaged_scan.lock)
    _list_add_tail(mm)
    spin_unlock(cpu, khugepaged_scan.lock)
    return 0


@inline
def _list_add_tail(mm: Mm):
    mm.slot_next = 0
    mm.slot_prev = khugepaged_scan.tail
    if khugepaged_scan.tail != 0:
        mms[khugepaged_scan.tail].slot_next = mm.id
    else:
        khugepaged_scan.head = mm.id
    khugepaged_scan.tail = mm.id


@inline
def _list_del(mm: Mm):
    if mm.slot_prev != 0:
        mms[mm.slot_prev].slot_next = mm.slot_next
    else:
        khugepaged_scan.head = mm.slot_next
    if mm.slot_next != 0:
        mms[mm.slot_next].slot_prev = mm.slot_prev
    else:
        khugepaged_scan.tail = mm.slot_prev
    mm.slot_next = 0
    mm.slot_prev = 0


@kernel
def khugepaged_enter(cpu: Cpu, mm: Mm):
    """Register an mm that is about to get a huge page, if it is not registered yet. Returns 0.

    Context: mmap_sem held; the caller has found its vma eligible (transparent_hugepage_enabled()).
    Linux: include/linux/khugepaged.h khugepaged_enter
    """
    if not test_mm_flag(mm, MMF_VM_HUGEPAGE) and thp.enabled != THP_NEVER and not test_mm_flag(mm, MMF_DISABLE_THP):
        return __khugepaged_enter(cpu, mm)
    return 0


@inline
def khugepaged_fork(cpu: Cpu, mm: Mm, oldmm: Mm):
    """A child of a registered mm is registered too."""
    return __khugepaged_enter(cpu, mm) if test_mm_flag(oldmm, MMF_VM_HUGEPAGE) else 0


@kernel
def khugepaged_enter_vma_merge(cpu: Cpu, vma: Vma, vm_flags: int):
    """A vma grew or changed its flags: register its mm if khugepaged will find something to do in it. Returns 0.

    Context: mmap_sem held. A vma without anon_vma has nothing to collapse; its first huge fault will register.
    Linux: mm/khugepaged.c khugepaged_enter_vma_merge
    """
    mm = mms[vma.vm_mm]
    if vma.anon_vma == 0 or vma.vm_file != 0 or test_mm_flag(mm, MMF_VM_HUGEPAGE):
        return 0
    if vm_flags & VM_NOHUGEPAGE != 0 or test_mm_flag(mm, MMF_DISABLE_THP):
        return 0
    if thp.enabled != THP_ALWAYS and (thp.enabled != THP_MADVISE or vm_flags & VM_HUGEPAGE == 0):
        return 0
    hstart = (vma.vm_start + HPAGE_PMD_SIZE - 1) & HPAGE_PMD_MASK
    hend = vma.vm_end & HPAGE_PMD_MASK
    return __khugepaged_enter(cpu, mm) if hstart < hend else 0


@kernel
def khugepaged_exit(cpu: Cpu, mm: Mm):
    """The last user is gone, the page tables are about to go: get khugepaged out of this mm.

    Context: mm_users is 0; may sleep. If khugepaged is in this mm right now, wait until it has released mmap_sem; it
    will see mm_users 0 before it touches a table again (I23), and unlink the mm itself (collect_mm_slot).
    Linux: mm/khugepaged.c __khugepaged_exit
    """
    point(cpu, Point.KHUGEPAGED_EXIT)
    if not test_mm_flag(mm, MMF_VM_HUGEPAGE):
        return 0
    free = 0
    current = 0
    spin_lock(cpu, khugepaged_scan.lock)
    # Collected since we looked at the flag? Then there is nothing left to do or to wait for.
    if test_mm_flag(mm, MMF_VM_HUGEPAGE):
        if khugepaged_scan.mm_slot != mm.id:
            _list_del(mm)
            mm.flags.and_(~(1 << MMF_VM_HUGEPAGE))
            free = 1
        else:
            current = 1
    spin_unlock(cpu, khugepaged_scan.lock)
    if free:
        mmdrop(cpu, mm)
    elif current:
        down_write(cpu, mm.mmap_sem)
        up_write(cpu, mm.mmap_sem)
    return 0


@kernel
def collect_mm_slot(cpu: Cpu, mm: Mm):
    """khugepaged leaves an mm that is exiting: off the list. Returns 1 if the caller owes an mmdrop() after unlocking.

    Context: khugepaged_mm_lock held, by khugepaged; the mm is not its cursor any more, or is about to be replaced.
    Linux: mm/khugepaged.c collect_mm_slot
    Differs: the caller drops the reference, because the last one takes zone_lock, which comes before this lock.
    """
    assert_spin_locked(cpu, khugepaged_scan.lock)
    if not khugepaged_test_exit(mm):
        return 0
    bug_on(cpu, not test_mm_flag(mm, MMF_VM_HUGEPAGE), "collect_mm_slot: mm is not on the list (value: mm)", mm.id, 0)
    _list_del(mm)
    mm.flags.and_(~(1 << MMF_VM_HUGEPAGE))
    return 1


__all__ = ["collect_mm_slot", "khugepaged_enter", "khugepaged_enter_vma_merge",
           "khugepaged_exit", "khugepaged_fork", "khugepaged_scan", "khugepaged_test_exit", "mmdrop", "mmgrab"]
