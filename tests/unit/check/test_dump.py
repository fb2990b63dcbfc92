"""Dumps: they name what a person looks for, and they come out whatever the memory looks like."""

import random

import pytest

from concur_thp.arch.bug import bug
from concur_thp.arch.cpu import cpus
from concur_thp.arch.linker import interpreted
from concur_thp.arch.system import system
from concur_thp.check.dump import dump_locks, dump_machine, dump_mm, dump_page, report_text
from concur_thp.check.events import page_events, ring_events
from concur_thp.check.facts import Facts
from concur_thp.check.lock_names import holders, lock_name
from concur_thp.check.views import raw
from concur_thp.errors import KernelBug
from concur_thp.mm.mm_slots import khugepaged_scan
from concur_thp.mm.mm_types import anon_vmas, files, mem_map, percpu, pgdat, vmas, zones
from concur_thp.mm.page_lock import lock_page
from concur_thp.mm.syscall import sys_mprotect
from concur_thp.mm.vma_tree import find_vma
from concur_thp.sync.lock_classes import CLASS_ID
from concur_thp.sync.spinlock import spin_lock

HOLES, PAGE, SMALL, THP, HUGE = 0x90000, 4096, 0x101000, 0x80000, 0x8000
"""Addresses of the scene in conftest.py."""


def offset(lock):
    return int(lock) - int(system)


def waits_for(cpu, lock, cls):
    cpu.acquiring = offset(lock) << 8 | CLASS_ID[cls]


def test_locks_have_the_names_of_what_they_belong_to(scene):
    root = anon_vmas[vmas[vmas.index(find_vma(scene.mm, THP))].anon_vma]
    table = scene.mm.pgd
    names = {
        "mmap_sem of mm 1": scene.mm.mmap_sem,
        "page_table_lock of mm 1": scene.mm.page_table_lock,
        f"anon_vma_rwsem {anon_vmas.index(root)}": root.rwsem,
        "i_pages of file 1": files[1].i_pages,
        "i_mmap_rwsem of file 1": files[1].i_mmap_rwsem,
        "zone_lock Normal": zones[1].lock,
        "lru_lock": pgdat.lru_lock,
        "split_queue_lock": pgdat.split_queue_lock,
        "khugepaged_mm_lock": khugepaged_scan.lock,
        f"page lock of pfn {scene.pfn(THP):#x}": scene.page(THP),
        f"ptl of table pfn {table:#x}": mem_map[table].ptl,
    }
    assert [lock_name(scene.config, offset(lock)) for lock in names.values()] == list(names)
    pte_table = Facts(scene.config).walked.linked[1].pfn[0]
    assert lock_name(scene.config, offset(mem_map[pte_table].ptl)) == f"pte_ptl of table pfn {pte_table:#x}"
    assert "outside" in lock_name(scene.config, 1 << 50)


def test_holders_by_kind_of_lock(scene):
    lock_page(scene.cpu, scene.page(SMALL))
    assert holders(scene.config, offset(scene.page(SMALL))) == [0]
    spin_lock(scene.other, khugepaged_scan.lock)
    assert holders(scene.config, offset(khugepaged_scan.lock)) == [1]
    assert holders(scene.config, offset(scene.mm.mmap_sem)) == []
    assert holders(scene.config, 1 << 50) == []


def test_page_of_every_kind(scene):
    head = scene.pfn(THP)
    text = dump_page(scene.config, head + 3)
    assert f"tail 3 of {head:#x}" in text and "compound_mapcount 0" in text and "huge pmd" in text and "of mm 1" in text
    assert "on the deferred split queue" in dump_page(scene.config, scene.pfn(HOLES))
    assert "page table" in dump_page(scene.config, scene.mm.pgd)
    assert "reserved" in dump_page(scene.config, 0)
    assert "no entry maps it" in dump_page(scene.config, scene.config.frames - 1)
    assert "outside memory" in dump_page(scene.config, scene.config.frames)


def test_mm_shows_vmas_and_counts(scene):
    text = dump_mm(scene.config, 1)
    assert "mm_users 1" in text and f"{THP:#x}-{THP + 4 * HUGE:#x} rw-" in text and "file 1 shared" in text
    assert "huge pmds" in text and "does not exist" in dump_mm(scene.config, 99)
    assert "mm 1" in dump_machine(scene.config) and "cpu 1" in dump_machine(scene.config)


def test_events_are_the_last_ones_in_order_and_by_page(scene):
    assert sys_mprotect(scene.cpu, THP, PAGE, 1) == 0
    events = ring_events(0, 5)
    assert len(events) == 5 and [e.number for e in events] == sorted(e.number for e in events)
    assert {"sys_enter", "thp_split_pmd"} <= {e.name for e in ring_events(0, 50)}
    assert "thp_split_pmd" in [e.name for e in page_events(scene.config, scene.pfn(THP))]


def test_report_of_a_bug(scene):
    pfn = scene.pfn(THP)
    with interpreted(), pytest.raises(KernelBug):
        bug(scene.cpu, "get_page: page has no reference (value: pfn)", pfn, 0)
    text = report_text(scene.config, again="concur-thp stress --seed 7")
    first, *rest = text.splitlines()
    assert first.startswith("BUG get_page: page has no reference")
    assert f"page pfn {pfn:#x}" in rest[0] and rest[-1].endswith("again:  concur-thp stress --seed 7")
    assert "cpu 0" in text and "cpu 1" in text and "last events on this page" in text


def test_report_without_a_bug_says_so(scene):
    assert report_text(scene.config).startswith("no bug was reported")
    assert report_text(scene.config, what="cpu 1 did not move for 5 s").startswith("cpu 1 did not move for 5 s")


@pytest.mark.parametrize("seed", range(6))
def test_garbage_does_not_stop_a_dump(scene, seed):
    rng = random.Random(seed)
    for array, count in ((cpus, 2), (mem_map, scene.config.frames), (percpu, 2), (vmas, 64)):
        memory = raw(int(array.base), array.stride * count).view("i8")
        for _ in range(len(memory) // 3):
            memory[rng.randrange(len(memory))] = rng.randrange(-(1 << 63), 1 << 63)
    for n in range(3, 40):
        assert report_text(scene.config, pfn=n)
    assert dump_machine(scene.config) and dump_locks(scene.config) and dump_mm(scene.config, 1)
