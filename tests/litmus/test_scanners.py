"""Who comes to a page by its frame or by a list, against who changes the page meanwhile."""

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.points import Point
from concur_thp.check.audit import audit
from concur_thp.config import PAGE_SIZE
from concur_thp.mm.do_mlock import do_mlock, do_munlock
from concur_thp.mm.errno import EBUSY
from concur_thp.mm.lru import LRU_ACTIVE, LRU_INACTIVE_ANON
from concur_thp.mm.migrate import NEW_PAGE
from concur_thp.mm.move_pages import migrate_pfn
from concur_thp.mm.page_flags import PG_mlocked, PG_unevictable, TestFlag, page_to_pfn
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.split_huge_page import split_huge_page
from concur_thp.mm.swap import put_page
from concur_thp.mm.vmscan import shrink_active_list
from tests.litmus.held import run_held
from tests.litmus.place import Waiting, place

SHAPES = pytest.mark.parametrize(("order", "memory"), [(9, "64M"), (3, "4M")])


@SHAPES
def test_a_frame_is_emptied_or_left_alone_but_no_other(order: int, memory: str) -> None:
    """R34, 3.9: a reference of the head is one of the frame's page only if the head is still its head.

        CPU0 migrate_pfn(a tail's frame)         CPU1 split_huge_page
        head of the frame
                                                 the tail is a page of its own
        reference of the old head: moves that one, not the frame's
    """
    with place(order, memory, huge=True) as p:
        before = [p.pfn(i) for i in range(p.n)]

        def offline(cpu: Cpu) -> bool:
            with p.on(cpu):
                return int(migrate_pfn(cpu, p.page(3), NEW_PAGE)) == -EBUSY

        def split(cpu: Cpu) -> bool:
            with p.on(cpu):
                page = p.page(3)
                get_page(cpu, page)
                lock_page(cpu, page)
                done = split_huge_page(cpu, page) == 0
                unlock_page(cpu, page)
                put_page(cpu, page)
                return done

        assert run_held(p.machine, offline, Point.MIGRATE_PFN_HEAD, split, lambda: False) == [0, 0]
        assert [p.pfn(i) for i in range(p.n)] == before


@SHAPES
def test_mlock_of_a_page_that_reclaim_puts_back(order: int, memory: str) -> None:
    """3.24: a page isolated when mlock came by goes to the unevictable list when it is put back.

        CPU0 move_pages_to_lru                   CPU1 mlock
        not mlocked
                                                 PG_mlocked; not on the LRU, so whoever isolated it will see
        PG_lru, on an evictable list
    """
    with place(order, memory, huge=False) as p:

        def age(cpu: Cpu) -> None:
            with p.on(cpu):
                shrink_active_list(cpu, 1, LRU_INACTIVE_ANON + LRU_ACTIVE)

        def mlock(cpu: Cpu) -> bool:
            with p.on(cpu):
                return int(do_mlock(cpu, p.mm, p.at(0), PAGE_SIZE)) == 0

        assert run_held(p.machine, age, Point.LRU_PUTBACK, mlock, Waiting()) == [0, 0]
        page = p.page(0)
        assert TestFlag(page, PG_mlocked) and TestFlag(page, PG_unevictable), page_to_pfn(page)
        with p.on(p.cpu):
            assert audit(p.machine.config).violations == []
            assert do_munlock(p.cpu, p.mm, p.at(0), PAGE_SIZE) == 0
