"""get_user_pages, fast and slow, on one CPU: which page, whose reference, what is refused."""

from typing import Any

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.arch.shared import SharedArray
from concur_thp.check.audit import audit
from concur_thp.check.pins import declare_pin, free_pin_row, unpin
from concur_thp.config import HPAGE_PMD_NR, PAGE_SIZE, PMD_SIZE
from concur_thp.errors import KernelBug
from concur_thp.mm import gup_fast
from concur_thp.mm.collapse import collapse_huge_page
from concur_thp.mm.collapse_check import Scan
from concur_thp.mm.errno import EBUSY, EFAULT
from concur_thp.mm.flags import (
    FOLL_DUMP,
    FOLL_FORCE,
    FOLL_GET,
    FOLL_MIGRATION,
    FOLL_MLOCK,
    FOLL_POPULATE,
    FOLL_SPLIT,
    FOLL_TOUCH,
    FOLL_WRITE,
    MADV_FREE,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_NONE,
    PROT_READ,
    VM_LOCKED,
)
from concur_thp.mm.follow_page import follow_page_mask
from concur_thp.mm.gup import follow_page, get_user_pages, get_user_pages_unlocked
from concur_thp.mm.gup_fast import __get_user_pages_fast as pin_fast
from concur_thp.mm.gup_fast import get_user_pages_fast
from concur_thp.mm.huge_split_pmd import split_huge_pmd_address
from concur_thp.mm.madvise import do_madvise
from concur_thp.mm.mm_types import Entry, Page, Slot, frames, mem_map, pgdat
from concur_thp.mm.mprotect import do_mprotect
from concur_thp.mm.munlock import munlock_vma_pages_range
from concur_thp.mm.page_flags import PageCompound, PG_mlocked, PG_referenced, TestFlag, page_to_pfn, tail_page
from concur_thp.mm.page_list import PageList
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.page_ref import get_page, page_ref_count
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_MIGRATION,
    _PAGE_PRESENT,
    _PAGE_RW,
    entry_pfn,
    mk_entry,
    mm_pmd,
    pmd_table,
    pmd_trans_huge,
)
from concur_thp.mm.put_page import put_page
from concur_thp.mm.split_huge_page import split_huge_page_to_list
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.vmstat import vmstat
from concur_thp.sync.rwsem import down_read, up_read

MOST = 1200
gup_slots = SharedArray("test_gup_slots", Slot, lambda config: MOST)


def addresses() -> int:
    """The start of a huge range."""
    return 4 * int(PMD_SIZE)


def pfns(count: int) -> list[int]:
    return [gup_slots[i].value for i in range(count)]


def fast(task: Any, addr: int, nr: int = 1, write: int = 0) -> list[int]:
    """The pages that the lockless half pins."""
    return pfns(pin_fast(task.cpu, addr, nr, write, gup_slots[0]))


def slow(task: Any, addr: int, nr: int = 1, flags: int = 0) -> list[int] | int:
    """The pages that the half with mmap_sem pins, or its error."""
    got = get_user_pages_unlocked(task.cpu, task.mm, addr, nr, flags, gup_slots[0])
    return pfns(got) if got >= 0 else got


def follow(task: Any, addr: int, flags: int) -> int:
    """follow_page(): a pfn, None-like 0 for no page, or an error."""
    down_read(task.cpu, task.mm.mmap_sem)
    page = follow_page(task.cpu, task.vma(addr), addr, flags)
    up_read(task.cpu, task.mm.mmap_sem)
    return page_to_pfn(Page(page)) if page > 0 else page


def put(task: Any, pages: list[int]) -> None:
    for pfn in pages:
        put_page(task.cpu, mem_map[pfn])


def count(pfn: int) -> int:
    return int(page_ref_count(mem_map[pfn]))


def huge_task(new_task: Any, huge_pages: int = 1) -> tuple[Any, int, Page]:
    """A task with a huge page at the returned address."""
    task, addr = new_task(), addresses()
    set_switch("enabled", "always")
    task.mmap(addr, huge_pages * int(HPAGE_PMD_NR))
    assert task.store(addr, 7) == 0
    value = task.pmd(addr)
    assert pmd_trans_huge(value)
    return task, addr, Page(int(mem_map[entry_pfn(value)]))


def split_pmd(task: Any, addr: int) -> None:
    down_read(task.cpu, task.mm.mmap_sem)
    split_huge_pmd_address(task.cpu, task.vma(addr), addr, 0, Page(0))
    up_read(task.cpu, task.mm.mmap_sem)
    assert pmd_table(task.pmd(addr))


@pytest.mark.parametrize("get", [fast, slow])
@pytest.mark.parametrize("mapped_by", ["pmd", "ptes"])
def test_the_tail_that_was_asked_for_and_the_reference_on_its_head(new_task, get, mapped_by) -> None:
    """R5, R21, R22 and R8."""
    task, addr, head = huge_task(new_task)
    if mapped_by == "ptes":
        split_pmd(task, addr)
    before, first = page_ref_count(head), page_to_pfn(head)
    for i in (0, 1, 5, int(HPAGE_PMD_NR) - 1):
        got = get(task, addr + i * PAGE_SIZE)
        assert got == [first + i]
        assert page_ref_count(head) == before + 1
        assert i == 0 or page_ref_count(tail_page(head, i)) == 0
        assert get is slow or TestFlag(head, PG_referenced)
        put(task, got)
        assert page_ref_count(head) == before


def test_fast_takes_all_references_of_a_huge_page_at_once(new_task) -> None:
    task, addr, head = huge_task(new_task)
    first = page_to_pfn(head)
    got = fast(task, addr + 2 * PAGE_SIZE, 5, 1)
    assert got == list(range(first + 2, first + 7)) and page_ref_count(head) == 6
    put(task, got)


def test_fast_crosses_tables_and_stops_at_the_first_hole(new_task) -> None:
    task, addr, head = huge_task(new_task, huge_pages=2)
    n = int(HPAGE_PMD_NR)
    set_switch("enabled", "never")
    for i in (0, 1, 3):
        task.store(addr + (n + i) * PAGE_SIZE, i)
    first = page_to_pfn(head)
    lru_add_drain(task.cpu)
    wanted = [first + n - 1] + [page_to_pfn(task.page(addr + (n + i) * PAGE_SIZE)) for i in (0, 1)]
    got = fast(task, addr + (n - 1) * PAGE_SIZE, 6)
    assert got == wanted and [count(pfn) for pfn in wanted[1:]] == [2, 2]
    put(task, got)


def test_the_slow_half_faults_in_what_fast_did_not_find(new_task) -> None:
    task, addr = new_task(), addresses()
    task.mmap(addr, 6)
    task.store(addr, 1)
    assert fast(task, addr, 6) == [page_to_pfn(task.page(addr))]
    put(task, pfns(1))
    assert get_user_pages_fast(task.cpu, addr, 6, 1, gup_slots[0]) == 6
    got = pfns(6)
    assert got == [page_to_pfn(task.page(addr + i * PAGE_SIZE)) for i in range(6)]
    assert all(task.pte(addr + i * PAGE_SIZE).val.load() & _PAGE_RW for i in range(6))
    put(task, got)


def test_partial_success_and_errors(new_task) -> None:
    task, addr = new_task(), addresses()
    task.mmap(addr, 2)
    assert get_user_pages_fast(task.cpu, addr, 5, 0, gup_slots[0]) == 2
    put(task, pfns(2))
    assert get_user_pages_fast(task.cpu, addr + 2 * PAGE_SIZE, 1, 0, gup_slots[0]) == -EFAULT
    assert get_user_pages_fast(task.cpu, -PAGE_SIZE, 1, 0, gup_slots[0]) == -EFAULT
    assert get_user_pages_fast(task.cpu, 1 << 47, 1, 0, gup_slots[0]) == -EFAULT
    assert get_user_pages_fast(task.cpu, addr, 0, 0, gup_slots[0]) == 0


@pytest.mark.parametrize("huge", [False, True])
def test_a_write_pin_of_a_shared_page_breaks_cow_first(new_task, huge) -> None:
    task, addr = new_task(), addresses()
    set_switch("enabled", "always" if huge else "never")
    task.mmap(addr, int(HPAGE_PMD_NR))
    task.store(addr, 7)
    old = fast(task, addr)
    task.fork()
    assert fast(task, addr, 1, 1) == []
    assert follow(task, addr, FOLL_WRITE | FOLL_GET) == 0
    got = slow(task, addr, 1, FOLL_WRITE)
    assert got != old and frames[got[0]].word[0].read() == 7
    task.store(addr, 8)
    assert frames[got[0]].word[0].read() == 8 and frames[old[0]].word[0].read() == 7
    put(task, got + old)


def test_rights_of_the_vma(new_task) -> None:
    task, addr = new_task(), addresses()
    task.mmap(addr, 1, prot=PROT_READ)
    task.mmap(addr + PAGE_SIZE, 1, prot=PROT_NONE)
    task.mmap(addr + 2 * PAGE_SIZE, 1, prot=PROT_READ, flags=MAP_SHARED)
    assert slow(task, addr, 1, FOLL_WRITE) == -EFAULT
    assert slow(task, addr + PAGE_SIZE) == -EFAULT
    assert slow(task, addr + 2 * PAGE_SIZE, 1, FOLL_WRITE | FOLL_FORCE) == -EFAULT
    got = slow(task, addr + PAGE_SIZE, 1, FOLL_FORCE)
    assert len(got) == 1
    put(task, got)


@pytest.mark.parametrize("huge", [False, True])
def test_a_forced_write_gets_a_copy_of_its_own_that_stays_read_only(new_task, huge) -> None:
    task, addr = new_task(), addresses()
    set_switch("enabled", "always" if huge else "never")
    task.mmap(addr, int(HPAGE_PMD_NR))
    task.store(addr, 7)
    assert do_mprotect(task.cpu, task.mm, addr, int(PMD_SIZE), PROT_READ) == 0
    old = slow(task, addr)
    task.fork()
    got = slow(task, addr, 1, FOLL_WRITE | FOLL_FORCE)
    assert got != old
    entry = task.pmd(addr) if pmd_trans_huge(task.pmd(addr)) else task.pte(addr).val.load()
    assert entry & (_PAGE_RW | _PAGE_DIRTY) == _PAGE_DIRTY
    assert task.store(addr, 1) == -EFAULT
    put(task, got + old)


def test_touch_marks_the_entry(new_task) -> None:
    task, addr, head = huge_task(new_task)
    pmd = mm_pmd(task.mm, addr)
    pmd.val.and_(~(_PAGE_ACCESSED | _PAGE_DIRTY))
    assert follow(task, addr, 0) and pmd.val.load() & (_PAGE_ACCESSED | _PAGE_DIRTY) == 0
    assert follow(task, addr, FOLL_TOUCH) and pmd.val.load() & (_PAGE_ACCESSED | _PAGE_DIRTY) == _PAGE_ACCESSED
    assert follow(task, addr, FOLL_TOUCH | FOLL_WRITE) and pmd.val.load() & _PAGE_DIRTY
    assert page_ref_count(head) == 1  # No FOLL_GET, no reference.


def test_dump_leaves_out_what_holds_nothing(new_task) -> None:
    task, addr = new_task(), addresses()
    task.mmap(addr, 2 * int(HPAGE_PMD_NR))
    assert follow(task, addr, FOLL_DUMP) == -EFAULT  # no table
    task.load(addr)
    assert follow(task, addr, FOLL_DUMP) == -EFAULT  # the zero page
    assert follow(task, addr, 0) == pgdat.zero_pfn
    assert follow(task, addr + PAGE_SIZE, FOLL_DUMP) == -EFAULT  # no pte
    assert follow(task, addr + PAGE_SIZE, 0) == 0
    set_switch("enabled", "always")
    task.load(addr + int(PMD_SIZE))
    assert follow(task, addr + int(PMD_SIZE), FOLL_DUMP) == -EFAULT  # the huge zero page
    assert follow(task, addr + int(PMD_SIZE) + 2 * PAGE_SIZE, 0) == pgdat.huge_zero_page.read() + 2


def test_zero_pages_can_be_pinned_for_reading(new_task) -> None:
    task, addr = new_task(), addresses()
    task.mmap(addr, 2 * int(HPAGE_PMD_NR))
    task.load(addr)
    set_switch("enabled", "always")
    task.load(addr + int(PMD_SIZE))
    assert fast(task, addr) == []  # special
    small, huge = slow(task, addr), fast(task, addr + int(PMD_SIZE) + PAGE_SIZE)
    assert small == [pgdat.zero_pfn] and huge == [pgdat.huge_zero_page.read() + 1]
    lru_add_drain(task.cpu)
    assert audit(task.machine.config, pins={small[0]: 1, huge[0]: 1}).violations == []
    put(task, small + huge)


@pytest.mark.parametrize("mapped_by", ["pmd", "ptes"])
def test_foll_split(new_task, mapped_by) -> None:
    """R9: what comes back is small; a pin of anybody else keeps the page whole (R7)."""
    task, addr, head = huge_task(new_task)
    lru_add_drain(task.cpu)
    if mapped_by == "ptes":
        split_pmd(task, addr)
    pin = fast(task, addr + 3 * PAGE_SIZE)
    assert follow(task, addr, FOLL_SPLIT | FOLL_GET) == -EBUSY and PageCompound(head)
    put(task, pin)
    got = follow(task, addr + 2 * PAGE_SIZE, FOLL_SPLIT | FOLL_GET)
    assert got == page_to_pfn(head) + 2 and not PageCompound(mem_map[got]) and count(got) == 2
    assert slow(task, addr + PAGE_SIZE, 1, FOLL_SPLIT) == [page_to_pfn(head) + 1]
    put(task, [got, page_to_pfn(head) + 1])
    assert task.load(addr) == 7


def test_foll_split_of_the_huge_zero_page_splits_the_mapping(new_task) -> None:
    task, addr = new_task(), addresses()
    set_switch("enabled", "always")
    task.mmap(addr, int(HPAGE_PMD_NR))
    task.load(addr)
    assert pmd_trans_huge(task.pmd(addr))
    assert follow(task, addr, FOLL_SPLIT) == pgdat.zero_pfn
    assert pmd_table(task.pmd(addr))


def test_a_pin_keeps_its_page_whole_but_not_its_mapping(new_task) -> None:
    """R7, R37, K12."""
    task, addr, head = huge_task(new_task)
    pin = fast(task, addr + PAGE_SIZE, 1, 1)
    get_page(task.cpu, head)
    lock_page(task.cpu, head)
    assert split_huge_page_to_list(task.cpu, head, PageList(0)) == -EBUSY
    unlock_page(task.cpu, head)
    put_page(task.cpu, head)
    split_pmd(task, addr)
    assert task.munmap(addr, int(HPAGE_PMD_NR)) == 0
    assert page_ref_count(head) == 1 and PageCompound(head)
    assert frames[page_to_pfn(head)].word[0].read() == 7
    lru_add_drain(task.cpu)
    assert audit(task.machine.config, pins={pin[0]: 1}).violations == []
    put(task, pin)
    assert not PageCompound(head)


def test_a_pinned_small_page_is_not_collapsed(new_task) -> None:
    task, addr = new_task(), addresses()
    n = int(HPAGE_PMD_NR)
    task.mmap(addr, n)
    for i in range(n):
        task.store(addr + i * PAGE_SIZE, i)
    lru_add_drain(task.cpu)
    set_switch("enabled", "always")
    pin = fast(task, addr + 3 * PAGE_SIZE)
    down_read(task.cpu, task.mm.mmap_sem)
    assert collapse_huge_page(task.cpu, task.mm, addr, n) == Scan.SCAN_FAIL
    assert pmd_table(task.pmd(addr)) and task.load(addr + 3 * PAGE_SIZE) == 3
    put(task, pin)
    lru_add_drain(task.cpu)  # What was isolated waits there, with one reference more.
    down_read(task.cpu, task.mm.mmap_sem)
    assert collapse_huge_page(task.cpu, task.mm, addr, n) == Scan.SCAN_SUCCEED
    assert fast(task, addr + 3 * PAGE_SIZE) != pin
    put(task, pfns(1))


def test_a_pmd_that_is_being_split_is_not_for_fast(new_task) -> None:
    task, addr, head = huge_task(new_task)
    pmd = mm_pmd(task.mm, addr)
    pmd.val.and_(~_PAGE_PRESENT)
    assert fast(task, addr) == []
    pmd.val.or_(_PAGE_PRESENT)
    assert page_ref_count(head) == 1


def test_migration_entries_are_no_pages(new_task) -> None:
    task, addr = new_task(), addresses()
    task.mmap(addr, 1)
    task.store(addr, 7)
    pte = task.pte(addr)
    present = pte.val.load()
    pte.val.store(mk_entry(entry_pfn(present), _PAGE_MIGRATION | _PAGE_RW))
    assert fast(task, addr) == [] and follow(task, addr, FOLL_GET) == 0
    pte.val.store(present)
    assert follow(task, addr, FOLL_MIGRATION) == entry_pfn(present)


class Meddler:
    """Another CPU, which changes an entry right behind the point where gup-fast has read it."""

    def __init__(self, entry: Entry, value: int):
        self.entry, self.value, self.old = entry, value, entry.val.load()

    def __call__(self, cpu: Any, where: int) -> None:
        assert cpu.irq_off == 1
        if self.entry.val.load() == self.old:
            self.entry.val.store(self.value)


@pytest.mark.parametrize("huge", [False, True])
def test_a_reference_taken_too_late_is_given_back(new_task, monkeypatch, huge) -> None:
    """X28, step by step: the entry changes between the read and the reference."""
    task, addr = new_task(), addresses()
    set_switch("enabled", "always" if huge else "never")
    task.mmap(addr, int(HPAGE_PMD_NR))
    task.store(addr, 7)
    lru_add_drain(task.cpu)
    entry = mm_pmd(task.mm, addr) if huge else task.pte(addr)
    meddler = Meddler(entry, 0)
    pfn = entry_pfn(meddler.old)
    with interpreted(), monkeypatch.context() as patch:
        patch.setattr(gup_fast, "point", meddler)
        assert fast(task, addr, 2 if huge else 1, 1) == []
    assert count(pfn) == 1 and task.cpu.irq_off == 0
    entry.val.store(meddler.old)


def test_a_page_without_references_is_left_alone(new_task) -> None:
    task, addr = new_task(), addresses()
    task.mmap(addr, 1)
    task.store(addr, 7)
    lru_add_drain(task.cpu)
    page = task.page(addr)
    page._refcount.store(0)  # frozen
    assert fast(task, addr) == []
    page._refcount.store(1)


def test_populate_steps_over_huge_pages(new_task) -> None:
    task, addr = new_task(), addresses()
    n = int(HPAGE_PMD_NR)
    set_switch("enabled", "always")
    task.mmap(addr, 3 * n)
    down_read(task.cpu, task.mm.mmap_sem)
    assert get_user_pages(task.cpu, task.mm, addr + PAGE_SIZE, 2 * n, FOLL_WRITE, Slot(0)) == 2 * n
    up_read(task.cpu, task.mm.mmap_sem)
    assert vmstat()["pgfault"] == 3
    assert all(pmd_trans_huge(task.pmd(addr + k * int(PMD_SIZE))) for k in range(3))


@pytest.mark.parametrize("huge", [False, True])
def test_mlock_of_what_a_vma_maps(new_task, huge) -> None:
    task, addr = new_task(), addresses()
    n = int(HPAGE_PMD_NR)
    set_switch("enabled", "always" if huge else "never")
    task.mmap(addr, n)
    task.store(addr, 7)
    vma = task.vma(addr)
    vma.vm_flags = vma.vm_flags | VM_LOCKED
    down_read(task.cpu, task.mm.mmap_sem)
    assert get_user_pages(task.cpu, task.mm, addr, n, FOLL_MLOCK, Slot(0)) == n  # no FOLL_POPULATE: no faults
    assert vmstat()["NR_MLOCK"] == (n if huge else 1)
    assert get_user_pages(task.cpu, task.mm, addr, n, FOLL_MLOCK | FOLL_POPULATE | FOLL_WRITE, Slot(0)) == n
    up_read(task.cpu, task.mm.mmap_sem)
    assert vmstat()["NR_MLOCK"] == n
    page = Page(int(mem_map[entry_pfn(task.pmd(addr))])) if huge else task.page(addr)
    assert TestFlag(page, PG_mlocked)
    munlock_vma_pages_range(task.cpu, vma, addr, addr + n * PAGE_SIZE)
    assert vmstat()["NR_MLOCK"] == 0


def test_a_thp_mapped_by_ptes_is_not_mlocked(new_task) -> None:
    """I21."""
    task, addr, head = huge_task(new_task)
    split_pmd(task, addr)
    vma = task.vma(addr)
    vma.vm_flags = vma.vm_flags | VM_LOCKED
    assert follow(task, addr, FOLL_MLOCK) and not TestFlag(head, PG_mlocked)
    vma.vm_flags = vma.vm_flags & ~VM_LOCKED


def test_a_stack_grows_for_gup(new_task) -> None:
    task, addr = new_task(), addresses() + 64 * PAGE_SIZE
    task.mmap(addr, 2, flags=MAP_PRIVATE | MAP_GROWSDOWN)
    got = slow(task, addr - 3 * PAGE_SIZE, 1, FOLL_WRITE)
    assert len(got) == 1 and task.vma(addr).vm_start == addr - 3 * PAGE_SIZE
    put(task, got)


def test_a_write_pin_survives_madv_free(new_task) -> None:
    task, addr, head = huge_task(new_task)
    pin = fast(task, addr, 1, 1)
    assert do_madvise(task.cpu, task.mm, addr, int(PMD_SIZE), MADV_FREE) == 0
    assert page_ref_count(head) >= 1 and PageCompound(head) and frames[pin[0]].word[0].read() == 7
    put(task, pin)


def test_follow_says_how_much_the_entry_maps(new_task) -> None:
    task, addr, head = huge_task(new_task)
    down_read(task.cpu, task.mm.mmap_sem)
    follow_page_mask(task.cpu, task.vma(addr), addr, 0)
    assert task.cpu.scratch[0] == HPAGE_PMD_NR - 1
    up_read(task.cpu, task.mm.mmap_sem)
    split_pmd(task, addr)
    down_read(task.cpu, task.mm.mmap_sem)
    follow_page_mask(task.cpu, task.vma(addr), addr, 0)
    assert task.cpu.scratch[0] == 0
    up_read(task.cpu, task.mm.mmap_sem)


def test_the_audit_counts_declared_pins(new_task) -> None:
    task, addr, head = huge_task(new_task)
    lru_add_drain(task.cpu)
    for i in (1, 1, 4):
        row = free_pin_row(task.cpu)
        declare_pin(task.cpu, row, fast(task, addr + i * PAGE_SIZE)[0])
    assert audit(task.machine.config).violations == []
    head._refcount.add(1)
    assert audit(task.machine.config).laws() == {"Q4"}
    head._refcount.sub(1)
    for row in range(3):
        unpin(task.cpu, row)
    assert page_ref_count(head) == 1 and free_pin_row(task.cpu) == 0


def test_a_pin_that_lost_its_page_is_found(new_task) -> None:
    task, addr, head = huge_task(new_task)
    declare_pin(task.cpu, 0, fast(task, addr + PAGE_SIZE)[0])
    head._refcount.store(0)
    with pytest.raises(KernelBug, match="lost a reference"), interpreted():
        unpin(task.cpu, 0)
