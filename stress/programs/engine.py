"""Machine.explore(): cells on every core look for a failure; what is found is shrunk, told and handed over with a token.

The process that declared the programs only waits. Cells are forked from it, so closures need no pickling, and each works on a
copy of the machine.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from multiprocess import get_context

from concur_thp.arch import native
from concur_thp.arch.checked import sites
from concur_thp.arch.linker import SLOTS, Kernel, texts
from concur_thp.errors import EmulatorError, Misuse
from concur_thp.machine import Machine
from concur_thp.program.declared import ProgramFailure, Programs
from concur_thp.program.processor import one_of
from concur_thp.sched.state import MAX_CHANGES
from concur_thp.trace.chart import chart
from stress.exploring.explorer import Explored, Explorer, cell_life
from stress.exploring.job import PROGRAMS, Failure, Job, Tally
from stress.exploring.settle import settle
from stress.exploring.token import Token
from stress.programs.cell import Check, ProgramCell
from stress.programs.shrink import shrink
from stress.programs.telling import ProgramTeller
from workers.programs import names_of

CHOICES = ("pct", "random", "dfs")
"""What explore() takes. Not dpor: it needs every access of a program, and cuts runs short, which Python does not survive."""
PATIENCE_SECONDS = 120.0
"""Until a cell that shrinks, replays or tells is given up."""


@dataclass(frozen=True)
class Found:
    """The failure, shrunk and told."""

    kind: str
    """raised (an exception in a program), bug, audit, leak, deadlock, livelock, crash, hung, diverged."""
    symptom: str
    chart: str
    token: str
    """Empty when no schedule is to blame: a run that did not repeat."""
    report: str
    preemptions: int
    cpu: int
    function: str
    runs: int
    """Schedules until it was found."""


@dataclass(frozen=True)
class Exploration:
    """What an exploration came to."""

    verdict: str
    """pass, fail or inconclusive (interrupted, or a schedule or token that diverged)."""
    schedules: int
    distinct: int
    steps: int
    states: int
    seconds: float
    exhausted: bool
    """Every schedule of the strategy was run (dfs)."""
    failure: Found | None = None

    @property
    def schedules_per_second(self) -> float:
        """Without compiling, shrinking and telling."""
        return self.schedules / self.seconds if self.seconds else 0.0

    def check(self) -> "Exploration":
        """Raise ProgramFailure, with chart and token, unless the verdict is `pass`."""
        if self.failure is not None:
            found = self.failure
            where = f"after {found.runs} schedules, shrunk to {found.preemptions} preemptions"
            again = f"again: m.explore(token=\"{found.token}\")" if found.token else ""
            texts = (f"{found.kind}: {found.symptom}\n({where})", found.chart, found.report, again)
            raise ProgramFailure("\n\n".join(filter(None, texts)))
        if self.verdict != "pass":
            raise ProgramFailure(f"{self.verdict} after {self.schedules} schedules")
        return self


class ProgramExplorer(Explorer):
    """Explorer, with the cells of a machine's programs."""

    def __init__(self, ground: "Ground", job: Job, cells: int, schedules: int, seconds: float):
        super().__init__(job, None, cells, schedules=schedules, seconds=seconds)
        self.ground = ground

    def _start_life(self, *arguments: Any) -> None:
        cell_life(self, *arguments, make=lambda: self.ground.cell(self.job))

    def _died(self, number: int, code: int | None, words: Any) -> Failure:
        text = "stood still" if code is None else f"ended with status {code}"
        return Failure("crash", f"cell {number} {text}: the checks after a run did not survive what it left")


@dataclass
class Ground:
    """The machine and the programs that are explored on copies of it."""

    machine: Machine
    programs: Programs
    check: Check | None

    def cell(self, job: Job) -> ProgramCell:
        """A cell in this process, a fork."""
        return ProgramCell(self.machine, self.programs, job, self.check)

    @contextmanager
    def linked(self) -> Iterator[None]:
        """This process's code is the checked build, for forks to inherit; afterwards it is what it was."""
        before = list(SLOTS)
        native.link(Kernel.all, None, native.CHECKED)
        try:
            yield
        finally:
            SLOTS[:] = before

    def in_fork(self, job: Job, task: Callable[[ProgramCell], Any]) -> Any:
        """What `task` makes of a cell in a fork."""
        context = get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        parent = os.getpid()

        def live() -> None:
            settle(parent)
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            cell = self.cell(job)
            with cell:
                sender.send(task(cell))
            os._exit(0)

        process = context.Process(target=live, daemon=True)
        process.start()
        sender.close()
        try:
            if not receiver.poll(PATIENCE_SECONDS):
                raise EmulatorError("a cell said nothing")
            return receiver.recv()
        except EOFError:
            raise EmulatorError("a cell ended without a word; its traceback is on standard error") from None
        finally:
            process.kill()
            process.join()
            receiver.close()


def explore(machine: Machine, programs: Programs, *, strategy: str = "pct", depth: int = 3, schedules: int = 1000,
            seconds: float = 0.0, seed: int = 1, checks: int = 0, bound: int = 100_000, shrink_seconds: float = 5.0,
            cells: int = 0, token: str | None = None, check: Check | None = None,
            check_determinism: bool = False) -> Exploration:
    """Explore the programs until a failure, `schedules` schedules or `seconds` (0: no limit). Each run must end with every
    program done, nothing raised, a clean audit, a `check(cpu)` that raises nothing, and nothing left once all mms are gone.

    strategy: pct, random, dfs. depth: pct, its number of ordered events; dfs, its bound of preemptions. checks: instant
    invariants at one place in so many. bound: points after which a run is a livelock. token: replay this instead.
    check: asked once for each different state that runs end in, so it may depend on the machine's memory only.
    check_determinism: run each schedule that finishes twice; a second run that goes another way is a failure (`diverged`).
    """
    every = programs.ready()
    one_of("strategy", strategy, CHOICES)
    _in_range("depth", depth, 0 if strategy == "dfs" else 1, MAX_CHANGES)
    _in_range("schedules", schedules, 0 if seconds else 1, 1 << 40)
    job = Job(PROGRAMS, machine.config.order, len(every), strategy, depth, seed, programs=tuple(names_of(every)), bound=bound,
              checks=checks, repeat=check_determinism)
    ground = Ground(machine, programs, check)
    with ground.linked():
        if token is not None:
            return _replay(ground, replace(job, repeat=False), Token.parse(token))
        explored = ProgramExplorer(ground, job, cells, schedules, seconds).run()
        job = replace(job, repeat=False)  # It was said; shrinking runs other schedules.
        if explored.failure is not None and explored.failure.schedule:
            until = time.monotonic() + shrink_seconds
            failure = explored.failure
            explored.failure = ground.in_fork(job, lambda cell: shrink(cell, failure, until))
            explored.failure.runs = failure.runs
    return _result(ground, job, explored)


def _in_range(name: str, value: float, least: int, most: int) -> None:
    if not least <= value <= most:
        raise Misuse(f"{name} {value}: pass a number from {least} to {most}")


def _replay(ground: Ground, job: Job, token: Token) -> Exploration:
    want, have = token.job, job
    if (want.scenario, want.programs, want.order) != (have.scenario, have.programs, have.order):
        raise Misuse(f"the token is of {want.scenario} ({', '.join(want.programs)}, order {want.order}), and here are "
                     f"{', '.join(have.programs)}, order {have.order}: declare the programs that it was found in")
    job = replace(job, strategy="replay", bound=want.bound, checks=want.checks)
    failure = ground.in_fork(job, lambda cell: cell.follow(want.plan))
    explored = Explored(Tally(1, 1), failure, failure is not None and failure.kind == "diverged")
    return _result(ground, job, explored)


def _result(ground: Ground, job: Job, explored: Explored) -> Exploration:
    tally, failure = explored.tally, explored.failure
    found = None
    verdict = explored.verdict
    if failure is not None:
        token = str(Token.of(job, failure)) if failure.schedule else ""
        found = Found(failure.kind, failure.symptom, _chart(ground, job, failure), token, failure.report,
                      failure.preemptions, failure.cpu, failure.function, failure.runs)
        verdict = "inconclusive" if failure.kind == "diverged" else "fail"
    return Exploration(verdict, tally.schedules, tally.distinct, tally.steps, tally.states, tally.seconds, tally.exhausted,
                       found)


def _chart(ground: Ground, job: Job, failure: Failure) -> str:
    """The interleaving."""
    if not failure.schedule or failure.kind in ("crash", "hung"):
        return "(no chart)"

    def tell(cell: ProgramCell) -> str:
        story = ProgramTeller(cell).tell(failure.schedule)
        return chart(story, dict(enumerate(job.programs)), f"{failure.kind}: {failure.symptom}")

    sites(), texts()  # Here, so that the next fork need not read all sources again.
    with ground.linked():
        return str(ground.in_fork(job, tell))


__all__ = ["Exploration", "Found", "explore"]
