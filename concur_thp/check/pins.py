"""Pins that programs hold: a table for each CPU, so that the audit can count them, and what a pin guarantees (3.38).

A pin is a reference from get_user_pages(). While it is held the frame is not freed and not reused, and its huge page is
neither split, migrated nor collapsed. Nothing is said about the mapping, which may change or vanish (K12).
"""

import numpy as np

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I64, Struct, field
from concur_thp.check.views import view
from concur_thp.config import NR_CPUS
from concur_thp.mm.mm_types import PAGE_TYPE_NONE, PAGE_TYPE_RESERVED, Page, mem_map
from concur_thp.mm.page_account import PIN, account
from concur_thp.mm.page_flags import PageHead, PageTail, compound_head, page_to_pfn
from concur_thp.mm.put_page import put_page

PINS = 8
"""Most pins of one CPU."""


class Pin(Struct, size=64):
    """One pinned frame, and what it was when it was pinned."""

    pinned = field(I64, "cpu", "its pfn + 1; 0: the row is free")
    head = field(I64, "cpu", "pfn of its head, or itself")
    huge = field(I64, "cpu", "1 when it was part of a huge page")
    page_type = field(I64, "cpu", "PAGE_TYPE_*")


pins = SharedArray("pins", Pin, lambda c: NR_CPUS * PINS)


@inline
def pin_row(cpu: Cpu, number: int) -> Pin:
    return pins[cpu.id * PINS + number]


@inline
def pin_page(pin: Pin) -> Page:
    """The page that was pinned, head or tail."""
    return mem_map[pin.pinned - 1]


@kernel
def free_pin_row(cpu: Cpu):
    """A row of this CPU for one more pin.

    Context: user mode.
    Return: its number, or -1.
    Emulator: a program's own bookkeeping.
    """
    for number in range(PINS):
        if pin_row(cpu, number).pinned == 0:
            return number
    return -1


@kernel
def declare_pin(cpu: Cpu, number: int, pfn: int):
    """A reference of this frame's page is now this CPU's pin `number`.

    Context: user mode; the row is free, the reference just taken.
    Emulator: a program's own bookkeeping.
    """
    pin = pin_row(cpu, number)
    page = mem_map[pfn]
    head = compound_head(page)
    pin.head = page_to_pfn(head)
    pin.huge = PageHead(head)
    pin.page_type = head.page_type
    pin.pinned = pfn + 1
    account(cpu, head, PIN)
    bug_on(cpu, head.page_type not in (PAGE_TYPE_NONE, PAGE_TYPE_RESERVED),
           "a pin of a page that is no user's (values: pfn, page type)", pfn, head.page_type)
    check_pin(cpu, number)


@kernel
def check_pin(cpu: Cpu, number: int):
    """Is the pinned frame what it was? Else a rule of R7, R8, R21 or R22 is broken.

    Context: any; the row is this CPU's and in use.
    Emulator: what a pin guarantees (3.38).
    """
    pin = pin_row(cpu, number)
    page = pin_page(pin)
    pfn = pin.pinned - 1
    head = compound_head(page)
    bug_on(cpu, page_to_pfn(head) != pin.head, "a pinned page has another head (values: pfn, head)", pfn,
           page_to_pfn(head))
    bug_on(cpu, PageHead(head) != pin.huge, "a pinned page was split or became huge (values: pfn, huge)", pfn, pin.huge)
    bug_on(cpu, head._refcount.load() < pins_of(cpu, pin.head), "a pinned page lost a reference (values: pfn, count)",
           pfn, head._refcount.load())
    bug_on(cpu, PageTail(page) and page._refcount.load() != 0, "a tail has references (values: pfn, count)", pfn,
           page._refcount.load())
    bug_on(cpu, head.page_type != pin.page_type, "a pinned page was freed (values: pfn, page type)", pfn,
           head.page_type)


@kernel
def pins_of(cpu: Cpu, head: int):
    """How many pins this CPU has on one page.

    Context: any.
    Return: their number.
    Emulator: a program's own bookkeeping.
    """
    count = 0
    for number in range(PINS):
        count += pin_row(cpu, number).pinned != 0 and pin_row(cpu, number).head == head
    return count


@kernel
def unpin(cpu: Cpu, number: int):
    """Give a pin's reference back, by the very page that was pinned (R8).

    Context: as put_page(); the row is this CPU's and in use.
    Emulator: a program's own bookkeeping.
    """
    check_pin(cpu, number)
    page = pin_page(pin_row(cpu, number))
    pin_row(cpu, number).pinned = 0
    account(cpu, compound_head(page), -PIN)
    put_page(cpu, page)


def declared_pins() -> dict[int, int]:
    """References that all CPUs' tables say they hold: pfn -> number."""
    pinned = view(pins, NR_CPUS * PINS)["pinned"]
    pfn, count = np.unique(pinned[pinned > 0] - 1, return_counts=True)
    return dict(zip(pfn.tolist(), count.tolist(), strict=True))
