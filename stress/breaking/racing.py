"""`concur-thp break --free`: broken variants by free runs; the same scenario unbroken must stay clean for as long."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from concur_thp.machine import Machine
from concur_thp.output import compile_progress, console, result_console, write_json
from concur_thp.rules.rule import Rule, Variant
from concur_thp.rules.table import VARIANTS
from stress.breaking.caught import Caught, Engine
from stress.breaking.free import Free
from stress.breaking.main import BreakOptions, wanted
from stress.scenarios.registry import SCENARIOS

SEEDS = 1 << 20
LEAST_CONTROL = 1.0
"""The unbroken code runs for as long as the hunt took, but not less than this."""
FOUND_ALL, NOT_FOUND = 0, 1


@dataclass(frozen=True)
class Broken:
    """What came of one variant."""

    rule: Rule
    variant: Variant
    caught: Caught | None
    control: Caught | None
    """What was noticed on the unbroken code: must be nothing."""

    @property
    def good(self) -> bool:
        """As it must be: noticed, or, for an equivalent variant, not; and nothing without it."""
        return (self.caught is None) == self.variant.equivalent and self.control is None

    @property
    def json(self) -> dict[str, Any]:
        """As design section 10 has it, and what was expected."""
        caught = self.caught
        return {
            "id": self.rule.id, "variant": self.variant.id, "mistake": self.variant.mistake, "scenario": self.variant.scenario,
            "caught": caught is not None, "equivalent": self.variant.equivalent,
            "engine": caught.engine if caught else None, "seconds_to_catch": round(caught.seconds, 3) if caught else None,
            "tries": caught.tries if caught else None, "symptom": caught.symptom if caught else None,
            "text": caught.text if caught else None, "expected": list(self.variant.symptoms),
            "as_expected": caught.expected(self.variant) if caught else self.variant.equivalent,
            "seed": caught.seed if caught else None, "token": caught.token if caught else None,
            "control_clean": self.control is None, "control": self.control.json if self.control else None,
        }


class Hunter:
    """Hunts one variant after another, and remembers for how long each scenario was clean."""

    def __init__(self, engine: Engine, seed: int, seconds: float):
        self.engine, self.seed, self.seconds = engine, seed, seconds
        self._clean: dict[str, float] = {}

    def seeds(self) -> Sequence[int]:
        """The same for the broken and the unbroken code."""
        return range(self.seed, self.seed + SEEDS)

    def hunt(self, name: str) -> Broken:
        """One variant, and then as long without it."""
        rule, variant = VARIANTS[name]
        scenario = SCENARIOS[variant.scenario]
        caught = self.engine.hunt(scenario, variant, self.seeds(), self.seconds)
        wanted = max(LEAST_CONTROL, min(caught.seconds, self.seconds) if caught else self.seconds)
        control = None
        if self._clean.get(scenario.name, 0.0) < wanted:
            control = self.engine.hunt(scenario, None, self.seeds(), wanted)
            if control is None:
                self._clean[scenario.name] = wanted
        return Broken(rule, variant, caught, control)


def run_free(options: BreakOptions) -> int:
    """Hunt, report, return the exit status."""
    Machine._import_kernel()
    rows = wanted(options)
    order = options.order or 3
    out = console(options.quiet)
    link_first(out, order)
    hunter = Hunter(Free(order), options.seed, options.seconds)
    found = []
    for row in rows:
        found.append(hunter.hunt(row.id))
        out.print(line(found[-1]))
    summarise(result_console(options.quiet, options.json), found)
    data = [broken.json for broken in found]
    write_json(options.json, data[0] if len(data) == 1 else data)
    return FOUND_ALL if all(broken.good for broken in found) else NOT_FOUND


def link_first(out: Console, order: int) -> None:
    """Compile what a machine needs, with a bar, so that no hunt pays for it."""
    with compile_progress(out) as progress, Machine(cpus=1, memory="4M", order=order, progress=progress):
        pass


def line(broken: Broken) -> str:
    """One variant, in a line."""
    caught, variant = broken.caught, broken.variant
    if caught:
        odd = "" if caught.expected(variant) else f" (expected {'; '.join(variant.symptoms)})"
        what = f"{caught.seconds:6.2f} s {caught.tries:7,} tries  {caught.symptom}{odd}: {caught.text}"
    else:
        what = "equivalent, and not noticed" if variant.equivalent else "NOT CAUGHT"
    control = f"  CONTROL NOT CLEAN: {broken.control.text}" if broken.control else ""
    return f"{variant.id:6} {variant.scenario:28} {what}{control}"


def summarise(out: Console, found: list[Broken]) -> None:
    """The sum of it."""
    real = [broken for broken in found if not broken.variant.equivalent]
    seconds = sorted(broken.caught.seconds for broken in real if broken.caught)
    missed = [broken.variant.id for broken in real if not broken.caught]
    noticed = [broken.variant.id for broken in found if broken.variant.equivalent and broken.caught]
    dirty = sorted({broken.variant.scenario for broken in found if broken.control})
    text = f"{len(seconds)} of {len(real)} broken variants caught"
    if seconds:
        text += f", in {seconds[len(seconds) // 2]:.2f} s each at the median, {seconds[-1]:.2f} s at most"
    for what, names in (("not caught", missed), ("equivalent, but noticed", noticed), ("unbroken, and not clean", dirty)):
        if names:
            text += f"; {what}: {', '.join(names)}"
    out.print(text)
