"""One broken variant, hunted with its scenario: controlled runs by several strategies until something notices.

Whatever notices counts: nothing here knows what the variant breaks. The same seeds on the real code must stay clean.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from concur_thp.rules import rule as data
from concur_thp.rules.table import VARIANTS
from concur_thp.rules.variant import Variant
from stress.exploring.explorer import Explored, Explorer, Unrepeatable, link_for
from stress.exploring.job import Failure, Job, Tally
from stress.exploring.shrink import shrink_in_a_fork
from stress.exploring.token import Token

TOKEN_SHRINK_SECONDS = 3.0


class Attempt(NamedTuple):
    """One way to look, for so long."""

    strategy: str
    depth: int
    checks: int
    seconds: float


ATTEMPTS = (
    Attempt("pct", 3, 1, 1.0), Attempt("random", 4, 1, 1.0), Attempt("pct", 2, 0, 1.5), Attempt("pct", 5, 1, 3.0),
    Attempt("random", 2, 0, 3.0), Attempt("pct", 4, 0, 8.0), Attempt("pct", 3, 1, 8.0), Attempt("pct", 8, 1, 8.0),
    Attempt("random", 5, 1, 8.0), Attempt("pct", 3, 0, 20.0),
)
"""Quick and varied first; a hunt that fails takes about a minute."""


@dataclass
class Hunted:
    """What became of a variant."""

    id: str
    variant: data.Variant
    caught: bool = False
    seconds: float = 0.0
    tries: int = 0
    attempt: Attempt | None = None
    failure: Failure | None = None
    token: Token | None = None
    control_clean: bool | None = None
    control: Failure | None = None
    problem: str = ""

    @property
    def json(self) -> dict[str, Any]:
        """A row of `break --json`."""
        failure = self.failure
        return {"id": self.id, "variant": self.variant.mistake, "scenario": self.variant.scenario, "caught": self.caught,
                "expected": list(self.variant.symptoms), "equivalent": self.variant.equivalent,
                "seconds_to_catch": round(self.seconds, 3), "tries": self.tries,
                "strategy": f"{self.attempt.strategy} {self.attempt.depth}" if self.attempt else None,
                "symptom": f"{failure.kind}: {failure.symptom}" if failure else None,
                "preemptions": failure.preemptions if failure else None,
                "cpus": len({s.cpu for s in failure.schedule}) if failure else None,
                "token": str(self.token) if self.token else None, "control_clean": self.control_clean,
                "control": f"{self.control.kind}: {self.control.symptom}" if self.control else None, "problem": self.problem}


def job_for(row: data.Variant, seed: int, order: int | None = None) -> Job:
    """The job that provokes a variant."""
    return Job(row.scenario, order=order or (9 if "order 9" in row.needs else 3), seed=seed, variant=row.id)


def hunt(name: str, seed: int, seconds: float, order: int | None = None, tick: Callable[[Tally], None] | None = None) -> Hunted:
    """Hunt one variant for at most `seconds`, then run the same attempts on the real code for as long."""
    row = VARIANTS[name][1]
    found = Hunted(name, row)
    job = job_for(row, seed, order)
    variant = Variant(row.edits, row.id, job.build)
    link_for(job, variant)
    began = time.monotonic()
    made: list[tuple[Job, float]] = []
    for attempt in ATTEMPTS:
        left = seconds - (time.monotonic() - began)
        if left <= 0 or found.caught:
            break
        this = replace(job, strategy=attempt.strategy, depth=attempt.depth, checks=attempt.checks)
        explored = undisturbed(Explorer(this, variant, seconds=min(attempt.seconds, left)), tick)
        found.problem = found.problem or explored.outside
        made.append((this, max(explored.tally.seconds, 0.3)))
        found.tries += explored.tally.schedules
        found.seconds = time.monotonic() - began
        if explored.failure is not None:
            found.caught, found.failure, found.attempt = True, explored.failure, attempt
            small, found.failure = shrink_in_a_fork(this, variant, explored.failure, TOKEN_SHRINK_SECONDS)
            found.token = Token.of(small, found.failure)
    control(found, made, tick)
    return found


def undisturbed(explorer: Explorer, tick: Callable[[Tally], None] | None = None) -> Explored:
    """One exploration of many; Ctrl-C ends them all. Broken code may write anywhere, so that a crash of it does not repeat."""
    try:
        explored = explorer.run(tick)
    except Unrepeatable as error:
        if explorer.variant is None:
            raise
        explored = Explored(explorer.total(), None, outside=str(error))
    if explored.interrupted:
        raise KeyboardInterrupt
    return explored


def control(found: Hunted, made: list[tuple[Job, float]], tick: Callable[[Tally], None] | None) -> None:
    """The same on the real code. Whether it is clean is not known (None) when somebody ended a cell."""
    found.control_clean = True
    for job, seconds in made:
        explored = undisturbed(Explorer(replace(job, variant=""), None, seconds=seconds), tick)
        if explored.failure is not None:
            found.control, found.control_clean = explored.failure, False
            return
        if explored.outside:
            found.problem, found.control_clean = found.problem or explored.outside, None


__all__ = ["ATTEMPTS", "Hunted", "hunt", "job_for", "undisturbed"]
