"""What a scenario is, and what an outcome is: rows of what each labelled step may have returned.

    Outcome("zapped first", split=0, kind=LOOK_NONE, left=(0, "1h"))

says: the step labelled `split` returned 0, `kind` returned LOOK_NONE, and `left` returned status 0 with a value of as many
pages as a block has. Instead of one number there may be a set or range of them. What all outcomes have in common stands in
`always`. Each labelled step has to be spoken of, and steps without a label must return 0: a result that nobody thought of
is no outcome, and is reported.
"""

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from concur_thp.errors import EmulatorError
from concur_thp.mm.vmstat import Stat
from concur_thp.program.rows import CHECK, SETUP
from concur_thp.program.step import Pages, Program, parse_program
from concur_thp.program.table import STEP_TABLE

Number = int | str
Numbers = Number | Set[Number] | range
Allowed = Numbers | tuple[Numbers, Numbers]
ANY_COUNT = range(1 << 40)
"""A count that may be anything."""
HAS_VALUE = {row.op for row in STEP_TABLE if row.value}


class Result(NamedTuple):
    """What came of one labelled step."""

    status: int
    value: int


@dataclass(frozen=True)
class Seen:
    """Everything that an outcome can speak of: results by label, and by how much counters rose while the CPUs ran."""

    results: Mapping[str, Result]
    unlabelled: tuple[tuple[str, int], ...] = ()
    """Steps without a label that did not return 0."""
    stats: Mapping[str, int] = field(default_factory=dict)

    def __getattr__(self, label: str) -> Result:
        try:
            return self.results[label]
        except KeyError:
            raise AttributeError(label) from None

    def __str__(self) -> str:
        words = [f"{label}={r.status}" + (f" ({r.value:#x})" if r.value else "") for label, r in self.results.items()]
        words += [f"{name}+{value}" for name, value in self.stats.items()]
        words += [f"'{step}' returned {status}" for step, status in self.unlabelled]
        return ", ".join(words)


def pages(text: Number) -> int:
    """'1h-1' -> pages at the order now in force; numbers are themselves."""
    if isinstance(text, int):
        return int(text)
    plus, _, minus = text.partition("-")
    return int(Pages.parse(plus)) - (int(Pages.parse(minus)) if minus else 0)


def _within(number: int, allowed: Numbers) -> bool:
    if isinstance(allowed, range):
        return number in allowed
    if isinstance(allowed, Set):
        return any(number == pages(each) for each in allowed)
    return number == pages(allowed)


def _allows(result: Result, allowed: Allowed) -> bool:
    if isinstance(allowed, tuple):
        return _within(result.status, allowed[0]) and _within(result.value, allowed[1])
    return _within(result.status, allowed)


@dataclass(frozen=True, init=False)
class Outcome:
    """One way a race may end."""

    name: str
    must: bool
    """Has to be seen at least once."""
    where: Mapping[str, Allowed]
    """By label, or by the name of a counter (Stat): what is allowed."""
    when: Callable[[Seen], bool] | None
    """What one row cannot say: how several results hang together."""

    def __init__(self, name: str, *, must: bool = True, when: Callable[[Seen], bool] | None = None, **where: Allowed):
        for attribute, value in (("name", name), ("must", must), ("when", when), ("where", where)):
            object.__setattr__(self, attribute, value)

    def matches(self, seen: Seen, always: Mapping[str, Allowed]) -> bool:
        """Is this how the race ended?"""
        for label, allowed in {**always, **self.where}.items():
            if label in seen.stats:
                if not isinstance(allowed, tuple) and not _within(seen.stats[label], allowed):
                    return False
            elif not _allows(seen.results[label], allowed):
                return False
        return self.when is None or self.when(seen)


@dataclass(frozen=True)
class Scenario:
    """A race: a machine, what is there before, what each CPU does, what is looked at afterwards, what may come of it."""

    name: str
    meaning: str
    pairs: tuple[int, ...]
    """The rows of Appendix B that it plays."""
    rules: tuple[str, ...]
    """Rules (R, X) and invariants (I, K) that it touches."""
    setup: str
    cpus: tuple[str, ...]
    check: str
    outcomes: tuple[Outcome, ...]
    always: Mapping[str, Any] = field(default_factory=dict)
    switches: Mapping[str, str] = field(default_factory=dict)
    swap: bool = False
    """Does the machine have a swap device?"""
    kernelcore: bool = False
    """Is a half of memory for what can be moved only?"""
    note: str = ""
    """What of the pair is out of this machine's scope, and what is played instead."""

    @cached_property
    def programs(self) -> dict[int, Program]:
        """By number, as load_programs() wants them."""
        named = {SETUP: self.setup, CHECK: self.check, **dict(enumerate(self.cpus))}
        return {number: parse_program(text) for number, text in named.items()}

    @cached_property
    def labels(self) -> dict[str, bool]:
        """Every label, and whether its step has a value."""
        steps = [step for program in self.programs.values() for step in program if step.label]
        found = {step.label: step.op in HAS_VALUE for step in steps}
        if len(found) != len(steps):
            raise EmulatorError(f"scenario {self.name}: a label is given twice")
        return found

    @cached_property
    def stats(self) -> tuple[str, ...]:
        """The counters that outcomes speak of."""
        named = {label for rows in (self.always, *(o.where for o in self.outcomes)) for label in rows}
        return tuple(sorted(named & set(Stat.__members__)))

    def problems(self) -> Iterable[str]:
        """What is wrong with the tables: a label that no row speaks of would let everything pass."""
        for outcome in self.outcomes:
            spoken = {**self.always, **outcome.where}
            for label, has_value in self.labels.items():
                if label not in spoken:
                    yield f"{self.name}: {outcome.name!r} says nothing of {label}"
                elif has_value != isinstance(spoken[label], tuple):
                    yield f"{self.name}: {outcome.name!r} must say of {label} (status, value) exactly when it has a value"
            yield from (f"{self.name}: {outcome.name!r} speaks of {label}, which no step has"
                        for label in spoken.keys() - self.labels.keys() - set(self.stats))

    def classify(self, seen: Seen) -> str | None:
        """The name of the outcome; None: no row allows it."""
        if seen.unlabelled:
            return None
        return next((outcome.name for outcome in self.outcomes if outcome.matches(seen, self.always)), None)

    @property
    def json(self) -> dict[str, Any]:
        """For `races --json`."""
        return {"name": self.name, "meaning": self.meaning, "pairs": list(self.pairs), "rules": list(self.rules),
                "cpus": len(self.cpus), "note": self.note, "setup": self.setup, "programs": list(self.cpus),
                "check": self.check,
                "outcomes": [{"name": o.name, "must_be_seen": o.must} for o in self.outcomes]}


__all__ = ["ANY_COUNT", "Outcome", "Result", "Scenario", "Seen", "pages"]
