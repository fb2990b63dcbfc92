"""Points in action: what a CPU does when it passes one.

Free runs listen to nothing. Chaos delays at random points, many times shortly and sometimes for long, by the CPU's own
seeded numbers. The scheduler of controlled runs will listen here too.
"""

from concur_thp.arch.builtins import cpu_relax
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.futex import sched_yield
from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.arch.random import random_below, random_u63
from concur_thp.arch.system import system

LISTEN_CHAOS = 1


@inline
def point(cpu: Cpu, where: int):
    """Say where this CPU is; whoever listens may hold it here."""
    cpu.point = where
    if system.listen.read() != 0:
        point_slow(cpu, where)


@kernel
@quiet
def point_slow(cpu: Cpu, where: int):
    """Hold the CPU for a while, if chaos says so.

    Context: anywhere a point may be, also with irqs off: the delay is bounded.
    Emulator: the slow half of point().
    """
    if system.listen.read() & LISTEN_CHAOS:
        dice = random_u63(cpu)
        if dice & ((1 << system.chaos_long) - 1) == 0:
            for _ in range(1 + random_below(cpu, 4)):
                sched_yield()
        elif (dice >> 24) & ((1 << system.chaos_short) - 1) == 0:
            for _ in range(random_below(cpu, 400)):
                cpu_relax()
