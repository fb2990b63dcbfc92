"""The page lock on one CPU."""

from contextlib import nullcontext

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.errors import KernelBug
from concur_thp.machine import Machine
from concur_thp.mm.flags import GFP_KERNEL, GFP_TRANSHUGE
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, Page, mem_map
from concur_thp.mm.page_alloc import alloc_page, alloc_pages
from concur_thp.mm.page_lock import PageLocked, assert_page_locked, lock_page, trylock_page, unlock_page

MODES = pytest.mark.parametrize("mode", [nullcontext, interpreted], ids=["native", "interpreted"])


@MODES
@pytest.mark.parametrize("order", [9, 3])
def test_a_tail_stands_for_its_head(order, mode):
    with Machine(memory="64M", order=order) as m, mode():
        cpu = m.cpu(0)
        head = Page(alloc_pages(cpu, order, MIGRATE_MOVABLE, GFP_TRANSHUGE))
        tail = mem_map[mem_map.index(head) + 3]
        lock_page(cpu, tail)
        assert PageLocked(head) and PageLocked(tail) and head.lock_owner == cpu.id + 1
        assert tail.flags.load() == 0 and cpu.page_locks == 1
        assert trylock_page(cpu, head) == 0
        assert_page_locked(cpu, tail)
        unlock_page(cpu, head)
        assert not PageLocked(tail) and head.lock_owner == 0 and cpu.page_locks == 0 and cpu.held_mask == 0


@MODES
def test_more_page_locks_by_trylock(mode):
    with Machine(memory="64M") as m, mode():
        cpu = m.cpu(0)
        pages = [Page(alloc_page(cpu, GFP_KERNEL)) for _ in range(100)]
        assert all(trylock_page(cpu, page) for page in pages) and cpu.page_locks == 100
        for page in pages:
            unlock_page(cpu, page)
        assert cpu.page_locks == 0


def test_only_the_owner_unlocks():
    with Machine(memory="1M", order=3) as m, interpreted():
        page = Page(alloc_page(m.cpu(0), GFP_KERNEL))
        lock_page(m.cpu(0), page)
        with pytest.raises(KernelBug, match="not locked by this CPU"):
            unlock_page(m.cpu(1), page)
