"""K17: a huge COW on one CPU, MADV_DONTNEED of a page of the same range on another.

v4.20 takes the old pmd down to none before it sets the copy. DONTNEED looks at the pmd without the lock:

    CPU0 do_huge_pmd_wp_page                  CPU1 MADV_DONTNEED
    copies the old data
    pmdp_huge_clear_flush()                   pmd none: nothing to do, return 0
    set_pmd_at(copy)                          load: the old data

Found by `concur-thp stress --cpus 3 --chaos`, about once in 25 runs of 5 s.
"""

import pytest

from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.points import Point
from concur_thp.check.audit import audit
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.flags import (
    __GFP_MOVABLE,
    GFP_TRANSHUGE_LIGHT,
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
)
from concur_thp.mm.fork import dup_mm, mm_alloc, mmget, mmput, switch_to_mm
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, mem_map, mms
from concur_thp.mm.page_alloc import __free_pages, alloc_page, alloc_pages
from concur_thp.mm.syscall import sys_madvise, sys_mmap
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.mm.vmstat import Stat
from concur_thp.sync.lock_classes import PMD_PTL
from tests.litmus.held import run_held, wants

OLD = 7


def run_in(mm: int, cpu: Cpu) -> None:
    mmget(mms[mm])
    cpu_resume(cpu)
    switch_to_mm(cpu, mm)


def leave(mm: int, cpu: Cpu) -> None:
    switch_to_mm(cpu, 0)
    mmput(cpu, mms[mm])
    cpu_park(cpu)


def leave_small_pages_only(cpu: Cpu, order: int) -> list[tuple[int, int]]:
    """Take every free block of a huge page's order but three, and the first page of each of those."""
    set_switch("defrag", "never")
    blocks = []
    while block := alloc_pages(cpu, order, MIGRATE_MOVABLE, GFP_TRANSHUGE_LIGHT):
        blocks.append((block, order))
    for _ in range(3):
        __free_pages(cpu, *blocks.pop())
    small = []
    while page := alloc_page(cpu, __GFP_MOVABLE):
        small.append(page)
    kept = [page for page in small if mem_map.index(page) % int(HPAGE_PMD_NR) == 0]
    for page in small:
        if page not in kept:
            __free_pages(cpu, page, 0)
    return [*blocks, *((page, 0) for page in kept)]


@pytest.mark.parametrize("order", [9, 3])
@pytest.mark.parametrize("small_pages", [False, True], ids=["huge copy", "fallback to small"])
def test_what_dontneed_threw_away_does_not_come_back_with_the_copy(order: int, small_pages: bool) -> None:
    with Machine(memory="64M" if order == 9 else "4M", order=order, cpus=2) as machine:
        start, page = 64 * int(HPAGE_PMD_SIZE), 3 * PAGE_SIZE
        cpu = machine.cpu(0)
        mm = mms.index(mm_alloc(cpu))
        cpu_resume(cpu)
        switch_to_mm(cpu, mm)
        size = int(HPAGE_PMD_SIZE)
        assert sys_mmap(cpu, start, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, 0, 0) == start
        assert user_store(cpu, start + page, OLD) == 0
        child = mms.index(dup_mm(cpu, mms[mm]))  # From here on the huge page is shared: a write copies it.
        hoarded = leave_small_pages_only(cpu, order) if small_pages else []
        switch_to_mm(cpu, 0)
        cpu_park(cpu)

        def writer(cpu: Cpu) -> bool:
            run_in(mm, cpu)
            done = user_store(cpu, start, 1) == 0
            leave(mm, cpu)
            return done

        def discarder(cpu: Cpu) -> bool:
            run_in(mm, cpu)
            done = sys_madvise(cpu, start + page, PAGE_SIZE, MADV_DONTNEED) == 0
            done = done and user_load(cpu, start + page) == 0 and cpu.scratch[0] == 0
            leave(mm, cpu)
            return done

        assert run_held(machine, writer, Point.WP_HUGE_FLUSHED, discarder, wants(PMD_PTL)) == [0, 0]
        copied = Stat.wp_huge_fallback_pages if small_pages else Stat.wp_huge_copy
        assert cpus[0].vmstat[int(copied)] == 1
        for pages, of_order in hoarded:
            __free_pages(cpu, pages, of_order)
        assert not audit(machine.config).violations
        cpu_resume(cpu)
        mmput(cpu, mms[child])
        mmput(cpu, mms[mm])
        cpu_park(cpu)
