"""kswapd as a process of its own: reclaim when memory is short, sleep until woken, until the machine is asked to stop."""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.system import system
from concur_thp.machine import Machine
from concur_thp.mm.kswapd import kswapd_run


def kswapd(machine: Machine, cpu: Cpu) -> None:
    """The body of the kswapd process."""
    while not system.stop.load() and not system.panicked.load():
        kswapd_run(cpu)
