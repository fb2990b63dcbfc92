"""All scenarios by name, and the pairs of Appendix B that they play."""

from typing import Any

from concur_thp.errors import unknown
from stress.scenarios import (
    collapses,
    copies,
    daemons,
    exact,
    faults,
    mixes,
    moves,
    pressure,
    reclaims,
    sequences,
    splits,
    stale,
    zap,
)
from stress.scenarios.scenario import Scenario


def _by_name(*modules: Any) -> dict[str, Scenario]:
    return {scenario.name: scenario for module in modules for scenario in module.SCENARIOS}


RACES = _by_name(faults, zap, splits, collapses, moves, pressure)
"""The races of Appendix B."""
PROVOKING = _by_name(sequences, stale, copies, reclaims)
"""More, made to provoke what broken variants of the rules do wrong; some of them on one CPU."""
MIXES = _by_name(mixes, daemons)
"""For `break --locks`: several CPUs meet in each lock, flush and second look."""
EXACT = _by_name(exact)
"""For `break --locks` as well: one CPU, and what it must end with."""
SCENARIOS = RACES | PROVOKING | MIXES | EXACT

PAIRS = {
    1: "fault and fault on one empty pmd",
    2: "huge read fault and huge write fault",
    3: "DONTNEED and huge fault",
    4: "DONTNEED and mprotect of the whole",
    5: "partial DONTNEED and partial DONTNEED of one huge page",
    6: "pmd split and fork",
    7: "pmd split in two mms at once",
    8: "pmd split in one mm and the test for reuse in another",
    9: "split_huge_page and a fault on one of its entries",
    10: "split_huge_page and fork",
    11: "split_huge_page and mprotect",
    12: "split_huge_page and zap",
    13: "split_huge_page and gup-fast or a scanner's get",
    14: "split_huge_page and the last put elsewhere",
    15: "deferred split and free",
    16: "deferred split and a second queueing of the same page",
    17: "collapse and fault, get_user_pages, gup-fast",
    18: "collapse and reclaim or migration of one of its pages",
    19: "collapse and exit",
    20: "collapse and munmap or mremap between its windows",
    21: "migration and a pin, fork, munmap",
    22: "mremap and an rmap walk",
    23: "the huge zero page: shrink and get",
    24: "exit of the parent and COW of the child",
    25: "swap out of a huge page and a write fault",
    26: "MADV_FREE and a write",
    27: "retract_page_tables and a private COW fault",
    28: "mlock and fork or pmd split",
    29: "khugepaged_exit and the scan of the same mm",
    30: "two unmappings, or truncation and munmap, of a file",
}
"""Appendix B of the semantics, in short."""


def scenario_named(name: str) -> Scenario:
    """The scenario of this name; others of a similar name are said when there is none."""
    if name not in SCENARIOS:
        raise unknown("scenario", name, SCENARIOS, "`concur-thp races` lists them")
    return SCENARIOS[name]


def find(names: tuple[str, ...]) -> list[Scenario]:
    """Scenarios by name, by number of a pair, or `all` races; each once, in the order of the registry."""
    wanted: set[str] = set()
    for name in names:
        if name == "all":
            wanted |= RACES.keys()
        elif name.isdigit() and int(name) in PAIRS:
            wanted |= {s.name for s in RACES.values() if int(name) in s.pairs}
        elif name in SCENARIOS:
            wanted.add(name)
        else:
            raise unknown("race", name, SCENARIOS, f"pass a number from 1 to {max(PAIRS)}, `all`, or one of the names that "
                          "`concur-thp races` lists")
    return [scenario for name, scenario in SCENARIOS.items() if name in wanted]


__all__ = ["EXACT", "MIXES", "PAIRS", "PROVOKING", "RACES", "SCENARIOS", "find", "scenario_named"]
