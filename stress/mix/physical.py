"""Splits in a mix: of a page found by its frame, as a scanner of physical memory finds it, and of what is queued."""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.arch.random import random_below
from concur_thp.check.oracle import ORACLE_PAGES
from concur_thp.mm.deferred_split_drain import deferred_split_scan
from concur_thp.mm.errno import EAGAIN
from concur_thp.program.physical import page_at, split_frame
from concur_thp.program.spaces import current_mm
from stress.mix.state import page_addr


@kernel
def mix_split_page(cpu: Cpu):
    """Split the huge page at a random address, if there is one.

    Context: user mode.
    Return: 0, -EBUSY, -EAGAIN.
    Emulator: one step of a mix.
    """
    page = page_at(current_mm(cpu), page_addr(random_below(cpu, ORACLE_PAGES)))
    return split_frame(cpu, page) if page else -EAGAIN


@kernel
def mix_drain(cpu: Cpu):
    """Let the shrinker work on a few pages.

    Context: user mode.
    Return: 0.
    Emulator: one step of a mix.
    """
    deferred_split_scan(cpu, 1 + random_below(cpu, 4))
    return 0
