"""Out of memory: the program is told, and goes on as soon as there is some."""

import pytest

from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGE_SIZE
from concur_thp.mm.alloc_slowpath import alloc_pages_direct
from concur_thp.mm.compaction import compact_zones
from concur_thp.mm.errno import ENOMEM
from concur_thp.mm.flags import __GFP_NORETRY, GFP_TRANSHUGE
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, pgdat
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.vmstat import vmstat

ADDR = 1 << 26


def fill(task, pages: int) -> int:
    """Stores until the first that fails."""
    for i in range(pages):
        status = task.store(ADDR + i * PAGE_SIZE, i + 1)
        if status != 0:
            assert status == -ENOMEM
            return i
    raise AssertionError("it all fits")


def test_no_memory_and_then_some(new_task):
    task = new_task()
    frames = task.machine.config.frames
    task.mmap(ADDR, frames)
    done = fill(task, frames)
    assert done > frames // 2 and vmstat()["alloc_failed"] == 1
    assert task.store(ADDR + done * PAGE_SIZE, 1) == -ENOMEM and vmstat()["alloc_failed"] == 2
    assert task.load(ADDR + (done - 1) * PAGE_SIZE) == done, "what is there stays there"
    assert task.dontneed(ADDR, 64) == 0
    assert task.store(ADDR + done * PAGE_SIZE, 1) == 0


def test_without_a_huge_page_nobody_fails(new_task):
    """R2."""
    task = new_task()
    frames = task.machine.config.frames
    task.mmap(ADDR, frames)
    set_switch("enabled", "always")
    done = fill(task, frames)
    assert done > frames // 2 and vmstat()["thp_fault_fallback"] > 0 and vmstat()["thp_fault_alloc"] > 0
    assert vmstat()["alloc_failed"] == 1
    assert task.load(ADDR + (done - 1) * PAGE_SIZE) == done
    assert int(HPAGE_PMD_NR) * vmstat()["thp_fault_alloc"] <= done


@pytest.mark.parametrize("gfp, stalls", [(GFP_TRANSHUGE | __GFP_NORETRY, 0), (GFP_TRANSHUGE, 1)], ids=["noretry", "retry"])
def test_who_gives_up_early_reclaims_nothing_when_compaction_has_failed_lately(new_task, gfp, stalls):
    """3.34: defrag=always for a vma without VM_HUGEPAGE."""
    task = new_task()
    frames = task.machine.config.frames
    task.mmap(ADDR, frames)
    fill(task, frames)
    for zone in range(pgdat.nr_zones):
        compact_zones[zone].considered.write(0)
        compact_zones[zone].defer_shift.write(3)
        compact_zones[zone].order_failed.write(0)
    before = vmstat()["allocstall"]
    assert not alloc_pages_direct(task.cpu, int(HPAGE_PMD_ORDER), MIGRATE_MOVABLE, gfp)
    assert vmstat()["allocstall"] - before == stalls
