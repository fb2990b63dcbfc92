"""What a rule is, and what a broken variant of it is: the rows that the tables of this package are made of."""

from dataclasses import dataclass, field
from typing import NamedTuple

from concur_thp.rules.edit import Edit

NEEDS = {
    "order 9": "shows only with huge pages of 512 small ones",
    "swap": "needs a swap device",
    "3 cpus": "needs a third CPU to see it",
    "2 mms": "needs two processes that share the page",
}
"""What a variant may need besides two CPUs, one mm and any order."""
SYMPTOMS = {
    "outcome": "a step returns, or a word ends as, what no order of the steps allows",
    "lockdep": "a rule of locking is broken: order, holder, sleeping, irqs",
    "deadlock": "CPUs wait for each other",
    "livelock": "no CPU gets anywhere",
    "crash": "wild memory: whatever notices first",
    "none": "nothing: the variant is equivalent, and has to pass",
}
"""Expected symptoms besides invariants (`I5`), laws of the audit (`Q5`) and reports (`bug: text`)."""


class At(NamedTuple):
    """A statement that enforces a rule, named as edits name it."""

    function: str
    pattern: str


@dataclass(frozen=True)
class Variant:
    """One realistic mistake, the scenario that provokes it, and what is expected to show."""

    id: str
    mistake: str
    edits: tuple[Edit, ...]
    scenario: str
    symptoms: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def equivalent(self) -> bool:
        """Is it one that must not be noticed?"""
        return self.symptoms == ("none",)


@dataclass(frozen=True)
class Rule:
    """A sentence that the kernel's code has to keep true."""

    id: str
    statement: str
    source: str
    semantics: str
    enforced_in: tuple[At, ...] = ()
    noticed_by: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ()
    out_of_scope: str = ""
    """Why nothing here can break it; '' for a rule in scope."""
    see: tuple[str, ...] = field(default=())
    """Rules whose variants break this one as well."""
