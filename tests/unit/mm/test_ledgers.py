"""The worked ledgers A1, A2 and A3 (semantics, Appendix A), number by number. N is 512 and 8."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_resume
from concur_thp.arch.linker import interpreted
from concur_thp.config import PAGE_SIZE, PMD_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.anon_vma import anon_vma_lock_write, anon_vma_unlock_write, page_anon_vma
from concur_thp.mm.errno import EBUSY
from concur_thp.mm.flags import MADV_DONTNEED, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from concur_thp.mm.fork import dup_mm, mm_alloc, mmput, switch_to_mm
from concur_thp.mm.huge_split_pmd import split_huge_pmd_address
from concur_thp.mm.madvise import do_madvise
from concur_thp.mm.mapcount import page_mapcount, total_mapcount
from concur_thp.mm.mm_types import MM_ANONPAGES, Mm, Page, mem_map, pgdat
from concur_thp.mm.mmap import do_mmap
from concur_thp.mm.page_flags import PageDoubleMap, tail_page
from concur_thp.mm.page_list import PageList
from concur_thp.mm.page_lock import PageLocked, lock_page, unlock_page
from concur_thp.mm.page_ref import get_page, page_ref_count
from concur_thp.mm.pgtable import entry_pfn, mm_pmd, pmd_table, pmd_trans_huge
from concur_thp.mm.put_page import put_page
from concur_thp.mm.split_huge_page import (
    TTU_SPLIT,
    can_split_huge_page,
    freeze_and_split,
    release_pieces,
    split_huge_page,
)
from concur_thp.mm.try_to_unmap import remove_migration_range, try_to_unmap
from concur_thp.mm.uaccess import user_store
from concur_thp.mm.vma_tree import find_vma
from concur_thp.mm.vmstat import vmstat
from concur_thp.sync.rwsem import down_read, down_write, up_read, up_write

K = 5
"""The subpage that is zapped."""


class Row(NamedTuple):
    """One row of a ledger; `mc` is of a normal subpage."""

    rc: int
    cmc: int
    dm: int
    mc: int
    mc_k: int


class World:
    """A parent with one huge page in one huge range, on CPU 0."""

    def __init__(self, cpu: Cpu):
        self.cpu = cpu
        self.addr = 4 * int(PMD_SIZE)
        self.parent = Mm(mm_alloc(cpu))
        down_write(cpu, self.parent.mmap_sem)
        got = do_mmap(cpu, self.parent, self.addr, int(PMD_SIZE), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, 0, 0)
        up_write(cpu, self.parent.mmap_sem)
        assert got == self.addr
        switch_to_mm(cpu, self.parent.id)
        assert user_store(cpu, self.addr, 7) == 0
        value = mm_pmd(self.parent, self.addr).val.load()
        assert pmd_trans_huge(value)
        self.page = Page(int(mem_map[entry_pfn(value)]))

    def row(self) -> Row:
        page = self.page
        cmc = tail_page(page, 1).compound_mapcount.read()
        normal = {i: tail_page(page, i)._mapcount.read() for i in (0, 1, K, 7)}
        mc_k = normal.pop(K)
        assert len(set(normal.values())) == 1
        return Row(page_ref_count(page), cmc, PageDoubleMap(page), normal[0], mc_k)

    def split(self, mm: Mm) -> None:
        down_read(self.cpu, mm.mmap_sem)
        split_huge_pmd_address(self.cpu, find_vma(mm, self.addr), self.addr, 0, Page(0))
        up_read(self.cpu, mm.mmap_sem)
        assert pmd_table(mm_pmd(mm, self.addr).val.load())

    def zap(self, mm: Mm, first: int, pages: int) -> None:
        start = self.addr + first * PAGE_SIZE
        assert do_madvise(self.cpu, mm, start, pages * PAGE_SIZE, MADV_DONTNEED) == 0


@contextmanager
def world(order: int, plain: bool) -> Iterator[World]:
    memory = "64M" if order == 9 else "1M"
    with Machine(memory=memory, order=order, cpus=1) as machine, interpreted() if plain else nullcontext():
        cpu = machine.cpu()
        cpu_resume(cpu)
        yield World(cpu)


SIZES = pytest.mark.parametrize(("order", "plain"), [(9, False), (3, False), (3, True)])


def up_to_zap_by_parent(w: World, n: int) -> Mm:
    """The rows that A1 and A2 share; returns the child."""
    assert w.row() == Row(1, 0, 0, -1, -1)
    assert w.parent.rss[MM_ANONPAGES].read() == n and w.parent.nr_ptes.read() == 1
    child = Mm(dup_mm(w.cpu, w.parent))
    assert w.row() == Row(2, 1, 0, -1, -1)
    assert child.rss[MM_ANONPAGES].read() == n and child.nr_ptes.read() == 1
    w.split(w.parent)
    assert w.row() == Row(n + 1, 0, 1, 1, 1)
    w.zap(w.parent, K, 1)
    assert w.row() == Row(n, 0, 1, 1, 0)
    assert w.parent.rss[MM_ANONPAGES].read() == n - 1
    assert pgdat.split_queue_len == 0  # K is still mapped, by the child's pmd
    return child


@SIZES
def test_a1(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        n = 1 << order
        child = up_to_zap_by_parent(w, n)
        w.split(child)
        assert w.row() == Row(2 * n - 1, -1, 0, 1, 0)
        assert total_mapcount(w.page) == 2 * n - 1
        assert vmstat()["NR_ANON_THPS"] == 0 and vmstat()["NR_ANON_MAPPED"] == n
        w.zap(child, K, 1)
        assert w.row() == Row(2 * n - 2, -1, 0, 1, -1)
        assert pgdat.split_queue_len == 1 and vmstat()["thp_deferred_split_page"] == 1
        assert vmstat()["thp_split_pmd"] == 2 and vmstat()["NR_ANON_MAPPED"] == n - 1
        shrinker_splits_it(w, n)
        assert vmstat()["NR_ANON_MAPPED"] == n - 1
        assert w.parent.rss[MM_ANONPAGES].read() == child.rss[MM_ANONPAGES].read() == n - 1
        give_up(w, child)


def shrinker_splits_it(w: World, n: int) -> None:
    """The rows of A1 from the shrinker's pin on, with its steps taken one by one."""
    cpu, head = w.cpu, w.page
    get_page(cpu, head)
    lock_page(cpu, head)
    assert page_ref_count(head) == 2 * n - 1 and total_mapcount(head) == 2 * n - 2
    assert can_split_huge_page(cpu, head)
    anon_vma = page_anon_vma(head)
    anon_vma_lock_write(cpu, anon_vma)
    assert try_to_unmap(cpu, head, TTU_SPLIT) == 1
    assert w.row() == Row(1, -1, 0, -1, -1)
    assert freeze_and_split(cpu, head, PageList(0))
    pieces = [tail_page(head, i) for i in range(n)]
    assert [page_ref_count(piece) for piece in pieces] == [1] * n
    assert pgdat.split_queue_len == 0
    remove_migration_range(cpu, head, head, n, 1)
    refs, maps = [3] * n, [1] * n
    refs[K], maps[K] = 1, -1
    assert [page_ref_count(piece) for piece in pieces] == refs
    assert [piece._mapcount.read() for piece in pieces] == maps
    anon_vma_unlock_write(cpu, anon_vma)
    release_pieces(cpu, head, head)
    assert page_ref_count(head) == 3
    assert [page_ref_count(piece) for piece in pieces[1:]] == [0 if i == K else 2 for i in range(1, n)]
    assert all(PageLocked(piece) == (i == 0) for i, piece in enumerate(pieces))
    unlock_page(cpu, head)
    put_page(cpu, head)
    assert page_ref_count(head) == 2


@SIZES
def test_a2(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        n = 1 << order
        child = up_to_zap_by_parent(w, n)
        w.zap(child, 0, n)
        assert w.row() == Row(n - 1, -1, 0, 0, -1)
        assert pgdat.split_queue_len == 1 and vmstat()["NR_ANON_MAPPED"] == n - 1
        assert child.rss[MM_ANONPAGES].read() == 0 and child.nr_ptes.read() == 0
        give_up(w, child)


@SIZES
def test_a3(order: int, plain: bool) -> None:
    with world(order, plain) as w:
        n = 1 << order
        get_page(w.cpu, tail_page(w.page, 7))
        assert w.row() == Row(2, 0, 0, -1, -1)
        w.split(w.parent)  # a pinned page's pmd splits all the same (R37)
        assert w.row() == Row(n + 1, -1, 0, 0, 0)
        assert page_ref_count(tail_page(w.page, 7)) == 0
        assert total_mapcount(w.page) == n and page_mapcount(tail_page(w.page, 7)) == 1
        get_page(w.cpu, w.page)
        lock_page(w.cpu, w.page)
        assert w.row() == Row(n + 2, -1, 0, 0, 0)
        assert split_huge_page(w.cpu, w.page) == -EBUSY
        assert w.row() == Row(n + 2, -1, 0, 0, 0) and vmstat()["thp_split_page_failed"] == 1
        put_page(w.cpu, tail_page(w.page, 7))
        assert page_ref_count(w.page) == n + 1
        assert split_huge_page(w.cpu, w.page) == 0 and vmstat()["thp_split_page"] == 1
        unlock_page(w.cpu, w.page)
        put_page(w.cpu, w.page)
        assert [page_ref_count(tail_page(w.page, i)) for i in range(n)] == [1] * n
        assert [tail_page(w.page, i)._mapcount.read() for i in range(n)] == [0] * n
        give_up(w, Mm(0))


def give_up(w: World, child: Mm) -> None:
    """Both mms go: nothing may be left of the page."""
    switch_to_mm(w.cpu, 0)
    for mm in (child, w.parent):
        if mm:
            mmput(w.cpu, mm)
    assert page_ref_count(w.page) == 0 and pgdat.split_queue_len == 0
    assert vmstat()["NR_ANON_MAPPED"] == 0 and vmstat()["NR_ANON_THPS"] == 0
