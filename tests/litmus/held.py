"""Hold one CPU at a named point while others go on: how a litmus test makes an interleaving certain."""

from collections.abc import Callable

from concur_thp.arch.bug import describe_bug
from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.listen import HOLD_NONE, HOLD_OVER, HOLD_THERE, HOLD_WANTED, LISTEN_HOLD
from concur_thp.arch.points import Point
from concur_thp.arch.system import system
from concur_thp.machine import Machine
from tests.processes import end, finish, start, wait_for


def run_held(machine: Machine, held: Callable[[Cpu], object], where: Point, other: Callable[[Cpu], object],
             other_waits: Callable[[], object]) -> list[int]:
    """CPU 0 runs `held` up to the point; then CPU 1 runs `other` until it ends or `other_waits()`; then both finish.

    Returns the exit statuses. The point must be reached.
    """
    statuses = finish(_let_go(machine, held, where, other, other_waits))
    _no_hold()
    return statuses


def run_held_until_bug(machine: Machine, held: Callable[[Cpu], object], where: Point, other: Callable[[Cpu], object],
                       other_waits: Callable[[], object] = lambda: False) -> str:
    """The same, CPU 1 up to its end or `other_waits()`; then a rule must be broken. Returns the report."""
    # CPU 1 may be the one that breaks it.
    pids = _let_go(machine, held, where, other, lambda: system.bug_done.load() or other_waits())
    try:
        wait_for(lambda: system.bug_done.load() or all(_ended(pid) for pid in pids), "a broken rule")
    finally:
        end(pids)
        _no_hold()
    assert system.panicked.load() and system.bug_done.load(), "both CPUs ended without breaking a rule"
    return describe_bug()


def wants(cls: int) -> Callable[[], bool]:
    """Does CPU 1 stand at a lock of this class, which CPU 0 holds?"""
    return lambda: bool(cpus[1].acquiring & 0xFF == cls)


def _let_go(machine: Machine, held: Callable[[Cpu], object], where: Point, other: Callable[[Cpu], object],
            other_waits: Callable[[], object]) -> list[int]:
    """Both CPUs on their way after the hold; their pids."""
    system.hold_cpu, system.hold_point = 0, int(where)
    system.hold_state.store(HOLD_WANTED)
    system.listen.or_(LISTEN_HOLD)
    first = start(machine, 0, held)
    wait_for(lambda: system.hold_state.load() == HOLD_THERE, f"CPU 0 at {where.name}")
    second = start(machine, 1, other)
    wait_for(lambda: other_waits() or _ended(second), "CPU 1 at its end or waiting")
    system.hold_state.store(HOLD_OVER)
    return [first, second]


def _no_hold() -> None:
    system.hold_state.store(HOLD_NONE)
    system.listen.and_(~LISTEN_HOLD)


def _ended(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "Z"
