"""Telling a run: it is stepped through once more, in the traced build, and what it did is written down statement by statement.

Compiling the whole kernel once more would take a minute. So the run is stepped through in the checked build first, which
says what functions it visits, and only those are traced. Both times it runs in a fork: broken code may take the process with
it, and what was written down before lies in the segment.
"""

import ast
import faulthandler
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from concur_thp.arch import native
from concur_thp.arch.checked import Site, access_hook, site_id, sites, statement_hook
from concur_thp.arch.cpu import cpus
from concur_thp.arch.linker import SLOTS, Kernel, redirect, texts
from concur_thp.check.views import view
from concur_thp.sched.accesses import note_access, note_statement
from concur_thp.sched.state import Verdict, sched, sched_log, sched_steps
from concur_thp.trace.places import Namer
from concur_thp.trace.story import Stop, Story, read_story
from stress.exploring.autopsy import PATIENCE_SECONDS
from stress.exploring.cell import Cell
from stress.exploring.job import Job, Schedule, Stretch
from stress.exploring.patience import Patience
from stress.exploring.variants import variant_of

TRACED = ("concur_thp.mm.", "concur_thp.sync.")
"""What is compiled anew: the kernel. Programs and checks are told by what they call."""
ALWAYS = ("concur_thp.sync.",)
"""Locks have no points inside, so nothing says whether a run visits them."""


class Teller:
    """Tells runs of one job. Use as a context manager."""

    def __init__(self, job: Job):
        self.job, self.variant, self.traced = job, variant_of(job), variant_of(job, native.TRACED)
        self.cell = Cell(job)
        self.namer = Namer(self.cell.machine.config)

    def __enter__(self) -> "Teller":
        return self

    def __exit__(self, *error: object) -> None:
        self.cell.__exit__(*error)

    def tell(self, schedule: Schedule) -> Story:
        """What happens in a schedule of the job. The machine stays as the run leaves it."""
        self.cell.controlled.restore()
        self.namer.look()
        visited = self._visit(schedule)
        with self._trace(visited):
            self._step(schedule)
        story = read_story(self.cell.machine.config, self.namer, self.cell.rounds.texts, self._edited())
        if sched.verdict == Verdict.RUNNING:  # It took the process with it, in the middle of a stretch.
            where = sites().get(cpus[sched.current].site, story.stops[-1].where if story.stops else Site("", "", 0, ""))
            story.stops.append(Stop(sched.current, "end", where, 0))
        return story

    def schedule(self) -> Schedule:
        """The stretches of the run that was told, as it took them."""
        rows = (sched_log[i] for i in range(sched.stretches))
        return tuple(Stretch(row.cpu, row.reason, row.steps, row.site) for row in rows)

    def _visit(self, schedule: Schedule) -> list[Kernel]:
        """The kernel functions that the run visits, as far as points say it."""
        if self.variant is not None:
            self.variant.put()
        try:
            self._step(schedule)
        finally:
            if self.variant is not None:
                self.variant.take()
        rows = view(sched_steps, max(sched.logged, 1))[:sched.logged]
        known, functions = sites(), texts()
        names = {functions.get(int(func), "") for func in set(rows["func"].tolist())}
        names |= {known[site].function for site in set(rows["site"].tolist()) if site in known}
        names |= {functions.get(cpus[sched.current].func, "")}
        self.cell.controlled.restore()
        return [k for k in Kernel.all if k.unique.startswith(ALWAYS) or (k.name in names and k.unique.startswith(TRACED))]

    @contextmanager
    def _trace(self, kernels: list[Kernel]) -> Iterator[None]:
        """These functions in the traced build, and somebody who listens."""
        before = list(SLOTS)
        native.link(kernels, None, native.TRACED)
        if self.traced is not None:
            self.traced.put()
        redirect(access_hook, note_access)
        redirect(statement_hook, note_statement)
        try:
            yield
        finally:
            if self.traced is not None:
                self.traced.take()
            SLOTS[:] = before

    def _step(self, schedule: Schedule) -> None:
        """Run the schedule in a fork, every point written down. What it left is in the segment."""
        cell = self.cell
        cell.controlled.choose("replay", self.job.depth)
        cell.plan(schedule)
        sched.stepping = 1
        sched.verdict = Verdict.RUNNING
        child = os.fork()
        if child == 0:
            faulthandler.disable()
            try:
                cell.controlled.run(0, 1)
            finally:
                os._exit(0)
        _reap(child)
        sched.stepping = 0

    def _edited(self) -> dict[int, Site]:
        """Statements of the broken variant, which are not those of the source."""
        found = {}
        for source, tree in (self.variant.trees.items() if self.variant else ()):
            for node in ast.walk(tree):
                if isinstance(node, ast.stmt):
                    text = ast.unparse(node).partition("\n")[0]
                    line = source.first_line + node.lineno - 1
                    found[site_id(source, node)] = Site(source.name, source.filename, line, text)
        return found


def _reap(child: int, patience: float = PATIENCE_SECONDS) -> None:
    """Wait for a fork; end it when it goes round in circles."""
    waits = Patience(child, patience)
    while not waits.over(b""):
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


__all__ = ["Teller"]
