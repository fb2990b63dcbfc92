"""What a hunt is, whoever conducts it: a scenario, a broken variant, seeds and a budget; what was caught, or nothing.

An Engine plays a scenario on the broken code until something is noticed. There may be several: free runs are one
(free.py); whoever has a better way to search provides another with the same method.
"""

import ast
import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import concur_thp.sync
from concur_thp.rules.rule import Variant
from stress.scenarios.scenario import Scenario

WILD = ("Q", "I", "bug", "lockdep", "crash", "stuck")
"""What may be noticed first where a variant promises a crash."""
STUCK = ("deadlock", "livelock")


@dataclass(frozen=True)
class Caught:
    """What was noticed, and how long it took."""

    engine: str
    symptom: str
    """In the words of a variant's symptoms: `Q5`, `I15`, `bug`, `lockdep`, `outcome`, `crash`, `stuck`."""
    text: str
    seconds: float
    tries: int
    """Rounds or schedules played."""
    seed: int
    token: str = ""
    """What plays it again, if the engine can."""

    def expected(self, variant: Variant) -> bool:
        """Is it what the variant's row says?"""
        wanted = variant.symptoms
        if self.symptom == "bug" and any(self.text.startswith(w[5:]) for w in wanted if w.startswith("bug: ")):
            return True
        if self.symptom == "stuck" and (any(s in wanted for s in STUCK) or "bug: fault loop" in wanted):
            return True
        return self.symptom in wanted or ("crash" in wanted and self.symptom.rstrip("0123456789") in WILD)

    @property
    def json(self) -> dict[str, Any]:
        return asdict(self) | {"seconds": round(self.seconds, 3)}


class Engine(Protocol):
    """One way to search."""

    name: str

    def hunt(self, scenario: Scenario, variant: Variant | None, seeds: Sequence[int], seconds: float) -> Caught | None:
        """Play the scenario with the variant in place (None: on the real code) for at most so long."""


@functools.cache
def lock_reports() -> frozenset[str]:
    """The messages of sync/: what lockdep and the locks say."""
    folder = Path(concur_thp.sync.__path__[0])
    trees = (ast.parse(path.read_text()) for path in folder.glob("*.py"))
    return frozenset(node.value for tree in trees for node in ast.walk(tree)
                     if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value)


def symptom_of_report(text: str) -> str:
    """Which kind of symptom the text of a bug() is."""
    head = text.partition(":")[0]
    if head[:1] in ("I", "Q") and head[1:].isdigit():
        return head
    return "lockdep" if any(text.startswith(report) for report in lock_reports()) else "bug"
