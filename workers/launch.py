"""Start CPU processes, watch them, end them. Whatever happens, no process and no segment is left.

The launcher is the only one who may wait without being watched. It looks at three signs: a process that ended though
nobody asked it to; the machine's `panicked` word; a CPU whose operations and lock operations have both stopped
counting. Each ends the run with a report that says where the CPUs stood and what they held.
"""

import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait as wait_any
from typing import Any

from loguru import logger
from multiprocess import get_context

from concur_thp.arch.bug import abort_when_parked
from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.parent import end_with_parent
from concur_thp.arch.system import system
from concur_thp.check.broken_rule import explain_bug
from concur_thp.check.dump import report_text
from concur_thp.machine import Machine

TICK_SECONDS = 0.05
HUNG_SECONDS = 20.0
"""A CPU that counted no operation and no lock operation for so long, while others could run, is hung."""
CRASHES = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL")
"""Signals that a process sends itself: native kernel code went astray, which the emulated kernel must not."""
MOST_OF_A_LOOK = 1.0
"""Seconds between two looks that count at most: a run that was stopped as a whole (Ctrl-Z, a debugger) has not hung."""
GRACE_SECONDS = HUNG_SECONDS
"""How long CPUs may take to finish their operation once asked to stop."""


@dataclass(frozen=True)
class Role:
    """One CPU process: what it is called and what it runs. The body returns when `system.stop` is set, or earlier."""

    name: str
    cpu: int
    body: Callable[[Machine, Cpu], Any]
    essential: bool = True
    """The run ends when all essential roles have; daemons such as khugepaged are then stopped."""


@dataclass
class Outcome:
    """How a run ended. `kind`: done, bug, crashed, killed, hung, broken (our own fault) or interrupted."""

    kind: str = "done"
    cpu: int = -1
    what: str = ""
    report: str = ""
    results: dict[str, Any] = field(default_factory=dict)


class Crew:
    """The CPU processes of one run. Use as a context manager: leaving it ends them all."""

    def __init__(self, machine: Machine, roles: Sequence[Role]):
        self.machine, self.roles = machine, list(roles)
        self._context = get_context("fork")
        self._processes: dict[int, tuple[Role, Any, Any]] = {}
        self._moved: dict[int, tuple[tuple[int, int, int], float]] = {}
        self.outcome = Outcome()
        self._watched, self._looked = 0.0, time.monotonic()
        self._interrupted = False
        self._handler: Any = None

    def __enter__(self) -> "Crew":
        # A flag, no exception: an exception that is raised in the middle of fork() is swallowed.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._handler = signal.signal(signal.SIGINT, self._interrupt)
        for role in self.roles:
            receiver, sender = self._context.Pipe(duplex=False)
            process = self._context.Process(target=_child, args=(self.machine, role, sender, os.getpid()),
                                            name=role.name, daemon=True)
            process.start()
            sender.close()
            self._processes[process.sentinel] = (role, process, receiver)
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)

    def _interrupt(self, *signal_and_frame: object) -> None:
        self._interrupted = True

    def watch(self, seconds: float | None, tick: Callable[[], None] | None = None) -> Outcome:
        """Run until the essential roles end, `seconds` have passed, or something goes wrong."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while self.outcome.kind == "done" and self._essential_left():
            if self._interrupted:
                self.outcome = Outcome("interrupted", what="interrupted from the keyboard", results=self.outcome.results)
            elif deadline is not None and time.monotonic() >= deadline:
                break
            else:
                self._look(tick)
        self._finish()
        return self.outcome

    def _essential_left(self) -> bool:
        return any(role.essential for role, _, _ in self._processes.values())

    def _look(self, tick: Callable[[], None] | None) -> None:
        sentinels = [*self._processes, *(r for _, _, r in self._processes.values() if not r.closed)]
        ready = wait_any(sentinels, timeout=TICK_SECONDS)
        for receiver in (r for r in ready if not isinstance(r, int)):  # Pipes first: _ended() closes its process's.
            self._receive(receiver)
        for sentinel in (r for r in ready if isinstance(r, int)):
            self._ended(sentinel)
        if system.panicked.load() and self.outcome.kind == "done":
            self._bug()
        self._check_movement()
        if tick:
            tick()

    def _receive(self, receiver: Any) -> None:
        """Take what a CPU process sent; results may be larger than a pipe, so this happens while it lives."""
        role = next(role for role, _, r in self._processes.values() if r is receiver)
        try:
            kind, value = receiver.recv()
        except (EOFError, OSError):
            receiver.close()
            return
        if kind == "result":
            self.outcome.results[role.name] = value
        elif self.outcome.kind == "done":
            self.outcome = Outcome("broken", role.cpu, f"{role.name}: {value}", results=self.outcome.results)

    def _ended(self, sentinel: int) -> None:
        role, process, receiver = self._processes[sentinel]
        process.join()
        while not receiver.closed and receiver.poll():
            self._receive(receiver)
        receiver.close()
        del self._processes[sentinel]
        code = process.exitcode
        if code == 0 or self.outcome.kind != "done":
            return
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            what = f"cpu {role.cpu} ({role.name}, pid {process.pid}) was ended by {name}"
            kind = "crashed" if name in CRASHES else "killed"
            self.outcome = Outcome(kind, role.cpu, what, self._report(what), self.outcome.results)
        else:
            what = f"cpu {role.cpu} ({role.name}) ended with status {code}"
            self.outcome = Outcome("broken", role.cpu, what, self._report(what), self.outcome.results)
        system.panicked.store(1)  # Nobody waits for what the dead CPU holds.

    def _bug(self) -> None:
        deadline = time.monotonic() + 1.0
        while not system.bug_done.load() and time.monotonic() < deadline:
            time.sleep(0.001)  # The reporter is between setting `panicked` and completing its report.
        what = explain_bug()
        self.outcome = Outcome("bug", system.bug_cpu, what, self._report(what), self.outcome.results)

    def _seconds_watched(self) -> float:
        """How long this process has been looking, without what it slept through."""
        now = time.monotonic()
        self._watched += min(now - self._looked, MOST_OF_A_LOOK)
        self._looked = now
        return self._watched

    def _check_movement(self) -> None:
        now = self._seconds_watched()
        for role, _, _ in self._processes.values():
            cpu = cpus[role.cpu]
            sign = (cpu.ops, cpu.beat, cpu.ipis)
            last, since = self._moved.get(role.cpu, ((-1, -1, -1), now))
            if sign != last:
                self._moved[role.cpu] = (sign, now)
            elif role.essential and now - since > HUNG_SECONDS and self.outcome.kind == "done":
                what = f"cpu {role.cpu} ({role.name}) has not moved for {HUNG_SECONDS:.0f} s"
                self.outcome = Outcome("hung", role.cpu, what, self._report(what), self.outcome.results)
                system.panicked.store(1)

    def _report(self, what: str) -> str:
        return report_text(self.machine.config, what=what)

    def _finish(self) -> None:
        """Ask everybody to stop, give them time, end who does not."""
        system.stop.store(1)
        deadline = self._seconds_watched() + (GRACE_SECONDS if self.outcome.kind == "done" else 0.0)
        while self._processes and self._watched < deadline and self.outcome.kind == "done":
            self._look(None)
        if self._processes and self.outcome.kind == "done":
            late = [role for role, _, _ in self._processes.values()]
            what = f"cpu {late[0].cpu} ({late[0].name}) did not stop within {GRACE_SECONDS:.0f} s"
            self.outcome = Outcome("hung", late[0].cpu, what, self._report(what), self.outcome.results)
        self.kill()

    def kill(self) -> None:
        """End whoever is left, at once."""
        for _, process, _ in self._processes.values():
            process.kill()
        for _, process, receiver in self._processes.values():
            process.join()
            receiver.close()
        self._processes.clear()


def _child(machine: Machine, role: Role, sender: Any, parent: int) -> None:
    """The life of a CPU process."""
    abort_when_parked(False)
    end_with_parent(parent)
    status = 0
    try:
        sender.send(("result", role.body(machine, machine.cpu(role.cpu))))
    except BaseException:
        logger.debug("{} failed", role.name)
        sender.send(("error", traceback.format_exc()))
        status = 70
    sender.close()
    os._exit(status)
