"""LRU lists and pagevecs against a model; the last put."""

import random
from contextlib import nullcontext

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import interpreted
from concur_thp.errors import KernelBug
from concur_thp.machine import Machine
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE, GFP_TRANSHUGE, VM_LOCKED
from concur_thp.mm.lru import (
    LRU_ACTIVE_ANON,
    LRU_ACTIVE_FILE,
    LRU_INACTIVE_ANON,
    LRU_INACTIVE_FILE,
    LRU_UNEVICTABLE,
)
from concur_thp.mm.mm_types import (
    MIGRATE_MOVABLE,
    NIL,
    NR_LRU_LISTS,
    PAGE_MAPPING_ANON,
    PAGE_TYPE_NONE,
    PAGEVEC_SIZE,
    Page,
    mem_map,
    pgdat,
    vmas,
    zones,
)
from concur_thp.mm.page_alloc import alloc_page, alloc_pages
from concur_thp.mm.page_flags import PG_lru, PG_mlocked, PG_referenced, PG_swapbacked, page_to_pfn, tail_page
from concur_thp.mm.page_ref import get_page, page_ref_count
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.swap import (
    isolate_lru_page,
    lru_add_drain,
    lru_cache_add,
    lru_cache_add_active_or_unevictable,
    mark_page_accessed,
    mark_page_lazyfree,
    put_page,
    putback_lru_page,
)
from concur_thp.mm.vmstat import vmstat

ANON = 1 << PG_swapbacked


def lists(order: int) -> list[list[int]]:
    """The pfns of every list, newest first, walked and checked both ways."""
    found: list[list[int]] = []
    for number in range(NR_LRU_LISTS):
        lru, size = pgdat.lru[number], 0
        pfns: list[int] = []
        pfn = lru.head
        while pfn != NIL:
            page = mem_map[pfn]
            assert page.flags.read() >> PG_lru & 1
            assert page.lru_prev == (pfns[-1] if pfns else NIL)
            pfns.append(pfn)
            size += 1 if not page.flags.read() >> 9 & 1 else 1 << order
            pfn = page.lru_next
        assert lru.tail == (pfns[-1] if pfns else NIL)
        assert lru.size == size
        found.append(pfns)
    return found


def new_page(cpu: Cpu, huge: int = 0, flags: int = ANON, order: int = 3) -> Page:
    if huge:
        page = Page(alloc_pages(cpu, order, MIGRATE_MOVABLE, GFP_TRANSHUGE))
    else:
        page = Page(alloc_page(cpu, GFP_HIGHUSER_MOVABLE))
    page.flags.or_(flags)
    if flags & ANON:
        page.mapping = 1 << 2 | PAGE_MAPPING_ANON
    return page


def free_pages(cpu: Cpu) -> int:
    drain_pcp(cpu)
    return sum(zones[n].nr_free_pages for n in range(pgdat.nr_zones))


def test_a_small_page_waits_and_a_huge_one_does_not() -> None:
    with Machine(memory="16M", order=3, cpus=2) as machine:
        cpu = machine.cpu()
        small = [new_page(cpu) for _ in range(PAGEVEC_SIZE - 1)]
        for page in small:
            lru_cache_add(cpu, page)
            assert page_ref_count(page) == 2
        assert lists(3) == [[]] * NR_LRU_LISTS
        huge = new_page(cpu, huge=1)
        lru_cache_add(cpu, huge)  # takes the waiting ones along
        pfns = [page_to_pfn(page) for page in (*small, huge)]
        assert lists(3)[LRU_INACTIVE_ANON] == pfns[::-1]
        assert {page_ref_count(page) for page in (*small, huge)} == {1}
        for number in range(PAGEVEC_SIZE):
            assert lists(3)[LRU_INACTIVE_ANON] == pfns[::-1]
            lru_cache_add(cpu, new_page(cpu))
            assert number < PAGEVEC_SIZE
        assert len(lists(3)[LRU_INACTIVE_ANON]) == 2 * PAGEVEC_SIZE


@pytest.mark.parametrize(
    ("flags", "vm_flags", "number"),
    [(ANON, 0, LRU_ACTIVE_ANON), (0, 0, LRU_ACTIVE_FILE), (ANON, VM_LOCKED, LRU_UNEVICTABLE)],
)
@pytest.mark.parametrize("huge", [0, 1])
def test_the_list_that_flags_and_vma_call_for(flags: int, vm_flags: int, number: int, huge: int) -> None:
    with Machine(memory="16M", order=3, cpus=1) as machine:
        cpu = machine.cpu()
        page = new_page(cpu, huge, flags)
        vmas[1].vm_flags = vm_flags
        lru_cache_add_active_or_unevictable(cpu, page, vmas[1])
        lru_add_drain(cpu)
        assert lists(3)[number] == [page_to_pfn(page)]
        assert vmstat()["NR_MLOCK"] == (8 if huge else 1) * (vm_flags == VM_LOCKED)
        page.flags.and_(~(1 << PG_mlocked))
        assert isolate_lru_page(cpu, page) == 1
        assert isolate_lru_page(cpu, page) == 0
        assert page_ref_count(page) == 2
        putback_lru_page(cpu, page)
        lru_add_drain(cpu)
        evictable = number if number != LRU_UNEVICTABLE else LRU_INACTIVE_ANON
        assert lists(3)[evictable] == [page_to_pfn(page)]
        assert page_ref_count(page) == 1


def test_accessed_twice_is_active() -> None:
    with Machine(memory="16M", order=3, cpus=1) as machine:
        cpu = machine.cpu()
        page, waiting = new_page(cpu), new_page(cpu)
        lru_cache_add(cpu, page)
        lru_add_drain(cpu)
        lru_cache_add(cpu, waiting)
        for each in (page, waiting):
            mark_page_accessed(cpu, each)
            assert each.flags.read() >> PG_referenced & 1
            mark_page_accessed(cpu, each)
            assert not each.flags.read() >> PG_referenced & 1
        lru_add_drain(cpu)
        assert sorted(lists(3)[LRU_ACTIVE_ANON]) == sorted(map(page_to_pfn, (page, waiting)))
        assert vmstat()["pgactivate"] == 1, "the one that moved; the other came to the list as an active one"


def test_lazyfree_goes_to_the_inactive_file_list() -> None:
    with Machine(memory="16M", order=3, cpus=1) as machine:
        cpu = machine.cpu()
        pages = [new_page(cpu, huge) for huge in (0, 1)]
        for page in pages:
            mark_page_lazyfree(cpu, page)  # not on the LRU: nothing happens
            lru_cache_add(cpu, page)
        lru_add_drain(cpu)
        for page in pages:
            mark_page_lazyfree(cpu, page)
        lru_add_drain(cpu)
        assert sorted(lists(3)[LRU_INACTIVE_FILE]) == sorted(map(page_to_pfn, pages))
        assert vmstat()["pglazyfree"] == 9
        assert {page_ref_count(page) for page in pages} == {1}


@pytest.mark.parametrize("plain", [False, True], ids=["native", "interpreted"])
def test_random_life_leaks_nothing(plain: bool) -> None:
    """Everything at once; what is freed is whole again, what is on a list is there once."""
    with Machine(memory="16M", order=3, cpus=1) as machine, interpreted() if plain else nullcontext():
        cpu = machine.cpu()
        before = free_pages(cpu)
        dice = random.Random(2)
        pages: list[Page] = []
        for _ in range(400 if plain else 4000):
            what = dice.randrange(6)
            if what <= 1 or not pages:
                page = new_page(cpu, huge=dice.random() < 0.3, flags=dice.choice([ANON, 0]))
                lru_cache_add(cpu, page)
                pages.append(page)
            elif what == 2:
                put_page(cpu, pages.pop(dice.randrange(len(pages))))
            elif what == 3:
                page = dice.choice(pages)
                if isolate_lru_page(cpu, page):
                    putback_lru_page(cpu, page)
            elif what == 4:
                mark_page_accessed(cpu, dice.choice(pages))
            else:
                mark_page_lazyfree(cpu, dice.choice(pages))
        lru_add_drain(cpu)
        on_lists = [pfn for pfns in lists(3) for pfn in pfns]
        assert sorted(on_lists) == sorted(map(page_to_pfn, pages))
        for page in pages:
            assert page_ref_count(page) == 1
            put_page(cpu, page)
        assert lists(3) == [[]] * NR_LRU_LISTS
        assert free_pages(cpu) == before


@pytest.mark.parametrize("order", [9, 3])
def test_references_of_a_thp_are_its_heads(order: int) -> None:
    with Machine(memory="64M", order=order, cpus=1) as machine:
        cpu = machine.cpu()
        before = free_pages(cpu)
        head = new_page(cpu, huge=1, order=order)
        lru_cache_add(cpu, head)
        get_page(cpu, tail_page(head, 3))
        assert page_ref_count(head) == 2
        put_page(cpu, head)
        assert free_pages(cpu) == before - (1 << order)
        put_page(cpu, tail_page(head, 3))
        assert free_pages(cpu) == before
        assert lists(order) == [[]] * NR_LRU_LISTS


def test_a_zero_or_reserved_page_is_never_freed() -> None:
    with Machine(memory="16M", order=3, cpus=1) as machine, interpreted():
        cpu = machine.cpu()
        page = new_page(cpu)
        pgdat.huge_zero_page.write(page_to_pfn(page))
        with pytest.raises(KernelBug, match="zero page"):
            put_page(cpu, page)
    with Machine(memory="16M", order=3, cpus=1) as machine, interpreted():
        assert mem_map[0].page_type != PAGE_TYPE_NONE
        with pytest.raises(KernelBug, match="not anybody's to free"):
            put_page(machine.cpu(), mem_map[0])
