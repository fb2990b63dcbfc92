"""Races on the terminal: the pairs with their scenarios, and one scenario with everything about it."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from concur_thp.program.rows import CHECK, SETUP
from concur_thp.program.step import print_program
from concur_thp.program.table import STEP_TABLE
from stress.scenarios.registry import PAIRS, SCENARIOS
from stress.scenarios.scenario import Outcome, Scenario


def print_races(out: Console) -> None:
    """Every pair, and who plays it."""
    table = Table(box=None, pad_edge=False)
    for name in ("pair", "scenario", "CPUs", "outcomes", "meaning"):
        table.add_column(name, justify="right" if name in ("pair", "CPUs", "outcomes") else "left", no_wrap=name == "scenario")
    for number, pair in PAIRS.items():
        table.add_row(str(number), Text(pair, style="bold"))
        _add(table, [s for s in SCENARIOS.values() if number in s.pairs])
    others = [s for s in SCENARIOS.values() if not s.pairs]
    if others:
        table.add_row("", Text("others", style="bold"))
        _add(table, others)
    out.print(table)
    out.print("\n`concur-thp races show NAME` has the whole of one, `concur-thp races run NAME` plays it")


def _add(table: Table, scenarios: list[Scenario]) -> None:
    for s in scenarios:
        table.add_row("", f"  {s.name}", str(len(s.cpus)), str(len(s.outcomes)), s.meaning)


def print_scenario(out: Console, scenario: Scenario) -> None:
    """What is there before, what each CPU does, what is looked at, what may come of it."""
    out.print(Text(f"{scenario.name}: {scenario.meaning}", style="bold"))
    facts = Table.grid(padding=(0, 2))
    for name, text in (("pairs", ", ".join(f"{number} ({PAIRS[number]})" for number in scenario.pairs)),
                       ("rules", ", ".join(scenario.rules)), ("note", scenario.note),
                       ("switches", ", ".join(f"{k}={v}" for k, v in scenario.switches.items())),
                       ("needs", "a swap device" if scenario.swap else "")):
        if text:
            facts.add_row(name, Text(text))
    out.print(facts)
    programs = Table(pad_edge=False, box=None, padding=(0, 3, 0, 0))
    cells = {"before": SETUP, **{f"CPU {number}": number for number in range(len(scenario.cpus))}, "afterwards": CHECK}
    for title in cells:
        programs.add_column(title, overflow="fold")
    programs.add_row(*(Text(print_program(scenario.programs[number])) for number in cells.values()))
    out.print("", programs, "")
    for outcome in scenario.outcomes:
        out.print(f"* {outcome.name}{'' if outcome.must else '  (need not be seen)'}")
        out.print(Text(f"    {_spoken(outcome)}", style="dim"))
    if scenario.always:
        out.print(Text(f"  each with {_words(scenario.always)}", style="dim"))


def _spoken(outcome: Outcome) -> str:
    relation = f"; {outcome.when.__doc__}" if outcome.when else ""
    return _words(outcome.where) + relation


def _words(where: object) -> str:
    assert hasattr(where, "items")
    return ", ".join(f"{label}={_numbers(allowed)}" for label, allowed in where.items())


def _numbers(allowed: object) -> str:
    if isinstance(allowed, tuple):
        return f"{_numbers(allowed[0])} with {_numbers(allowed[1])}"
    if isinstance(allowed, range):
        return f"{allowed.start}..{allowed.stop - 1}"
    if isinstance(allowed, (set, frozenset)):
        return "|".join(sorted(map(str, allowed)) if len(allowed) < 12 else [f"one of {len(allowed)}"])
    return str(allowed)


def print_steps(out: Console) -> None:
    """Every step that a program can be made of."""
    table = Table(box=None, pad_edge=False)
    for name in ("step", "arguments", "meaning", "status", "value"):
        table.add_column(name, no_wrap=name == "step")
    for row in STEP_TABLE:
        table.add_row(row.op.name, " ".join(row.arguments), row.meaning, row.status, row.value)
    out.print(table)


__all__ = ["print_races", "print_scenario", "print_steps"]
