"""What holds from one moment to another: under mmap_sem, in a split, a collapse, an exit."""

from typing import Any

from concur_thp.arch.irq import cpu_park
from concur_thp.arch.points import Point
from concur_thp.check.instant import check_at
from concur_thp.mm.collapse_check import Scan
from concur_thp.mm.flags import FOLL_GET, MADV_DONTNEED
from concur_thp.mm.gup import get_user_pages_unlocked
from concur_thp.mm.khugepaged import khugepaged_scan_pmd
from concur_thp.mm.mm_types import mem_map, mms
from concur_thp.mm.pgtable import mm_pmd
from concur_thp.mm.put_page import put_page
from concur_thp.mm.syscall import sys_madvise, sys_mmap, sys_mprotect, sys_munmap
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.sync.rwsem import down_read, up_read
from concur_thp.sync.spinlock import spin_lock
from tests.unit.check.invariant_cases import (
    ANON,
    NEW,
    READ,
    RW,
    allows,
    breaks,
    cases_of,
    child_exits,
    collapse,
    fork,
    pinned,
    small_range,
    split,
    vma_of,
)
from tests.unit.check.tables import HOLES, HUGE, PAGE, SMALL, THP, pte_table_of

# -- caught ---------------------------------------------------------------------------------------------------------


def see_table(scene: Any, addr: int) -> None:
    down_read(scene.cpu, scene.mm.mmap_sem)
    scene.cpu.check_with = int(vma_of(scene, addr))
    check_at(scene.cpu, Point.TABLE_SEEN, mm_pmd(scene.mm, addr))


@breaks("I9")
def table_gone_under_mmap_sem(scene):
    see_table(scene, SMALL)
    mm_pmd(scene.mm, SMALL).val.store(0)
    check_at(scene.cpu, Point.UP_READ, scene.mm.mmap_sem)


@breaks("I9")
def other_table_under_mmap_sem(scene):
    see_table(scene, SMALL)
    mm_pmd(scene.mm, SMALL).val.add(PAGE)
    check_at(scene.cpu, Point.UP_READ, scene.mm.mmap_sem)


@breaks("I9")
def a_huge_pmd_taken_for_a_table(scene):
    see_table(scene, THP)


@breaks("I24")
def other_anon_vma_under_mmap_sem(scene):
    see_table(scene, SMALL)
    vma = vma_of(scene, SMALL)
    vma.anon_vma = vma.anon_vma + 1
    check_at(scene.cpu, Point.UP_READ, scene.mm.mmap_sem)


@breaks("I19")
def pmd_that_the_split_left(scene):
    check_at(scene.cpu, Point.SPLIT_PAGE_UNMAPPED, scene.page(THP))


@breaks("I19")
def pte_that_the_split_left(scene):
    check_at(scene.cpu, Point.SPLIT_PAGE_UNMAPPED, scene.page(HOLES))


def detached(scene: Any) -> int:
    """As collapse_pmd() leaves it for a moment: mmap_sem write, the pmd none, the table known to us alone."""
    table = pte_table_of(scene, SMALL)
    scene.mm.mmap_sem.writer = scene.cpu.id + 1
    mm_pmd(scene.mm, SMALL).val.store(0)
    scene.cpu.check_with = table
    return table


@breaks("I22")
def pmd_filled_while_detached(scene):
    detached(scene)
    mm_pmd(scene.mm, SMALL).val.store(scene.pfn(THP) << 12 | 1)
    check_at(scene.cpu, Point.COLLAPSE_ISOLATED, mm_pmd(scene.mm, SMALL))


@breaks("I22")
def walker_in_a_detached_table(scene):
    spin_lock(scene.other, mem_map[detached(scene)].ptl)
    check_at(scene.cpu, Point.COLLAPSE_COPIED, mm_pmd(scene.mm, SMALL))


@breaks("I22")
def collapse_without_mmap_sem(scene):
    detached(scene)
    scene.mm.mmap_sem.writer = 0
    check_at(scene.cpu, Point.COLLAPSE_ISOLATED, mm_pmd(scene.mm, SMALL))


@breaks("I22")
def detached_page_in_a_tlb(scene):
    detached(scene)
    for _ in range(64):  # It looks at some pages of the table only.
        check_at(scene.cpu, Point.COLLAPSE_ISOLATED, mm_pmd(scene.mm, SMALL))


@breaks("I23")
def khugepaged_in_a_dying_mm(scene):
    child = scene.fork()
    cpu_park(scene.other)
    check_at(scene.other, Point.EXIT_MMAP, mms[child.id])
    check_at(scene.cpu, Point.SCAN_PMD, mms[child.id])


# -- let pass -------------------------------------------------------------------------------------------------------


@allows("I9")
def the_next_writer_takes_the_table(scene):
    assert get_user_pages_unlocked(scene.cpu, scene.mm, SMALL, 1, FOLL_GET, pinned[0]) == 1
    put_page(scene.cpu, mem_map[pinned[0].value])
    assert sys_munmap(scene.cpu, SMALL, 6 * PAGE) == 0
    assert sys_mmap(scene.cpu, SMALL, PAGE, RW, ANON, 0, 0) == SMALL
    scene.store(SMALL)


@allows("I9")
def a_huge_pmd_becomes_a_table_before_it_is_taken_for_one(scene):
    assert sys_madvise(scene.cpu, THP, PAGE, MADV_DONTNEED) == 0
    see_table(scene, THP)
    check_at(scene.cpu, Point.UP_READ, scene.mm.mmap_sem)
    up_read(scene.cpu, scene.mm.mmap_sem)


@allows("I24")
def a_vma_gets_its_first_anon_vma(scene):
    assert sys_mmap(scene.cpu, NEW, 2 * PAGE, RW, ANON, 0, 0) == NEW
    assert user_load(scene.cpu, NEW) == 0
    assert user_store(scene.cpu, NEW, 1) == 0
    assert user_store(scene.cpu, NEW + PAGE, 1) == 0


@allows("I19")
def entries_of_other_pages_around(scene):
    fork(scene)
    assert sys_mprotect(scene.cpu, THP, PAGE, READ) == 0
    assert split(scene, THP) == 0
    child_exits(scene)


@allows("I22")
def a_collapse(scene):
    small_range(scene)
    fork_and_back(scene)
    assert collapse(scene) == Scan.SCAN_SUCCEED


def fork_and_back(scene: Any) -> None:
    """Pages that were shared, and written again, so that each is this mm's own; other CPUs knew them."""
    fork(scene)
    child_exits(scene)
    scene.store(*range(NEW, NEW + HUGE, PAGE))


@allows("I23")
def the_number_of_an_mm_that_has_exited(scene):
    old = fork(scene)
    child_exits(scene)
    new = fork(scene)
    assert new.id == old.id
    down_read(scene.cpu, new.mmap_sem)
    khugepaged_scan_pmd(scene.cpu, new, THP)
    if not scene.cpu.scratch[0]:
        up_read(scene.cpu, new.mmap_sem)
    child_exits(scene)


test_it_speaks, test_it_keeps_silent = cases_of(__name__)
