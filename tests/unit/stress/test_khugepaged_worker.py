"""khugepaged's process: how long it sleeps, and what wakes it (3.28.1, 3.35)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.system import system
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_ORDER, HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.flags import (
    GFP_TRANSHUGE_LIGHT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
)
from concur_thp.mm.fork import mm_alloc, mmput, switch_to_mm
from concur_thp.mm.mm_slots import khugepaged_enter
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, Mm
from concur_thp.mm.mmap import vm_mmap
from concur_thp.mm.page_alloc import __free_pages, alloc_pages
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_store
from concur_thp.mm.vmstat import Stat, vmstat
from tests.processes import end, start, wait_for
from workers.khugepaged import khugepaged, khugepaged_wakeup, sleep

LONG = 3_600_000
START = 1 << 26


@contextmanager
def range_of_small_pages(machine: Machine) -> Iterator[Mm]:
    """An mm that khugepaged has something to do in; its CPU is parked meanwhile."""
    cpu = machine.cpu(0)
    cpu_resume(cpu)
    mm = Mm(int(mm_alloc(cpu)))
    switch_to_mm(cpu, mm.id)
    set_switch("enabled", "madvise")
    set_switch("khugepaged/defrag", 0)
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
    assert vm_mmap(cpu, mm, START, int(HPAGE_PMD_SIZE), PROT_READ | PROT_WRITE, flags, 0, 0) == START
    for i in range(int(HPAGE_PMD_NR)):
        assert user_store(cpu, START + i * PAGE_SIZE, i) == 0
    lru_add_drain(cpu)
    set_switch("enabled", "always")
    cpu_park(cpu)
    yield mm
    cpu_resume(cpu)
    switch_to_mm(cpu, 0)
    mmput(cpu, mm)


def take_huge_pages(cpu: Cpu) -> list[int]:
    taken = []
    while page := alloc_pages(cpu, HPAGE_PMD_ORDER, MIGRATE_MOVABLE, GFP_TRANSHUGE_LIGHT):
        taken.append(page)
    return taken


def test_it_says_when_there_was_no_huge_page() -> None:
    with Machine(memory="4M", order=3, cpus=2) as machine, range_of_small_pages(machine) as mm:
        worker = machine.cpu(1)
        assert khugepaged_wakeup(worker) == 0, "nothing to do is no failure"
        khugepaged_enter(machine.cpu(0), mm)
        taken = take_huge_pages(worker)
        assert khugepaged_wakeup(worker) == 1 and vmstat()["thp_collapse_alloc_failed"] == 1
        for page in taken:
            __free_pages(worker, page, HPAGE_PMD_ORDER)
        assert khugepaged_wakeup(worker) == 0 and vmstat()["khugepaged_pages_collapsed"] == 1


@pytest.mark.parametrize("switch", ["scan", "alloc"])
def test_a_sleep_ends_when_its_switch_is_written(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    wakers = [lambda: None, lambda: set_switch(f"khugepaged/{switch}_sleep_millisecs", 1),
              lambda: None, lambda: system.stop.store(1)]

    def nap(seconds: float) -> None:
        naps.append(seconds)
        wakers[len(naps) - 1]()

    monkeypatch.setattr(time, "sleep", nap)
    with Machine(memory="4M", order=3, cpus=1):
        for expected in (2, 4):
            set_switch(f"khugepaged/{switch}_sleep_millisecs", LONG)
            sleep(f"{switch}_sleep_ms")
            assert len(naps) == expected
        system.stop.store(0)


def test_the_first_mm_wakes_it() -> None:
    """scan_sleep is not for an empty list."""
    with Machine(memory="4M", order=3, cpus=2) as machine, range_of_small_pages(machine) as mm:
        set_switch("khugepaged/scan_sleep_millisecs", LONG)
        pid = start(machine, 1, lambda cpu: khugepaged(machine, cpu))
        try:
            worker = machine.cpu(1)
            wait_for(lambda: worker.ops == 1, "the first round")
            khugepaged_enter(machine.cpu(0), mm)
            wait_for(lambda: worker.ops == 2, "the second round")
            assert worker.vmstat[Stat.khugepaged_pages_collapsed] == 1
            system.stop.store(1)
        finally:
            end([pid])
