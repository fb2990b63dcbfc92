"""Forked CPU processes for tests: each runs one function as one CPU and ends."""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Sequence

from concur_thp.arch.bug import abort_when_parked, describe_bug
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.system import system
from concur_thp.machine import Machine

DEADLINE_SECONDS = 60.0
FAILED = 9
PR_SET_PDEATHSIG = 1
STEP = 0.002


def start(machine: Machine, number: int, body: Callable[[Cpu], object]) -> int:
    """Fork CPU `number`; returns its pid. A false-but-not-None result or an exception ends it with a status."""
    pid = os.fork()
    if pid == 0:
        abort_when_parked(False)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        status = FAILED
        try:
            status = 1 if body(machine.cpu(number)) is False else 0
        finally:
            os._exit(status)
    return pid


def wait_for(condition: Callable[[], object], what: str = "the condition") -> None:
    """Until `condition()` is true; a test fails when that takes too long."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true in {DEADLINE_SECONDS:.0f} s")
        time.sleep(STEP)


def finish(pids: Sequence[int]) -> list[int]:
    """Wait for all; returns their exit statuses. Whoever is late is killed (status -9)."""
    left, statuses = dict.fromkeys(pids), dict.fromkeys(pids, -signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while left and time.monotonic() < deadline:
        for pid in list(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del left[pid]
                statuses[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(STEP)
    end(list(left))
    return list(statuses.values())


def end(pids: Sequence[int]) -> None:
    """Kill, and wait."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)


def run_all(machine: Machine, *bodies: Callable[[Cpu], object]) -> None:
    """Run each body as a CPU of its own, 0, 1, ...; all must end well and no rule may be broken."""
    statuses = finish([start(machine, number, body) for number, body in enumerate(bodies)])
    assert not system.panicked.load(), describe_bug()
    assert statuses == [0] * len(bodies)


def run_until_bug(machine: Machine, body: Callable[[Cpu], object], number: int = 0) -> str:
    """Run the body as a CPU process that must break a rule; returns the report."""
    pid = start(machine, number, body)
    try:
        wait_for(lambda: system.bug_done.load() or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT),
                 "a broken rule")
    finally:
        end([pid])
    assert system.panicked.load() and system.bug_done.load(), "the process ended without breaking a rule"
    return describe_bug()
