"""Hunting by free runs: CPU processes race for real, with every check on; every second slice under chaos.

A seed repeats what each CPU does and where chaos delays it, not when: what is caught here once may take longer again.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext

from concur_thp.check.dump import report_text
from concur_thp.machine import Machine
from concur_thp.rules import rule
from concur_thp.rules.variant import Variant
from stress.breaking.caught import Caught, symptom_of_report
from stress.scenarios.arena import arena
from stress.scenarios.play import CHAOS, Played, machine_config, play
from stress.scenarios.scenario import Scenario

SLICE_SECONDS = 1.0
"""One machine, one seed; the next slice has others."""
STUCK_SECONDS = 5.0
"""A race that comes to no end for so long is stuck: a round takes a millisecond."""
WATCHED = 64
"""A round that a slow machine makes late is not stuck: CPUs that wait count beats; so many looks in a row must agree."""


class Stuck(Exception):
    """A round does not end."""


class Watch:
    """Called while CPUs run: does the race still get on?"""

    def __init__(self, machine: Machine):
        self.machine, self.round, self.since, self.looks = machine, -1, time.monotonic(), 0

    def __call__(self) -> None:
        now, seen = time.monotonic(), arena.round.load()
        if seen != self.round:
            self.round, self.since, self.looks = seen, now, 0
        self.looks += 1
        if now - self.since > STUCK_SECONDS and self.looks > WATCHED:
            raise Stuck(report_text(self.machine.config, what=f"a round has not ended in {STUCK_SECONDS:.0f} s"))


class Free:
    """The engine."""

    name = "free"

    def __init__(self, order: int = 3):
        self.order = order

    def hunt(self, scenario: Scenario, variant: rule.Variant | None, seeds: Sequence[int], seconds: float) -> Caught | None:
        """See Engine."""
        with Machine(machine_config(scenario, self.order, len(scenario.cpus), 1)):
            edited = Variant(variant.edits, variant.id) if variant else None
            if edited:
                edited.compile()  # not on the budget
        began = time.monotonic()
        tries = 0
        for number, seed in enumerate(seeds):
            left = began + seconds - time.monotonic()
            if left <= 0:
                break
            played = self._slice(scenario, edited, seed, min(left, SLICE_SECONDS), chaos=bool(number % 2))
            tries += played.rounds
            if found := _symptom(played):
                return Caught(self.name, *found, time.monotonic() - began, tries + 1, seed)
        return None

    def _slice(self, scenario: Scenario, edited: Variant | None, seed: int, seconds: float, chaos: bool) -> Played:
        config = machine_config(scenario, self.order, len(scenario.cpus), seed)
        with Machine(config) as machine, edited.in_place() if edited else nullcontext():
            machine.listen_checks(every=1)
            if chaos:
                machine.listen_chaos(*CHAOS)
            try:
                return play(machine, scenario, seconds, len(scenario.cpus), Watch(machine))
            except Stuck as stuck:
                played = Played()
                played.crew.kind, played.crew.what, played.crew.report = "stuck", str(stuck).partition("\n")[0], str(stuck)
                return played


def _symptom(played: Played) -> tuple[str, str] | None:
    """What was noticed in a slice: its kind and its text."""
    crew = played.crew
    if crew.kind == "bug":
        return symptom_of_report(crew.what), crew.what
    if crew.kind in ("killed", "broken"):
        return "crash", crew.what.strip().splitlines()[-1]
    if crew.kind in ("stuck", "hung"):
        return "stuck", crew.what
    if played.violations:
        text = played.violations[0]
        return text.partition(":")[0].split()[0], text
    return ("outcome", played.unlisted[0]) if played.unlisted else None
