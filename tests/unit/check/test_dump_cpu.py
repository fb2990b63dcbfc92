"""Dumps of CPUs: where each stands, what it holds, who waits for whom."""

from concur_thp.arch.cpu import CpuState
from concur_thp.arch.system import system
from concur_thp.check.dump import report_text
from concur_thp.check.dump_cpu import dump_cpu, dump_locks, enum_name, function_name, robust
from concur_thp.check.lock_names import wait_cycle
from concur_thp.mm.mm_slots import khugepaged_scan
from concur_thp.mm.page_lock import lock_page
from concur_thp.sync.lock_classes import CLASS_ID
from concur_thp.sync.rwsem import down_read, down_write
from concur_thp.sync.spinlock import spin_lock

HOLES, PAGE, SMALL, THP, HUGE = 0x90000, 4096, 0x101000, 0x80000, 0x8000
"""Addresses of the scene in conftest.py."""


def offset(lock):
    return int(lock) - int(system)


def waits_for(cpu, lock, cls):
    cpu.acquiring = offset(lock) << 8 | CLASS_ID[cls]


def test_cpu_shows_where_it_is_what_it_holds_and_who_it_waits_for(scene):
    down_read(scene.cpu, scene.mm.mmap_sem)
    lock_page(scene.cpu, scene.page(SMALL))
    spin_lock(scene.cpu, khugepaged_scan.lock)
    waits_for(scene.other, scene.mm.mmap_sem, "mmap_sem")
    text = dump_cpu(scene.config, 0)
    assert "cpu 0" in text and "RUNNING" in text and "mm 1" in text
    assert "holds mmap_sem of mm 1, read > khugepaged_mm_lock > 1 page locks: pfn" in text
    assert "waits for mmap_sem of mm 1, held by cpu 0" in dump_cpu(scene.config, 1)
    assert dump_locks(scene.config).count("mmap_sem of mm 1") == 2


def test_deadlock_is_shown_as_a_circle(scene):
    child = scene.fork()
    down_write(scene.cpu, scene.mm.mmap_sem)
    down_write(scene.other, child.mmap_sem)
    waits_for(scene.cpu, child.mmap_sem, "mmap_sem")
    assert wait_cycle(scene.config) == []
    waits_for(scene.other, scene.mm.mmap_sem, "mmap_sem")
    assert wait_cycle(scene.config) == [0, 1]
    assert "deadlock: cpu 0 -> cpu 1 -> cpu 0" in report_text(scene.config)


def test_state_of_a_parked_cpu(scene):
    scene.other.state.store(int(CpuState.PARKED))
    assert "PARKED" in dump_cpu(scene.config, 1)
    scene.other.state.store(17)
    assert "17" in dump_cpu(scene.config, 1)


def test_what_cannot_be_read_says_so_in_its_place():
    @robust
    def broken() -> str:
        raise LookupError("nothing there")

    assert broken() == "(broken: unreadable: LookupError: nothing there)"


def test_numbers_without_a_name():
    assert enum_name(CpuState, 99) == "99" and enum_name(CpuState, int(CpuState.PARKED)) == "PARKED"
    assert function_name(0) == "user code" and function_name(1 << 60) == f"text {1 << 60:#x}"
