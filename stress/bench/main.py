"""`concur-thp bench`: what an operation costs here, on the running kernel, and with the locks a Python program has.

The sides take turns (A B A B), so that a machine whose speed drifts slows all of them alike; ratios are taken turn by turn.
"""

import sys
from collections.abc import Callable
from typing import Any

from concur_thp.check.audit import audit
from concur_thp.errors import KernelBug, unknown
from concur_thp.machine import Machine
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.output import compile_progress, console, result_console, write_json
from stress.bench import growth, throughput
from stress.bench.children import NotHere
from stress.bench.emulator import WINDOWS
from stress.bench.options import MOST_PROCESSES, BenchOptions
from stress.bench.plot import draw, load_matplotlib
from stress.bench.rows import ROWS, Row, sides
from stress.bench.statistics import ratio, spread
from stress.bench.table import print_growth, print_rows, print_throughput

TURNS = 4
"""How often the sides take turns."""
TRIES = 3
"""How often a turn is tried of a side that says that it cannot: khugepaged may have come between, or somebody else."""
MEMORY, SWAP = "1G", "512M"

assert MOST_PROCESSES <= WINDOWS


def run_bench(options: BenchOptions) -> int:
    """Measure, print, return 0."""
    known = tuple(growth.ROWS) if options.growth else (*ROWS, *throughput.ROWS)
    for name in options.only:
        if name not in known:
            raise unknown("row", name, known, f"pass --only with one of {', '.join(known)}")
    if options.plot:
        load_matplotlib()  # Before a run of minutes, not after it.
    names = options.only or known
    out, messages = result_console(options.quiet, options.json, soft_wrap=False), console(options.quiet)
    if options.growth:
        rows = growth.measure(names, options.rounds, messages)
        if not options.quiet:
            print_growth(out, rows)
    else:
        rows = _measure(names, options, messages)
        if not options.quiet:
            print_rows(out, [row for row in rows if row["kind"] != "throughput"])
            print_throughput(out, [row for row in rows if row["kind"] == "throughput"])
    write_json(options.json, rows)
    if options.plot:
        draw(rows, options.plot)
    return 0


def _measure(names: tuple[str, ...], options: BenchOptions, messages: Any) -> list[dict[str, Any]]:
    rows = []
    with compile_progress(messages) as progress, Machine(memory=MEMORY, swap=SWAP, cpus=max(2, *options.processes),
                                                         progress=progress) as machine:
        progress.finish()
        set_switch("enabled", "always")
        set_switch("defrag", "always")
        for name in names:
            if name in throughput.ROWS:
                say(messages, name)
                rows.append(throughput.measure(machine, name, throughput.TURNS if options.rounds > 1 else 1))
                continue
            for processes in options.processes:
                for one_mm in (False, True):
                    if _possible(ROWS[name], processes, one_mm):
                        rows.append(measure_row(machine, ROWS[name], processes, one_mm, options.rounds, messages))
        check(machine)
    return rows


def _possible(row: Row, processes: int, one_mm: bool) -> bool:
    if processes == 1:
        return not one_mm
    return row.together if one_mm else row.apart


def check(machine: Machine) -> None:
    """What was measured was a machine in order."""
    found = audit(machine.config)
    if found.violations:
        raise KernelBug(f"the audit after the bench found {len(found.violations)} violations: {found.violations[0]}")


def say(messages: Any, what: str) -> None:
    """Where we are, on a terminal."""
    if sys.stderr.isatty() and not messages.quiet:
        messages.print(f"{what} ...".ljust(80), end="\r")


def measure_row(machine: Machine, row: Row, processes: int, one_mm: bool, rounds: int, messages: Any) -> dict[str, Any]:
    """One row: its sides in turns."""
    each = max(1, 2 * rounds // (processes + 1))  # The more processes, the fewer samples each of them has to take.
    takers = sides(machine, row, processes, one_mm, each)
    found: dict[str, list[list[float]]] = {side: [] for side in takers}
    reasons: dict[str, str] = {}
    for turn in range(TURNS):
        say(messages, f"{row.name}, {processes} process(es), {'one mm' if one_mm else 'own mm'}, turn {turn + 1} of {TURNS}")
        for side, take in takers.items():
            if side not in reasons and (why := _turn(take, found[side])):
                reasons[side] = why
    return result(row, processes, one_mm, {side: turns for side, turns in found.items() if side not in reasons}, reasons)


def _turn(take: Callable[[], list[float]], found: list[list[float]]) -> str:
    """Add the samples of one turn; or why there are none."""
    said = ""
    for _ in range(TRIES):
        try:
            found.append(take())
            return ""
        except NotHere as why:
            said = str(why)
    return said


def result(row: Row, processes: int, one_mm: bool, found: dict[str, list[list[float]]],
           reasons: dict[str, str]) -> dict[str, Any]:
    """A row for JSON; the sides that gave no figure are null.

    Some figures are what is left of one time when another is taken away: what is not above nothing is none.
    """
    lost = [side for side, turns in found.items() if spread([sample for turn in turns for sample in turn]).median <= 0]
    reasons = reasons | dict.fromkeys(lost, "lost in the noise of this machine")
    found = {side: turns for side, turns in found.items() if side not in lost}
    data: dict[str, Any] = {"name": row.name, "kind": row.kind, "unit": "ns", "per": row.per, "processes": processes,
                            "mm": "one" if one_mm else "own"}
    every = ("emulator", "kernel", "multiprocess", *(("pthread", "fcntl") if row.kind == "lock" else ()))
    for side in every:
        figures = spread([sample for turn in found[side] for sample in turn]) if side in found else None
        data |= {side: figures and round(figures.median, 2), f"{side}_q1": figures and round(figures.q1, 2),
                 f"{side}_q3": figures and round(figures.q3, 2)}
    for side in every[1:]:
        against = ratio(found[side], found["emulator"]) if side in found else None
        data |= {f"ratio_{side}": against and round(against.median, 2), f"ratio_{side}_low": against and round(against.low, 2),
                 f"ratio_{side}_high": against and round(against.high, 2)}
    data["reason"] = "; ".join(f"{side}: {why}" for side, why in reasons.items()) or None
    return data
