"""khugepaged as a process of its own: scan, sleep, until the machine is asked to stop."""

import time

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.linker import kernel
from concur_thp.arch.system import system
from concur_thp.machine import Machine
from concur_thp.mm.khugepaged import khugepaged_do_scan
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.thp_sysfs import thp

POLL_SECONDS = 0.005
"""How soon a sleeping khugepaged notices that it should stop."""


@kernel
def khugepaged_wakeup(cpu: Cpu):
    """One wake-up's budget of scanning.

    Context: kernel thread, in no mm; ends parked.
    Return: 1 when it should now sleep as after a failed allocation, else 0.
    Linux: mm/khugepaged.c khugepaged_do_scan, called from khugepaged()
    Differs: a budget of pages_to_scan for each call; the loop around it is the process's.
    """
    cpu_resume(cpu)
    failed = khugepaged_do_scan(cpu, thp.pages_to_scan)
    lru_add_drain(cpu)
    cpu.ops = cpu.ops + 1
    cpu_park(cpu)
    return failed


def khugepaged(machine: Machine, cpu: Cpu) -> None:
    """The body of the khugepaged process."""
    while not system.stop.load() and not system.panicked.load():
        khugepaged_wakeup(cpu)
        end = time.monotonic() + thp.scan_sleep_ms / 1000
        while time.monotonic() < end and not system.stop.load() and not system.panicked.load():
            time.sleep(min(POLL_SECONDS, max(end - time.monotonic(), 0)))
