"""Points in action: what a CPU does when it passes one.

Free runs listen to nothing. Chaos delays at random points, many times shortly and sometimes for long, by the CPU's own
seeded numbers. The scheduler of controlled runs will listen here too.
"""

from concur_thp.arch.bug import panic_check
from concur_thp.arch.builtins import cpu_relax
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.futex import sched_yield
from concur_thp.arch.irq import ipi_poll
from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.arch.random import random_below, random_u63
from concur_thp.arch.system import system

LISTEN_CHAOS = 1
LISTEN_CHECK = 2
LISTEN_HOLD = 4
LISTEN_ACCOUNT = 8
"""Bits of `system.listen`."""
FREE_BUDGET = 1 << 62
"""Points a CPU passes in a free run before anybody is asked."""
HOLD_NONE, HOLD_WANTED, HOLD_THERE, HOLD_OVER = 0, 1, 2, 3
"""Litmus tests hold one CPU at one point: wanted, standing there, let go."""


@inline
def point(cpu: Cpu, where: int):
    """Say where this CPU is; whoever listens may hold it here."""
    cpu.point = where
    if system.listen.read() & (LISTEN_CHAOS | LISTEN_HOLD):
        point_slow(cpu, where)


@kernel
@quiet
def point_slow(cpu: Cpu, where: int):
    """Hold the CPU for a while, if chaos says so.

    Context: anywhere a point may be, also with irqs off: the delay is bounded.
    Emulator: the slow half of point().
    """
    if system.listen.read() & LISTEN_HOLD and where == system.hold_point and cpu.id == system.hold_cpu:
        if system.hold_state.cas(HOLD_WANTED, HOLD_THERE) == HOLD_WANTED:
            while system.hold_state.load() == HOLD_THERE:
                ipi_poll(cpu)
                panic_check(cpu)
                sched_yield()
    if system.listen.read() & LISTEN_CHAOS:
        dice = random_u63(cpu)
        if dice & ((1 << system.chaos_long) - 1) == 0:
            for _ in range(1 + random_below(cpu, 4)):
                sched_yield()
        elif (dice >> 24) & ((1 << system.chaos_short) - 1) == 0:
            for _ in range(random_below(cpu, 400)):
                cpu_relax()


@kernel
@quiet
def sched_point(cpu: Cpu):
    """The checked build's budget of points is used up: chaos delays here, a controlled run may go on with another CPU.

    Context: anywhere a statement touches shared memory; with irqs off the delay is bounded.
    Emulator: the slow half of every point of the checked build (arch/checked.py).
    """
    cpu.budget = FREE_BUDGET
    if system.listen.read() & LISTEN_CHAOS:
        point_slow(cpu, cpu.point)
        cpu.budget = 1 + random_below(cpu, 2 << system.chaos_short)


@inline
def check_point(cpu: Cpu, where: int, subject: int):
    """A place where an instant invariant can be checked: about to release a lock, to free a page, back in user mode."""
    if system.listen.read() & LISTEN_CHECK:
        check_hook(cpu, where, subject)


@inline
def check_point_with(cpu: Cpu, where: int, subject: int, other: int):
    """A place whose check needs two things."""
    if system.listen.read() & LISTEN_CHECK:
        cpu.check_with = other
        check_hook(cpu, where, subject)


@kernel
@quiet
def check_hook(cpu: Cpu, where: int, subject: int):
    """Nothing, until `linker.redirect()` puts a check here (check/instant.py).

    Context: as the place's.
    Emulator: the hook of LISTEN_CHECK, so that arch need not know the checks.
    """
