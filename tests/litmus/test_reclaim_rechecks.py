"""Two looks that come late enough: at the dirty bit when reclaim frees a page, at the swap cache when a fault has its lock.

    CPU0 reclaim                              CPU1 has the page pinned for writing
    page unmapped, seen clean
                                              writes, marks the page dirty, drops the pin
    freezes the references
    dirty after all: keeps the page (3.30.5)

    CPU0 fault on a swap entry                CPU1 another thread
    finds page P in the swap cache
                                              DONTNEED: slot given up, P out of the cache
                                              a new page Q; reclaim gives it the same slot
    locks P: not in the cache, looks anew     (3.29: the pte is the same as before, and no help)
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.points import Point
from concur_thp.arch.system import system
from concur_thp.check.audit import audit
from concur_thp.config import HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.flags import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
)
from concur_thp.mm.fork import mm_alloc, mmget, mmput, switch_to_mm
from concur_thp.mm.mm_types import Page, frames, mem_map, mms
from concur_thp.mm.page_flags import PageSwapCache, PG_dirty, SetFlag
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.pgtable import _PAGE_RW, _PAGE_SWAP, entry_pfn, mm_pmd, pte_offset
from concur_thp.mm.put_page import put_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.syscall import sys_madvise, sys_mmap
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.program.pressure import swap_out_address
from concur_thp.rules.edit import Force
from concur_thp.rules.variant import broken
from tests.litmus.held import run_held, run_held_until_bug

DIRTY_BEFORE_ONLY = (Force("__remove_mapping", "if frozen and TestFlag(page, PG_dirty)", False),)
NO_SECOND_LOOK = (Force("do_swap_page", "if PageSwapCache(page) and page.private == entry", True),)
OLD, NEW = 5, 9


class Scene:
    """A program with one page of anonymous memory and one of a shared file mapping."""

    def __init__(self, machine: Machine):
        self.machine = machine
        self.anon, self.file = 64 * int(HPAGE_PMD_SIZE), 128 * int(HPAGE_PMD_SIZE)
        set_switch("enabled", "never")
        cpu = machine.cpu(0)
        cpu_resume(cpu)
        self.mm = mms.index(mm_alloc(cpu))
        switch_to_mm(cpu, self.mm)
        rw = PROT_READ | PROT_WRITE
        assert sys_mmap(cpu, self.anon, PAGE_SIZE, rw, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, 0, 0) == self.anon
        number = file_alloc(cpu, 4, 3)
        assert sys_mmap(cpu, self.file, PAGE_SIZE, rw, MAP_SHARED | MAP_FIXED, number, 0) == self.file
        lru_add_drain(cpu)
        switch_to_mm(cpu, 0)
        cpu_park(cpu)

    def as_thread(self, body: Callable[[Cpu], object]) -> Callable[[Cpu], object]:
        """The body, run as a thread of the program."""
        def run(cpu: Cpu) -> object:
            mmget(mms[self.mm])
            cpu_resume(cpu)
            switch_to_mm(cpu, self.mm)
            result = body(cpu)
            switch_to_mm(cpu, 0)
            lru_add_drain(cpu)
            mmput(cpu, mms[self.mm])
            cpu_park(cpu)
            return result

        return run

    def pte(self, addr: int) -> int:
        return int(pte_offset(mm_pmd(mms[self.mm], addr).val.load(), addr).val.load())

    def load(self, cpu: Cpu, addr: int) -> int:
        assert user_load(cpu, addr) == 0
        return int(cpu.scratch[0])

    def finish(self) -> None:
        cpu = self.machine.cpu(0)
        assert not audit(self.machine.config).violations
        cpu_resume(cpu)
        mmput(cpu, mms[self.mm])
        cpu_park(cpu)


@pytest.fixture(params=[9, 3])
def scene(request: Any) -> Iterator[Scene]:
    order = request.param
    with Machine(memory="64M" if order == 9 else "4M", swap="16M" if order == 9 else "1M", order=order, cpus=2) as machine:
        yield Scene(machine)


# -- the dirty bit ----------------------------------------------------------------------------------------------------


def write_through_a_pin_while_reclaim_frees(scene: Scene) -> int:
    """What the program reads in the end."""
    def touch(cpu: Cpu) -> None:
        scene.load(cpu, scene.file)
        lru_add_drain(cpu)

    scene.as_thread(touch)(scene.machine.cpu(0))
    pte = scene.pte(scene.file)
    page = Page(int(mem_map[entry_pfn(pte)]))
    assert pte & _PAGE_RW, "a pin for writing may be taken, and no fault makes the page dirty"
    get_page(scene.machine.cpu(1), page)

    def write_and_unpin(cpu: Cpu) -> None:
        cpu_resume(cpu)
        frames[entry_pfn(pte)].word[0].store(NEW)
        SetFlag(page, PG_dirty)
        put_page(cpu, page)
        cpu_park(cpu)

    reclaim = scene.as_thread(lambda cpu: swap_out_address(cpu, scene.file) >= 0)
    assert run_held(scene.machine, reclaim, Point.RECLAIM_CLEAN, write_and_unpin, lambda: False) == [0, 0]
    read: list[int] = []
    scene.as_thread(lambda cpu: read.append(scene.load(cpu, scene.file)))(scene.machine.cpu(0))
    return read[0]


def test_a_page_that_became_dirty_just_before_the_freeze_is_kept(scene: Scene) -> None:
    assert write_through_a_pin_while_reclaim_frees(scene) == NEW
    scene.finish()


def test_a_look_at_the_dirty_bit_before_the_freeze_loses_the_write(scene: Scene) -> None:
    with broken(DIRTY_BEFORE_ONLY, "dirty_before_freeze"):
        assert write_through_a_pin_while_reclaim_frees(scene) != NEW


# -- the swap cache ---------------------------------------------------------------------------------------------------


def swapped_out(scene: Scene) -> int:
    """The page written, swapped out, read back by another mapping of its slot's cache: its slot."""
    def body(cpu: Cpu) -> None:
        assert user_store(cpu, scene.anon, OLD) == 0
        assert swap_out_address(cpu, scene.anon) == 1
        assert scene.load(cpu, scene.anon) == OLD  # In the swap cache now, and mapped.
        lru_add_drain(cpu)

    scene.as_thread(body)(scene.machine.cpu(0))
    page = mem_map[entry_pfn(scene.pte(scene.anon))]
    assert PageSwapCache(page)
    get_page(scene.machine.cpu(0), page)  # Somebody looks at it, so that it stays in the cache when it is unmapped.
    scene.as_thread(lambda cpu: swap_out_address(cpu, scene.anon))(scene.machine.cpu(0))
    put_page(scene.machine.cpu(0), page)
    pte = scene.pte(scene.anon)
    assert pte & _PAGE_SWAP and PageSwapCache(page) and page.private == entry_pfn(pte)
    return int(entry_pfn(pte))


def give_the_slot_to_another_page(scene: Scene, slot: int) -> Callable[[Cpu], object]:
    def body(cpu: Cpu) -> bool:
        for _ in range(10_000):
            assert sys_madvise(cpu, scene.anon, PAGE_SIZE, MADV_DONTNEED) == 0
            assert user_store(cpu, scene.anon, NEW) == 0
            assert swap_out_address(cpu, scene.anon) == 1
            if entry_pfn(scene.pte(scene.anon)) == slot:
                return True
        return False

    return scene.as_thread(body)


def test_the_page_found_is_not_the_slots_any_more(scene: Scene) -> None:
    slot = swapped_out(scene)
    fault = scene.as_thread(lambda cpu: scene.load(cpu, scene.anon) == NEW)
    other = give_the_slot_to_another_page(scene, slot)
    assert run_held(scene.machine, fault, Point.LOCK_PAGE, other, lambda: False) == [0, 0]
    scene.finish()


def test_without_a_second_look_the_old_page_comes_back(scene: Scene) -> None:
    slot = swapped_out(scene)
    fault = scene.as_thread(lambda cpu: scene.load(cpu, scene.anon) == NEW)
    other = give_the_slot_to_another_page(scene, slot)
    with broken(NO_SECOND_LOOK, "swapin_without_second_look"):
        assert "swap" in run_held_until_bug(scene.machine, fault, Point.LOCK_PAGE, other)
    assert system.panicked.load()
