"""`concur-thp break --locks`: every cut of cuts.py, hunted for a bounded time with the scenarios that come by there.

Each is played for a moment; the best, in which several CPUs come by, then longer and in other ways. What is caught is
caught only if the real code is clean under the same seeds.
"""

import functools
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concur_thp.errors import Misuse
from concur_thp.machine import Machine
from concur_thp.output import compile_progress, console, result_console, write_json
from concur_thp.rules.table import RULES
from concur_thp.rules.variant import Variant
from stress.breaking.coverage import Visit, coverage
from stress.breaking.cuts import ALWAYS, Cut, all_cuts
from stress.breaking.harmless import harmless
from stress.breaking.hunt import undisturbed
from stress.exploring.explorer import Explorer, link_for
from stress.exploring.job import Failure, Job
from stress.progress import Line
from stress.rundir import make_run_dir
from stress.scenarios.registry import SCENARIOS

FIRST = ("pct", 3, 1)
"""Strategy, depth and checks of the first look at each scenario."""
THEN = (("random", 2, 1), ("pct", 5, 1), ("pct", 2, 0), ("random", 4, 1), ("random", 1, 0), ("pct", 8, 1))
"""How the best of them are gone on with."""
SCENARIOS_OF_A_CUT, BEST = 12, 4
SEQUENCES_OF_A_CUT, ONCE = 6, 2
"""Besides, so many scenarios of one CPU, which have one schedule and one outcome: once in each of two cells."""
FIRST_SCHEDULES, SCHEDULES = 600, 6000
"""Of each scenario at first, and of the best in each other way. Counted, so that a loaded machine looks as well as a free
one; --seconds says when it is enough."""
AUDITS = 12
"""Of new ends one in so many is audited: what mixes leave behind is hardly ever the same, and an audit costs as much as many
of schedules."""
LEAST_CONTROL = 200
"""Schedules of the real code, at least, that have to be clean where a cut was caught."""
MOST_CONTROL = 20_000


@dataclass
class Result:
    """What became of a cut."""

    cut: Cut
    verdict: str
    """caught, not caught, not reached, does not compile, or harmless."""
    scenario: str = ""
    failure: Failure | None = None
    seconds: float = 0.0
    why: str = ""
    schedules: int = 0
    strategy: str = ""

    @property
    def json(self) -> dict[str, Any]:
        """A row of `break --locks --json`."""
        symptom = f"{self.failure.kind}: {self.failure.symptom}" if self.failure else None
        return {"id": self.cut.id, "kind": self.cut.kind, "function": self.cut.function, "line": self.cut.line,
                "statement": self.cut.what, "verdict": self.verdict, "scenario": self.scenario, "symptom": symptom,
                "seconds": round(self.seconds, 2), "schedules": self.schedules, "strategy": self.strategy, "why": self.why}


TELLING = {"flush": {"I15", "I16", "K11", "K19", "X8", "X9", "X11"}}
"""Kind of cut -> what scenarios speak of that can tell: these come first."""


Reached = Mapping[int, Sequence[Visit]]
"""Number of a statement -> the scenarios that come by it, see coverage()."""


def ranked(cut: Cut, reached: Reached) -> list[Visit]:
    """The scenarios for a cut, best first: those in which it does something else than the real code; then those that provoke
    what the rules have to say of its function, that can tell, and in which several CPUs come by most often."""
    telling, named, other = TELLING.get(cut.kind, set()), provoking(cut.function), elsewhere(cut, reached)
    return sorted(reached.get(cut.site, ()), key=lambda visit: (
        visit.scenario not in other, visit.scenario not in named, not telling & set(SCENARIOS[visit.scenario].rules)))


def elsewhere(cut: Cut, reached: Reached) -> set[str]:
    """Scenarios that were seen to go the way at an `if` that the cut blocks: into its body, or, where it is always gone into,
    past it. Empty when no statement of the body is one that is noted."""
    into = {visit.scenario: visit.runs for site in cut.body for visit in reached.get(site, ())}
    if not into or not cut.id.endswith(ALWAYS):
        return set(into)
    return {visit.scenario for visit in reached.get(cut.site, ()) if visit.runs > into.get(visit.scenario, 0)}


@functools.cache
def provoking(function: str) -> frozenset[str]:
    """Scenarios of the rules that a function enforces, and of the variants that break it."""
    return frozenset(
        variant.scenario for rule in RULES for variant in rule.variants
        if any(at.function == function for at in rule.enforced_in) or any(e.function == function for e in variant.edits))


class Hunter:
    """Hunts cuts one after another, and remembers for how many schedules the real code was clean where one was caught."""

    def __init__(self, seconds: float, seed: int):
        self.seconds, self.seed = seconds, seed
        self._clean: dict[Job, int] = {}

    def hunt(self, cut: Cut, reached: Reached) -> Result:
        """Look for a failure without it."""
        if why := harmless(cut):
            return Result(cut, "harmless", why=why)
        visits = ranked(cut, reached)
        if not visits:
            return Result(cut, "not reached", why="no scenario comes by this statement")
        try:
            variant = Variant(cut.edits, cut.name, Job(visits[0].scenario).build)
            link_for(Job(visits[0].scenario), variant)
        except Exception as error:
            return Result(cut, "does not compile", why=str(error))
        began = time.monotonic()
        result = Result(cut, "not caught", ", ".join(visit.scenario for visit in visits[:SCENARIOS_OF_A_CUT]))
        for job, schedules in attempts(visits, self.seed):
            left = self.seconds - (time.monotonic() - began)
            if left <= 0:
                break
            explored = undisturbed(Explorer(job, variant, schedules=schedules, seconds=left))
            result.schedules += explored.tally.schedules
            if explored.failure is None:
                continue
            if (dirty := self._control(job, explored.failure.runs)) is not None:
                result.why = f"the real code is not clean in {job.scenario}: {dirty.kind}: {dirty.symptom}"
                continue
            result.verdict, result.scenario, result.failure = "caught", job.scenario, explored.failure
            result.strategy = f"{job.strategy} {job.depth}"
            break
        result.seconds = time.monotonic() - began
        return result

    def _control(self, job: Job, runs: int) -> Failure | None:
        """The same on the real code, with the same seeds and as many schedules; None when it is clean."""
        wanted = min(max(runs, LEAST_CONTROL), MOST_CONTROL)
        if self._clean.get(job, 0) < wanted:
            explored = undisturbed(Explorer(job, None, schedules=wanted))
            if explored.failure is not None:
                return explored.failure
            self._clean[job] = wanted
        return None


def attempts(visits: Sequence[Visit], seed: int) -> Iterator[tuple[Job, int]]:
    """What is played without a cut, and how often: every scenario that comes by for a moment, then the best ones."""
    strategy, depth, checks = FIRST
    alone = [visit.scenario for visit in visits if len(SCENARIOS[visit.scenario].cpus) == 1][:SEQUENCES_OF_A_CUT]
    for name in alone:
        yield Job(name, seed=seed, strategy=strategy, depth=depth, checks=checks), ONCE
    names = [visit.scenario for visit in visits if visit.scenario not in alone][:SCENARIOS_OF_A_CUT]
    for name in names:
        yield Job(name, seed=seed, strategy=strategy, depth=depth, checks=checks, audits=AUDITS), FIRST_SCHEDULES
    for strategy, depth, checks in THEN:
        for name in names[:BEST]:
            yield Job(name, seed=seed, strategy=strategy, depth=depth, checks=checks, audits=AUDITS), SCHEDULES


@dataclass(frozen=True)
class LocksOptions:
    """What the command line said."""

    ids: tuple[str, ...]
    seconds: float
    seed: int
    json: str
    quiet: bool
    run_dir: str


def run_locks(options: LocksOptions) -> int:
    """Hunt every cut, or those in the functions named; 0 when the campaign was carried out."""
    Machine._import_kernel()
    out, result = console(options.quiet), result_console(options.quiet, options.json)
    cuts = [cut for cut in all_cuts() if not options.ids or {cut.function, cut.id} & set(options.ids)]
    if not cuts:
        raise Misuse(f"nothing of {', '.join(options.ids)} is a function of mm/ with a lock, a flush or a second look")
    with compile_progress(out) as progress:
        link_for(Job(next(iter(SCENARIOS)), build="traced"), None, progress)
        link_for(Job(next(iter(SCENARIOS))), None, progress)
    run_dir = make_run_dir(Path(options.run_dir), "locks")
    hunter = Hunter(options.seconds, options.seed)
    results = []
    with Line(out) as progress_line:
        reached = coverage(tick=progress_line.say)
        for number, cut in enumerate(cuts, 1):
            progress_line.say(f"{number} of {len(cuts)}: {cut.id} without {cut.what}")
            one = hunter.hunt(cut, reached)
            results.append(one)
            result.print(line(one), highlight=False, markup=False)
    rows = [one.json for one in results]
    write_json(str(run_dir / "summary.json"), rows)
    write_json(options.json, rows)
    counts = Counter(one.verdict for one in results)
    result.print(f"{len(results)} cuts: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common()), highlight=False)
    return 0


def line(one: Result) -> str:
    """A cut in one line."""
    head = f"{one.verdict:11} {one.cut.kind:7} {one.cut.id}: {one.cut.what}"
    if one.failure is not None:
        return f"{head}  [{one.scenario}, {one.strategy}, {one.schedules}] {one.failure.kind}: {one.failure.symptom[:100]}"
    tried = f"[{one.schedules} schedules of {one.scenario}]" if one.schedules else ""
    return f"{head}  {one.why}{tried}"


__all__ = ["Hunter", "LocksOptions", "Result", "attempts", "run_locks"]
