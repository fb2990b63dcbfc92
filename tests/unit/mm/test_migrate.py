"""Migration of small and huge pages, with every kind of mapping, and when it must not be. Audited behind each test."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.shared import SharedArray
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGE_SIZE, PMD_SIZE
from concur_thp.mm.errno import EBUSY, EFAULT
from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.filemap import cached_pfn
from concur_thp.mm.flags import FOLL_SPLIT, GFP_TRANSHUGE, MAP_SHARED, PROT_READ
from concur_thp.mm.gup import get_user_pages_unlocked
from concur_thp.mm.huge_split_pmd import split_huge_pmd_address
from concur_thp.mm.migrate import MIGRATE_SYNC, NEW_PAGE, NEW_SMALL_PAGE, migrate_pages
from concur_thp.mm.migrate_move import move_to_new_page
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, NIL, Mm, Page, Slot, mem_map, pgdat
from concur_thp.mm.move_pages import do_move_page, isolate_movable, migrate_pfn
from concur_thp.mm.mprotect import do_mprotect
from concur_thp.mm.mremap import do_mremap
from concur_thp.mm.page_alloc import alloc_pages
from concur_thp.mm.page_flags import (
    PageDoubleMap,
    PageHead,
    PageSwapCache,
    PG_dirty,
    PG_lru,
    PG_migrated,
    PG_swapbacked,
    PG_uptodate,
    page_to_pfn,
    tail_page,
)
from concur_thp.mm.page_list import LIST_MIGRATE, list_empty, page_list
from concur_thp.mm.page_lock import lock_page, trylock_page, unlock_page
from concur_thp.mm.page_ref import get_page, page_ref_count
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.pgtable import entry_pfn, is_pmd_migration_entry, pmd_table, pmd_trans_huge, pte_write
from concur_thp.mm.swap import isolate_lru_page, lru_add_drain, put_page, putback_lru_page
from concur_thp.mm.swap_state import add_to_swap, swap_cached_pfn
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.try_to_unmap import (
    TTU_IGNORE_ACCESS,
    TTU_IGNORE_MLOCK,
    TTU_MIGRATION,
    remove_migration_ptes,
    try_to_unmap,
)
from concur_thp.mm.vma_tree import find_vma
from concur_thp.mm.vmstat import vmstat
from concur_thp.sync.rwsem import down_read, up_read

N_SMALL = 4
MIGRATION = TTU_MIGRATION | TTU_IGNORE_MLOCK | TTU_IGNORE_ACCESS
pin_slot = SharedArray("test_migrate_pins", Slot, lambda config: 1)
"""Room for get_user_pages() to say which page it has pinned."""


class Region:
    """Numbered words at the start of every page of one block, huge or small."""

    def __init__(self, task: Any, *, huge: bool, pages: int = 0):
        self.t, self.cpu, self.n = task, task.cpu, pages or int(HPAGE_PMD_NR)
        self.addr = 4 * int(PMD_SIZE)
        set_switch("enabled", "always" if huge else "never")
        task.mmap(self.addr, self.n)
        for i in range(self.n):
            assert task.store(self.at(i), 1000 + i) == 0
        set_switch("enabled", "never")
        assert bool(pmd_trans_huge(task.pmd(self.addr))) == huge
        lru_add_drain(self.cpu)

    def at(self, i: int) -> int:
        return int(self.addr + i * PAGE_SIZE)

    @property
    def head(self) -> Page:
        return Page(int(mem_map[entry_pfn(self.t.pmd(self.addr))]))

    def move(self, i: int = 0, *, how: int = NEW_PAGE, split: bool = False) -> int:
        result = int(do_move_page(self.cpu, self.t.mm, self.at(i), FOLL_SPLIT if split else 0, how))
        assert list_empty(page_list(self.cpu, LIST_MIGRATE)) and pgdat.isolated.read() == 0
        lru_add_drain(self.cpu)
        return result

    def check(self, first: int = 0, shift: int = 0) -> None:
        got = [self.t.load(self.at(i) + shift) for i in range(first, self.n)]
        assert got == [1000 + i for i in range(first, self.n)]

    def split_pmd(self) -> None:
        mm = self.t.mm
        down_read(self.cpu, mm.mmap_sem)
        split_huge_pmd_address(self.cpu, find_vma(mm, self.addr), self.addr, 0, Page(0))
        up_read(self.cpu, mm.mmap_sem)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """The task's turn while CPU 1 is between the two halves of a migration of the huge page."""
        cpu, old = self.t.machine.cpu(1), self.head
        take_turns(self.cpu, cpu)
        new = Page(int(alloc_pages(cpu, HPAGE_PMD_ORDER, MIGRATE_MOVABLE, GFP_TRANSHUGE)))
        assert isolate_lru_page(cpu, old)
        lock_page(cpu, old)
        assert trylock_page(cpu, new)
        assert try_to_unmap(cpu, old, MIGRATION) == 1
        take_turns(cpu, self.cpu)
        yield
        take_turns(self.cpu, cpu)
        assert move_to_new_page(cpu, new, old) == 0
        remove_migration_ptes(cpu, old, new, 0)
        for page in (new, old):
            unlock_page(cpu, page)
        putback_lru_page(cpu, new)
        put_page(cpu, old)
        lru_add_drain(cpu)
        drain_pcp(cpu)
        take_turns(cpu, self.cpu)


def take_turns(first: Cpu, then: Cpu) -> None:
    """This process goes on as another CPU."""
    cpu_park(first)
    cpu_resume(then)


def flags_of(page: Page) -> set[int]:
    return {bit for bit in (PG_dirty, PG_lru, PG_migrated, PG_swapbacked, PG_uptodate) if page.flags.read() >> bit & 1}


def test_small_page(new_task: Any) -> None:
    """Another frame, the same page in every other respect; the old frame is free."""
    region = Region(new_task(), huge=False, pages=N_SMALL)
    old = region.t.page(region.at(2))
    index, mapping, flags = old.index, old.mapping, flags_of(old)
    assert region.move(2) == 0
    new = region.t.page(region.at(2))
    assert new != old and (new.index, new.mapping) == (index, mapping)
    assert flags_of(new) == flags | {PG_dirty}  # Until now it stood in the pte.
    assert page_ref_count(new) == 1 and new._mapcount.read() == 0
    assert page_ref_count(old) == 0 and old.mapping == 0
    assert vmstat()["pgmigrate_success"] == 1
    region.check()
    assert region.t.store(region.at(2), 1002) == 0 and region.t.page(region.at(2)) == new  # Still writable.


def test_huge_page(new_task: Any) -> None:
    """It stays huge: the pmd leads to the new page, the deposited table is the old one."""
    region = Region(new_task(), huge=True)
    old, tables = region.head, region.t.mm.nr_ptes.read()
    assert region.move(3) == 0
    new = region.head
    assert new != old and pmd_trans_huge(region.t.pmd(region.addr)) and pte_write(region.t.pmd(region.addr))
    assert PageHead(new) and not PageHead(old) and page_ref_count(new) == 1
    assert tail_page(new, 1).compound_mapcount.read() == 0 and region.t.mm.nr_ptes.read() == tables
    stat = vmstat()
    assert (stat["thp_migration_success"], stat["NR_ANON_THPS"], stat["thp_split_pmd"]) == (1, 1, 0)
    region.check()


def test_shared_by_fork(new_task: Any) -> None:
    """Both mms map the new page, neither may write it."""
    task = new_task()
    region = Region(task, huge=True)
    parent, child = task.mm, task.fork()
    old = region.head
    assert region.move() == 0
    for mm in (parent, child):
        task.run_in(mm)
        assert region.head != old and not pte_write(task.pmd(region.addr))
        region.check()
    assert tail_page(region.head, 1).compound_mapcount.read() == 1
    assert task.store(region.addr, 7) == 0
    task.run_in(parent)
    region.check()


def test_mixed_mappings(new_task: Any) -> None:
    """K10: mapped by a pmd here and by ptes there, it comes back so, but without PG_double_map."""
    task = new_task()
    region = Region(task, huge=True)
    parent, child = task.mm, task.fork()
    region.split_pmd()
    task.run_in(child)
    assert PageDoubleMap(region.head)
    assert region.move() == 0
    new = region.head
    assert not PageDoubleMap(new) and tail_page(new, 1).compound_mapcount.read() == 0
    assert [tail_page(new, i)._mapcount.read() for i in range(region.n)] == [0] * region.n
    assert page_ref_count(new) == 1 + region.n
    for mm in (child, parent):
        task.run_in(mm)
        region.check()


def test_partly_mapped(new_task: Any) -> None:
    """K15: the target of a huge page with holes is not queued for a split, and says why."""
    region = Region(new_task(), huge=True)
    region.t.dontneed(region.addr, 2)
    assert pgdat.split_queue_len == 1
    assert region.move(2) == 0
    new = Page(int(tail_page(region.t.page(region.at(2)), -2)))
    assert pgdat.split_queue_len == 0 and PG_migrated in flags_of(new) and page_ref_count(new) == region.n - 2
    region.check(first=2)


@pytest.mark.parametrize("huge", [False, True])
def test_pinned(new_task: Any, huge: bool) -> None:
    """X24: whoever has a reference may be writing to the frame, so it stays; the mapping is as it was."""
    region = Region(new_task(), huge=huge)
    before = region.t.pmd(region.addr) if huge else region.t.pte(region.at(1)).val.load()
    assert get_user_pages_unlocked(region.cpu, region.t.mm, region.at(1), 1, 0, pin_slot[0]) == 1
    page = Page(int(mem_map[pin_slot[0].value]))
    assert region.move(1) == -EBUSY
    after = region.t.pmd(region.addr) if huge else region.t.pte(region.at(1)).val.load()
    assert entry_pfn(after) == entry_pfn(before) and pte_write(after)
    region.check()
    put_page(region.cpu, page)
    assert region.move(1) == 0
    region.check()


def test_without_huge_targets(new_task: Any) -> None:
    """-ENOMEM for a huge page: it is split, and all its pieces move, the first one first."""
    region = Region(new_task(), huge=True)
    old = region.head
    assert region.move(how=NEW_SMALL_PAGE) == 0
    assert pmd_table(region.t.pmd(region.addr))
    assert all(region.t.page(region.at(i)) != tail_page(old, i) for i in range(region.n))
    stat = vmstat()
    assert (stat["thp_split_page"], stat["thp_migration_split"], stat["pgmigrate_success"]) == (1, 1, region.n)
    region.check()


def test_no_target_and_no_split(new_task: Any) -> None:
    """-ENOMEM, and somebody else has a reference: nothing happens, but that the pmd is split if it got so far."""
    region = Region(new_task(), huge=True)
    head = region.head
    get_page(region.cpu, head)
    assert region.move(how=NEW_SMALL_PAGE) < 0
    assert PageHead(head) and PG_lru in flags_of(head)
    assert vmstat()["thp_migration_split"] == 0, "it was not split"
    put_page(region.cpu, head)
    region.check()


def test_small_page_caller(new_task: Any) -> None:
    """R9, R10: FOLL_SPLIT gives a caller that knows no huge pages a small one; only that one moves."""
    region = Region(new_task(), huge=True)
    old = region.head
    assert region.move(5, split=True) == 0
    pages = [region.t.page(region.at(i)) for i in range(region.n)]
    assert [i for i, page in enumerate(pages) if page != tail_page(old, i)] == [5]
    assert not PageHead(pages[0])
    region.check()


def test_file_page(new_task: Any) -> None:
    """A cached page moves with its slot; both mappings follow; so does a page that nobody maps."""
    task = new_task()
    file = file_alloc(task.cpu, 4, 1)
    addr = 6 * int(PMD_SIZE)
    task.mmap(addr, 4, flags=MAP_SHARED, file=file)
    words = [task.load(addr + i * PAGE_SIZE) for i in range(4)]
    assert task.store(addr + PAGE_SIZE, 77) == 0
    words[1] = 77
    child = task.fork()
    for mm in (task.mm, child):
        task.run_in(mm)
        assert [task.load(addr + i * PAGE_SIZE) for i in range(4)] == words
    lru_add_drain(task.cpu)
    old = Page(int(mem_map[cached_pfn(file, 1)]))
    assert do_move_page(task.cpu, task.mm, addr + PAGE_SIZE, 0, NEW_PAGE) == 0
    new = Page(int(mem_map[cached_pfn(file, 1)]))
    assert new != old and page_ref_count(new) == 1 + 2 + 1 and old.mapping == 0  # Cache, two ptes, a pagevec.
    task.munmap(addr, 4)
    lru_add_drain(task.cpu)
    for mm in task.mms:
        task.run_in(mm)
        task.munmap(addr, 4)
    assert migrate_pfn(task.cpu, new, NEW_PAGE) == 0
    assert cached_pfn(file, 1) not in (NIL, page_to_pfn(new))
    task.mmap(addr, 4, flags=MAP_SHARED, file=file)
    assert [task.load(addr + i * PAGE_SIZE) for i in range(4)] == words


def test_nothing_to_move(new_task: Any) -> None:
    """Holes, zero pages, free frames."""
    region = Region(new_task(), huge=False, pages=N_SMALL)
    region.t.mmap(region.at(N_SMALL), 2)
    assert region.t.load(region.at(N_SMALL)) == 0
    assert region.move(N_SMALL) == -EFAULT
    assert region.move(N_SMALL + 1) == -EFAULT
    assert region.move(N_SMALL + 2) == -EFAULT
    page = region.t.page(region.addr)
    region.t.munmap(region.addr, N_SMALL)
    assert migrate_pfn(region.cpu, page, NEW_PAGE) == -EBUSY


def test_freed_while_isolated(new_task: Any) -> None:
    """3.26.1: nobody but the isolation has a reference any more."""
    region = Region(new_task(), huge=True)
    head, pages = region.head, page_list(region.cpu, LIST_MIGRATE)
    get_page(region.cpu, head)
    assert isolate_movable(region.cpu, head, pages) == 0
    put_page(region.cpu, head)
    region.t.munmap(region.addr, region.n)
    assert page_ref_count(head) == 1
    assert migrate_pages(region.cpu, pages, NEW_PAGE, MIGRATE_SYNC) == 0
    assert page_ref_count(head) == 0 and pgdat.isolated.read() == 0


def test_others_meanwhile(new_task: Any) -> None:
    """What fork, mprotect, mremap and munmap make of a huge migration entry (3.13.3, 3.20, 3.23, 3.25)."""
    task = new_task(cpus=2)
    region = Region(task, huge=True)
    parent, away = task.mm, 64 * int(PMD_SIZE)
    with region.under_way():
        assert is_pmd_migration_entry(task.pmd(region.addr)) and pte_write(task.pmd(region.addr))
        child, other = task.fork(), task.fork()
        assert not pte_write(task.pmd(region.addr))  # Shared from now on.
        task.run_in(other)
        task.munmap(region.addr, region.n)
        task.run_in(child)
        assert do_mremap(task.cpu, child, region.addr, PMD_SIZE, PMD_SIZE, region.addr + away) == region.addr + away
        assert is_pmd_migration_entry(task.pmd(region.addr + away))
        task.run_in(parent)
        assert do_mprotect(task.cpu, parent, region.addr, PAGE_SIZE, PROT_READ) == 0
        assert pmd_table(task.pmd(region.addr))
    region.check()
    assert not pte_write(region.t.pte(region.addr).val.load())
    task.run_in(child)
    region.check(shift=away)
    assert pmd_trans_huge(task.pmd(region.addr + away)) and task.store(region.addr + away, 5) == 0
    task.run_in(parent)
    region.check()


def test_unmapped_meanwhile(new_task: Any) -> None:
    """Race 21: the entry is zapped without touching a count; the new page then lives until its pagevec drops it."""
    region = Region(new_task(cpus=2), huge=True)
    old = region.head
    with region.under_way():
        assert page_ref_count(old) == 1
        region.t.munmap(region.addr, region.n)
        assert page_ref_count(old) == 1 and region.t.mm.rss[1].read() == 0
    assert page_ref_count(old) == 0


def test_write_right_is_todays(new_task: Any) -> None:
    """X20: the new entry has what the vma allows when it is made."""
    region = Region(new_task(cpus=2), huge=True)
    with region.under_way():
        assert do_mprotect(region.cpu, region.t.mm, region.addr, PMD_SIZE, PROT_READ) == 0
    assert pmd_trans_huge(region.t.pmd(region.addr)) and not pte_write(region.t.pmd(region.addr))
    assert region.t.store(region.addr, 1) < 0
    region.check()


def test_mm_of(new_task: Any) -> None:
    """A page of another mm than the caller's."""
    task = new_task()
    region = Region(task, huge=False, pages=N_SMALL)
    task.run_in(task.fork())
    other = Mm(int(task.mms[0]))
    assert do_move_page(task.cpu, other, region.at(1), 0, NEW_PAGE) == 0
    region.check()


@pytest.mark.parametrize("huge", [False, True])
def test_in_swap_cache(new_task: Any, huge: bool) -> None:
    """Every slot, and the references and `private` that go with it, moves to the new page."""
    region = Region(new_task(swap="64M"), huge=huge)
    cpu, nr = region.cpu, region.n if huge else 1
    old = region.head if huge else region.t.page(region.addr)
    lock_page(cpu, old)
    assert add_to_swap(cpu, old) == 1
    unlock_page(cpu, old)
    entry = old.private
    assert page_ref_count(old) == nr + 1
    assert region.move() == 0
    new = region.head if huge else region.t.page(region.addr)
    assert new != old and page_ref_count(new) == nr + 1 and page_ref_count(old) == 0
    assert [swap_cached_pfn(entry + i) for i in range(nr)] == [page_to_pfn(new) + i for i in range(nr)]
    assert [tail_page(new, i).private for i in range(nr)] == [entry + i for i in range(nr)]
    assert PageSwapCache(new)
    region.check()
    get_page(cpu, new)
    assert region.move() == -EBUSY
    put_page(cpu, new)
