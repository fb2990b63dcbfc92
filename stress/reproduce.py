"""From stress to schedule: what a free run left in its event rings is tried one CPU at a time, until the same fails again.

Programs are made of what each CPU did last: the CPU that noticed against every other, then scenarios of the registry that
do the same kinds of things. Whether it was reproduced is said either way: a failure of another kind is no reproduction, and
is handed over as well.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from concur_thp.rules.variant import Variant
from stress.breaking.caught import symptom_of_report
from stress.clues import Clue, verb
from stress.exploring.explorer import Explorer, link_for
from stress.exploring.job import Failure, Job
from stress.exploring.shrink import shrink_in_a_fork
from stress.exploring.token import Token
from stress.scenarios.registry import SCENARIOS
from stress.scenarios.scenario import Scenario

ORDER = 3
LEAST_SECONDS = 0.5
"""For one attempt."""
SHRINK_SECONDS = 3.0
PLAIN, SWAP = "dontneed_vs_split_pmd", "swap_out_vs_write"
"""Scenarios whose machine is borrowed for programs made from rings: without and with a swap device."""
HUGE = "new 0; enter 0; map 0 2h rw; fill 0 2h 100; drain; note 0 0"
SMALL = "new 0; enter 0; map 0 2h rw; advise 0 1h nohuge; fill 0 1h 100; advise 0 1h huge; fill 1h 1h 200; drain; note 0 3"
SHARED = f"{HUGE}; fork 1"


@dataclass
class Reproduced:
    """What came of the search."""

    token: Token | None = None
    """Of a failure like the one that was seen."""
    failure: Failure | None = None
    other: Token | None = None
    """Of a failure that is not like it."""
    schedules: int = 0
    attempts: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        what = f"{self.schedules} schedules of {self.attempts} programs in {self.seconds:.0f} s"
        if self.token:
            return f"reproduced in {what}: concur-thp replay {self.token}"
        other = self.other
        also = f"; another failure was found, {other.kind}: {other.symptom}: concur-thp replay {other}" if other else ""
        return f"not reproduced in {what}{also}"


def reproduce(clue: Clue, seconds: float, variant: str = "", edits: Variant | None = None,
              tick: Callable[[str], None] | None = None) -> Reproduced:
    """Search for `seconds`. No machine may be booted in this process. `variant` and `edits`: on broken code."""
    found = Reproduced()
    jobs = [replace(job, variant=variant) for job in candidates(clue)]
    link_for(jobs[0], edits)
    began = time.monotonic()
    share = max(LEAST_SECONDS, seconds / len(jobs))
    for job in jobs:
        left = seconds - (time.monotonic() - began)
        if left <= 0 or found.token:
            break
        if tick:
            tick(f"trying to reproduce it: {' | '.join(job.programs) or job.scenario}")
        explored = Explorer(job, edits, seconds=min(share, left)).run()
        found.attempts += 1
        found.schedules += explored.tally.schedules
        if explored.failure is not None and explored.failure.schedule:
            _take(found, clue, job, edits, explored.failure)
    found.seconds = time.monotonic() - began
    return found


def _take(found: Reproduced, clue: Clue, job: Job, edits: Variant | None, failure: Failure) -> None:
    """Keep a failure, for what it is."""
    same = alike(clue.symptom, failure)
    if same or found.other is None:
        small, least = shrink_in_a_fork(job, edits, failure, SHRINK_SECONDS)
        if same:
            found.token, found.failure = Token.of(small, least), least
        else:
            found.other, found.failure = Token.of(small, least), least


def alike(symptom: str, failure: Failure) -> bool:
    """Is this the failure that was seen? The same report, or the same law."""
    if failure.kind in ("bug", "audit", "leak"):
        if law := symptom_law(symptom):
            return law in {symptom_law(part) for part in failure.symptom.split("; ")}
        return failure.kind == "bug" and head(symptom) == head(failure.symptom)
    return failure.kind in symptom or (failure.kind in ("livelock", "hung", "deadlock") and "progress" in symptom)


def symptom_law(symptom: str) -> str:
    """`Q5`, `I15`; '' for reports that speak of no law."""
    law = symptom_of_report(symptom.removeprefix("BUG "))
    return law if law[1:].isdigit() else ""


def head(symptom: str) -> str:
    """A report without its values and where it was."""
    return symptom.removeprefix("BUG ").partition(" (value")[0]


def candidates(clue: Clue) -> Iterator[Job]:
    """What to try, the likeliest first."""
    made = list(programs(clue))
    known = scenarios(clue)
    for pair in itertools.zip_longest(made, known):
        yield from (job for job in pair if job is not None)


def programs(clue: Clue) -> Iterator[Job]:
    """Of the rings: who noticed against each other CPU; then everybody together, at most three."""
    numbers = list(clue.steps)
    first = numbers[:1]
    for others in (*((number,) for number in numbers[1:]), tuple(numbers[1:3])):
        if others:
            yield from _jobs([clue.steps[number] for number in (*first, *others)])
    if len(numbers) == 1:
        yield from _jobs([clue.steps[first[0]]])


def _jobs(steps: list[tuple[str, ...]]) -> Iterator[Job]:
    verbs = {verb(step) for some in steps for step in some}
    scenario = SWAP if "swap_out" in verbs else PLAIN
    texts = tuple("; ".join(("enter 0", *(f"r{cpu}{n}: {step}" for n, step in enumerate(some))))
                  for cpu, some in enumerate(steps))
    setups = [SMALL, HUGE] if "collapse" in verbs else [HUGE, SHARED] if "fork" not in verbs else [HUGE]
    for setup in setups:
        for depth in (3, 2):
            yield Job(scenario, order=ORDER, depth=depth, checks=1, programs=texts, setup=setup)


def scenarios(clue: Clue) -> list[Job]:
    """Scenarios whose CPUs do what the CPUs of the run did, those with most in common first."""
    wanted = clue.verbs

    def common(scenario: Scenario) -> float:
        kinds = {verb(str(step)) for number in range(len(scenario.cpus)) for step in scenario.programs[number]} - {"enter"}
        return len(kinds & wanted) / len(kinds | {""}) + 0.1 * len(kinds & wanted)

    ranked = sorted((s for s in SCENARIOS.values() if len(s.cpus) > 1), key=common, reverse=True)
    return [Job(scenario.name, order=ORDER, checks=1) for scenario in ranked if common(scenario) > 0][:12] or \
        [Job(scenario.name, order=ORDER, checks=1) for scenario in ranked[:12]]


__all__ = ["Reproduced", "alike", "candidates", "reproduce"]
