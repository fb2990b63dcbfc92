"""What a check says: laws, the violations they find, and how both are counted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from concur_thp.check.views import Column

MOST_REPORTED = 20
"""Violations of one law that are spelled out; the rest are counted in one line more."""
PLACES = ("pfn", "mm", "addr", "cpu", "vma", "anon_vma", "file", "table")
"""Values of a report's text that say where a violation is; they are kept as numbers, too."""


@dataclass(frozen=True)
class Violation:
    """One broken law. `where` names what it was seen on: pfn, mm, addr, cpu, vma ..."""

    law: str
    what: str
    where: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.law}: {self.what}"


class Report:
    """Collects what one law finds. Texts are format strings over the values given with them."""

    def __init__(self, law: str):
        self.law = law
        self.checks = 0
        self.found = 0
        self.violations: list[Violation] = []

    def broken(self, text: str, **values: Any) -> None:
        """One violation."""
        self.found += 1
        if self.found <= MOST_REPORTED:
            where = {name: int(value) for name, value in values.items() if name in PLACES}
            self.violations.append(Violation(self.law, text.format(**values) if values else text, where))

    def check(self, good: bool, text: str, **values: Any) -> None:
        """One fact."""
        self.checks += 1
        if not good:
            self.broken(text, **values)

    def each(self, bad: Column, text: str, **values: Any) -> None:
        """One fact for each element of `bad`. Values that are columns stand beside `bad`; others hold for all of it."""
        self.checks += len(bad)
        at = np.flatnonzero(bad)
        room = max(0, MOST_REPORTED - self.found)
        for i in at[:room]:
            self.broken(text, **{name: _value(value, i) for name, value in values.items()})
        self.found += max(0, len(at) - room)

    def finish(self) -> list[Violation]:
        """The violations, with a line for those that were not spelled out."""
        rest = self.found - len(self.violations)
        if rest > 0:
            self.violations.append(Violation(self.law, f"... and {rest} more"))
        return self.violations


def _value(value: Any, i: int) -> Any:
    return value[i].item() if isinstance(value, np.ndarray) else value


class Law(NamedTuple):
    """A row of the audit: its number in the semantics, a name, the law in one line, and the function that checks it."""

    id: str
    name: str
    text: str
    check: Callable[[Any, Report], None]


@dataclass
class AuditResult:
    """What an audit found."""

    checks: int
    violations: list[Violation]
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not self.violations

    def laws(self) -> set[str]:
        """The ids of the laws that were broken."""
        return {violation.law for violation in self.violations}


def in_sorted(values: Column, known: Column) -> Column:
    """Which of `values` are in the sorted array `known`."""
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    found: Column = known[at] == values
    return found
