"""kcompactd as a process of its own: it makes the free blocks that allocations wanted and did not wait for."""

import time

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.linker import kernel
from concur_thp.arch.system import system
from concur_thp.machine import Machine
from concur_thp.mm.compaction import kcompactd_do_work
from concur_thp.mm.swap import lru_add_drain

POLL_SECONDS = 0.005
"""How soon a sleeping kcompactd notices that it was woken, or should stop."""


@kernel
def kcompactd_wakeup(cpu: Cpu):
    """One look at whether there is work.

    Context: kernel thread, in no mm; ends parked.
    Return: 1 when there was.
    Linux: mm/compaction.c kcompactd
    Differs: one turn of its loop for each call.
    """
    cpu_resume(cpu)
    order = kcompactd_do_work(cpu)
    lru_add_drain(cpu)
    cpu.ops = cpu.ops + 1
    cpu_park(cpu)
    return order > 0


def kcompactd(machine: Machine, cpu: Cpu) -> None:
    """The body of the kcompactd process."""
    while not system.stop.load() and not system.panicked.load():
        if not kcompactd_wakeup(cpu):
            time.sleep(POLL_SECONDS)
