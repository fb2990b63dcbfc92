"""mmap, munmap, brk, stacks, mprotect, mremap, madvise: what they refuse, and where they put things."""

from typing import Any

import pytest

from concur_thp.arch.irq import cpu_resume
from concur_thp.arch.linker import interpreted
from concur_thp.check.audit import audit
from concur_thp.config import HPAGE_PMD_SIZE, PAGE_SIZE, TASK_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.errno import EACCES, EFAULT, EINVAL, ENOMEM
from concur_thp.mm.flags import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_STACK,
    PROT_READ,
    PROT_WRITE,
    VM_DONTCOPY,
    VM_HUGEPAGE,
    VM_LOCKED,
    VM_MAYWRITE,
    VM_NOHUGEPAGE,
)
from concur_thp.mm.fork import dup_mm, exec_mmap, exit_mm, mmput, switch_to_mm
from concur_thp.mm.mm_slots import khugepaged_scan
from concur_thp.mm.mm_types import Mm, mms, percpu
from concur_thp.mm.mmap import STACK_GUARD_GAP
from concur_thp.mm.syscall import sys_brk, sys_madvise, sys_mlock, sys_mmap, sys_mprotect, sys_mremap, sys_munmap
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.mm.vma_prot import mmap_switches
from concur_thp.mm.vma_tree import vma_at
from concur_thp.mm.vmstat import vmstat

BASE = 1 << 24
RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS
P = PAGE_SIZE


def start(machine: Machine) -> Any:
    cpu = machine.cpu(0)
    cpu_resume(cpu)
    assert exec_mmap(cpu, BASE // 2) == 0
    return cpu


def vmas() -> list[Any]:
    mm = mms[percpu[0].mm]
    return [vma_at(mm, k) for k in range(mm.map_count)]


def spans() -> list[tuple[int, int]]:
    return [(vma.vm_start, vma.vm_end) for vma in vmas()]


def check(machine: Machine) -> None:
    result = audit(machine.config)
    assert not result.violations, result.violations


def test_what_is_refused() -> None:
    with Machine(memory="4M", order=3, cpus=1) as machine:
        cpu = start(machine)
        top = int(TASK_SIZE)
        assert sys_mmap(cpu, BASE, 0, RW, ANON, 0, 0) == -EINVAL
        assert sys_mmap(cpu, BASE + 1, P, RW, ANON | MAP_FIXED, 0, 0) == -EINVAL
        assert sys_mmap(cpu, top, P, RW, ANON | MAP_FIXED, 0, 0) == -ENOMEM
        assert sys_mmap(cpu, 0, 2 * top, RW, ANON, 0, 0) == -ENOMEM
        assert sys_mmap(cpu, BASE, P, RW, MAP_ANONYMOUS, 0, 0) == -EINVAL, "neither private nor shared"
        assert sys_mmap(cpu, BASE, P, RW, MAP_PRIVATE, 0, 0) == -EINVAL, "no file"
        assert sys_munmap(cpu, BASE + 1, P) == -EINVAL
        assert sys_munmap(cpu, BASE, 0) == -EINVAL
        assert sys_munmap(cpu, BASE, P) == 0, "nothing there is no error"
        assert sys_mprotect(cpu, BASE, P, RW) == -ENOMEM
        assert sys_mprotect(cpu, BASE + 1, P, RW) == -EINVAL
        assert sys_mprotect(cpu, BASE, 0, RW) == 0
        assert sys_mprotect(cpu, BASE, P, 8) == -EINVAL
        assert sys_mremap(cpu, BASE, P, 2 * P, 0) == -EFAULT
        assert sys_mremap(cpu, BASE, P, 0, 0) == -EINVAL
        assert sys_madvise(cpu, BASE, P, MADV_DONTNEED) == -ENOMEM
        assert sys_madvise(cpu, BASE, P, 3) == -EINVAL
        assert sys_madvise(cpu, BASE, 0, MADV_DONTNEED) == 0
        assert spans() == []


@pytest.mark.parametrize("order", [3, 9])
def test_top_down(order: int) -> None:
    with Machine(memory="64M", order=order, cpus=1) as machine:
        cpu = start(machine)
        base = mms[percpu[0].mm].mmap_base
        file_like = MAP_SHARED | MAP_ANONYMOUS
        first = sys_mmap(cpu, 0, 4 * P, RW, file_like, 0, 0)
        second = sys_mmap(cpu, 0, 2 * P, RW, file_like, 0, 0)
        assert (first, second) == (base - 4 * P, base - 6 * P)
        assert sys_munmap(cpu, first, 2 * P) == 0
        assert sys_mmap(cpu, 0, 3 * P, RW, file_like, 0, 0) == second - 3 * P
        assert sys_mmap(cpu, 0, 2 * P, RW, file_like, 0, 0) == first, "the highest hole that is wide enough"
        check(machine)


def test_brk() -> None:
    with Machine(memory="4M", order=3, cpus=1) as machine:
        cpu = start(machine)
        heap = BASE // 2
        assert sys_brk(cpu, 0) == heap, "below the start: only asks"
        assert sys_brk(cpu, heap + 5) == heap + 5 and spans() == [(heap, heap + P)]
        assert sys_brk(cpu, heap + P) == heap + P and spans() == [(heap, heap + P)]
        assert user_store(cpu, heap, 1) == 0
        assert sys_brk(cpu, heap + 4 * P) == heap + 4 * P and spans() == [(heap, heap + 4 * P)], "merged"
        assert sys_brk(cpu, heap + 2 * P - 1) == heap + 2 * P - 1 and spans() == [(heap, heap + 2 * P)]
        assert sys_mmap(cpu, heap + 4 * P, P, RW, ANON | MAP_FIXED, 0, 0) > 0
        assert sys_brk(cpu, heap + 4 * P) == heap + 2 * P - 1, "a page must stay free before the next mapping"
        assert sys_brk(cpu, heap + 3 * P) == heap + 3 * P
        check(machine)


@pytest.mark.parametrize("plain", [False, True])
def test_stack(plain: bool) -> None:
    with Machine(memory="8M", order=3, cpus=1, native_code=not plain) as machine, interpreted():
        cpu = start(machine)
        top, low = 3 * BASE, 3 * BASE - 4 * P
        assert sys_mmap(cpu, low, 4 * P, RW, ANON | MAP_FIXED | MAP_GROWSDOWN, 0, 0) == low
        assert user_store(cpu, low - 10 * P, 7) == 0
        assert spans() == [(low - 10 * P, top)]
        assert vmas()[0].vm_pgoff == low // P - 10
        below = low - STACK_GUARD_GAP - 20 * P
        assert sys_mmap(cpu, below, 2 * P, RW, ANON | MAP_FIXED, 0, 0) == below
        assert user_store(cpu, below + 5 * P, 7) == -EFAULT, "too near to the mapping below"
        assert user_load(cpu, low - 10 * P) == 0 and cpu.scratch[0] == 7
        check(machine)
        exit_mm(cpu)


def test_stack_without_huge_pages() -> None:
    with Machine(memory="8M", order=3, cpus=1) as machine:
        cpu = start(machine)
        for value, flag in ((0, 0), (1, VM_NOHUGEPAGE)):
            mmap_switches.map_stack_nohuge = value
            assert sys_mmap(cpu, BASE, P, RW, ANON | MAP_FIXED | MAP_STACK, 0, 0) == BASE
            assert vmas()[0].vm_flags & VM_NOHUGEPAGE == flag


def test_mprotect_needs_the_right() -> None:
    with Machine(memory="4M", order=3, cpus=1) as machine:
        cpu = start(machine)
        assert sys_mmap(cpu, BASE, 2 * P, PROT_READ, ANON | MAP_FIXED, 0, 0) == BASE
        vmas()[0].vm_flags = vmas()[0].vm_flags & ~VM_MAYWRITE
        assert sys_mprotect(cpu, BASE, P, RW) == -EACCES


def test_mprotect_keeps_a_whole_huge_page() -> None:
    """And a write after it takes a fault that reuses the page (semantics 3.23, section 6 row 12)."""
    with Machine(memory="4M", order=3, cpus=1) as machine:
        cpu = start(machine)
        huge = int(HPAGE_PMD_SIZE)
        assert sys_mmap(cpu, BASE, 2 * huge, RW, ANON | MAP_FIXED, 0, 0) == BASE
        for k in (0, 1):
            assert user_store(cpu, BASE + k * huge, 5) == 0
        assert sys_mprotect(cpu, BASE, huge, PROT_READ) == 0
        assert user_store(cpu, BASE, 6) == -EFAULT
        assert user_store(cpu, BASE + huge, 6) == 0
        assert sys_mprotect(cpu, BASE, huge, 0) == 0
        assert user_load(cpu, BASE) == -EFAULT
        assert sys_mprotect(cpu, BASE, huge, RW) == 0
        assert user_load(cpu, BASE) == 0 and cpu.scratch[0] == 5
        assert user_store(cpu, BASE, 7) == 0
        assert vmstat()["thp_split_pmd"] == 0 and vmstat()["wp_reuse"] == 1
        assert sys_mprotect(cpu, BASE + P, P, PROT_READ) == 0
        assert vmstat()["thp_split_pmd"] == 1
        check(machine)


@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize("shift", [0, 1])
def test_mremap_moves_huge_pages(split: int, shift: int) -> None:
    """Section 6 rows 13 and 14: whole to an aligned address, else as ptes."""
    with Machine(memory="8M", order=3, cpus=1) as machine:
        set_switch("mremap_split", split)
        cpu = start(machine)
        huge = int(HPAGE_PMD_SIZE)
        assert sys_mmap(cpu, BASE, 3 * huge, RW, ANON | MAP_FIXED, 0, 0) == BASE
        for at in range(BASE, BASE + 3 * huge, P):
            assert user_store(cpu, at, at) == 0
        target = 2 * BASE + shift * P
        assert sys_mremap(cpu, BASE + huge, 2 * huge, 2 * huge, target) == target
        whole = 0 if split or shift else 2
        assert (vmstat()["mremap_huge"], vmstat()["thp_split_pmd"]) == (whole, 2 - whole)
        assert vmstat()["thp_deferred_split_page"] == 0
        for at in range(0, 2 * huge, P):
            assert user_load(cpu, target + at) == 0 and cpu.scratch[0] == BASE + huge + at
        assert user_load(cpu, BASE + huge) == -EFAULT
        check(machine)


def test_mremap_sizes() -> None:
    with Machine(memory="8M", order=3, cpus=1) as machine:
        cpu = start(machine)
        assert sys_mmap(cpu, BASE, 4 * P, RW, ANON | MAP_FIXED, 0, 0) == BASE
        assert user_store(cpu, BASE, 9) == 0
        assert sys_mremap(cpu, BASE, 4 * P, 6 * P, 0) == BASE, "room behind"
        assert sys_mremap(cpu, BASE, 6 * P, 2 * P, 0) == BASE
        assert spans() == [(BASE, BASE + 2 * P)]
        assert sys_mmap(cpu, BASE + 3 * P, P, PROT_READ, ANON | MAP_FIXED, 0, 0) > 0
        assert sys_mremap(cpu, BASE, 2 * P, 3 * P, BASE) == BASE
        assert sys_mremap(cpu, BASE, 3 * P, 4 * P, BASE) == -ENOMEM, "may not move"
        moved = sys_mremap(cpu, BASE, 3 * P, 4 * P, 0)
        assert moved == mms[percpu[0].mm].mmap_base - 4 * P
        assert user_load(cpu, moved) == 0 and cpu.scratch[0] == 9
        assert spans() == [(BASE + 3 * P, BASE + 4 * P), (moved, moved + 4 * P)]
        assert sys_mremap(cpu, moved, 2 * P, 2 * P, moved + P) == -EINVAL, "overlap"
        assert sys_mremap(cpu, moved, 8 * P, 8 * P, BASE) == -EFAULT, "across a border"
        assert sys_mremap(cpu, moved, 0, P, 2 * BASE) == -EINVAL, "only shared memory can be mapped twice"
        check(machine)


def test_mremap_maps_shared_memory_twice() -> None:
    with Machine(memory="8M", order=3, cpus=1) as machine:
        cpu = start(machine)
        assert sys_mmap(cpu, BASE, 2 * P, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, 0, 0) == BASE
        assert user_store(cpu, BASE + P, 3) == 0
        assert sys_mremap(cpu, BASE, 0, 2 * P, 2 * BASE) == 2 * BASE
        assert len(vmas()) == 2
        assert user_load(cpu, 2 * BASE + P) == 0 and cpu.scratch[0] == 3
        check(machine)


def test_madvise_over_holes_and_locked_vmas() -> None:
    with Machine(memory="8M", order=3, cpus=1) as machine:
        cpu = start(machine)
        for k in (0, 4, 6):
            assert sys_mmap(cpu, BASE + k * P, 2 * P, RW, ANON | MAP_FIXED, 0, 0) > 0
        for k in (1, 4):
            assert user_store(cpu, BASE + k * P, k) == 0
        assert sys_madvise(cpu, BASE, 8 * P, MADV_DONTNEED) == -ENOMEM, "done all the same"
        for k in (1, 4):
            assert user_load(cpu, BASE + k * P) == 0 and cpu.scratch[0] == 0
        vmas()[0].vm_flags = vmas()[0].vm_flags | VM_LOCKED
        for advice in (MADV_DONTNEED, MADV_FREE):
            assert sys_madvise(cpu, BASE, P, advice) == -EINVAL
        assert sys_mmap(cpu, BASE, 2 * P, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, 0, 0) == BASE
        assert sys_madvise(cpu, BASE, P, MADV_FREE) == -EINVAL, "not anonymous"
        check(machine)


def test_madvise_hugepage() -> None:
    with Machine(memory="8M", order=3, cpus=1) as machine:
        set_switch("enabled", "madvise")
        cpu = start(machine)
        huge = int(HPAGE_PMD_SIZE)
        assert sys_mmap(cpu, BASE, 4 * huge, RW, ANON | MAP_FIXED, 0, 0) == BASE
        assert user_store(cpu, BASE, 1) == 0
        assert vmstat()["thp_fault_alloc"] == 0 and khugepaged_scan.head == 0
        assert sys_madvise(cpu, BASE + huge, huge, MADV_HUGEPAGE) == 0
        assert khugepaged_scan.head == percpu[0].mm, "has an anon_vma already, so no fault need register it"
        assert [vma.vm_flags & (VM_HUGEPAGE | VM_NOHUGEPAGE) for vma in vmas()] == [0, VM_HUGEPAGE, 0]
        assert user_store(cpu, BASE + huge, 1) == 0
        assert vmstat()["thp_fault_alloc"] == 1
        assert sys_madvise(cpu, BASE + huge + P, P, MADV_NOHUGEPAGE) == 0
        assert vmstat()["thp_split_pmd"] == 1 and len(vmas()) == 5
        assert sys_madvise(cpu, BASE, 4 * huge, MADV_NOHUGEPAGE) == 0
        assert len(vmas()) == 1
        check(machine)


def test_madvise_free_marks_pages() -> None:
    with Machine(memory="8M", order=3, cpus=1) as machine:
        cpu = start(machine)
        huge = int(HPAGE_PMD_SIZE)
        assert sys_mmap(cpu, BASE, huge, RW, ANON | MAP_FIXED, 0, 0) == BASE
        assert sys_mmap(cpu, BASE + 4 * huge, P, RW, ANON | MAP_FIXED, 0, 0) > 0
        for at in (BASE, BASE + 4 * huge):
            assert user_store(cpu, at, 1) == 0
            assert sys_madvise(cpu, at, P if at > BASE else huge, MADV_FREE) == 0
            check(machine)
            assert user_load(cpu, at) == 0 and cpu.scratch[0] == 1, "nobody was short of memory"
            assert user_store(cpu, at, 2) == 0
        check(machine)


def test_fork_leaves_out_what_it_is_told_to() -> None:
    with Machine(memory="8M", order=3, cpus=1) as machine:
        cpu = start(machine)
        for k in (0, 2, 4):
            assert sys_mmap(cpu, BASE + k * P, P, RW, ANON | MAP_FIXED, 0, 0) > 0
            assert user_store(cpu, BASE + k * P, k + 1) == 0
        vmas()[1].vm_flags = vmas()[1].vm_flags | VM_DONTCOPY
        assert sys_mlock(cpu, BASE + 4 * P, P) == 0 and vmas()[2].vm_flags & VM_LOCKED
        mother = percpu[0].mm
        child = Mm(dup_mm(cpu, mms[mother]))
        assert (child.start_brk, child.mmap_base) == (mms[mother].start_brk, mms[mother].mmap_base)
        switch_to_mm(cpu, child.id)
        assert len(vmas()) == 2 and vmas()[1].vm_flags & VM_LOCKED == 0
        assert user_load(cpu, BASE + 2 * P) == -EFAULT
        assert user_store(cpu, BASE, 100) == 0
        check(machine)
        exit_mm(cpu)
        switch_to_mm(cpu, mother)
        assert user_load(cpu, BASE) == 0 and cpu.scratch[0] == 1
        assert user_load(cpu, BASE + 2 * P) == 0 and cpu.scratch[0] == 3
        check(machine)


def test_a_child_of_a_registered_mm_is_registered() -> None:
    with Machine(memory="8M", order=3, cpus=1) as machine:
        cpu = start(machine)
        huge = int(HPAGE_PMD_SIZE)
        assert sys_mmap(cpu, BASE, huge, RW, ANON | MAP_FIXED, 0, 0) == BASE
        assert user_store(cpu, BASE, 1) == 0
        child = Mm(dup_mm(cpu, mms[percpu[0].mm]))
        assert (khugepaged_scan.head, khugepaged_scan.tail) == (percpu[0].mm, child.id)
        mmput(cpu, child)
        assert khugepaged_scan.tail == percpu[0].mm
        check(machine)
