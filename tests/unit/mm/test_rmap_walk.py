"""From a page to its entries: walks over real address spaces, made by faults, fork, mremap and pmd splits."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_resume
from concur_thp.arch.linker import interpreted
from concur_thp.config import HPAGE_PMD_NR, PAGE_SHIFT, PAGE_SIZE, PMD_MASK, PMD_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.filemap import find_get_page
from concur_thp.mm.flags import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from concur_thp.mm.fork import dup_mm, exec_mmap, switch_to_mm
from concur_thp.mm.huge_split_pmd import split_huge_pmd_address
from concur_thp.mm.madvise import do_madvise
from concur_thp.mm.mm_types import Entry, Mm, Page, Vma, mem_map, mms, percpu, vmas
from concur_thp.mm.mmap import vm_mmap
from concur_thp.mm.mremap import do_mremap
from concur_thp.mm.munmap import vm_munmap
from concur_thp.mm.page_flags import PageAnon, PageHead, compound_head
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.pgtable import (
    _PAGE_HUGE,
    _PAGE_MIGRATION,
    _PAGE_PRESENT,
    entry_pfn,
    mm_pmd,
    pmd_trans_huge,
    pte_offset,
)
from concur_thp.mm.rmap import page_mapped, total_mapcount
from concur_thp.mm.rmap_walk import (
    PVMW_MIGRATION,
    PVMW_SYNC,
    page_mapped_in_vma,
    page_vma_mapped_walk,
    page_vma_mapped_walk_done,
    pvmw_address,
    pvmw_pmd,
    pvmw_pte,
    pvmw_vma,
    rmap_count,
    rmap_walk_begin,
    rmap_walk_lock,
    rmap_walk_next,
    rmap_walk_unlock,
)
from concur_thp.mm.swap import put_page
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.mm.vma_tree import find_vma
from concur_thp.sync.lock_classes import PMD_PTL, PTE_PTL

MODES = pytest.mark.parametrize(("order", "plain"), [(9, False), (3, False), (3, True)])
BASE = 64
"""Where the tests map, in huge pages."""


@contextmanager
def booted(order: int, plain: bool) -> Iterator[Cpu]:
    """A machine whose CPU 0 runs in a new mm."""
    with Machine(memory="64M" if order == 9 else "2M", order=order) as m:
        cpu = m.cpu(0)
        if plain:
            with interpreted():
                yield in_a_new_mm(cpu)
        else:
            yield in_a_new_mm(cpu)
        assert cpu.depth == 0 and cpu.page_locks == 0


def in_a_new_mm(cpu: Cpu) -> Cpu:
    cpu_resume(cpu)
    assert exec_mmap(cpu, PAGE_SIZE) == 0
    return cpu


def mapped(cpu: Cpu, size: int, at: int = BASE, file: int = 0) -> int:
    mm = mms[percpu[cpu.id].mm]
    flags = MAP_PRIVATE | MAP_FIXED | (0 if file else MAP_ANONYMOUS)
    addr = int(vm_mmap(cpu, mm, at * PMD_SIZE, size, PROT_READ | PROT_WRITE, flags, file, 0))
    assert addr == at * PMD_SIZE
    return addr


def current(cpu: Cpu) -> Mm:
    return mms[percpu[cpu.id].mm]


def pte_of(mm: Mm, addr: int) -> Entry:
    return Entry(pte_offset(mm_pmd(mm, addr).val.read(), addr))


def page_at(mm: Mm, addr: int) -> Page:
    pmd = mm_pmd(mm, addr).val.read()
    if pmd_trans_huge(pmd):
        return mem_map[entry_pfn(pmd) + ((addr & ~int(PMD_MASK)) >> PAGE_SHIFT)]
    return mem_map[entry_pfn(pte_of(mm, addr).val.read())]


def hits(cpu: Cpu, page: Page, flags: int = PVMW_SYNC) -> list[tuple[int, int, bool]]:
    """(mm, address, by a pmd) of each entry, in the order of the walk."""
    found = []
    if not PageAnon(page):
        lock_page(cpu, page)
    if rmap_walk_lock(cpu, page):
        rmap_walk_begin(cpu, page, flags)
        while rmap_walk_next(cpu):
            while page_vma_mapped_walk(cpu):
                assert cpu.depth >= 2, "a hit comes with its ptl held"
                found.append((pvmw_vma(cpu).vm_mm, pvmw_address(cpu), not pvmw_pte(cpu)))
        rmap_walk_unlock(cpu, page)
    if not PageAnon(page):
        unlock_page(cpu, page)
    return found


@MODES
def test_small_pages_are_found_in_every_generation_parent_first(order: int, plain: bool) -> None:
    with booted(order, plain) as cpu:
        mm = current(cpu)
        addr = mapped(cpu, 6 * PAGE_SIZE)
        for i in range(6):
            user_store(cpu, addr + i * PAGE_SIZE, 100 + i)
        child = Mm(dup_mm(cpu, mm))
        grandchild = Mm(dup_mm(cpu, child))
        old = page_at(mm, addr + PAGE_SIZE)
        generations = [mm.id, child.id, grandchild.id]
        assert hits(cpu, old) == [(n, addr + PAGE_SIZE, False) for n in generations]
        assert hits(cpu, old, 0) == hits(cpu, old)
        switch_to_mm(cpu, child.id)
        user_store(cpu, addr + PAGE_SIZE, 7)  # the child's own page now, in its own anon_vma
        assert hits(cpu, page_at(child, addr + PAGE_SIZE)) == [(child.id, addr + PAGE_SIZE, False)]
        assert hits(cpu, old) == [(mm.id, addr + PAGE_SIZE, False), (grandchild.id, addr + PAGE_SIZE, False)]
        vm_munmap(cpu, child, addr, 6 * PAGE_SIZE)
        assert hits(cpu, page_at(mm, addr)) == [(n, addr, False) for n in (mm.id, grandchild.id)]


@MODES
def test_a_thp_by_pmds_then_by_a_pmd_and_ptes(order: int, plain: bool) -> None:
    with booted(order, plain) as cpu:
        mm = current(cpu)
        addr = mapped(cpu, 2 * PMD_SIZE)
        user_store(cpu, addr + PMD_SIZE, 1)
        head = page_at(mm, addr + PMD_SIZE)
        assert PageHead(head)
        child = Mm(dup_mm(cpu, mm))
        assert hits(cpu, head) == [(mm.id, addr + PMD_SIZE, True), (child.id, addr + PMD_SIZE, True)]
        vma = Vma(find_vma(mm, addr))
        split_huge_pmd_address(cpu, vma, addr + PMD_SIZE, 0, Page(0))
        ptes = [(mm.id, addr + PMD_SIZE + i * PAGE_SIZE, False) for i in range(HPAGE_PMD_NR)]
        assert hits(cpu, head) == [*ptes, (child.id, addr + PMD_SIZE, True)]
        do_madvise(cpu, mm, addr + PMD_SIZE + PAGE_SIZE, 2 * PAGE_SIZE, 4)  # MADV_DONTNEED makes two holes
        assert hits(cpu, head) == [ptes[0], *ptes[3:], (child.id, addr + PMD_SIZE, True)]
        assert len(hits(cpu, head)) == total_mapcount(head) == HPAGE_PMD_NR - 1
        assert rmap_walk_lock(cpu, head)
        assert rmap_count(cpu, head, 0) == rmap_count(cpu, head, PVMW_SYNC) == HPAGE_PMD_NR - 1
        assert rmap_count(cpu, head, PVMW_MIGRATION) == 0
        rmap_walk_unlock(cpu, head)
        vm_munmap(cpu, mm, addr, 2 * PMD_SIZE)
        assert hits(cpu, head) == [(child.id, addr + PMD_SIZE, True)]


def straddling(cpu: Cpu) -> tuple[Mm, int, Page]:
    """A THP that mremap has moved to the middle between two pmds; its new address."""
    mm = current(cpu)
    addr = mapped(cpu, PMD_SIZE)
    user_store(cpu, addr, 5)
    head = page_at(mm, addr)
    assert PageHead(head)
    there = addr + 8 * PMD_SIZE + (HPAGE_PMD_NR // 2) * PAGE_SIZE
    assert do_mremap(cpu, mm, addr, PMD_SIZE, PMD_SIZE, there) == there
    return mm, there, head


@MODES
def test_a_thp_that_straddles_two_pmds_is_found_in_both(order: int, plain: bool) -> None:
    with booted(order, plain) as cpu:
        mm, addr, head = straddling(cpu)
        everywhere = [(mm.id, addr + i * PAGE_SIZE, False) for i in range(HPAGE_PMD_NR)]
        for flags in (0, PVMW_SYNC):
            assert hits(cpu, head, flags) == everywhere


@MODES
@pytest.mark.parametrize("first", ["missing", "another page's huge pmd"])
def test_k16_a_first_pmd_without_the_page_does_not_end_the_walk(order: int, plain: bool, first: str) -> None:
    with booted(order, plain) as cpu:
        mm, addr, head = straddling(cpu)
        second = [(mm.id, addr + i * PAGE_SIZE, False) for i in range(HPAGE_PMD_NR // 2, HPAGE_PMD_NR)]
        other = mapped(cpu, PMD_SIZE, at=BASE + 40)
        user_store(cpu, other, 1)
        pmd = mm_pmd(mm, addr)
        was = pmd.val.read()
        pmd.val.write(0 if first != "another page's huge pmd" else mm_pmd(mm, other).val.read())
        for flags in (0, PVMW_SYNC):
            assert hits(cpu, head, flags) == second
        pmd.val.write(was)


@MODES
def test_migration_entries_are_found_by_those_who_look_for_them_only(order: int, plain: bool) -> None:
    with booted(order, plain) as cpu:
        mm = current(cpu)
        addr = mapped(cpu, 2 * PMD_SIZE)
        user_store(cpu, addr, 1)
        user_store(cpu, addr + PMD_SIZE, 2)
        head, other = page_at(mm, addr), page_at(mm, addr + PMD_SIZE)
        for flags in (PVMW_MIGRATION, PVMW_MIGRATION | PVMW_SYNC):
            assert hits(cpu, head, flags) == []
        pmd = mm_pmd(mm, addr)
        huge = pmd.val.read()
        pmd.val.write(huge & ~(_PAGE_PRESENT | _PAGE_HUGE) | _PAGE_MIGRATION)
        assert hits(cpu, head) == [] and hits(cpu, head, PVMW_MIGRATION) == [(mm.id, addr, True)]
        assert hits(cpu, other, PVMW_MIGRATION) == []
        pmd.val.write(huge)
        split_huge_pmd_address(cpu, Vma(find_vma(mm, addr)), addr, 0, Page(0))
        pte = pte_of(mm, addr + 3 * PAGE_SIZE)
        small = pte.val.read()
        pte.val.write(small & ~_PAGE_PRESENT | _PAGE_MIGRATION)
        entry = (mm.id, addr + 3 * PAGE_SIZE, False)
        assert hits(cpu, head, PVMW_MIGRATION) == hits(cpu, head, PVMW_MIGRATION | PVMW_SYNC) == [entry]
        assert entry not in hits(cpu, head) and len(hits(cpu, head)) == HPAGE_PMD_NR - 1
        pte.val.write(small)


@MODES
def test_k3_with_sync_nothing_is_passed_without_its_ptl(order: int, plain: bool) -> None:
    with booted(order, plain) as cpu:
        mm = current(cpu)
        addr = mapped(cpu, PMD_SIZE)
        user_store(cpu, addr, 1)
        head = page_at(mm, addr)

        def taken(cls: int, flags: int) -> int:
            before = cpu.lock_stat[cls].acquisitions
            assert rmap_walk_lock(cpu, head)
            assert rmap_count(cpu, head, flags) == 0
            rmap_walk_unlock(cpu, head)
            return int(cpu.lock_stat[cls].acquisitions - before)

        pmd = mm_pmd(mm, addr)
        huge = pmd.val.read()
        pmd.val.write(0)  # zap_huge_pmd() on another CPU: the pmd is cleared, compound_mapcount not yet
        assert taken(PMD_PTL, 0) == 0 and taken(PMD_PTL, PVMW_SYNC) == 1
        pmd.val.write(huge)
        split_huge_pmd_address(cpu, Vma(find_vma(mm, addr)), addr, 0, Page(0))
        entries = [pte_of(mm, addr + i * PAGE_SIZE) for i in range(HPAGE_PMD_NR)]
        values = [pte.val.xchg(0) for pte in entries]  # zap_pte_range() likewise
        assert taken(PTE_PTL, 0) == 0 and taken(PTE_PTL, PVMW_SYNC) == 1
        for pte, value in zip(entries, values, strict=True):
            pte.val.write(value)


@MODES
def test_a_walk_can_be_left_at_a_hit(order: int, plain: bool) -> None:
    with booted(order, plain) as cpu:
        mm = current(cpu)
        addr = mapped(cpu, 2 * PMD_SIZE)
        user_store(cpu, addr, 1)
        user_store(cpu, addr + PMD_SIZE, 1)
        head = page_at(mm, addr)
        for by_pmd in (True, False):
            assert rmap_walk_lock(cpu, head)
            rmap_walk_begin(cpu, head, PVMW_SYNC)
            assert rmap_walk_next(cpu) and page_vma_mapped_walk(cpu)
            assert (not pvmw_pte(cpu)) == by_pmd and Entry(pvmw_pmd(cpu)) == mm_pmd(mm, addr)
            page_vma_mapped_walk_done(cpu)
            rmap_walk_unlock(cpu, head)
            assert cpu.depth == 0
            vma = Vma(find_vma(mm, addr))
            assert page_mapped_in_vma(cpu, head, vma) and cpu.depth == 0
            split_huge_pmd_address(cpu, vma, addr, 0, Page(0))
        vm_munmap(cpu, mm, addr, PMD_SIZE)
        assert not page_mapped_in_vma(cpu, page_at(mm, addr + PMD_SIZE), vmas[0])


@MODES
def test_file_pages_by_the_files_list(order: int, plain: bool) -> None:
    with booted(order, plain) as cpu:
        mm = current(cpu)
        file = file_alloc(cpu, 8, 1)
        addr = mapped(cpu, 4 * PAGE_SIZE, file=file)
        assert user_load(cpu, addr + PAGE_SIZE) == 0
        child = Mm(dup_mm(cpu, mm))
        page = Page(find_get_page(cpu, file, 1))
        assert hits(cpu, page) == [(mm.id, addr + PAGE_SIZE, False)]  # fork leaves file pages to be faulted in
        switch_to_mm(cpu, child.id)
        assert user_load(cpu, addr + PAGE_SIZE) == 0
        assert hits(cpu, page) == [(n, addr + PAGE_SIZE, False) for n in (mm.id, child.id)]
        user_store(cpu, addr + PAGE_SIZE, 3)  # copied: anon now, and found by the child's anon_vma
        assert hits(cpu, page) == [(mm.id, addr + PAGE_SIZE, False)]
        copy = page_at(child, addr + PAGE_SIZE)
        assert PageAnon(copy) and hits(cpu, copy) == [(child.id, addr + PAGE_SIZE, False)]
        vm_munmap(cpu, mm, addr, 4 * PAGE_SIZE)
        assert hits(cpu, page) == [] and not page_mapped(page)
        put_page(cpu, page)


@MODES
def test_the_audit_of_q6_every_present_anon_entry_is_found(order: int, plain: bool) -> None:
    with booted(order, plain) as cpu:
        mm = current(cpu)
        addr = mapped(cpu, 3 * PMD_SIZE)
        for i in range(3):
            user_store(cpu, addr + i * PMD_SIZE, i)
        child = Mm(dup_mm(cpu, mm))
        vm_munmap(cpu, mm, addr + PMD_SIZE + PAGE_SIZE, 2 * PAGE_SIZE)  # splits the vma and one pmd
        switch_to_mm(cpu, child.id)
        for i in range(3):
            user_store(cpu, addr + i * PMD_SIZE + PAGE_SIZE, 9)
        there = addr + 20 * PMD_SIZE
        assert do_mremap(cpu, child, addr + PMD_SIZE, PMD_SIZE, PMD_SIZE, there + PAGE_SIZE) == there + PAGE_SIZE
        for owner in (mm, child):
            seen: set[int] = set()
            for start in [addr + i * PAGE_SIZE for i in range(3 * HPAGE_PMD_NR)] + [
                    there + i * PAGE_SIZE for i in range(1, HPAGE_PMD_NR + 1)]:
                pmd = mm_pmd(owner, start)
                value = pmd.val.read() if pmd else 0
                if not value or not pmd_trans_huge(value) and not pte_of(owner, start).val.read() & _PAGE_PRESENT:
                    continue
                head = Page(compound_head(page_at(owner, start)))
                where = start & int(PMD_MASK) if pmd_trans_huge(value) else start
                found = hits(cpu, head) if head.addr not in seen else None
                if found is not None:
                    assert len(found) == total_mapcount(head)
                    assert (owner.id, where, bool(pmd_trans_huge(value))) in found
                    seen.add(head.addr)
