"""Memory failures in a mix. Each CPU may have a few broken frames at a time, then it gives one back: memory is not used up."""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.random import random_below
from concur_thp.arch.shared import SharedArray
from concur_thp.check.oracle import ORACLE_PAGES
from concur_thp.config import NR_CPUS
from concur_thp.mm.errno import EFAULT
from concur_thp.mm.memory_failure import memory_failure, unpoison_memory
from concur_thp.mm.mm_types import Page, Slot, mem_map
from concur_thp.mm.page_flags import page_to_pfn
from concur_thp.program.physical import page_at
from concur_thp.program.spaces import current_mm
from stress.mix.state import page_addr

BROKEN = 8
"""Most broken frames of one CPU."""
TRIES = 16

broken_frames = SharedArray("mix_broken", Slot, lambda config: NR_CPUS * BROKEN)
"""pfn + 1 of each, 0: none."""


@inline
def broken_row(cpu: Cpu, number: int) -> Slot:
    return broken_frames[cpu.id * BROKEN + number]


@kernel
def mix_memory_failure(cpu: Cpu):
    """Break the frame of a random address, or give back one that this CPU has broken before.

    Context: user mode.
    Return: 0, or what the call said.
    Emulator: one step of a mix. What the address had is lost: accesses fail until it is mapped anew.
    """
    row = broken_row(cpu, random_below(cpu, BROKEN))
    if row.value != 0:
        status = unpoison_memory(cpu, mem_map[row.value - 1])
        if status == 0:
            row.value = 0
        return status
    page = Page(0)
    for _ in range(TRIES):  # Most of a random program's addresses have nothing at a given moment.
        if not page:
            page = page_at(current_mm(cpu), page_addr(random_below(cpu, ORACLE_PAGES)))
    if not page:
        return -EFAULT
    status = memory_failure(cpu, page)
    if status == 0:
        row.value = page_to_pfn(page) + 1
    return status


@kernel
def mix_unpoison_all(cpu: Cpu):
    """Give every broken frame of every CPU back.

    Context: no CPU runs, no mm is left: nothing holds the pages any more.
    Return: how many could not be given back.
    Emulator: the end of a mix.
    """
    left = 0
    for number in range(NR_CPUS * BROKEN):
        pfn = broken_frames[number].value - 1
        if pfn >= 0 and unpoison_memory(cpu, mem_map[pfn]) != 0:
            left += 1
        elif pfn >= 0:
            broken_frames[number].value = 0
    return left
