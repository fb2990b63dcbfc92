"""Private lists of pages against a model."""

import random
from collections import deque

import pytest

from concur_thp.machine import Machine
from concur_thp.mm.mm_types import NIL, Page, mem_map
from concur_thp.mm.page_list import (
    LIST_PAGES,
    LIST_RET,
    list_add,
    list_add_tail,
    list_del,
    list_empty,
    list_first,
    list_init,
    list_next,
    list_pop,
    page_list,
)


@pytest.fixture
def machine():
    with Machine(memory="4M", order=3, cpus=2) as machine:
        yield machine


def members(pages) -> list[int]:
    """From the front, and the same from the back."""
    forward: list[int] = []
    page = list_first(pages) if not list_empty(pages) else Page(0)
    while page:
        forward.append(mem_map.index(page))
        page = list_next(page)
    backward, pfn = [], pages.tail - 1
    while pfn != NIL:
        backward.append(pfn)
        pfn = mem_map[pfn].lru_prev
    assert backward == forward[::-1]
    return forward


@pytest.mark.parametrize("seed", range(3))
def test_against_a_deque(machine, seed):
    dice, model, pages = random.Random(seed), deque(), page_list(machine.cpu(0), LIST_PAGES)
    free = list(range(64, 96))
    for _ in range(400):
        choice = dice.randrange(4)
        if choice < 2 and free:
            pfn = free.pop(dice.randrange(len(free)))
            (list_add if choice else list_add_tail)(pages, mem_map[pfn])
            model.appendleft(pfn) if choice else model.append(pfn)
        elif choice == 2 and model:
            pfn = dice.choice(model)
            list_del(pages, mem_map[pfn])
            model.remove(pfn)
            free.append(pfn)
            assert (mem_map[pfn].lru_next, mem_map[pfn].lru_prev) == (NIL, NIL)
        else:
            page = list_pop(pages)
            assert (mem_map.index(page) if page else None) == (model.popleft() if model else None)
            free += [mem_map.index(page)] if page else []
        assert members(pages) == list(model) and bool(list_empty(pages)) == (not model)
    list_init(pages)
    assert list_empty(pages) and not list_pop(pages)


def test_each_cpu_and_each_purpose_has_its_own(machine):
    mine, other, kept = (page_list(machine.cpu(0), LIST_PAGES), page_list(machine.cpu(1), LIST_PAGES),
                         page_list(machine.cpu(0), LIST_RET))
    list_add(mine, mem_map[70])
    assert members(mine) == [70] and list_empty(other) and list_empty(kept)
    list_pop(mine)
