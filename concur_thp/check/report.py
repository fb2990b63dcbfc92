"""What a check says: laws, the violations they find, and how both are counted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from concur_thp.check.views import Column

MOST_REPORTED = 20
"""Violations of one law that are spelled out; the rest are counted in one line more."""


@dataclass(frozen=True)
class Violation:
    """One broken law. `where` names what it was seen on: pfn, mm, addr, cpu, vma ..."""

    law: str
    what: str
    where: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.law}: {self.what}"


class Report:
    """Collects what one law finds."""

    def __init__(self, law: str):
        self.law = law
        self.checks = 0
        self.found = 0
        self.violations: list[Violation] = []

    def broken(self, what: str, **where: int) -> None:
        """One violation."""
        self.found += 1
        if self.found <= MOST_REPORTED:
            self.violations.append(Violation(self.law, what, {name: int(value) for name, value in where.items()}))

    def check(self, good: bool, what: str, **where: int) -> None:
        """One fact."""
        self.checks += 1
        if not good:
            self.broken(what, **where)

    def each(self, bad: Column, what: Callable[[int], str], **where: Column) -> None:
        """One fact for each element of `bad`; `what(i)` and `where[...][i]` speak of the elements that are True."""
        self.checks += len(bad)
        at = np.flatnonzero(bad)
        for i in at[: max(0, MOST_REPORTED - self.found)]:
            place = {name: int(values[i]) for name, values in where.items()}
            self.violations.append(Violation(self.law, what(int(i)), place))
        self.found += len(at)

    def finish(self) -> list[Violation]:
        """The violations, with a line for those that were not spelled out."""
        rest = self.found - len(self.violations)
        if rest > 0:
            self.violations.append(Violation(self.law, f"... and {rest} more"))
        return self.violations


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


def listed(numbers: Iterable[int], most: int = 4) -> str:
    """'3, 4, 5, ...': a few of many numbers."""
    given = list(numbers)
    return ", ".join(f"{n:#x}" for n in given[:most]) + (", ..." if len(given) > most else "")
