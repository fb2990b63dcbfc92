"""TLBs against the tables: what must be caught, what let pass."""

from typing import Any

from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.points import Point
from concur_thp.arch.tlb import tlb_contexts
from concur_thp.arch.tlbflush import flush_tlb_mm
from concur_thp.check import instant
from concur_thp.check.instant import check_at
from concur_thp.mm.mm_types import mem_map
from concur_thp.mm.page_flags import page_to_pfn
from concur_thp.mm.pgtable import _PAGE_PRESENT, _PAGE_RW, mm_pmd
from concur_thp.mm.syscall import sys_mprotect, sys_munmap
from concur_thp.mm.uaccess import user_load
from concur_thp.sync.rwsem import down_write, up_write
from concur_thp.sync.spinlock import spin_lock, spin_unlock
from tests.unit.check.invariant_cases import READ, allows, breaks, cases_of, fresh_page, user
from tests.unit.check.tables import FILE, HUGE, PAGE, SMALL, THP

# -- caught ---------------------------------------------------------------------------------------------------------


@breaks("I14")
def one_address_small_and_huge(scene):
    scene.cpu.tlb_small[5].tag = (THP >> 12) + 1 + 5
    check_at(scene.cpu, Point.USER, 0)


@breaks("I15")
def freed_frame_in_a_tlb(scene):
    page = fresh_page(scene)
    slot = scene.cpu.tlb_small[3]
    slot.tag, slot.entry = 0x1234, page_to_pfn(page) << 12 | 1
    check_at(scene.other, Point.PUT_PAGE_ZERO, page)


@breaks("I16")
def write_bit_taken_without_a_flush(scene):
    scene.entry(SMALL + PAGE).val.and_(~_PAGE_RW)
    check_at(scene.cpu, Point.USER, 0)


@breaks("I16")
def huge_pmd_absent_without_a_flush(scene):
    scene.entry(THP).val.and_(~_PAGE_PRESENT)
    check_at(scene.cpu, Point.USER, 0)


@breaks("I16")
def other_frame_without_a_flush(scene):
    scene.entry(SMALL + PAGE).val.add(PAGE)
    check_at(scene.cpu, Point.USER, 0)


# -- let pass -------------------------------------------------------------------------------------------------------


@allows("I14")
def small_after_the_huge_one_was_flushed(scene):
    scene.store(THP)
    user(scene)
    assert sys_mprotect(scene.cpu, THP, PAGE, READ) == 0
    assert user_load(scene.cpu, THP) == 0
    scene.store(THP + 5 * PAGE)
    user(scene)


@allows("I14")
def the_huge_one_of_a_zap_that_has_yet_to_flush(scene):
    scene.mm.tlb_flush_pending.add(1)
    scene.cpu.tlb_small[5].tag = (THP >> 12) + 1 + 5
    user(scene)
    scene.cpu.tlb_small[5].tag = 0
    scene.mm.tlb_flush_pending.sub(1)


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


test_it_speaks, test_it_keeps_silent = cases_of(__name__)
