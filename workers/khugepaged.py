"""khugepaged as a process of its own: scan, sleep, until the machine is asked to stop."""

import time

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.linker import kernel
from concur_thp.arch.system import system
from concur_thp.machine import Machine
from concur_thp.mm.khugepaged import khugepaged_do_scan
from concur_thp.mm.mm_slots import khugepaged_scan
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.thp_sysfs import THP_NEVER, thp

POLL_SECONDS = 0.005
"""How soon a sleeping khugepaged notices what should wake it."""


@kernel
def khugepaged_wakeup(cpu: Cpu):
    """One wake-up's budget of scanning.

    Context: kernel thread, in no mm; ends parked.
    Return: 1 when it should now sleep as after a failed allocation, else 0.
    Linux: mm/khugepaged.c khugepaged_do_scan, called from khugepaged()
    Differs: a budget of pages_to_scan for each call; the loop around it is the process's.
    """
    cpu_resume(cpu)
    khugepaged_do_scan(cpu, thp.pages_to_scan)
    failed = cpu.scratch[0]
    lru_add_drain(cpu)
    cpu.ops = cpu.ops + 1
    cpu_park(cpu)
    return failed


def stopping() -> bool:
    return bool(system.stop.load() or system.panicked.load())


def has_work() -> bool:
    """Is there an mm to scan? (Linux: khugepaged_has_work)"""
    return bool(khugepaged_scan.head != 0 and thp.enabled != THP_NEVER)


def sleep(switch: str) -> None:
    """Sleep for as long as a switch says, or until it is written. (Linux: khugepaged_wait_work, khugepaged_alloc_sleep)"""
    milliseconds = getattr(thp, switch)
    end = time.monotonic() + milliseconds / 1000
    while (left := end - time.monotonic()) > 0 and getattr(thp, switch) == milliseconds and not stopping():
        time.sleep(min(POLL_SECONDS, left))


def khugepaged(machine: Machine, cpu: Cpu) -> None:
    """The body of the khugepaged process."""
    while not stopping():
        if khugepaged_wakeup(cpu):
            sleep("alloc_sleep_ms")
        elif has_work():
            sleep("scan_sleep_ms")
        else:
            while not has_work() and not stopping():
                time.sleep(POLL_SECONDS)
