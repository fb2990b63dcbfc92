"""Instant invariants: silent on a sound machine, natively; each speaks, by name, when its one word is wrong."""

import pytest

from concur_thp.arch import native
from concur_thp.arch.linker import Kernel, interpreted
from concur_thp.arch.points import Point
from concur_thp.arch.system import system
from concur_thp.arch.tlbflush import flush_tlb_mm
from concur_thp.check import instant
from concur_thp.config import HPAGE_PMD_NR
from concur_thp.errors import KernelBug
from concur_thp.mm.mm_types import NIL, PAGE_TYPE_TABLE, mem_map, tables, vmas
from concur_thp.mm.page_flags import PG_double_map, PG_head, PG_lru
from concur_thp.mm.pgtable import mm_pmd
from concur_thp.mm.syscall import sys_mprotect
from concur_thp.mm.vma_tree import find_vma
from concur_thp.sync.spinlock import spin_lock, spin_unlock

HOLES, PAGE, SMALL, THP, ZERO, HUGE = 0x90000, 4096, 0x101000, 0x80000, 0x98000, 0x8000
"""Addresses of the scene in conftest.py."""


def pmd_table_of(scene, addr):
    return (int(mm_pmd(scene.mm, addr)) - int(tables.base)) // tables.stride


def pte_table_of(scene, addr):
    return mm_pmd(scene.mm, addr).val.read() >> 12


def release_checked(scene, table_pfn):
    """Take and release a table's lock, checked in between."""
    lock = mem_map[table_pfn].ptl
    spin_lock(scene.cpu, lock)
    instant.check_at(scene.cpu, Point.SPIN_UNLOCK, lock)
    spin_unlock(scene.cpu, lock)


def test_nothing_is_wrong_with_a_sound_machine_natively(scene):
    native.link([kernel for kernel in Kernel.all if kernel.unique.startswith("concur_thp.check.instant")])
    scene.fork()
    assert sys_mprotect(scene.cpu, THP, PAGE, 1) == 0
    for pfn in range(scene.config.frames):
        page = mem_map[pfn]
        if page.page_type == PAGE_TYPE_TABLE:
            release_checked(scene, pfn)
        elif page._refcount.read() > 0:
            instant.check_page(scene.cpu, page)
            instant.check_double_map(scene.cpu, page)
        elif not page.compound_head:
            instant.check_frame_free(scene.cpu, pfn, 0)
    vma = vmas[vmas.index(find_vma(scene.mm, THP + HUGE))]
    instant.check_huge_in_vma(scene.cpu, vma, THP + HUGE, scene.entry(THP + HUGE).val.read())
    instant.check_queued(scene.cpu, scene.page(HOLES))
    instant.check_at(scene.cpu, Point.USER, 0)
    assert system.panicked.read() == 0


BROKEN = {
    "I1": lambda s: mem_map[s.pfn(THP) + 5]._refcount.add(1),
    "I2": lambda s: mem_map[s.pfn(THP) + 5]._mapcount.sub(3),
    "I12": lambda s: setattr(mem_map[s.pfn(THP) + 5], "compound_head", 0),
    "I18": lambda s: mem_map[s.pfn(THP) + 5].flags.or_(1 << PG_lru),
}


@pytest.mark.parametrize("law", BROKEN)
def test_a_broken_page_is_named(scene, law):
    BROKEN[law](scene)
    with interpreted(), pytest.raises(KernelBug, match=f"^{law}: "):
        instant.check_page(scene.cpu, scene.page(THP))


PMD_BROKEN = {
    "I5": lambda s: setattr(mem_map[pmd_table_of(s, THP)], "pmd_huge_pte", NIL),
    "I6: .* not aligned": lambda s: s.entry(THP).val.add(PAGE),
    "I6: .* no huge page": lambda s: s.page(THP).flags.and_(~(1 << PG_head)),
    "I6: .* without references": lambda s: s.page(THP)._refcount.store(0),
    "I6: .* no pmd maps": lambda s: mem_map[s.pfn(THP) + 1].compound_mapcount.store(-1),
}


@pytest.mark.parametrize("text", PMD_BROKEN)
def test_a_broken_pmd_is_found_when_its_lock_is_released(scene, text):
    table = pmd_table_of(scene, THP)
    PMD_BROKEN[text](scene)
    with interpreted(), pytest.raises(KernelBug, match=f"^{text}"):
        release_checked(scene, table)


PTE_BROKEN = {
    "I7: .* not there": lambda s: s.entry(SMALL).val.store(1 << 40 | 1),
    "I7: .* without references": lambda s: s.page(SMALL)._refcount.store(0),
    "I7: .* no pte maps": lambda s: s.page(SMALL)._mapcount.store(-1),
    "I7: .* free or a table": lambda s: setattr(s.page(SMALL), "page_type", PAGE_TYPE_TABLE),
}


@pytest.mark.parametrize("text", PTE_BROKEN)
def test_a_broken_pte_is_found_when_its_lock_is_released(scene, text):
    table = pte_table_of(scene, SMALL)
    PTE_BROKEN[text](scene)
    with interpreted(), pytest.raises(KernelBug, match=f"^{text}"):
        release_checked(scene, table)


def test_freeing_a_frame_that_a_tlb_has(scene):
    with interpreted(), pytest.raises(KernelBug, match="^I15: "):
        instant.check_frame_free(scene.other, scene.pfn(THP) + 2, 0)


def test_a_cpu_that_is_behind_has_no_translations(scene):
    pfn = scene.pfn(THP)
    scene.cpu.generation = scene.cpu.generation - 1
    with interpreted():
        instant.check_frame_free(scene.other, pfn, int(HPAGE_PMD_NR).bit_length() - 1)


def test_a_flushed_frame_may_be_freed(scene):
    flush_tlb_mm(scene.cpu, scene.mm.id)
    with interpreted():
        instant.check_frame_free(scene.other, scene.pfn(THP), 3)


def test_one_address_small_and_huge(scene):
    slot = scene.cpu.tlb_small[5]
    slot.tag = (THP >> 12) + 1 + 5
    with interpreted(), pytest.raises(KernelBug, match="^I14: "):
        instant.check_at(scene.cpu, Point.USER, 0)


def test_huge_pmd_beyond_its_vma_and_at_another_place(scene):
    vma = vmas[vmas.index(find_vma(scene.mm, THP))]
    pmd = scene.entry(THP).val.read()
    scene.page(THP).index = scene.page(THP).index + 8
    with interpreted(), pytest.raises(KernelBug, match="^I8: huge page mapped at another place"):
        instant.check_huge_in_vma(scene.cpu, vma, THP, pmd)
    system.panicked.store(0)
    vma.vm_end = THP + HUGE - PAGE
    with interpreted(), pytest.raises(KernelBug, match="^I8: huge pmd beyond"):
        instant.check_huge_in_vma(scene.cpu, vma, THP, pmd)


def test_queue_and_double_map(scene):
    with interpreted(), pytest.raises(KernelBug, match="^I17: "):
        instant.check_queued(scene.cpu, scene.page(SMALL))
    system.panicked.store(0)
    mem_map[scene.pfn(HOLES) + 1].flags.or_(1 << PG_double_map)
    with interpreted(), pytest.raises(KernelBug, match="^I20: "):
        instant.check_double_map(scene.cpu, scene.page(HOLES))
