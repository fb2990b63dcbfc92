"""Pins that programs take, and what they do through them. A pin is a row of check/pins.py, so that the audit counts it."""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.check.pins import PINS, check_pin, declare_pin, pin_page, pin_row, unpin
from concur_thp.config import NR_CPUS
from concur_thp.mm.errno import EBUSY, ESRCH
from concur_thp.mm.flags import FOLL_SPLIT, FOLL_WRITE
from concur_thp.mm.gup import get_user_pages_unlocked
from concur_thp.mm.gup_fast import __get_user_pages_fast, get_user_pages_fast
from concur_thp.mm.mm_types import Page, Slot, frames
from concur_thp.mm.page_flags import PG_dirty, SetFlag
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.put_page import slot_at
from concur_thp.program.spaces import current_mm, in_mm
from concur_thp.program.table import PIN_FAST_ONLY, PIN_SLOW, PIN_SPLIT, PIN_WRITE

step_pages = SharedArray("step_pages", Slot, lambda c: NR_CPUS * PINS)
"""Where a CPU's get_user_pages() leaves pfns."""


@inline
def pin_pages(cpu: Cpu, addr: int, nr: int, write: int, how: int, pages: Slot):
    """Pin by one of the ways there are, PIN_*. Number of pages, or an error."""
    flags = FOLL_WRITE if write else 0
    if how == PIN_FAST_ONLY:
        return __get_user_pages_fast(cpu, addr, nr, write, pages)
    if how == PIN_SLOW:
        return get_user_pages_unlocked(cpu, current_mm(cpu), addr, nr, flags, pages)
    if how == PIN_SPLIT:
        return get_user_pages_unlocked(cpu, current_mm(cpu), addr, nr, flags | FOLL_SPLIT, pages)
    return get_user_pages_fast(cpu, addr, nr, write, pages)


@inline
def set_page_dirty_lock(cpu: Cpu, page: Page):
    """A page was written through a pin, past any entry. (Linux: mm/page-writeback.c)"""
    lock_page(cpu, page)
    SetFlag(page, PG_dirty)
    unlock_page(cpu, page)


@inline
def has_pin(cpu: Cpu, number: int):
    return number < PINS and pin_row(cpu, number).pinned != 0


@kernel
def step_pin(cpu: Cpu, number: int, addr: int, pinning: int):
    """Pin one page.

    Context: user mode.
    Return: 1; 0: gup-fast alone found nothing; -EBUSY: the pin is in use; -ESRCH in no mm; an error.
    Emulator: a step.
    """
    return step_pin_run(cpu, number, addr, 1, pinning)


@kernel
def step_pin_run(cpu: Cpu, number: int, addr: int, nr: int, pinning: int):
    """Pin a run of pages at once; they become the pins from `number` on.

    Context: user mode.
    Return: how many; -EBUSY: one of the pins is in use, or there are not so many; -ESRCH in no mm; an error.
    Emulator: a step.
    """
    if not in_mm(cpu):
        return -ESRCH
    if nr < 1 or number + nr > PINS:
        return -EBUSY
    for i in range(nr):
        if pin_row(cpu, number + i).pinned != 0:
            return -EBUSY
    pages = step_pages[cpu.id * PINS]
    got = pin_pages(cpu, addr, nr, pinning & PIN_WRITE != 0, pinning & ~PIN_WRITE, pages)
    for i in range(got):
        declare_pin(cpu, number + i, slot_at(pages, i).value)
    return got


@kernel
def step_pin_load(cpu: Cpu, number: int):
    """Load the first word of a pinned frame, as a device would.

    Context: user mode.
    Return: 0 with the word in cpu.scratch[0]; -ESRCH: no such pin.
    Emulator: a step.
    """
    if not has_pin(cpu, number):
        return -ESRCH
    check_pin(cpu, number)
    cpu.scratch[0] = frames[pin_row(cpu, number).pinned - 1].word[0].load()
    return 0


@kernel
def step_pin_store(cpu: Cpu, number: int, value: int):
    """Store into the first word of a pinned frame, as a device would.

    Context: user mode. Sleeps.
    Return: 0, -ESRCH: no such pin.
    Emulator: a step.
    """
    if not has_pin(cpu, number):
        return -ESRCH
    check_pin(cpu, number)
    frames[pin_row(cpu, number).pinned - 1].word[0].store(value)
    set_page_dirty_lock(cpu, pin_page(pin_row(cpu, number)))
    return 0


@kernel
def step_unpin(cpu: Cpu, number: int):
    """Give a pin back.

    Context: user mode.
    Return: 0, -ESRCH: no such pin.
    Emulator: a step.
    """
    if not has_pin(cpu, number):
        return -ESRCH
    unpin(cpu, number)
    return 0


@kernel
def unpin_all(cpu: Cpu):
    """Give back whatever this CPU has pinned.

    Context: user mode.
    Emulator: a driver's release function.
    """
    for number in range(PINS):
        step_unpin(cpu, number)


__all__ = ["pin_pages", "set_page_dirty_lock", "step_pin", "step_pin_load", "step_pin_run", "step_pin_store", "step_unpin",
           "unpin_all"]
