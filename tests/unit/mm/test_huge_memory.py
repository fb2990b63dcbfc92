"""Operations on one huge pmd against the delta matrix (semantics 3.41), on one CPU."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_resume
from concur_thp.arch.linker import interpreted
from concur_thp.config import HPAGE_PMD_ORDER, PAGE_SIZE, PMD_SIZE, PUD_SHIFT
from concur_thp.machine import Machine
from concur_thp.mm.flags import (
    GFP_TRANSHUGE,
    MADV_DONTNEED,
    MADV_FREE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
)
from concur_thp.mm.fork import dup_mm, exit_mm, mm_alloc, mmput, switch_to_mm
from concur_thp.mm.huge_fault import __do_huge_pmd_anonymous_page
from concur_thp.mm.huge_split_pmd import split_huge_pmd_address
from concur_thp.mm.madvise import do_madvise
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, MM_ANONPAGES, NIL, Entry, Mm, Page, mem_map, pgdat
from concur_thp.mm.mmap import do_mmap
from concur_thp.mm.mprotect import do_mprotect
from concur_thp.mm.mremap import do_mremap
from concur_thp.mm.page_alloc import alloc_pages
from concur_thp.mm.page_flags import PageDoubleMap, PG_active, PG_dirty, PG_lru, PG_swapbacked, PG_uptodate, tail_page
from concur_thp.mm.page_lock import PageLocked, lock_page, unlock_page
from concur_thp.mm.page_ref import get_page, get_page_unless_zero, page_ref_count
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_HUGE,
    _PAGE_MIGRATION,
    _PAGE_PRESENT,
    _PAGE_PROTNONE,
    _PAGE_RW,
    _PAGE_SPECIAL,
    entry_pfn,
    entry_table_page,
    mk_entry,
    mm_pmd,
    pmd_table,
    table_entry,
)
from concur_thp.mm.put_page import put_page
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.mm.vma_tree import find_vma
from concur_thp.mm.vmstat import vmstat
from concur_thp.sync.rwsem import down_read, down_write, up_read, up_write

RW = PROT_READ | PROT_WRITE
HUGE = _PAGE_HUGE | _PAGE_PRESENT | _PAGE_ACCESSED
BITS = (1 << 12) - 1


class World:
    """One mm with four empty huge ranges, on CPU 0."""

    def __init__(self, cpu: Cpu, n: int):
        self.cpu, self.n = cpu, n
        self.addr = 4 * int(PMD_SIZE)
        self.mm = Mm(mm_alloc(cpu))
        self.map(self.addr, 4 * int(PMD_SIZE))
        switch_to_mm(cpu, self.mm.id)

    def map(self, addr: int, size: int) -> None:
        down_write(self.cpu, self.mm.mmap_sem)
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        assert do_mmap(self.cpu, self.mm, addr, size, RW, flags, 0, 0) == addr
        up_write(self.cpu, self.mm.mmap_sem)

    def store(self, page: int, value: int) -> None:
        assert user_store(self.cpu, self.addr + page * PAGE_SIZE, value) == 0

    def load(self, page: int) -> int:
        assert user_load(self.cpu, self.addr + page * PAGE_SIZE) == 0
        return int(self.cpu.scratch[0])

    def pmd(self, mm: Mm | None = None) -> Entry:
        return Entry(int(mm_pmd(mm or self.mm, self.addr)))

    def page(self) -> Page:
        return Page(int(mem_map[entry_pfn(self.pmd().val.load())]))

    def counts(self, page: Page) -> tuple[int, int, int, int]:
        """rc, cmc, DM, mc of subpage 1."""
        return (page_ref_count(page), tail_page(page, 1).compound_mapcount.read(), PageDoubleMap(page),
                tail_page(page, 1)._mapcount.read())

    def deposited(self, pmd: Entry) -> int:
        """Tables parked behind the pmds of this PMD table."""
        count, pfn = 0, entry_table_page(pmd).pmd_huge_pte
        while pfn != NIL:
            count, pfn = count + 1, mem_map[pfn].lru_next
        return count

    def tables(self) -> tuple[int, int, int]:
        """rss, nr_ptes, deposited."""
        return self.mm.rss[MM_ANONPAGES].read(), self.mm.nr_ptes.read(), self.deposited(self.pmd())

    def split(self) -> None:
        down_read(self.cpu, self.mm.mmap_sem)
        split_huge_pmd_address(self.cpu, find_vma(self.mm, self.addr), self.addr, 0, Page(0))
        up_read(self.cpu, self.mm.mmap_sem)

    def pte(self, i: int) -> int:
        pmd = self.pmd().val.load()
        assert pmd_table(pmd)
        return int(table_entry(entry_pfn(pmd), i).val.load())

    @contextmanager
    def only_small_pages(self, count: int) -> Iterator[None]:
        """All memory is taken but for `count` small pages, which do not make a huge one."""
        taken: dict[int, list[Page]] = {}
        for order in (int(HPAGE_PMD_ORDER), 0):
            taken[order] = self.take_all(order)
            if order:
                for _ in range(count // self.n + 2):
                    put_page(self.cpu, taken[order].pop())
        spare = [page for page in taken[0] if mem_map.index(page) % self.n][:count]
        for page in spare:
            put_page(self.cpu, page)
        yield
        for page in taken[int(HPAGE_PMD_ORDER)] + [page for page in taken[0] if page not in spare]:
            put_page(self.cpu, page)

    def take_all(self, order: int) -> list[Page]:
        taken = []
        while page := alloc_pages(self.cpu, order, MIGRATE_MOVABLE, GFP_TRANSHUGE):
            taken.append(Page(int(page)))
        return taken

    def end(self) -> None:
        """The mm goes; every count must be where it began."""
        exit_mm(self.cpu)
        left = vmstat()
        assert (left["NR_ANON_MAPPED"], left["NR_ANON_THPS"], pgdat.split_queue_len) == (0, 0, 0)


@contextmanager
def world(order: int, plain: bool) -> Iterator[World]:
    memory = "64M" if order == 9 else "1M"
    with Machine(memory=memory, order=order, cpus=1) as machine, interpreted() if plain else nullcontext():
        cpu = machine.cpu()
        cpu_resume(cpu)
        w = World(cpu, 1 << order)
        yield w
        w.end()


SIZES = pytest.mark.parametrize(("order", "plain"), [(9, False), (3, False), (3, True)])


@SIZES
def test_write_fault(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        w.store(1, 7)
        page = w.page()
        assert w.counts(page) == (1, 0, 0, -1) and w.tables() == (w.n, 1, 1)
        assert w.pmd().val.load() & BITS == HUGE | _PAGE_RW | _PAGE_DIRTY
        flags = 1 << PG_lru | 1 << PG_active | 1 << PG_swapbacked | 1 << PG_uptodate
        assert page.flags.read() & flags == flags and page.index == w.addr // PAGE_SIZE
        assert vmstat()["thp_fault_alloc"] == 1 and vmstat()["NR_ANON_MAPPED"] == w.n
        assert w.load(1) == 7 and w.load(0) == 0 and w.mm.faults.read() == 1
        assert do_madvise(w.cpu, w.mm, w.addr, int(PMD_SIZE), MADV_DONTNEED) == 0
        assert w.tables() == (0, 0, 0) and page_ref_count(page) == 0 and w.load(1) == 0


@SIZES
def test_write_fault_whose_page_a_scanner_has_found(order: int, plain: bool) -> None:
    """get_page_unless_zero() takes a reference as soon as the allocator has given its own (R34): that is no error."""
    with world(order, plain) as w:
        w.store(w.n, 7)  # The pmd table and the anon_vma are there.
        page = alloc_pages(w.cpu, int(HPAGE_PMD_ORDER), MIGRATE_MOVABLE, GFP_TRANSHUGE)
        assert get_page_unless_zero(page)
        down_read(w.cpu, w.mm.mmap_sem)
        assert __do_huge_pmd_anonymous_page(w.cpu, find_vma(w.mm, w.addr), w.addr, w.pmd(), page) == 0
        up_read(w.cpu, w.mm.mmap_sem)
        assert w.counts(page) == (2, 0, 0, -1)
        put_page(w.cpu, page)
        assert w.load(1) == 0 and w.counts(page) == (1, 0, 0, -1)


@SIZES
def test_zero_page(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        assert w.load(3) == 0
        assert w.pmd().val.load() == mk_entry(pgdat.huge_zero_page.read(), HUGE)
        assert w.tables() == (0, 1, 1) and pgdat.huge_zero_refcount.read() == 2
        child = Mm(dup_mm(w.cpu, w.mm))
        assert child.nr_ptes.read() == 1 and pgdat.huge_zero_refcount.read() == 3
        w.store(3, 9)  # a huge page instead, nothing to copy
        assert w.counts(w.page()) == (1, 0, 0, -1) and w.tables() == (w.n, 1, 1)
        assert vmstat()["wp_huge_copy"] == 1 and w.load(3) == 9 and w.load(2) == 0
        switch_to_mm(w.cpu, child.id)
        assert w.load(3) == 0
        switch_to_mm(w.cpu, w.mm.id)
        mmput(w.cpu, child)
        assert pgdat.huge_zero_refcount.read() == 2


@SIZES
def test_split_zero_page(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        assert w.load(0) == 0
        w.split()
        assert w.tables() == (0, 1, 0) and vmstat()["thp_split_pmd"] == 1
        want = mk_entry(pgdat.zero_pfn, _PAGE_PRESENT | _PAGE_ACCESSED | _PAGE_SPECIAL)
        assert {w.pte(i) for i in range(w.n)} == {want}
        w.store(2, 5)
        assert w.tables() == (1, 1, 0) and w.load(2) == 5 and w.load(1) == 0


@SIZES
def test_write_to_zero_page_without_memory(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        assert w.load(0) == 0
        with w.only_small_pages(4):
            w.store(1, 5)
            assert w.tables() == (1, 1, 0)
            assert vmstat()["thp_fault_fallback"] == 1 and vmstat()["thp_split_pmd"] == 1


@SIZES
def test_fallback(order: int, plain: bool) -> None:
    with world(order, plain) as w, w.only_small_pages(4):
        w.store(1, 5)
        assert vmstat()["thp_fault_fallback"] == 1 and vmstat()["thp_fault_alloc"] == 0
        assert w.tables() == (1, 1, 0) and w.load(1) == 5


@SIZES
def test_huge_copy_and_reuse(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        w.store(1, 7)
        old = w.page()
        child = Mm(dup_mm(w.cpu, w.mm))
        assert w.pmd().val.load() & _PAGE_RW == 0 and w.pmd(child).val.load() & (_PAGE_RW | _PAGE_ACCESSED) == 0
        w.store(2, 8)
        assert w.page() != old and w.counts(w.page()) == (1, 0, 0, -1) and w.counts(old) == (1, 0, 0, -1)
        assert w.tables() == (w.n, 1, 1) and vmstat()["thp_fault_alloc"] == 2 and vmstat()["NR_ANON_THPS"] == 2
        assert (w.load(1), w.load(2)) == (7, 8)
        switch_to_mm(w.cpu, child.id)
        assert (w.load(1), w.load(2)) == (7, 0)
        w.store(1, 9)  # alone by now
        assert entry_pfn(w.pmd(child).val.load()) == mem_map.index(old) and vmstat()["wp_reuse"] == 1
        assert w.pmd(child).val.load() & BITS == HUGE | _PAGE_RW | _PAGE_DIRTY
        switch_to_mm(w.cpu, w.mm.id)
        assert w.load(1) == 7
        mmput(w.cpu, child)


@SIZES
def test_copy_into_small_pages(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        for i in range(w.n):
            w.store(i, 100 + i)
        old = w.page()
        child = Mm(dup_mm(w.cpu, w.mm))
        with w.only_small_pages(w.n + 2):
            w.store(2, 8)
            assert w.counts(old) == (1, 0, 0, -1) and w.tables() == (w.n, 1, 0)
            assert vmstat()["wp_huge_fallback_pages"] == 1 and vmstat()["thp_fault_fallback"] == 1
            assert [w.load(i) for i in range(w.n)] == [8 if i == 2 else 100 + i for i in range(w.n)]
            assert all(w.pte(i) & _PAGE_RW for i in range(w.n))
            mmput(w.cpu, child)


@SIZES
def test_no_small_pages_either(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        w.store(1, 7)
        old = w.page()
        child = Mm(dup_mm(w.cpu, w.mm))
        with w.only_small_pages(4):
            w.store(2, 8)  # one small page of the range is copied, the rest stays shared
            assert vmstat()["thp_split_pmd"] == 1 and vmstat()["thp_fault_fallback"] == 1
            assert w.counts(old) == (w.n, 0, 1, 1)
            assert tail_page(old, 2)._mapcount.read() == 0
            assert (w.load(1), w.load(2)) == (7, 8)
            mmput(w.cpu, child)


@SIZES
def test_split_takes_state_from_entry(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        w.store(1, 7)
        page = w.page()
        w.split()
        assert w.counts(page) == (w.n, -1, 0, 0) and w.tables() == (w.n, 1, 0)
        assert page.flags.read() >> PG_dirty & 1 and not PageLocked(page)
        first = w.pte(0)
        assert first & BITS == _PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED
        assert [w.pte(i) for i in range(w.n)] == [first + (i << 12) for i in range(w.n)]
        w.split()  # nothing to do
        assert vmstat()["thp_split_pmd"] == 1 and w.load(1) == 7


@SIZES
def test_split_migration_entry(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        w.store(1, 7)
        page, pmd = w.page(), w.pmd()
        huge = pmd.val.load()
        down_read(w.cpu, w.mm.mmap_sem)
        lock_page(w.cpu, page)
        pmd.val.store(mk_entry(entry_pfn(huge), _PAGE_HUGE | _PAGE_MIGRATION | _PAGE_RW))
        before = w.counts(page)
        split_huge_pmd_address(w.cpu, find_vma(w.mm, w.addr), w.addr, 0, Page(0))
        assert w.counts(page) == before and w.tables() == (w.n, 1, 0) and vmstat()["thp_split_pmd"] == 1
        want = [mk_entry(entry_pfn(huge) + i, _PAGE_MIGRATION | _PAGE_RW) for i in range(w.n)]
        assert [w.pte(i) for i in range(w.n)] == want
        # As it was, with the table where it is: the mapping counts are still a pmd's.
        for i in range(w.n):
            table_entry(entry_pfn(pmd.val.load()), i).val.store(0)
        table = entry_pfn(pmd.val.load())
        mem_map[table].lru_next = entry_table_page(pmd).pmd_huge_pte
        entry_table_page(pmd).pmd_huge_pte = table
        pmd.val.store(huge)
        unlock_page(w.cpu, page)
        up_read(w.cpu, w.mm.mmap_sem)


@SIZES
def test_mprotect(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        w.store(1, 7)
        size = int(PMD_SIZE)
        assert do_mprotect(w.cpu, w.mm, w.addr, size, PROT_READ) == 0
        assert w.pmd().val.load() & BITS == HUGE | _PAGE_DIRTY
        assert user_store(w.cpu, w.addr, 1) < 0 and w.load(1) == 7
        assert do_mprotect(w.cpu, w.mm, w.addr, size, 0) == 0
        assert w.pmd().val.load() & (_PAGE_PRESENT | _PAGE_PROTNONE | _PAGE_DIRTY) == _PAGE_PROTNONE | _PAGE_DIRTY
        assert user_load(w.cpu, w.addr) < 0
        assert do_mprotect(w.cpu, w.mm, w.addr, size, RW) == 0
        assert w.pmd().val.load() & _PAGE_RW == 0  # the next write decides
        w.store(1, 8)
        assert vmstat()["wp_reuse"] == 1 and w.load(1) == 8 and w.tables() == (w.n, 1, 1)


@SIZES
def test_border_inside_huge_page(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        w.store(1, 7)
        page = w.page()
        assert do_mprotect(w.cpu, w.mm, w.addr, 2 * PAGE_SIZE, PROT_READ) == 0
        assert vmstat()["thp_split_pmd"] == 1 and w.counts(page) == (w.n, -1, 0, 0)
        assert [w.pte(i) & _PAGE_RW != 0 for i in range(4)] == [False, False, True, True]


@SIZES
@pytest.mark.parametrize("far", [False, True])
def test_mremap(order: int, plain: bool, far: bool) -> None:
    with world(order, plain) as w:
        w.store(1, 7)
        page, old_pmd, old = w.page(), w.pmd(), w.addr
        new = old + (1 << int(PUD_SHIFT) if far else 8 * int(PMD_SIZE))
        assert do_mremap(w.cpu, w.mm, old, int(PMD_SIZE), int(PMD_SIZE), new) == new
        w.addr = new
        assert w.page() == page and w.counts(page) == (1, 0, 0, -1) and w.tables() == (w.n, 1, 1)
        assert (entry_table_page(w.pmd()) == entry_table_page(old_pmd)) != far and vmstat()["mremap_huge"] == 1
        assert w.load(1) == 7 and user_load(w.cpu, old) < 0
        w.split()
        assert w.load(1) == 7 and w.tables() == (w.n, 1, 0)


@SIZES
def test_madvise_free(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        w.store(1, 7)
        page, before = w.page(), w.pmd().val.load()
        get_page(w.cpu, page)
        assert do_madvise(w.cpu, w.mm, w.addr, 2 * PAGE_SIZE, MADV_FREE) == 0
        assert w.pmd().val.load() == before and not PageLocked(page)  # a part of a pinned page: left alone
        put_page(w.cpu, page)
        assert do_madvise(w.cpu, w.mm, w.addr, int(PMD_SIZE), MADV_FREE) == 0
        assert w.pmd().val.load() == before & ~(_PAGE_ACCESSED | _PAGE_DIRTY)
        assert page.flags.read() & (1 << PG_dirty | 1 << PG_swapbacked) == 0 and w.load(1) == 7
        assert w.pmd().val.load() & _PAGE_DIRTY == 0
        w.store(1, 8)
        assert w.pmd().val.load() & _PAGE_DIRTY and w.counts(page) == (1, 0, 0, -1)


@SIZES
def test_partial_dontneed(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        w.store(1, 7)
        w.store(2, 8)
        page = w.page()
        assert do_madvise(w.cpu, w.mm, w.addr + PAGE_SIZE, PAGE_SIZE, MADV_DONTNEED) == 0
        assert page_ref_count(page) == w.n - 1 and pgdat.split_queue_len == 1
        assert (w.load(1), w.load(2)) == (0, 8)


@SIZES
def test_split_freeze(order: int, plain: bool) -> None:
    """Into migration entries, for split_huge_page() to come: no mapping and no mapping's reference is left."""
    with world(order, plain) as w:
        w.store(1, 7)
        page = w.page()
        get_page(w.cpu, page)
        down_read(w.cpu, w.mm.mmap_sem)
        lock_page(w.cpu, page)
        split_huge_pmd_address(w.cpu, find_vma(w.mm, w.addr), w.addr, 1, page)
        assert w.counts(page) == (1, -1, 0, -1) and w.tables() == (w.n, 1, 0)
        assert (vmstat()["thp_split_pmd"], vmstat()["thp_deferred_split_page"]) == (1, 1)
        first = mk_entry(mem_map.index(page), _PAGE_MIGRATION | _PAGE_RW)
        assert [w.pte(i) for i in range(w.n)] == [first + (i << 12) for i in range(w.n)]
        split_huge_pmd_address(w.cpu, find_vma(w.mm, w.addr), w.addr, 1, page)  # not huge any more
        assert vmstat()["thp_split_pmd"] == 1
        unlock_page(w.cpu, page)
        up_read(w.cpu, w.mm.mmap_sem)
        for i in range(w.n):  # as a zap would
            table_entry(entry_pfn(w.pmd().val.load()), i).val.store(0)
        w.mm.rss[MM_ANONPAGES].sub(w.n)
        put_page(w.cpu, page)
