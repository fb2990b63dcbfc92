"""Address spaces: what a child has of its parent, and what it has not; who is the last to leave."""

from concur_thp.config import PAGE_SIZE, PMD_SIZE
from concur_thp.mm.do_mlock import do_mlock
from concur_thp.mm.flags import MMF_DISABLE_THP, VM_DONTCOPY, VM_LOCKED
from concur_thp.mm.fork import exec_mmap, mmget, mmget_not_zero, mmput
from concur_thp.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, mms, percpu
from concur_thp.mm.pgtable import _PAGE_RW, is_swap_entry
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.swap_map import swap_count
from concur_thp.mm.swapops import pte_to_swp_entry
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.program.pressure import swap_out_address

A = int(PMD_SIZE)
B = A + 64 * PAGE_SIZE


def test_a_child_has_pages_and_swap_ptes_and_neither_may_write(new_task) -> None:
    task = new_task(swap="8M")
    set_switch("enabled", "never")
    task.mmap(A, 3)
    task.store(A, 1)
    task.store(A + PAGE_SIZE, 2)
    lru_add_drain(task.cpu)
    assert swap_out_address(task.cpu, A + PAGE_SIZE) == 1
    slot = pte_to_swp_entry(task.pte(A + PAGE_SIZE).val.load())
    assert swap_count(slot) == 1
    child = task.fork()
    assert swap_count(slot) == 2
    assert [mm.rss[kind].read() for mm in (task.mm, child) for kind in (MM_ANONPAGES, MM_SWAPENTS)] == [1, 1, 1, 1]
    for mm in (child, task.mm):
        task.run_in(mm)
        assert task.pte(A).val.load() & _PAGE_RW == 0 and is_swap_entry(task.pte(A + PAGE_SIZE).val.load())
        assert [task.load(A + i * PAGE_SIZE) for i in range(3)] == [1, 2, 0]
    assert swap_count(slot) == 0, "both have it back"


def test_what_a_child_does_not_get(new_task) -> None:
    task = new_task()
    set_switch("enabled", "never")
    task.mmap(A, 1)
    task.mmap(B, 1)
    task.store(A, 1)
    task.store(B, 2)
    task.vma(A).vm_flags = task.vma(A).vm_flags | VM_DONTCOPY
    assert do_mlock(task.cpu, task.mm, B, PAGE_SIZE) == 0 and task.mm.locked_vm == 1
    task.mm.flags.or_(1 << MMF_DISABLE_THP)
    child = task.fork()
    assert child.locked_vm == 0 and child.flags.read() == 1 << MMF_DISABLE_THP
    task.run_in(child)
    assert child.map_count == 1 and task.vma(A).vm_start == B and task.vma(B).vm_flags & VM_LOCKED == 0
    assert task.load(B) == 2


def test_the_last_user_takes_it_down_and_nobody_comes_back(new_task) -> None:
    task = new_task()
    child = task.fork()
    mmget(child)
    assert mmget_not_zero(child) == 1
    mmput(task.cpu, child)
    mmput(task.cpu, child)
    assert child.mm_users.read() == 1
    task.exit(child)
    assert mmget_not_zero(child) == 0


def test_exec_starts_empty_and_leaves_the_old_one(new_task) -> None:
    task = new_task()
    task.mmap(A, 1)
    task.store(A, 1)
    old = task.mm
    mmget(old)  # The test's: so that it is there to look at.
    assert exec_mmap(task.cpu, B) == 0
    new = mms[percpu[0].mm]
    task.mms.append(new)
    assert new != old and (new.brk, new.start_brk, new.map_count) == (B, B, 0) and old.mm_users.read() == 1
    task.run_in(old)
    assert task.load(A) == 1
