"""Compaction: a fragmented zone, its two scanners, and who may ask for it (3.34)."""

from typing import Any

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.system import system
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGE_SIZE, PMD_SIZE
from concur_thp.mm.alloc_slowpath import __alloc_pages_direct_compact, kcompactd_wait, try_to_compact_pages
from concur_thp.mm.buddy import free_area
from concur_thp.mm.compaction import (
    COMPACT_COMPLETE,
    COMPACT_DEFERRED,
    COMPACT_SKIPPED,
    COMPACT_SUCCESS,
    compact_node,
    compact_zone,
    compact_zones,
    has_free_block,
    kcompactd_do_work,
)
from concur_thp.mm.flags import FOLL_WRITE, GFP_TRANSHUGE, MADV_HUGEPAGE
from concur_thp.mm.gup import get_user_pages_unlocked
from concur_thp.mm.madvise import do_madvise
from concur_thp.mm.migrate import MIGRATE_ASYNC, MIGRATE_SYNC
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, NR_ZONES, Page, Slot, mem_map, pgdat, zones
from concur_thp.mm.page_alloc import prep_new_page
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.pgtable import pmd_trans_huge
from concur_thp.mm.swap import lru_add_drain, put_page
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_store
from concur_thp.mm.vmstat import vmstat

BASE = 1 << 24
KEEP = 4
"""One page of so many stays."""
pins = SharedArray("test_compaction_pins", Slot, lambda config: 4096)


@kernel
def touch(cpu: Cpu, addr: int, pages: int) -> int:
    """Store 1, 2, 3 ... into the pages from `addr` on.

    Context: user mode.
    Return: 0 or the first error.
    Emulator: a program.
    """
    for i in range(pages):
        status = user_store(cpu, addr + i * PAGE_SIZE, i + 1)
        if status != 0:
            return status
    return 0


class Fragmented:
    """Most of memory filled with small pages, of which every fourth stays; the free memory lies in pieces."""

    def __init__(self, task: Any):
        self.t, self.cpu = task, task.cpu
        free = sum(zones[number].nr_free_pages for number in range(NR_ZONES))
        self.n = int(free * 3 // 4)
        task.mmap(BASE, self.n)
        assert touch(task.cpu, BASE, self.n) == 0
        self.kept = list(range(KEEP - 1, self.n, KEEP))
        for i in range(0, self.n, KEEP):
            task.dontneed(self.at(i), min(KEEP - 1, self.n - i))
        lru_add_drain(self.cpu)
        drain_pcp(self.cpu)

    def at(self, i: int) -> int:
        return BASE + i * PAGE_SIZE

    def check(self) -> None:
        """The data is where it was, in the eyes of the program."""
        assert [self.t.load(self.at(i)) for i in self.kept] == [i + 1 for i in self.kept]
        assert pgdat.isolated.read() == 0

    def take_blocks(self) -> None:
        """Use up all free blocks as large as a huge page, so that only pieces are left."""
        set_switch("enabled", "always")
        addr = self.at(self.n) + 2 * int(PMD_SIZE) & ~(int(PMD_SIZE) - 1)
        while any(has_free_block(zones[z], HPAGE_PMD_ORDER) for z in range(NR_ZONES) if zones[z].nr_free_pages):
            self.t.mmap(addr, int(HPAGE_PMD_NR))
            assert self.t.store(addr, 1) == 0
            if not pmd_trans_huge(self.t.pmd(addr)):
                break
            addr += int(PMD_SIZE)
        set_switch("enabled", "never")


def blocks() -> int:
    """Free blocks that a huge page fits in."""
    return sum(free_area(zones[zone], number, HPAGE_PMD_ORDER + more).nr_free << more
               for zone in range(NR_ZONES) for number in range(system.nr_cpus + 1) for more in (0, 1))


def test_whole_node(new_task: Any) -> None:
    """Order -1: what was in pieces comes together, and nobody notices."""
    memory = Fragmented(new_task())
    before, free = blocks(), sum(zones[z].nr_free_pages for z in range(NR_ZONES))
    compact_node(memory.cpu)
    drain_pcp(memory.cpu)
    assert blocks() > before + 2
    assert sum(zones[z].nr_free_pages for z in range(NR_ZONES)) == free
    assert vmstat()["pgmigrate_success"] > 0
    memory.check()


def test_until_there_is_a_block(new_task: Any) -> None:
    """Success is one free block, not a tidy zone; and it is not looked for where there is one."""
    memory = Fragmented(new_task())
    memory.take_blocks()
    zone = pgdat.nr_zones - 1
    assert not has_free_block(zones[zone], HPAGE_PMD_ORDER)
    assert compact_zone(memory.cpu, zone, HPAGE_PMD_ORDER, MIGRATE_ASYNC) == COMPACT_SUCCESS
    assert has_free_block(zones[zone], HPAGE_PMD_ORDER)
    moved = vmstat()["pgmigrate_success"]
    assert 0 < moved < zones[zone].end_pfn - zones[zone].start_pfn
    assert compact_zones[zone].migrate_pfn.read() > 0  # The next one goes on here.
    assert compact_zone(memory.cpu, zone, HPAGE_PMD_ORDER, MIGRATE_ASYNC) == COMPACT_SUCCESS
    assert vmstat()["pgmigrate_success"] == moved
    memory.check()


def test_skips(new_task: Any) -> None:
    """Huge pages stay where they are, and so do pinned ones."""
    memory = Fragmented(new_task())
    memory.take_blocks()
    count = len(memory.kept[::8])
    for slot, i in enumerate(memory.kept[::8]):
        assert get_user_pages_unlocked(memory.cpu, memory.t.mm, memory.at(i), 1, FOLL_WRITE, pins[slot]) == 1
    pfns = [pins[slot].value for slot in range(count)]
    compact_node(memory.cpu)
    assert [mem_map.index(memory.t.page(memory.at(i)))
            for i in memory.kept[::8]] == pfns
    assert vmstat()["thp_split_page"] == 0 and vmstat()["thp_migration_success"] == 0
    memory.check()
    for pfn in pfns:
        put_page(memory.cpu, mem_map[pfn])


def test_not_again_at_once(new_task: Any) -> None:
    """A failure is remembered: 1, 3, 7 ... times it is not tried; NORETRY does not count."""
    task = new_task()
    n = int(sum(zones[number].nr_free_pages for number in range(NR_ZONES)) // 4)
    task.mmap(BASE, n)
    assert touch(task.cpu, BASE, n) == 0
    order = HPAGE_PMD_ORDER + 2  # There can be no such block.
    tries = []
    for _ in range(12):
        before = vmstat()["compact_migrate_scanned"]
        result = try_to_compact_pages(task.cpu, order, GFP_TRANSHUGE)
        tries.append(vmstat()["compact_migrate_scanned"] > before)
        assert result == (COMPACT_COMPLETE if tries[-1] else COMPACT_DEFERRED)
    first = [i for i, tried in enumerate(tries) if tried]
    assert first[0] == 0 and first[1] - first[0] == 2 and first[2] - first[1] == 4


def test_only_a_compaction_that_ran_is_a_stall(new_task: Any) -> None:
    """Counters: one that is left out because the last one failed is none; success is that the allocation got its block."""
    task = new_task()
    n = int(sum(zones[number].nr_free_pages for number in range(NR_ZONES)) // 4)
    task.mmap(BASE, n)
    assert touch(task.cpu, BASE, n) == 0
    order = HPAGE_PMD_ORDER + 2  # There can be no such block.
    for _ in range(8):
        before = vmstat()
        assert not __alloc_pages_direct_compact(task.cpu, order, MIGRATE_MOVABLE, GFP_TRANSHUGE)
        after = vmstat()
        ran = after["compact_migrate_scanned"] > before["compact_migrate_scanned"]
        assert [after[name] - before[name] for name in ("compact_stall", "compact_fail", "compact_success")] == [ran, ran, 0]


def test_a_stall_with_success_is_one_that_gave_a_block(new_task: Any) -> None:
    memory = Fragmented(new_task())
    memory.take_blocks()
    before = vmstat()
    page = Page(__alloc_pages_direct_compact(memory.cpu, int(HPAGE_PMD_ORDER), MIGRATE_MOVABLE, GFP_TRANSHUGE))
    after = vmstat()
    assert page
    assert [after[name] - before[name] for name in ("compact_stall", "compact_fail", "compact_success")] == [1, 0, 1]
    prep_new_page(memory.cpu, page, int(HPAGE_PMD_ORDER), MIGRATE_MOVABLE, GFP_TRANSHUGE)
    put_page(memory.cpu, page)
    memory.check()


def test_too_little_free(new_task: Any) -> None:
    """Without free pages to move to it does not begin."""
    task = new_task()
    zone = pgdat.nr_zones - 1
    held: list[int] = []
    while zones[zone].nr_free_pages > zones[zone].watermark[1]:
        addr = BASE + len(held) * PAGE_SIZE
        task.mmap(addr, 1)
        held.append(addr)
        assert task.store(addr, 1) == 0
    assert compact_zone(task.cpu, zone, HPAGE_PMD_ORDER, MIGRATE_SYNC) in (COMPACT_SKIPPED, COMPACT_SUCCESS)
    assert vmstat()["compact_migrate_scanned"] == 0


DIRECT, WAKE, NONE = "compacts itself", "wakes kcompactd", "does nothing"
EFFORT = {
    ("always", True): DIRECT, ("always", False): DIRECT,
    ("defer", True): WAKE, ("defer", False): WAKE,
    ("defer+madvise", True): DIRECT, ("defer+madvise", False): WAKE,
    ("madvise", True): DIRECT, ("madvise", False): NONE,
    ("never", True): NONE, ("never", False): NONE,
}
"""3.34: what a huge fault does for a block, by `defrag` and whether the vma has MADV_HUGEPAGE."""


@pytest.mark.parametrize(("defrag", "madvised"), EFFORT)
@pytest.mark.parametrize("new_task", [(9, False), (3, False)], indirect=True, ids=["order9", "order3"])
def test_effort(new_task: Any, defrag: str, madvised: bool) -> None:
    """Direct compaction finds the huge page, the rest fall back; kcompactd makes a block for the next one."""
    memory = Fragmented(new_task())
    memory.take_blocks()
    before = vmstat()
    set_switch("enabled", "always")
    set_switch("defrag", defrag)
    addr = 1 << 30
    memory.t.mmap(addr, int(HPAGE_PMD_NR))
    if madvised:
        assert do_madvise(memory.cpu, memory.t.mm, addr, PMD_SIZE, MADV_HUGEPAGE) == 0
    kcompactd_wait.max_order.store(0)
    assert memory.t.store(addr, 7) == 0
    effort = EFFORT[defrag, madvised]
    assert (vmstat()["compact_stall"] > before["compact_stall"]) == (effort == DIRECT)
    assert (kcompactd_wait.max_order.read() != 0) == (effort == WAKE)
    assert bool(pmd_trans_huge(memory.t.pmd(addr))) == (effort == DIRECT)
    if effort == WAKE:
        assert kcompactd_do_work(memory.cpu) == HPAGE_PMD_ORDER
        assert kcompactd_do_work(memory.cpu) == 0
        assert has_free_block(zones[pgdat.nr_zones - 1], HPAGE_PMD_ORDER)
    memory.check()
    assert memory.t.load(addr) == 7
