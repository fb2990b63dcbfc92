"""Cells side by side, one on each core: start them, add up what they count, end them at the first failure.

A cell that dies or stands still is itself a finding: the run it was at is known, and is looked at again in a fork.
"""

import mmap
import os
import signal
import struct
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import wait as wait_any
from typing import Any

from loguru import logger
from multiprocess import get_context

from concur_thp.arch import native
from concur_thp.arch.linker import Kernel
from concur_thp.config import Param
from concur_thp.errors import EmulatorError
from concur_thp.machine import Machine
from concur_thp.rules.variant import Variant
from concur_thp.sched.batch import PROGRESS_BYTES
from stress.exploring.autopsy import Repeat, in_a_fork
from stress.exploring.cell import Cell
from stress.exploring.job import Failure, Job, Tally
from stress.exploring.patience import Patience
from stress.exploring.settle import settle

TICK_SECONDS = 0.1
HUNG_SECONDS = 6.0
"""A cell that begins no new run in so much of its processor time, and says nothing, is stuck in one."""
SEEDS_OF_A_CELL = 1 << 40
ONE_CELL = ("dfs", "dpor")
"""Strategies that go through schedules in an order: nothing to share out."""
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS)
"""What a run can do to its process; any other signal came from outside."""
START_SECONDS = 60.0
"""The same until its first run: booting, and loading what is compiled, takes seconds."""
AUTOPSY_SECONDS = 60.0


class Unrepeatable(EmulatorError):
    """A run that killed its process once and not again: our own machinery, unless the code was broken on purpose."""


@dataclass
class Explored:
    """What an exploration came to."""

    tally: Tally
    failure: Failure | None
    interrupted: bool = False
    outside: str = ""
    """What others did to a cell, so that the exploration is not whole."""

    @property
    def verdict(self) -> str:
        """pass, fail or inconclusive."""
        return "fail" if self.failure else "inconclusive" if self.interrupted or self.outside else "pass"


def link_for(job: Job, variant: Variant | None = None, progress: native.Progress | None = None) -> None:
    """Compile and load, once, what all cells of a job will run; they are forked from this process."""
    Param.order = job.order
    Machine._import_kernel()
    native.link(Kernel.all, progress, job.build)
    if variant is not None:
        variant.compile()


class Explorer:
    """One exploration of a job by several cells."""

    def __init__(self, job: Job, variant: Variant | None = None, cells: int = 0, *, schedules: int = 0, seconds: float = 0.0):
        self.job, self.variant = job, variant
        self.cores = sorted(os.sched_getaffinity(0))
        self.nr = 1 if job.strategy in ONE_CELL else cells or len(self.cores)
        self.schedules = -(-schedules // self.nr) if schedules else 1 << 40
        self.seconds = seconds or 1e9
        self._context = get_context("fork")
        self._tallies: dict[int, Tally] = {}
        self._cells: dict[int, tuple[Any, Any, mmap.mmap]] = {}
        self._waits: dict[int, Patience] = {}
        self._interrupted = False
        self._outside = ""

    def run(self, tick: Callable[[Tally], None] | None = None) -> Explored:
        """Explore until a failure, the end of the schedules or of the time, or Ctrl-C."""
        handler = None
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            handler = signal.signal(signal.SIGINT, self._interrupt)
        try:
            self._start()
            failure = self._watch(tick)
        finally:
            self._end()
            if handler is not None:
                signal.signal(signal.SIGINT, handler)
        return Explored(self.total(), failure, self._interrupted, self._outside)

    def _interrupt(self, *signal_and_frame: object) -> None:
        self._interrupted = True

    def total(self) -> Tally:
        """All cells' numbers."""
        total = Tally()
        for tally in self._tallies.values():
            total.add(tally)
        if all(tally.known is not None for tally in self._tallies.values()):
            total.settle()
        return total

    def _start(self) -> None:
        for number in range(self.nr):
            receiver, sender = self._context.Pipe(duplex=False)
            words = mmap.mmap(-1, PROGRESS_BYTES)
            core = self.cores[number % len(self.cores)]
            arguments = (number, core, sender, words, os.getpid())
            process = self._context.Process(target=self._start_life, args=arguments, daemon=True)
            process.start()
            sender.close()
            self._cells[number] = (process, receiver, words)

    def _start_life(self, *arguments: Any) -> None:
        """What a cell's process runs; another kind of cell is made here."""
        cell_life(self, *arguments, make=lambda: Cell(self.job))

    def _watch(self, tick: Callable[[Tally], None] | None) -> Failure | None:
        running = dict(self._cells)
        while running and not self._interrupted:
            ready = wait_any([receiver for _, receiver, _ in running.values()], timeout=TICK_SECONDS)
            for number, (process, receiver, words) in list(running.items()):
                if receiver in ready:
                    message = _receive(receiver)
                    self._waits.pop(number, None)
                    if message is None:
                        process.join()
                        return self._died(number, process.exitcode, words)
                    kind, value = message
                    if kind == "broken":
                        raise EmulatorError(value)
                    if kind == "refused":
                        error, text = value
                        raise error from EmulatorError(text)
                    if kind == "error":
                        logger.error("a cell failed: {}", value)
                        raise EmulatorError(f"a cell failed: {value.strip().splitlines()[-1]}")
                    tally, failure = value
                    self._tallies[number] = tally
                    if failure is not None:
                        return failure
                    if kind == "done":
                        del running[number]
                        if tally.exhausted:
                            return None
                elif self._stuck(number, words):
                    process.kill()
                    process.join()
                    return self._died(number, None, words)
            if tick:
                tick(self.total())
        return None

    def _stuck(self, number: int, words: mmap.mmap) -> bool:
        running = struct.unpack("qq", words[:16])[1] != 0
        known = self._waits.get(number)
        if known is None or (running and known.seconds != HUNG_SECONDS):  # It has its machine to make first.
            known = Patience(self._cells[number][0].pid, HUNG_SECONDS if running else START_SECONDS)
            self._waits[number] = known
        return known.over(words[:16])

    def _died(self, number: int, code: int | None, words: mmap.mmap) -> Failure | None:
        """A cell is gone in the middle of a run: at fault, or killed by others? Found out by repeating the run in a fork."""
        seed, runs, longest = struct.unpack("qqq", words)
        text = _death(code)
        if code is not None and code < 0 and -code not in CRASHES:
            self._outside = f"a cell {text}, which no run does by itself"
            return None
        if not runs:
            raise EmulatorError(f"a cell {text} before its first run")
        self._end()
        failure = self._autopsy(seed, longest)
        if failure is None:
            text = f"a cell {text} in the run of seed {seed}, and not when that was repeated"
            if code is None:
                self._outside = text
                return None
            raise Unrepeatable(text)
        failure.seed, failure.runs = seed, runs
        return failure

    def _autopsy(self, seed: int, longest: int) -> Failure | None:
        again = Repeat(seed, longest, seed - first_seed(self.job, 0) + 1 if self.job.strategy in ONE_CELL else 1)
        receiver, sender = self._context.Pipe(duplex=False)
        arguments = (replace(self.job, repeat=False), self.variant, again, sender, os.getpid())
        process = self._context.Process(target=_autopsy, args=arguments, daemon=True)
        process.start()
        sender.close()
        found = _receive(receiver) if receiver.poll(AUTOPSY_SECONDS) else None
        process.kill()
        process.join()
        receiver.close()
        if found and found[0] == "error":
            raise EmulatorError(f"a run could not be looked at again: {found[1]}")
        return found[1] if found else None

    def _end(self) -> None:
        for process, receiver, _ in self._cells.values():
            process.kill()
            process.join()
            receiver.close()
        self._cells.clear()


def first_seed(job: Job, number: int) -> int:
    """The seed of a cell's first run."""
    return job.seed * (SEEDS_OF_A_CELL << 8) + number * SEEDS_OF_A_CELL


def _receive(receiver: Any) -> Any:
    try:
        return receiver.recv()
    except (EOFError, OSError):
        return None


def _death(code: int | None) -> str:
    if code is None:
        return "stood still"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


def cell_life(explorer: Explorer, number: int, core: int, sender: Any, words: mmap.mmap, parent: int, *,
              make: Callable[[], Cell]) -> None:
    """The life of a cell."""
    settle(parent)
    os.sched_setaffinity(0, {core})
    try:
        with make() as cell:
            cell.controlled.report_to(words)
            if explorer.variant is not None:
                explorer.variant.put()
            last = 0.0
            deadline = time.monotonic() + explorer.seconds  # Not on the budget: how long a cell takes to start.

            def tick(tally: Tally) -> None:
                nonlocal last
                if time.monotonic() - last > TICK_SECONDS:
                    last = time.monotonic()
                    sender.send(("tick", (tally, None)))

            tally, failure = cell.explore(first_seed(explorer.job, number), explorer.schedules, deadline, tick)
            tally.known = cell.known()
            sender.send(("done", (tally, failure)))
    except EmulatorError as error:
        sender.send(("broken", str(error)))
    except (OSError, MemoryError) as error:  # A limit of this computer, as likely as not: cli.py knows.
        sender.send(("refused", (error, traceback.format_exc())))
    except BaseException:
        sender.send(("error", traceback.format_exc()))
    os._exit(0)


def _autopsy(job: Job, variant: Variant | None, again: Repeat, sender: Any, parent: int) -> None:
    """Repeat one run in a fork of a fresh cell."""
    settle(parent)
    try:
        with Cell(job) as cell:
            if variant is not None:
                variant.put()
            sender.send(("found", in_a_fork(cell, again)))
    except BaseException:
        sender.send(("error", traceback.format_exc()))
    os._exit(0)


__all__ = ["Explored", "Explorer", "Unrepeatable", "link_for"]
