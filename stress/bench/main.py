"""`concur-thp bench`: what an operation costs here, on the running kernel, and as a plain multiprocess lock.

The sides take turns (A B A B), so that a machine whose speed drifts slows all of them alike; medians are compared.
"""

import functools
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import multiprocess
from rich.table import Table

from concur_thp.errors import Misuse
from concur_thp.machine import Machine
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.output import compile_progress, console, write_json
from stress.bench import host_kernel, host_locks
from stress.bench.children import Measured, NotHere, in_children
from stress.bench.emulator import ROWS, Bed

TURNS = 3
"""How often the sides take turns."""
PROCESSES = (1, 2)
MEMORY = "1G"


@dataclass(frozen=True)
class BenchOptions:
    """`only`: names of rows, empty for all; `rounds`: samples of each side in each turn."""

    only: tuple[str, ...] = ()
    rounds: int = 10
    json: str | None = None
    quiet: bool = False


def run_bench(options: BenchOptions) -> int:
    """Measure, print, return 0."""
    unknown = set(options.only) - set(ROWS)
    if unknown:
        raise Misuse(f"--only {', '.join(sorted(unknown))}: the rows are {', '.join(ROWS)}")
    out = console(options.quiet)
    with compile_progress(out) as progress, Machine(memory=MEMORY, cpus=max(PROCESSES), progress=progress) as machine:
        progress.finish()
        set_switch("enabled", "always")
        set_switch("defrag", "always")
        names = options.only or tuple(ROWS)
        rows = [row(machine, name, processes, options.rounds, out) for name in names for processes in PROCESSES]
    write_json(options.json or "", rows)
    if not options.quiet:
        _table(out, rows)
    return 0


def row(machine: Machine, name: str, processes: int, rounds: int, out: Any) -> dict[str, Any]:
    """One row: the three sides in turns."""
    sides: dict[str, Callable[[], list[float]]] = {
        "emulator": functools.partial(_emulator, machine, name, processes, rounds),
        "kernel": lambda: _samples(host_kernel.measure(name, processes, rounds)),
        "multiprocess": lambda: _samples(host_locks.measure(name, processes, rounds)),
    }
    if name not in host_locks.ROWS:
        del sides["multiprocess"]
    if name not in host_kernel.ROWS:
        del sides["kernel"]
    found: dict[str, list[float]] = {side: [] for side in sides}
    reasons: dict[str, str] = {}
    for turn in range(TURNS):
        if sys.stderr.isatty() and not out.quiet:
            out.print(f"{name}, {processes} process(es), turn {turn + 1} of {TURNS} ...", end="\r")
        for side, run in sides.items():
            try:
                found[side] += run() if side not in reasons else []
            except NotHere as why:
                reasons[side] = str(why)
    return _row(name, processes, found, reasons)


def _emulator(machine: Machine, name: str, processes: int, rounds: int) -> list[float]:
    tickets = multiprocess.get_context("fork").Value("i", 0)

    def job() -> list[float]:
        with tickets.get_lock():
            number, tickets.value = tickets.value, tickets.value + 1
        bed = Bed(machine, number)
        samples = ROWS[name](bed, rounds + 1)[1:]  # The first round touches memory for the first time.
        bed.close()
        return samples

    return in_children(job, processes)


def _samples(measured: Measured) -> list[float]:
    if measured.reason is not None:
        raise NotHere(measured.reason)
    return list(measured.samples)


def _row(name: str, processes: int, found: dict[str, list[float]], reasons: dict[str, str]) -> dict[str, Any]:
    median = {side: statistics.median(samples) for side, samples in found.items() if samples}
    ours = median["emulator"]

    def figure(side: str) -> float | None:
        return round(median[side], 2) if side in median else None

    def ratio(side: str) -> float | None:
        return round(median[side] / ours, 2) if side in median else None

    ordered = sorted(found["emulator"])
    return {
        "name": name, "unit": "ns", "processes": processes, "emulator": figure("emulator"),
        "emulator_p10": round(ordered[len(ordered) // 10], 2), "emulator_p90": round(ordered[-1 - len(ordered) // 10], 2),
        "kernel": figure("kernel"), "multiprocess": figure("multiprocess"), "ratio_kernel": ratio("kernel"),
        "ratio_multiprocess": ratio("multiprocess"), "reason": "; ".join(f"{s}: {r}" for s, r in reasons.items()) or None,
    }


def _table(out: Any, rows: list[dict[str, Any]]) -> None:
    table = Table(title="ns per operation, medians; ratio = theirs / ours", title_justify="left", box=None)
    for heading in ("row", "processes", "emulator", "Linux", "ratio", "multiprocess", "ratio"):
        table.add_column(heading, justify="left" if heading == "row" else "right", no_wrap=True)
    for line in rows:
        cells = [line["processes"], line["emulator"], line["kernel"], line["ratio_kernel"], line["multiprocess"],
                 line["ratio_multiprocess"]]
        table.add_row(line["name"], *("-" if cell is None else f"{cell:,}" for cell in cells))
    out.print(table)
