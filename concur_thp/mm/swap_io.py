"""The swap device: reading and writing pages of the swap cache. (Linux: mm/page_io.c, mm/filemap.c)

An emulated device: contents stand in an array of frames, one for each slot, and every transfer takes a moment, during which
its CPU is parked like one that sleeps. A page being written has PG_writeback, no lock, and cannot leave the swap cache; one
being read is locked and not uptodate.
"""

from typing import Any

from concur_thp.arch.bug import bug_on
from concur_thp.arch.builtins import copy_bytes, cpu_relax, smp_wmb
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.futex import sched_yield, spins
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import I64, Struct, field
from concur_thp.mm.highmem import FRAME_BYTES
from concur_thp.mm.mm_types import Frame, Page, frames
from concur_thp.mm.page_flags import (
    PageSwapCache,
    PageTransHuge,
    PG_locked,
    PG_uptodate,
    PG_writeback,
    SetFlag,
    TestFlag,
    hpage_nr_pages,
    page_to_pfn,
)
from concur_thp.mm.page_lock import unlock_page
from concur_thp.mm.swap_state import try_to_free_swap
from concur_thp.mm.vmstat import Stat, count_vm_event, mod_stat

LATENCY_SPINS = 100
"""How long the device takes: this many pauses, some microseconds, and one chance for other processes to run."""

swap_frames = SharedArray("swap_frames", Frame, lambda c: max(c.swap_slots, 1))


class SwapDevice(Struct, size=64):
    """The device itself."""

    latency = field(I64, "const", "pauses that a transfer takes")


swap_device = SharedOne("swap_device", SwapDevice)


def init_swap_device(config: Any) -> None:
    """Boot: an empty device."""
    swap_device.latency = LATENCY_SPINS


@inline
def device_wait(cpu: Cpu):
    """The transfer takes its time. Parked: a flusher need not wait for us, as for no CPU that is idle until its IO ends."""
    cpu_park(cpu)
    for _ in range(spins(swap_device.latency)):
        cpu_relax()
    sched_yield()
    cpu_resume(cpu)


@inline
def set_page_writeback(cpu: Cpu, page: Page):
    """The page is about to be written; locked."""
    old = page.flags.or_(1 << PG_writeback)
    bug_on(cpu, old & (1 << PG_writeback) != 0, "set_page_writeback: being written already (value: pfn)", page_to_pfn(page),
           old)


@inline
def end_page_writeback(page: Page):
    """The page is on the device. Nobody waits for that: who finds it being written leaves it alone."""
    page.flags.and_(~(1 << PG_writeback))


@kernel
def swap_writepage(cpu: Cpu, page: Page):
    """Write a page to its slots, unless no pte needs them any more.

    Context: page locked, in the swap cache, no entry through which a CPU could write to it unflushed. Returns with it
    unlocked. May sleep.
    Linux: mm/page_io.c swap_writepage
    Differs: synchronous; Linux's device calls end_swap_bio_write() some time later, the page unlocked meanwhile as here.
    """
    if try_to_free_swap(cpu, page):
        unlock_page(cpu, page)
        return 0
    nr = hpage_nr_pages(page)
    entry = page.private
    bug_on(cpu, not PageSwapCache(page) or entry == 0, "swap_writepage: not in the swap cache (value: pfn)",
           page_to_pfn(page), entry)
    if PageTransHuge(page):
        count_vm_event(cpu, Stat.thp_swpout)
    mod_stat(cpu, Stat.pswpout, nr)
    set_page_writeback(cpu, page)
    unlock_page(cpu, page)
    # From here faults may map the page again and write to it; then it is dirty again and written another time.
    point(cpu, Point.SWAP_WRITEBACK)
    device_wait(cpu)
    copy_bytes(swap_frames[entry], frames[page_to_pfn(page)], nr * FRAME_BYTES)
    end_page_writeback(page)
    return 0


@kernel
def swap_readpage(cpu: Cpu, page: Page):
    """Fill a page from its slot, and unlock it.

    Context: small page, locked, in the swap cache, not uptodate. May sleep.
    Linux: mm/page_io.c swap_readpage
    Differs: synchronous.
    """
    bug_on(cpu, TestFlag(page, PG_locked) == 0 or TestFlag(page, PG_uptodate) != 0 or not PageSwapCache(page),
           "swap_readpage: not locked, or uptodate, or not cached (value: pfn)", page_to_pfn(page), page.private)
    point(cpu, Point.SWAP_READ)
    device_wait(cpu)
    copy_bytes(frames[page_to_pfn(page)], swap_frames[page.private], FRAME_BYTES)
    count_vm_event(cpu, Stat.pswpin)
    smp_wmb()  # The contents before PG_uptodate.
    SetFlag(page, PG_uptodate)
    unlock_page(cpu, page)
