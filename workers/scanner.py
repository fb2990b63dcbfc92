"""A scanner of physical memory as a process of its own: it goes from frame to frame, as page idle tracking does, and
knows of none whose it is or whether it is free. (Linux: mm/page_idle.c)

The one lawful way to such a frame is get_page_unless_zero() on the head, and a second look at who the head is (R34). What
that promises is checked here, frame by frame, against splits, frees and allocations on the other CPUs: a tail never gives
a reference (R22), and whatever gave one is whole until it is put back (R31, R35, R36).
"""

import time

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_park, cpu_resume, ipi_poll
from concur_thp.arch.linker import kernel
from concur_thp.arch.shared import SharedOne
from concur_thp.arch.struct import I64, Struct, field
from concur_thp.arch.system import system
from concur_thp.check.instant_pages import check_page
from concur_thp.machine import Machine
from concur_thp.mm.mm_types import PAGE_TYPE_BUDDY, PAGE_TYPE_NONE, PAGE_TYPE_PCP, TAIL_MAPPING, Page, mem_map
from concur_thp.mm.page_flags import (
    PageHead,
    PageTail,
    PG_lru,
    compound_head,
    page_to_pfn,
)
from concur_thp.mm.page_lock import trylock_page, unlock_page
from concur_thp.mm.page_ref import get_page_unless_zero
from concur_thp.mm.page_referenced import page_referenced
from concur_thp.mm.put_page import put_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.vmstat import Stat, count_vm_event

BATCH = 256
"""Frames of one turn."""
POLL_SECONDS = 0.001
"""Between two turns: it should meet the others, not starve them."""


class Scanner(Struct, size=64):
    """Where the scanner is."""

    next = field(I64, "cpu", "the next frame")


scanner_state = SharedOne("scanner", Scanner)


@kernel
def scan_frame(cpu: Cpu, page: Page):
    """Take a reference of whatever a frame belongs to, look at it, put it back.

    Context: no lock, no reference: the frame may be anything, and become anything until we have the reference. May sleep.
    Return: 1 when there was a page to look at.
    Linux: mm/page_idle.c page_idle_get_page, page_idle_clear_pte_refs
    """
    head = compound_head(page)
    if not get_page_unless_zero(head):
        count_vm_event(cpu, Stat.pfn_scan_missed)
        return 0
    if compound_head(page) != head:
        # Split or freed, and perhaps part of something else, since the first look. What we have is head's all the same.
        count_vm_event(cpu, Stat.pfn_scan_missed)
        put_page(cpu, head)
        return 0
    count_vm_event(cpu, Stat.pfn_scan_got)
    # With our reference it can neither be split nor freed, so it stays what it is.
    check_scanned(cpu, page, head)
    if (head.flags.read() >> PG_lru) & 1 and trylock_page(cpu, head):
        page_referenced(cpu, head, 1)
        unlock_page(cpu, head)
        check_scanned(cpu, page, head)
    put_page(cpu, head)
    return 1


@kernel
def check_scanned(cpu: Cpu, page: Page, head: Page):
    """A frame of a page that we have a reference of.

    Context: the reference.
    Emulator: what R22, R31, R35 and R36 promise to a scanner.
    """
    pfn = page_to_pfn(page)
    bug_on(cpu, compound_head(page) != head or PageTail(head),
           "R36: another head, though we have a reference (values: pfn, head)",
           pfn, page_to_pfn(head))
    bug_on(cpu, head.page_type in (PAGE_TYPE_BUDDY, PAGE_TYPE_PCP), "R34: a page with a reference is free (values: pfn, type)",
           page_to_pfn(head), head.page_type)
    if page != head:
        bug_on(cpu, get_page_unless_zero(page), "R22: a tail gave a reference (value: pfn)", pfn, page._refcount.read())
    check_page(cpu, page)
    if not PageHead(head) and head.page_type == PAGE_TYPE_NONE:
        # It may have been a tail a moment ago: then everything of its own was there before its references (I13).
        bug_on(cpu, head.mapping == TAIL_MAPPING, "I13: a small page with a tail's mapping (value: pfn)", pfn,
               head.flags.read())


@kernel
def scanner_turn(cpu: Cpu):
    """Look at the next frames.

    Context: kernel thread, in no mm; begins and ends parked.
    Return: how many of them could be looked at.
    Emulator: one turn of the scanner's loop.
    """
    cpu_resume(cpu)
    got = 0
    for _ in range(BATCH):
        pfn = scanner_state.next
        scanner_state.next = pfn + 1 if pfn + 1 < system.nr_frames else 0
        got += scan_frame(cpu, mem_map[pfn])
        ipi_poll(cpu)
    lru_add_drain(cpu)
    cpu.ops = cpu.ops + 1
    cpu_park(cpu)
    return got


def scanner(machine: Machine, cpu: Cpu) -> None:
    """The body of the scanner process."""
    while not system.stop.load() and not system.panicked.load():
        scanner_turn(cpu)
        time.sleep(POLL_SECONDS)
