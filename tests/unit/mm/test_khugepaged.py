"""khugepaged on one CPU: each reason to give up, the collapse (ledger A6), the undo, the walk over mms."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_resume
from concur_thp.arch.linker import interpreted
from concur_thp.config import HPAGE_PMD_ORDER, PAGE_SIZE, PMD_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.collapse import collapse_huge_page
from concur_thp.mm.flags import GFP_TRANSHUGE, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from concur_thp.mm.fork import mm_alloc, mmput, switch_to_mm
from concur_thp.mm.khugepaged import Scan, khugepaged_do_scan, khugepaged_scan_pmd
from concur_thp.mm.mm_slots import __khugepaged_enter, khugepaged_scan
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, MM_ANONPAGES, NIL, Entry, Mm, Page, mem_map, pgdat
from concur_thp.mm.mmap import do_mmap
from concur_thp.mm.mprotect import do_mprotect
from concur_thp.mm.page_alloc import alloc_pages
from concur_thp.mm.page_flags import PG_lru, tail_page
from concur_thp.mm.page_lock import PageLocked
from concur_thp.mm.page_ref import get_page, page_ref_count
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_HUGE,
    _PAGE_PRESENT,
    _PAGE_RW,
    entry_pfn,
    entry_table_page,
    mm_pmd,
    pmd_table,
    pmd_trans_huge,
    table_entry,
)
from concur_thp.mm.put_page import put_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.mm.vmstat import Stat, vmstat
from concur_thp.sync.rwsem import down_read, down_write, up_read, up_write

RW = PROT_READ | PROT_WRITE


class World:
    """One mm with two ranges that small pages fill, and a CPU that is program and khugepaged in turn."""

    def __init__(self, cpu: Cpu, n: int):
        self.cpu, self.n = cpu, n
        self.addr = 4 * int(PMD_SIZE)
        self.mm = self.new_mm()
        switch_to_mm(cpu, self.mm.id)

    def new_mm(self) -> Mm:
        mm = Mm(mm_alloc(self.cpu))
        down_write(self.cpu, mm.mmap_sem)
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        assert do_mmap(self.cpu, mm, self.addr, 2 * int(PMD_SIZE), RW, flags, 0, 0) == self.addr
        up_write(self.cpu, mm.mmap_sem)
        return mm

    def fill(self, count: int) -> None:
        """Write to the first `count` pages, as small pages."""
        set_switch("enabled", "madvise")
        for i in range(count):
            assert user_store(self.cpu, self.addr + i * PAGE_SIZE, 100 + i) == 0
        lru_add_drain(self.cpu)
        set_switch("enabled", "always")

    def load(self, i: int) -> int:
        assert user_load(self.cpu, self.addr + i * PAGE_SIZE) == 0
        return int(self.cpu.scratch[0])

    def pmd(self) -> Entry:
        return Entry(int(mm_pmd(self.mm, self.addr)))

    def pte(self, i: int) -> Entry:
        return Entry(int(table_entry(entry_pfn(self.pmd().val.load()), i)))

    def page(self, i: int) -> Page:
        return Page(int(mem_map[entry_pfn(self.pte(i).val.load())]))

    def look(self) -> Scan:
        """khugepaged_scan_pmd() on the first range."""
        down_read(self.cpu, self.mm.mmap_sem)
        result = Scan(khugepaged_scan_pmd(self.cpu, self.mm, self.addr))
        if not self.cpu.scratch[0]:
            up_read(self.cpu, self.mm.mmap_sem)
        assert self.cpu.vmstat[Stat.scan_result + result] >= 1
        return result

    def collapse(self) -> Scan:
        """collapse_huge_page() on the first range, whatever a look would have said."""
        down_read(self.cpu, self.mm.mmap_sem)
        return Scan(collapse_huge_page(self.cpu, self.mm, self.addr, self.n))


@contextmanager
def world(order: int, plain: bool) -> Iterator[World]:
    memory = "64M" if order == 9 else "1M"
    with Machine(memory=memory, order=order, cpus=1) as machine, interpreted() if plain else nullcontext():
        cpu = machine.cpu()
        cpu_resume(cpu)
        w = World(cpu, 1 << order)
        yield w
        switch_to_mm(cpu, 0)
        if w.mm:
            mmput(cpu, w.mm)
        lru_add_drain(cpu)
        assert vmstat()["NR_ANON_MAPPED"] == 0 and pgdat.isolated.read() == 0


SIZES = pytest.mark.parametrize(("order", "plain"), [(9, False), (3, False), (3, True)])


@SIZES
def test_collapse(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        w.fill(w.n)
        table, old = entry_pfn(w.pmd().val.load()), [w.page(i) for i in range(w.n)]
        assert {page_ref_count(page) for page in old} == {1}
        assert w.look() == Scan.SCAN_SUCCEED
        value = w.pmd().val.load()
        assert value & 0xFFF == _PAGE_HUGE | _PAGE_PRESENT | _PAGE_ACCESSED | _PAGE_DIRTY | _PAGE_RW
        new = Page(int(mem_map[entry_pfn(value)]))
        assert page_ref_count(new) == 1 and tail_page(new, 1).compound_mapcount.read() == 0
        assert (w.mm.rss[MM_ANONPAGES].read(), w.mm.nr_ptes.read()) == (w.n, 1)
        assert entry_table_page(w.pmd()).pmd_huge_pte == table and mem_map[table].lru_next == NIL
        assert {table_entry(table, i).val.load() for i in range(w.n)} == {0}
        lru_add_drain(w.cpu)
        assert {page_ref_count(page) for page in old} == {0}
        assert [w.load(i) for i in range(w.n)] == [100 + i for i in range(w.n)]
        stat = vmstat()
        assert (stat["khugepaged_pages_collapsed"], stat["thp_collapse_alloc"], stat["thp_fault_alloc"]) == (1, 1, 0)
        assert (stat["NR_ANON_THPS"], stat["NR_ANON_MAPPED"]) == (1, w.n)
        assert w.look() == Scan.SCAN_PMD_NULL


@SIZES
def test_holes_are_filled(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        set_switch("enabled", "madvise")
        assert w.load(w.n - 1) == 0  # the small zero page
        w.fill(w.n // 2)
        assert w.mm.rss[MM_ANONPAGES].read() == w.n // 2
        set_switch("khugepaged/max_ptes_none", w.n // 2 - 1)
        assert w.look() == Scan.SCAN_EXCEED_NONE_PTE
        set_switch("khugepaged/max_ptes_none", w.n // 2)
        assert w.look() == Scan.SCAN_SUCCEED
        assert w.mm.rss[MM_ANONPAGES].read() == w.n
        assert [w.load(i) for i in range(w.n)] == [100 + i if i < w.n // 2 else 0 for i in range(w.n)]


@SIZES
def test_reasons_to_give_up(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        assert w.look() == Scan.SCAN_PMD_NULL
        w.fill(w.n)
        get_page(w.cpu, w.page(2))
        assert w.look() == Scan.SCAN_PAGE_COUNT
        put_page(w.cpu, w.page(2))
        w.page(1).flags.and_(~(1 << PG_lru))
        assert w.look() == Scan.SCAN_PAGE_LRU
        w.page(1).flags.or_(1 << PG_lru)
        assert do_mprotect(w.cpu, w.mm, w.addr, int(PMD_SIZE), PROT_READ) == 0
        assert w.look() == Scan.SCAN_PAGE_RO
        assert do_mprotect(w.cpu, w.mm, w.addr, int(PMD_SIZE), RW) == 0
        assert user_store(w.cpu, w.addr, 100) == 0  # one writable pte is enough
        assert vmstat()["thp_collapse_alloc"] == 0 and w.look() == Scan.SCAN_SUCCEED


@SIZES
def test_young(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        w.fill(w.n)
        for i in range(w.n):
            w.pte(i).val.and_(~_PAGE_ACCESSED)
        assert w.look() == Scan.SCAN_LACK_REFERENCED_PAGE
        for i in range(w.n // 2 - 1):
            w.pte(i).val.or_(_PAGE_ACCESSED)
        assert w.look() == Scan.SCAN_FAIL  # K5: half of them have to be
        assert vmstat()["thp_collapse_alloc"] == 1 and pmd_table(w.pmd().val.load())
        set_switch("k5_young_half", 0)
        assert w.look() == Scan.SCAN_SUCCEED


@SIZES
def test_undo(order: int, plain: bool) -> None:
    """A pin that comes after the look: everything is as it was."""
    with world(order, plain) as w:
        w.fill(w.n)
        before = [w.pte(i).val.load() for i in range(w.n)]
        pmd = w.pmd().val.load()
        get_page(w.cpu, w.page(w.n - 1))
        assert w.collapse() == Scan.SCAN_FAIL
        assert w.pmd().val.load() == pmd and [w.pte(i).val.load() for i in range(w.n)] == before
        put_page(w.cpu, w.page(w.n - 1))
        lru_add_drain(w.cpu)
        for i in range(w.n):
            page = w.page(i)
            assert page_ref_count(page) == 1 and not PageLocked(page) and page.flags.read() >> PG_lru & 1
        assert pgdat.isolated.read() == 0 and vmstat()["NR_ANON_THPS"] == 0 and w.load(1) == 101
        assert w.look() == Scan.SCAN_SUCCEED


@SIZES
def test_revalidate(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        w.fill(w.n)
        set_switch("enabled", "never")
        assert w.collapse() == Scan.SCAN_VMA_CHECK
        set_switch("enabled", "always")
        w.addr += 2 * int(PMD_SIZE)
        assert w.collapse() == Scan.SCAN_VMA_NULL
        w.addr -= 3 * int(PMD_SIZE)
        assert w.collapse() == Scan.SCAN_ADDRESS_RANGE
        assert vmstat()["thp_collapse_alloc"] == 3 and vmstat()["khugepaged_pages_collapsed"] == 0


@SIZES
def test_no_huge_page(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        w.fill(w.n)
        assert __khugepaged_enter(w.cpu, w.mm) == 0
        taken = []
        while page := alloc_pages(w.cpu, int(HPAGE_PMD_ORDER), MIGRATE_MOVABLE, GFP_TRANSHUGE):
            taken.append(Page(int(page)))
        assert khugepaged_do_scan(w.cpu, 8 * w.n) == w.n + 1 and w.cpu.scratch[0] == 1
        assert vmstat()["thp_collapse_alloc_failed"] == 1 and pmd_table(w.pmd().val.load())
        for page in taken:
            put_page(w.cpu, page)


@SIZES
def test_walk(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        first, other = w.mm, w.new_mm()
        for mm in (other, first):
            w.mm = mm
            switch_to_mm(w.cpu, mm.id)
            w.fill(2 * w.n)
            assert __khugepaged_enter(w.cpu, mm) == 0
        # Each collapse ends the visit, and the cursor stays behind it.
        assert khugepaged_do_scan(w.cpu, 1) == w.n + 1
        assert khugepaged_scan.mm_slot == other.id and khugepaged_scan.address == w.addr + int(PMD_SIZE)
        assert vmstat()["khugepaged_pages_collapsed"] == 1 and vmstat()["khugepaged_full_scans"] == 0
        assert khugepaged_do_scan(w.cpu, 100 * w.n) > 0
        # To the end of the list, and from its head to its end once more.
        assert vmstat()["khugepaged_pages_collapsed"] == 4 and vmstat()["khugepaged_full_scans"] == 2
        assert all(pmd_trans_huge(mm_pmd(mm, w.addr + int(PMD_SIZE)).val.load()) for mm in (first, other))
        assert khugepaged_scan.mm_slot == 0 and other.mm_count.read() == 2
        mmput(w.cpu, other)
        assert khugepaged_scan.head == first.id
        set_switch("enabled", "never")
        assert khugepaged_do_scan(w.cpu, 8 * w.n) == 0


@SIZES
def test_dead_mm_is_collected(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        w.fill(w.n)
        assert __khugepaged_enter(w.cpu, w.mm) == 0
        khugepaged_scan.mm_slot = w.mm.id  # khugepaged stands on it while it exits
        switch_to_mm(w.cpu, 0)
        mmput(w.cpu, w.mm)
        assert khugepaged_scan.head == w.mm.id and w.mm.mm_count.read() == 1
        assert khugepaged_do_scan(w.cpu, 1) == 1
        assert (khugepaged_scan.head, khugepaged_scan.mm_slot, w.mm.mm_count.read()) == (0, 0, 0)
        assert vmstat()["khugepaged_pages_scanned"] == 0
        w.mm = Mm(0)
