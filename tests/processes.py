"""Forked CPU processes for tests: each runs one function as one CPU and ends."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from concur_thp.arch.bug import abort_when_parked, describe_bug
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.parent import end_with_parent
from concur_thp.arch.system import system
from concur_thp.machine import Machine

DEADLINE_SECONDS = 240.0
"""Nobody waits so long but for what never comes: less than pytest's own deadline, which says nothing of what was missing."""
PANICKED_SECONDS = 5.0
"""Behind a panic: who waits for a CPU that has stopped never ends."""
FAILED = 9
STEP = 0.002


def start(machine: Machine, number: int, body: Callable[[Cpu], object]) -> int:
    """Fork CPU `number`; returns its pid. A false-but-not-None result or an exception ends it with a status."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        abort_when_parked(False)
        end_with_parent(parent)
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
        if system.panicked.load():
            deadline = min(deadline, time.monotonic() + PANICKED_SECONDS)
        for pid in list(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del left[pid]
                statuses[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(STEP)
    end(list(left))
    return list(statuses.values())


def hears_ctrl_c() -> None:
    """In a child, before its program: a shell starts jobs in the background with SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def is_running(pid: int) -> bool:
    """A process that has ended is none, though nobody may have waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


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
