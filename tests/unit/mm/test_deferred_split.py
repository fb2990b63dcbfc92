"""The deferred split queue against a list, and that a freed THP leaves it."""

import random
from contextlib import nullcontext

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.errors import KernelBug
from concur_thp.machine import Machine
from concur_thp.mm.deferred_split import (
    deferred_split_huge_page,
    link_pfn,
    split_queued,
    undefer_split_huge_page,
)
from concur_thp.mm.flags import GFP_TRANSHUGE
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, NIL, Page, mem_map, pgdat
from concur_thp.mm.page_alloc import alloc_pages
from concur_thp.mm.page_flags import page_to_pfn, tail_page
from concur_thp.mm.put_page import put_page
from concur_thp.mm.vmstat import vmstat


def queue() -> list[int]:
    """The queue's pfns, walked forwards and checked backwards."""
    found: list[int] = []
    pfn = pgdat.split_queue_head
    while pfn != NIL:
        node = tail_page(mem_map[pfn], 2)
        assert link_pfn(node.deferred_prev) == (found[-1] if found else NIL)
        found.append(pfn)
        pfn = link_pfn(node.deferred_next)
    assert pgdat.split_queue_tail == (found[-1] if found else NIL)
    assert pgdat.split_queue_len == len(found)
    return found


@pytest.mark.parametrize("plain", [False, True], ids=["native", "interpreted"])
def test_queue_against_a_list(plain: bool) -> None:
    with Machine(memory="16M", order=3, cpus=1) as machine, interpreted() if plain else nullcontext():
        cpu = machine.cpu()
        heads = [Page(alloc_pages(cpu, 3, MIGRATE_MOVABLE, GFP_TRANSHUGE)) for _ in range(6)]
        model: list[int] = []
        dice = random.Random(1)
        queued = 0
        for _ in range(200):
            head = dice.choice(heads)
            pfn = page_to_pfn(head)
            if dice.random() < 0.6:
                deferred_split_huge_page(cpu, head)
                if pfn not in model:
                    model.append(pfn)
                    queued += 1
            else:
                undefer_split_huge_page(cpu, head)
                if pfn in model:
                    model.remove(pfn)
            assert queue() == model
            assert bool(split_queued(head)) == (pfn in model)
        assert vmstat()["thp_deferred_split_page"] == queued


@pytest.mark.parametrize("order", [9, 3])
def test_a_freed_thp_leaves_the_queue(order: int) -> None:
    with Machine(memory="64M", order=order, cpus=1) as machine:
        cpu = machine.cpu()
        heads = [Page(alloc_pages(cpu, order, MIGRATE_MOVABLE, GFP_TRANSHUGE)) for _ in range(3)]
        for head in heads:
            deferred_split_huge_page(cpu, head)
        put_page(cpu, tail_page(heads[1], 5 % (1 << order)))  # a tail's put is its head's
        assert queue() == [page_to_pfn(heads[0]), page_to_pfn(heads[2])]
        put_page(cpu, heads[0])
        put_page(cpu, heads[2])
        assert queue() == []


def test_a_small_page_is_refused() -> None:
    with Machine(memory="16M", order=3, cpus=1) as machine, interpreted():
        page = alloc_pages(machine.cpu(), 0, MIGRATE_MOVABLE, GFP_TRANSHUGE)
        with pytest.raises(KernelBug, match="no THP"):
            deferred_split_huge_page(machine.cpu(), page)
