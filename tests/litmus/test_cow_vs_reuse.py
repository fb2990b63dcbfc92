"""A copy on write takes an unchanged pte for proof that the page has not changed while it was copied without the ptl.

v4.20 lets another thread of the mm make the page its own meanwhile (reuse counts mappings, not references), write to it, and
lose the write bit again by a way through the swap device. The pte is then what it was, the page is not:

    CPU0 wp_page_copy                   CPU1
    copies the page, which a child
    has, too
                                        the child's DONTNEED: the page is ours alone
                                        store: reuse_swap_page(), no copy
                                        swapped out, and in again by a load: read-only and clean, as before
    pte_same(): maps the copy
                                        load: the store is lost
"""

from collections.abc import Callable

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.points import Point
from concur_thp.check.audit import audit
from concur_thp.config import HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.flags import MADV_DONTNEED, MADV_FREE, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from concur_thp.mm.fork import dup_mm, mm_alloc, mmget, mmput, switch_to_mm
from concur_thp.mm.mm_types import mem_map, mms
from concur_thp.mm.mprotect import change_protection
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.pgtable import _PAGE_PROTNONE, entry_pfn, mm_pmd
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.syscall import sys_madvise, sys_mmap
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.try_to_unmap import (
    TTU_IGNORE_ACCESS,
    TTU_IGNORE_MLOCK,
    TTU_MIGRATION,
    remove_migration_ptes,
    try_to_unmap,
)
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.mm.vma_tree import find_vma
from concur_thp.program.pressure import swap_out_address
from concur_thp.sync.rwsem import down_read, up_read
from tests.litmus.held import run_held

ADDR = 1 << 24
MINE, THEIRS, BOTHS = ADDR, ADDR + 512, ADDR + 1024
"""Three words of one page."""


def run_in(mm: int, cpu: Cpu) -> None:
    mmget(mms[mm])
    cpu_resume(cpu)
    switch_to_mm(cpu, mm)


def leave(mm: int, cpu: Cpu) -> None:
    switch_to_mm(cpu, 0)
    mmput(cpu, mms[mm])
    cpu_park(cpu)


def load(cpu: Cpu, addr: int) -> int:
    return int(cpu.scratch[0]) if user_load(cpu, addr) == 0 else -1


def shared_and_swapped_in(cpu: Cpu) -> tuple[int, int]:
    """Parent and child with one page, mapped by both, clean and read-only."""
    mm = mms.index(mm_alloc(cpu))
    cpu_resume(cpu)
    switch_to_mm(cpu, mm)
    assert sys_mmap(cpu, ADDR, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, 0, 0) == ADDR
    assert user_store(cpu, BOTHS, 5) == 0
    child = mms.index(dup_mm(cpu, mms[mm]))
    assert swap_out_address(cpu, ADDR) >= 0
    for each in (child, mm):
        switch_to_mm(cpu, each)
        assert load(cpu, BOTHS) == 5
    lru_add_drain(cpu)
    switch_to_mm(cpu, 0)
    cpu_park(cpu)
    return mm, child


def copy_beside(machine: Machine, mm: int, child: int, held_at: Point, other: Callable[[Cpu], bool]) -> None:
    """A store is held in the middle of its copy while `other` runs; behind both, every word that was stored is there."""

    def copier(cpu: Cpu) -> bool:
        run_in(mm, cpu)
        done = user_store(cpu, MINE, 7) == 0
        leave(mm, cpu)
        return done

    assert run_held(machine, copier, held_at, other, lambda: False) == [0, 0]
    cpu = machine.cpu(0)
    run_in(mm, cpu)
    assert (load(cpu, MINE), load(cpu, THEIRS), load(cpu, BOTHS)) == (7, 9, 5)
    leave(mm, cpu)
    assert not audit(machine.config).violations
    cpu_resume(cpu)
    mmput(cpu, mms[child])
    mmput(cpu, mms[mm])
    cpu_park(cpu)


def test_a_store_is_not_lost_to_a_copy_that_was_made_before_it() -> None:
    with Machine(memory="4M", order=3, cpus=2, swap="1M") as machine:
        set_switch("enabled", "never")
        cpu = machine.cpu(0)
        mm, child = shared_and_swapped_in(cpu)

        def other(cpu: Cpu) -> bool:
            run_in(child, cpu)
            done = sys_madvise(cpu, ADDR, PAGE_SIZE, MADV_DONTNEED) == 0
            leave(child, cpu)
            run_in(mm, cpu)
            done = done and user_store(cpu, THEIRS, 9) == 0
            done = done and swap_out_address(cpu, ADDR) >= 0 and load(cpu, THEIRS) == 9
            leave(mm, cpu)
            return done

        copy_beside(machine, mm, child, Point.WP_PTE_COPIED, other)


def test_nor_to_one_whose_pmd_was_under_migration_when_a_hint_came() -> None:
    """The same of a huge pmd, whose way back to read-only and clean is a migration that fails for the copier's reference, if
    a NUMA hint, which comes under mmap_sem read, takes the write from the migration entry as mprotect() does."""
    with Machine(memory="4M", order=3, cpus=2) as machine:
        set_switch("enabled", "always")
        cpu = machine.cpu(0)
        size = int(HPAGE_PMD_SIZE)
        mm = mms.index(mm_alloc(cpu))
        cpu_resume(cpu)
        switch_to_mm(cpu, mm)
        assert sys_mmap(cpu, ADDR, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, 0, 0) == ADDR
        assert user_store(cpu, BOTHS, 5) == 0
        assert sys_madvise(cpu, ADDR, size, MADV_FREE) == 0  # Clean and old, as the failed migration will leave it.
        child = mms.index(dup_mm(cpu, mms[mm]))
        head = int(entry_pfn(mm_pmd(mms[mm], ADDR).val.load()))
        lru_add_drain(cpu)
        switch_to_mm(cpu, 0)
        cpu_park(cpu)

        def other(cpu: Cpu) -> bool:
            run_in(child, cpu)
            done = sys_madvise(cpu, ADDR, size, MADV_DONTNEED) == 0
            leave(child, cpu)
            run_in(mm, cpu)
            done = done and user_store(cpu, THEIRS, 9) == 0
            page = mem_map[head]
            down_read(cpu, mms[mm].mmap_sem)
            lock_page(cpu, page)
            done = done and try_to_unmap(cpu, page, TTU_MIGRATION | TTU_IGNORE_MLOCK | TTU_IGNORE_ACCESS) == 1
            change_protection(cpu, find_vma(mms[mm], ADDR), ADDR, ADDR + size, _PAGE_PROTNONE, 1)
            remove_migration_ptes(cpu, page, page, 0)
            unlock_page(cpu, page)
            up_read(cpu, mms[mm].mmap_sem)
            leave(mm, cpu)
            return done

        copy_beside(machine, mm, child, Point.WP_HUGE_COPIED, other)
