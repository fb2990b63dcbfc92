"""For every law something that looks wrong and is right: the audit must not speak."""

import pytest

from concur_thp.check.audit import LAWS
from concur_thp.mm.deferred_split import deferred_split_huge_page
from concur_thp.mm.errno import EHWPOISON
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE
from concur_thp.mm.fork import exit_mm
from concur_thp.mm.memory_failure import memory_failure
from concur_thp.mm.mm_types import Page, mem_map, mms, pgdat
from concur_thp.mm.page_alloc import alloc_page
from concur_thp.mm.page_flags import PG_double_map
from concur_thp.mm.pgtable import _PAGE_ACCESSED, _PAGE_RW
from concur_thp.mm.swap import lru_add_drain, mark_page_accessed, put_page
from concur_thp.mm.syscall import sys_madvise, sys_mlock, sys_mprotect, sys_mremap, sys_munmap
from concur_thp.mm.truncate import drop_caches
from concur_thp.mm.uaccess import user_load
from concur_thp.mm.vmstat import Stat

PAGE, HUGE = 0x1000, 0x8000
THP, HOLES, ZERO, SMALL, FILE, SHARED = 0x80000, 0x90000, 0x98000, 0x101000, 0x180000, 0x1C0000
"""Addresses of the scene in conftest.py."""
CASES = {}


def looks_like(law):
    """The decorated function does what a careless check of this law would object to."""
    def add(function):
        CASES[function.__name__] = (law, function)
        return function

    return add


@looks_like("Q1")
def everything_at_once(scene):
    """Heads, tails, tables, pcp pages, reserved and free ones, after half of it went away."""
    scene.fork()
    assert sys_munmap(scene.other, THP, 4 * HUGE) == 0


@looks_like("Q2")
def page_on_a_pcp_list_beside_its_free_buddy(scene):
    page = Page(int(alloc_page(scene.cpu, GFP_HIGHUSER_MOVABLE)))
    put_page(scene.cpu, page)


@looks_like("Q3")
def tails_of_a_page_with_many_references(scene):
    scene.fork()
    scene.store(HOLES)


@looks_like("Q4")
def page_in_a_pagevec(scene):
    mark_page_accessed(scene.cpu, scene.page(SMALL))
    scene.store(SMALL + 5 * PAGE)


@looks_like("Q4")
def broken_frame_that_nobody_maps(scene):
    page = scene.page(SMALL)
    lru_add_drain(scene.cpu)
    assert memory_failure(scene.cpu, page) == 0 and user_load(scene.cpu, SMALL) == -EHWPOISON


@looks_like("Q5")
def mapped_by_pmd_and_ptes_without_double_map(scene):
    """K10: P >= 1, M > 0 and DM = 0, as migration leaves it in v4.20."""
    scene.fork()
    assert sys_mprotect(scene.cpu, THP, PAGE, 1) == 0
    head = scene.pfn(THP)
    assert mem_map[head + 1].flags.read() >> PG_double_map & 1
    mem_map[head + 1].flags.and_(~(1 << PG_double_map))
    for n in range(8):
        mem_map[head + n]._mapcount.sub(1)


@looks_like("I25")
def accounts_with_references_in_pagevecs_and_gathers(scene):
    scene.machine.listen_checks()
    scene.fork()
    scene.store(HOLES, SMALL, SMALL + 5 * PAGE)
    mark_page_accessed(scene.cpu, scene.page(SMALL))
    assert sys_munmap(scene.other, THP, 2 * HUGE) == 0


@looks_like("Q6")
def pages_of_the_parent_in_a_moved_vma_of_the_child(scene):
    scene.fork()
    assert sys_mremap(scene.other, THP, 2 * HUGE, 2 * HUGE, 100 * HUGE + PAGE) == 100 * HUGE + PAGE
    assert sys_mremap(scene.other, SMALL, 2 * PAGE, 2 * PAGE, 120 * HUGE) == 120 * HUGE


@looks_like("Q7")
def empty_entries_in_a_table(scene):
    assert sys_madvise(scene.cpu, SMALL, 3 * PAGE, 4) == 0


@looks_like("Q8")
def huge_zero_pmd_with_its_deposit(scene):
    scene.fork()
    assert user_load(scene.other, ZERO + 5 * PAGE) == 0


@looks_like("Q9")
def zero_pages_that_nobody_counts(scene):
    assert sys_mprotect(scene.cpu, ZERO, PAGE, 1) == 0  # splits the huge zero pmd into ptes of the small zero page
    assert scene.entry(ZERO).val.read()


@looks_like("Q10")
def protnone_entries(scene):
    assert sys_mprotect(scene.cpu, SMALL, 2 * PAGE, 0) == 0
    assert sys_mprotect(scene.cpu, THP, HUGE, 0) == 0


@looks_like("Q11")
def fully_mapped_page_on_the_split_queue(scene):
    """K7."""
    deferred_split_huge_page(scene.cpu, scene.page(THP))


@looks_like("Q12")
def fresh_page_that_waits_for_the_lru(scene):
    scene.store(SMALL + 5 * PAGE)


@looks_like("Q13")
def huge_zero_page_mapped_twice_by_one_mm(scene):
    assert sys_madvise(scene.cpu, THP, HUGE, 4) == 0
    assert user_load(scene.cpu, THP) == 0
    assert pgdat.huge_zero_refcount.read() == 2


@looks_like("Q14")
def mm_with_two_threads(scene):
    scene.mm.mm_users.add(1)


@looks_like("Q15")
def translations_of_a_cpu_that_is_behind(scene):
    scene.cpu.generation = scene.cpu.generation - 1
    for n in range(128):
        scene.cpu.tlb_small[n].entry = 0x12345067


@looks_like("Q15")
def translation_weaker_than_the_entry(scene):
    for n in range(32):
        slot = scene.cpu.tlb_huge[n]
        slot.entry = slot.entry & ~_PAGE_RW
    scene.entry(THP).val.and_(~_PAGE_ACCESSED)


@looks_like("Q16")
def counters_that_are_negative_on_one_cpu(scene):
    stat = int(Stat.NR_ANON_MAPPED)
    scene.cpu.vmstat[stat] = scene.cpu.vmstat[stat] - 1000
    scene.other.vmstat[stat] = scene.other.vmstat[stat] + 1000


@looks_like("Q17")
def grandchildren_and_a_root_without_its_first_vma(scene):
    child = scene.fork()
    scene.store(THP)
    exit_mm(scene.cpu)
    assert child.mm_users.read() == 1


@looks_like("Q18")
def locks_that_remember_their_last_holder(scene):
    scene.mm.mmap_sem.last = 2
    mem_map[scene.mm.pgd].ptl.last = 1


@looks_like("I8")
def read_only_entries_in_a_writable_vma(scene):
    scene.fork()


@looks_like("COW")
def shared_file_page_that_two_mms_may_write(scene):
    scene.fork()
    scene.store(SHARED + 2 * PAGE)
    assert user_load(scene.other, SHARED + 2 * PAGE) == 0
    scene.store(SMALL, THP)


@looks_like("I21")
def locked_thp_mapped_by_ptes_without_a_mark(scene):
    assert sys_mlock(scene.cpu, THP, 2 * HUGE) == 0
    assert sys_mprotect(scene.cpu, THP, PAGE, 1) == 0


@looks_like("I21")
def marked_thp_left_behind_by_a_huge_copy(scene):
    """v4.20: the child has it now, and its vma is not mlocked."""
    assert sys_mlock(scene.cpu, THP, HUGE) == 0
    scene.fork()
    scene.store(THP)
    assert scene.page(THP) != scene.page(THP, mms[2])


@looks_like("locked_vm")
def child_of_a_mlocked_program(scene):
    assert sys_mlock(scene.cpu, SMALL, 6 * PAGE) == 0
    scene.fork()


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_objected_to(scene, name):
    CASES[name][1](scene)
    assert scene.laws() == set()


def test_every_law_has_a_case_that_it_allows():
    elsewhere = {"Q19", "Q20"}
    assert {law.id for law in LAWS} == {law for law, _ in CASES.values()} | elsewhere


def test_machine_is_empty_when_all_have_exited_though_the_huge_zero_page_stays(scene):
    scene.fork()
    scene.exit()
    drop_caches(scene.cpu)
    assert pgdat.huge_zero_refcount.read() == 1
    assert mms[1].mm_count.read() == 0
    assert scene.laws(expect_empty=True) == set()


def test_references_of_the_harness_are_declared(scene):
    scene.page(THP)._refcount.add(2)
    assert scene.laws() == {"Q4"}
    assert scene.laws(pins={scene.pfn(THP) + 3: 2}) == set()
