"""What instant invariants must let pass: states that look wrong and are right, with every check at every place.

`INVARIANT_ALLOWS` has at least one case for each row of check/invariants.py. A case runs as plain Python on the small
machine of conftest.py with the hook of check_point() in place; it must pass a place of its row, and nothing may speak.
"""

from collections.abc import Callable
from typing import Any

import pytest

from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.linker import interpreted
from concur_thp.arch.listen import check_hook
from concur_thp.arch.points import Point
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.tlb import tlb_contexts
from concur_thp.arch.tlbflush import flush_tlb_mm
from concur_thp.check import instant
from concur_thp.check.invariants import INVARIANTS
from concur_thp.check.pins import declare_pin, unpin
from concur_thp.mm.collapse import collapse_huge_page
from concur_thp.mm.collapse_check import Scan
from concur_thp.mm.deferred_split_drain import deferred_split_scan
from concur_thp.mm.errno import EBUSY
from concur_thp.mm.flags import FOLL_GET
from concur_thp.mm.fork import exit_mm
from concur_thp.mm.gup import get_user_pages_unlocked
from concur_thp.mm.gup_fast import get_user_pages_fast
from concur_thp.mm.khugepaged import khugepaged_scan_pmd
from concur_thp.mm.migrate import NEW_PAGE
from concur_thp.mm.mm_types import Slot, Vma, mem_map, vmas
from concur_thp.mm.move_pages import move_page
from concur_thp.mm.page_flags import PageDoubleMap, PageHead, PG_mlocked, TestFlag
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.page_ref import get_page, page_ref_count
from concur_thp.mm.pgtable import _PAGE_RW, mm_pmd, pmd_trans_huge
from concur_thp.mm.put_page import put_page
from concur_thp.mm.split_huge_page import split_huge_page
from concur_thp.mm.swap import isolate_lru_page, lru_add_drain, putback_lru_page
from concur_thp.mm.syscall import sys_madvise, sys_mlock, sys_mmap, sys_mprotect, sys_mremap, sys_munmap
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.mm.vma_tree import find_vma
from concur_thp.sync.rwsem import down_read, down_write, up_read, up_write
from concur_thp.sync.spinlock import spin_lock, spin_unlock
from tests.unit.check.tables import FILE, HOLES, HUGE, PAGE, SMALL, THP, ZERO

NEW = 0x200000
"""A free range for a case's own mapping."""
ANON, DONTNEED, READ, RW = 0x32, 4, 1, 3
Allowed = Callable[[Any], object]
INVARIANT_ALLOWS: dict[str, list[Allowed]] = {}
pinned = SharedArray("test_instant_pins", Slot, lambda config: 8)


def allows(invariant: str) -> Callable[[Allowed], Allowed]:
    """The decorated function does what looks like a breach of this invariant and is none."""
    def add(function: Allowed) -> Allowed:
        INVARIANT_ALLOWS.setdefault(invariant, []).append(function)
        return function

    return add


@pytest.fixture
def watched(scene, monkeypatch):
    """The scene with every check at every place; `scene.passed` has the places."""
    scene.passed = set()

    def hook(cpu, where, subject):
        scene.passed.add(Point(where))
        instant.check_sampled.function(cpu, where, subject)

    with interpreted():
        scene.machine.listen_checks(every=1)
        monkeypatch.setattr(check_hook, "function", hook)
        cpu_park(scene.other)
        yield scene


def vma_of(scene: Any, addr: int) -> Vma:
    return Vma(int(vmas[vmas.index(find_vma(scene.mm, addr))]))


def user(scene: Any) -> None:
    """Back in user mode."""
    instant.check_at(scene.cpu, Point.USER, 0)
    scene.passed.add(Point.USER)


def fork(scene: Any) -> Any:
    child = scene.fork()
    cpu_park(scene.other)
    return child


def child_exits(scene: Any) -> None:
    cpu_resume(scene.other)
    exit_mm(scene.other)
    cpu_park(scene.other)


def split(scene: Any, addr: int) -> int:
    """split_huge_page() of what is mapped at an address."""
    lru_add_drain(scene.cpu)
    page = scene.page(addr)
    get_page(scene.cpu, page)
    lock_page(scene.cpu, page)
    result = int(split_huge_page(scene.cpu, page))
    unlock_page(scene.cpu, page)
    put_page(scene.cpu, page)
    return result


def small_range(scene: Any) -> None:
    """A huge range of small pages at NEW."""
    set_switch("enabled", "madvise")
    assert sys_mmap(scene.cpu, NEW, HUGE, RW, ANON, 0, 0) == NEW
    scene.store(*range(NEW, NEW + HUGE, PAGE))
    set_switch("enabled", "always")
    lru_add_drain(scene.cpu)


def collapse(scene: Any) -> int:
    down_read(scene.cpu, scene.mm.mmap_sem)
    return int(collapse_huge_page(scene.cpu, scene.mm, NEW, 8))


# -- pages ------------------------------------------------------------------------------------------------------------


@allows("I1")
def pins_of_tails_stand_on_the_head(scene):
    assert get_user_pages_fast(scene.cpu, THP + 5 * PAGE, 2, 1, pinned[0]) == 2
    assert page_ref_count(scene.page(THP)) == 3
    for i in range(2):
        put_page(scene.cpu, mem_map[pinned[i].value])


@allows("I2")
def mapcounts_with_the_double_map_offset(scene):
    fork(scene)
    assert sys_mprotect(scene.cpu, THP, PAGE, READ) == 0
    assert PageDoubleMap(scene.page(THP))
    assert get_user_pages_fast(scene.cpu, THP + 5 * PAGE, 1, 0, pinned[0]) == 1
    put_page(scene.cpu, mem_map[pinned[0].value])
    assert sys_munmap(scene.cpu, THP, HUGE) == 0
    child_exits(scene)


@allows("I3")
def references_outlive_mappings(scene):
    assert get_user_pages_fast(scene.cpu, THP, 1, 1, pinned[0]) == 1
    declare_pin(scene.cpu, 0, pinned[0].value)
    assert sys_munmap(scene.cpu, THP, HUGE) == 0
    unpin(scene.cpu, 0)


@allows("I3")
def a_frozen_page_still_in_its_slot(scene):
    assert move_page(scene.cpu, scene.mm, FILE, NEW_PAGE) == 0


@allows("I4")
def mapcounts_and_references_apart(scene):
    page = scene.page(THP)
    get_page(scene.cpu, page)
    assert split(scene, THP) == -EBUSY
    put_page(scene.cpu, page)
    assert split(scene, THP) == 0


@allows("I11")
def frozen_and_thawed_again(scene):
    lru_add_drain(scene.cpu)
    assert move_page(scene.cpu, scene.mm, FILE, NEW_PAGE) == 0


@allows("I12")
def pieces_are_heads_of_their_own(scene):
    assert split(scene, THP + 3 * PAGE) == 0
    assert get_user_pages_fast(scene.cpu, THP + 5 * PAGE, 1, 1, pinned[0]) == 1
    assert not PageHead(mem_map[pinned[0].value])
    put_page(scene.cpu, mem_map[pinned[0].value])


@allows("I13")
def pieces_that_nothing_maps(scene):
    assert split(scene, HOLES) == 0


@allows("I17")
def pages_on_a_private_list(scene):
    page = scene.page(HOLES)
    get_page(scene.cpu, page)
    deferred_split_scan(scene.cpu, 4)
    put_page(scene.cpu, page)
    assert deferred_split_scan(scene.cpu, 4) == 1


@allows("I18")
def isolated_and_put_back(scene):
    lru_add_drain(scene.cpu)
    assert isolate_lru_page(scene.cpu, scene.page(THP))
    putback_lru_page(scene.cpu, scene.page(THP))
    lru_add_drain(scene.cpu)


@allows("I20")
def double_map_while_the_child_maps_it_whole(scene):
    fork(scene)
    assert sys_mprotect(scene.cpu, THP, PAGE, READ) == 0
    scene.store(HOLES)
    assert PageDoubleMap(scene.page(THP))
    child_exits(scene)
    assert not PageDoubleMap(scene.page(THP))


@allows("I24")
def the_last_of_the_family_moves_the_page(scene):
    fork(scene)
    child_exits(scene)
    scene.store(SMALL)
    assert Point.ANON_RMAP_MOVED in scene.passed


@allows("I25")
def a_split_hands_references_out(scene):
    assert split(scene, THP) == 0
    assert sys_munmap(scene.cpu, THP, 4 * HUGE) == 0
    assert sys_munmap(scene.cpu, SMALL, 6 * PAGE) == 0


# -- tables -----------------------------------------------------------------------------------------------------------


@allows("I5")
def zero_pages_and_migration_entries_have_tables_too(scene):
    lru_add_drain(scene.cpu)
    assert move_page(scene.cpu, scene.mm, THP, NEW_PAGE) == 0
    assert pmd_trans_huge(scene.entry(THP).val.load())
    assert sys_munmap(scene.cpu, ZERO, HUGE) == 0


@allows("I6")
def huge_zero_pmd_beside_others(scene):
    assert sys_mprotect(scene.cpu, THP, 4 * HUGE, READ) == 0
    assert sys_mprotect(scene.cpu, THP, 4 * HUGE, RW) == 0


@allows("I7")
def special_and_absent_ptes(scene):
    assert user_load(scene.cpu, SMALL + 5 * PAGE) == 0
    assert sys_madvise(scene.cpu, SMALL, PAGE, DONTNEED) == 0
    assert user_load(scene.cpu, SMALL) == 0


@allows("I8")
def moved_to_another_address(scene):
    assert sys_mremap(scene.cpu, THP, HUGE, HUGE, NEW) == NEW
    assert pmd_trans_huge(scene.entry(NEW).val.load())
    assert sys_mprotect(scene.cpu, NEW, HUGE, READ) == 0


@allows("I10")
def entries_while_the_page_is_locked(scene):
    fork(scene)
    lru_add_drain(scene.cpu)
    assert move_page(scene.cpu, scene.mm, THP, NEW_PAGE) == 0
    assert sys_mprotect(scene.cpu, THP, PAGE, READ) == 0
    assert split(scene, THP) == 0


@allows("I21")
def mlocked_by_its_only_pmd(scene):
    assert sys_mlock(scene.cpu, THP, 2 * HUGE) == 0
    assert TestFlag(scene.page(THP), PG_mlocked)
    assert sys_mprotect(scene.cpu, THP, PAGE, READ) == 0
    assert not TestFlag(scene.page(THP), PG_mlocked) and TestFlag(scene.page(THP + HUGE), PG_mlocked)
    scene.store(THP + PAGE)


@allows("I21")
def mlocked_small_page(scene):
    assert sys_mlock(scene.cpu, SMALL, 2 * PAGE) == 0
    scene.store(SMALL)


# -- translations -----------------------------------------------------------------------------------------------------


@allows("I14")
def small_after_the_huge_one_was_flushed(scene):
    scene.store(THP)
    user(scene)
    assert sys_mprotect(scene.cpu, THP, PAGE, READ) == 0
    assert user_load(scene.cpu, THP) == 0
    scene.store(THP + 5 * PAGE)
    user(scene)


@allows("I15")
def a_cpu_that_is_behind_has_no_translations(scene):
    scene.cpu.generation = scene.cpu.generation - 1
    instant.check_at(scene.other, Point.PUT_PAGE_ZERO, scene.page(THP))
    scene.passed.add(Point.PUT_PAGE_ZERO)
    scene.cpu.generation = scene.cpu.generation + 1


@allows("I15")
def a_flushed_frame_may_be_freed(scene):
    flush_tlb_mm(scene.cpu, scene.mm.id)
    instant.check_at(scene.cpu, Point.PUT_PAGE_ZERO, scene.page(THP))
    assert sys_munmap(scene.cpu, THP, HUGE) == 0


def stale(scene: Any) -> Any:
    """An entry that CPU 0 has cached with more rights than it has now."""
    scene.store(SMALL + PAGE)
    entry = scene.entry(SMALL + PAGE)
    entry.val.and_(~_PAGE_RW)
    return entry


@allows("I16")
def a_gather_is_open(scene):
    entry = stale(scene)
    scene.mm.tlb_flush_pending.add(1)
    user(scene)
    scene.mm.tlb_flush_pending.sub(1)
    entry.val.or_(_PAGE_RW)


@allows("I16")
def somebody_has_the_ptl(scene):
    entry = stale(scene)
    ptl = mem_map[mm_pmd(scene.mm, SMALL).val.load() >> 12].ptl
    spin_lock(scene.cpu, ptl)
    user(scene)
    entry.val.or_(_PAGE_RW)
    spin_unlock(scene.cpu, ptl)


@allows("I16")
def a_fork_is_on_its_way(scene):
    entry = stale(scene)
    down_write(scene.cpu, scene.mm.mmap_sem)
    user(scene)
    entry.val.or_(_PAGE_RW)
    up_write(scene.cpu, scene.mm.mmap_sem)


@allows("I16")
def a_batch_waits_for_its_flush(scene):
    entry = stale(scene)
    scene.mm.tlb_flush_batched.store(1)
    user(scene)
    scene.mm.tlb_flush_batched.store(0)
    entry.val.or_(_PAGE_RW)


@allows("I16")
def the_flush_has_raised_the_generation(scene):
    entry = stale(scene)
    tlb_contexts[scene.mm.id].generation.add(1)
    user(scene)
    entry.val.or_(_PAGE_RW)
    flush_tlb_mm(scene.cpu, scene.mm.id)
    cpu_park(scene.cpu)
    cpu_resume(scene.cpu)


@allows("I16")
def a_parked_cpu_will_look_first(scene):
    entry = stale(scene)
    cpu_park(scene.cpu)
    user(scene)
    entry.val.or_(_PAGE_RW)
    cpu_resume(scene.cpu)


@allows("I16")
def entry_allows_more_than_the_tlb_knows(scene):
    assert user_load(scene.cpu, FILE) == 0
    scene.entry(SMALL + 4 * PAGE).val.or_(_PAGE_RW)
    user(scene)
    scene.entry(SMALL + 4 * PAGE).val.and_(~_PAGE_RW)


# -- windows ----------------------------------------------------------------------------------------------------------


@allows("I9")
def the_next_writer_takes_the_table(scene):
    assert get_user_pages_unlocked(scene.cpu, scene.mm, SMALL, 1, FOLL_GET, pinned[0]) == 1
    put_page(scene.cpu, mem_map[pinned[0].value])
    assert sys_munmap(scene.cpu, SMALL, 6 * PAGE) == 0
    assert sys_mmap(scene.cpu, SMALL, PAGE, RW, ANON, 0, 0) == SMALL
    scene.store(SMALL)


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


@pytest.mark.parametrize("invariant, case", [(i, case) for i, cases in INVARIANT_ALLOWS.items() for case in cases],
                         ids=lambda it: it if isinstance(it, str) else it.__name__)
def test_it_keeps_silent(watched, invariant, case):
    case(watched)
    places = next(set(row.places) for row in INVARIANTS if row.id == invariant)
    assert not places or watched.passed & places, f"the case passed {watched.passed}, not {places}"
    assert not watched.laws()
