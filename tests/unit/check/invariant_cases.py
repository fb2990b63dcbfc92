"""Cases for instant invariants: what each must catch, what it must let pass, and how both are run.

    @breaks("I7")                  breaks what I7 guards and passes a place of it: bug() must say "I7: .."
    @allows("I7")                  looks like a breach and is none: it passes a place of I7, and nothing may speak

A file with cases ends in `test_it_speaks, test_it_keeps_silent = cases_of(__name__)`. All run as plain Python on the small
machine of conftest.py, where bug() raises; the silent ones with every check at every place.
"""

from collections.abc import Callable
from typing import Any

import pytest

from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.linker import interpreted
from concur_thp.arch.points import Point
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.system import system
from concur_thp.check import instant
from concur_thp.check.instant import check_at
from concur_thp.check.invariants import INVARIANTS
from concur_thp.errors import KernelBug
from concur_thp.mm.collapse import collapse_huge_page
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE
from concur_thp.mm.fork import exit_mm
from concur_thp.mm.mm_types import Page, Slot, Vma, mem_map, vmas
from concur_thp.mm.page_alloc import alloc_page
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.put_page import put_page
from concur_thp.mm.split_huge_page import split_huge_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.syscall import sys_mmap
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.vma_tree import find_vma
from concur_thp.sync.rwsem import down_read
from concur_thp.sync.spinlock import spin_lock
from tests.unit.check.tables import HUGE, PAGE

NEW = 0x200000
"""A free range for a case's own mapping."""
ANON, DONTNEED, READ, RW = 0x32, 4, 1, 3
Case = Callable[[Any], object]
pinned = SharedArray("test_instant_pins", Slot, lambda config: 8)
"""Room for get_user_pages() to say what it has pinned."""
CATCHES: dict[str, list[Case]] = {}
ALLOWS: dict[str, list[Case]] = {}


def breaks(invariant: str) -> Callable[[Case], Case]:
    """The decorated function breaks this invariant and passes a place where it is asked."""
    return lambda case: CATCHES.setdefault(invariant, []).append(case) or case


def allows(invariant: str) -> Callable[[Case], Case]:
    """The decorated function does what looks like a breach of this invariant and is none."""
    return lambda case: ALLOWS.setdefault(invariant, []).append(case) or case


def cases_of(module: str) -> tuple[Any, Any]:
    """The two tests that run the cases of one file."""
    def cases(kind: dict[str, list[Case]]) -> Any:
        found = [(row, case) for row, cases in kind.items() for case in cases if case.__module__ == module]
        return pytest.mark.parametrize("invariant, case", found, ids=lambda it: it if isinstance(it, str) else it.__name__)

    @cases(CATCHES)
    def test_it_speaks(scene: Any, invariant: str, case: Case) -> None:
        with interpreted(), pytest.raises(KernelBug, match=f"^{invariant}: "):
            case(scene)
        assert system.panicked.read()

    @cases(ALLOWS)
    def test_it_keeps_silent(watched: Any, invariant: str, case: Case) -> None:
        case(watched)
        places = next(set(row.places) for row in INVARIANTS if row.id == invariant)
        assert not places or watched.passed & places, f"the case passed {watched.passed}, not {places}"
        assert not watched.laws()

    return test_it_speaks, test_it_keeps_silent


def vma_of(scene: Any, addr: int) -> Vma:
    return Vma(int(vmas[vmas.index(find_vma(scene.mm, addr))]))


def user(scene: Any) -> None:
    """Back in user mode."""
    instant.check_at(scene.cpu, Point.USER, 0)
    scene.passed.add(Point.USER)


def fork(scene: Any) -> Any:
    child = scene.fork()
    cpu_park(scene.other)
    return child


def child_exits(scene: Any) -> None:
    cpu_resume(scene.other)
    exit_mm(scene.other)
    cpu_park(scene.other)


def split(scene: Any, addr: int) -> int:
    """split_huge_page() of what is mapped at an address."""
    lru_add_drain(scene.cpu)
    page = scene.page(addr)
    get_page(scene.cpu, page)
    lock_page(scene.cpu, page)
    result = int(split_huge_page(scene.cpu, page))
    unlock_page(scene.cpu, page)
    put_page(scene.cpu, page)
    return result


def small_range(scene: Any) -> None:
    """A huge range of small pages at NEW."""
    set_switch("enabled", "madvise")
    assert sys_mmap(scene.cpu, NEW, HUGE, RW, ANON, 0, 0) == NEW
    scene.store(*range(NEW, NEW + HUGE, PAGE))
    set_switch("enabled", "always")
    lru_add_drain(scene.cpu)


def collapse(scene: Any) -> int:
    down_read(scene.cpu, scene.mm.mmap_sem)
    return int(collapse_huge_page(scene.cpu, scene.mm, NEW, 8))


def release(scene: Any, table: int) -> None:
    """What the holder of a table's lock sees when it gives it back."""
    spin_lock(scene.cpu, mem_map[table].ptl)
    check_at(scene.cpu, Point.SPIN_UNLOCK, mem_map[table].ptl)


def fresh_page(scene: Any) -> Page:
    return Page(int(alloc_page(scene.cpu, GFP_HIGHUSER_MOVABLE)))
