"""What the processor does by itself: TLB, walk, Accessed and Dirty."""

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.arch.tlb import tlb_flush_all, tlb_lookup
from concur_thp.config import PAGE_SIZE, PMD_SIZE
from concur_thp.errors import KernelBug
from concur_thp.mm import uaccess
from concur_thp.mm.flags import MAP_SHARED
from concur_thp.mm.fork import switch_to_mm
from concur_thp.mm.mm_types import frames
from concur_thp.mm.page_flags import page_to_pfn
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_HUGE,
    _PAGE_PRESENT,
    _PAGE_PROTNONE,
    _PAGE_RW,
    entry_pfn,
    mm_pmd,
)
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import (
    WALK_ABSENT,
    WALK_READONLY,
    hardware_walk,
    set_marks,
    user_load,
    user_store,
    word_index,
)

A = 0x40000


def test_eight_words_stand_for_a_page() -> None:
    assert [word_index(A + offset) for offset in (0, 511, 512, 4095)] == [0, 0, 1, 7]


def test_a_hit_looks_at_no_table(new_task) -> None:
    task = new_task()
    task.mmap(A, 1)
    task.store(A, 5)
    pte = task.pte(A)
    value = pte.val.xchg(0)  # Taken down, flush not yet requested: the CPU may still use what it has.
    assert task.load(A) == 5 and task.store(A, 6) == 0
    pte.val.store(value)
    assert frames[page_to_pfn(task.page(A))].word[0].read() == 6


def test_first_write_after_a_read_sets_dirty_in_the_table(new_task) -> None:
    task = new_task()
    task.mmap(A, 1, flags=MAP_SHARED)
    task.load(A)
    pte = task.pte(A)
    assert pte.val.load() & (_PAGE_RW | _PAGE_DIRTY) == _PAGE_RW
    faults = task.mm.faults.read()
    assert task.store(A, 1) == 0
    assert pte.val.load() & _PAGE_DIRTY and tlb_lookup(task.cpu, A) & _PAGE_DIRTY
    assert task.mm.faults.read() == faults  # Hardware did it.


def test_write_hit_without_dirty_believes_the_table_not_the_tlb(new_task) -> None:
    task = new_task()
    task.mmap(A, 1, flags=MAP_SHARED)
    task.load(A)
    pte = task.pte(A)
    pte.val.and_(~_PAGE_RW)  # Write-protected, flush on its way.
    assert tlb_lookup(task.cpu, A) & _PAGE_RW
    assert hardware_walk(task.cpu, A, 1) == WALK_READONLY
    assert pte.val.load() & _PAGE_DIRTY == 0
    pte.val.or_(_PAGE_RW)


def test_walk_sets_accessed_and_refuses_what_is_absent(new_task) -> None:
    task = new_task()
    task.mmap(A, 1)
    assert hardware_walk(task.cpu, A, 0) == WALK_ABSENT  # No tables at all.
    task.store(A, 5)
    pte = task.pte(A)
    value = pte.val.load()
    pte.val.store(value & ~(_PAGE_ACCESSED | _PAGE_DIRTY))
    tlb_flush_all(task.cpu)
    assert hardware_walk(task.cpu, A, 0) == pte.val.load() == value & ~_PAGE_DIRTY
    assert hardware_walk(task.cpu, A, 1) == pte.val.load() == value
    pte.val.store(value & ~_PAGE_PRESENT | _PAGE_PROTNONE)
    assert hardware_walk(task.cpu, A, 0) == WALK_ABSENT
    pte.val.store(value)


def test_marks_go_only_into_the_entry_that_was_loaded(new_task) -> None:
    task = new_task()
    task.mmap(A, 1)
    task.store(A, 5)
    pte = task.pte(A)
    value = pte.val.load() & ~_PAGE_DIRTY
    pte.val.store(value & ~_PAGE_RW)
    assert not set_marks(pte, value, _PAGE_ACCESSED | _PAGE_DIRTY) and pte.val.load() == value & ~_PAGE_RW
    pte.val.store(value)
    assert set_marks(pte, value, _PAGE_ACCESSED | _PAGE_DIRTY) and pte.val.load() == value | _PAGE_DIRTY


def test_huge_translation_leads_to_every_subpage(new_task) -> None:
    task = new_task()
    set_switch("enabled", "always")
    size = int(PMD_SIZE)
    task.mmap(4 * size, size // PAGE_SIZE)
    for page in range(0, size // PAGE_SIZE, 3):
        assert task.store(4 * size + page * PAGE_SIZE + 1024, page + 1) == 0
    assert task.mm.faults.read() == 1
    entry = tlb_lookup(task.cpu, 5 * size - 1)
    assert entry & _PAGE_HUGE
    for page in range(0, size // PAGE_SIZE, 3):
        assert frames[entry_pfn(entry) + page].word[2].read() == page + 1


def test_huge_entry_being_split_is_not_loaded(new_task) -> None:
    task = new_task()
    set_switch("enabled", "always")
    size = int(PMD_SIZE)
    task.mmap(4 * size, size // PAGE_SIZE)
    task.store(4 * size, 1)
    pmd = mm_pmd(task.mm, 4 * size)
    value = pmd.val.load()
    pmd.val.store(value & ~_PAGE_PRESENT)
    tlb_flush_all(task.cpu)
    assert hardware_walk(task.cpu, 4 * size, 0) == WALK_ABSENT
    pmd.val.store(value)
    assert hardware_walk(task.cpu, 4 * size, 0) == value


def test_access_that_never_succeeds_is_a_bug(new_task, monkeypatch: pytest.MonkeyPatch) -> None:
    task = new_task()
    monkeypatch.setattr(uaccess, "FAULT_LOOP", 20)
    monkeypatch.setattr(uaccess, "do_user_addr_fault", lambda cpu, addr, code: 0)
    with interpreted(), pytest.raises(KernelBug, match="fault loop"):
        user_load(task.cpu, A)


def test_no_mm_no_access(new_task) -> None:
    task = new_task()
    switch_to_mm(task.cpu, 0)
    with interpreted(), pytest.raises(KernelBug, match="in no mm"):
        user_store(task.cpu, A, 1)
