"""kswapd: works when it was woken, until a zone is good again or nothing helps; then sleeps."""

import pytest

from concur_thp.arch.cpu import CpuState
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.config import PAGE_SIZE
from concur_thp.mm.alloc_slowpath import kswapd_wait, wake_all_kswapds
from concur_thp.mm.buddy import WMARK_HIGH
from concur_thp.mm.kswapd import IDLE_ROUNDS, balance_pgdat, kswapd_run, pgdat_balanced
from concur_thp.mm.mm_types import pgdat, zones
from concur_thp.mm.vmstat import vmstat

ADDR = 1 << 24


def all_marks(pages: int) -> None:
    for zone in range(pgdat.nr_zones):
        zones[zone].watermark[WMARK_HIGH] = pages


def turn(task) -> None:
    """One turn of the kernel thread."""
    cpu_park(task.cpu)
    kswapd_run(task.cpu)
    assert task.cpu.state.read() == int(CpuState.PARKED) and kswapd_wait.asleep.load() == 0
    cpu_resume(task.cpu)


def test_one_good_zone_is_enough(new_task):
    task = new_task()
    frames = task.machine.config.frames
    assert pgdat_balanced()
    all_marks(frames)
    assert not pgdat_balanced()
    zones[pgdat.nr_zones - 1].watermark[WMARK_HIGH] = 0
    assert pgdat_balanced()


def test_nothing_to_do_is_nothing_done(new_task):
    task = new_task()
    balance_pgdat(task.cpu)
    assert vmstat()["pageoutrun"] == 1 and vmstat()["pgscan_kswapd"] == 0


def test_gives_up_when_nothing_helps(new_task):
    """Nothing can be reclaimed: it ends all the same."""
    task = new_task()
    all_marks(task.machine.config.frames)
    before = task.cpu.ops
    balance_pgdat(task.cpu)
    assert task.cpu.ops - before == IDLE_ROUNDS and vmstat()["pgsteal_kswapd"] == 0


@pytest.mark.parametrize("woken", [0, 1, 2])
def test_works_once_however_often_it_was_woken(new_task, woken):
    task = new_task()
    for _ in range(woken):
        wake_all_kswapds()
    turn(task)
    assert vmstat()["pageoutrun"] == min(woken, 1) and kswapd_wait.served == kswapd_wait.wakeups.load() == woken
    turn(task)
    assert vmstat()["pageoutrun"] == min(woken, 1)


def test_what_it_reclaims_is_for_others(new_task, request):
    """On no list of its own CPU."""
    task = new_task(swap="16M" if "order9" in request.node.name else "1M")
    task.mmap(ADDR, 64)
    for i in range(64):
        task.store(ADDR + i * PAGE_SIZE, i + 1)
    all_marks(task.machine.config.frames)
    free = sum(int(zones[zone].nr_free_pages) for zone in range(pgdat.nr_zones))
    wake_all_kswapds()
    turn(task)
    stolen = vmstat()["pgsteal_kswapd"]
    assert stolen > 0
    assert sum(int(zones[zone].nr_free_pages) for zone in range(pgdat.nr_zones)) >= free + stolen
    assert [task.load(ADDR + i * PAGE_SIZE) for i in range(64)] == list(range(1, 65))
