"""`concur-thp races run`: each scenario free, then under chaos, on a machine of its own; a table of what was seen."""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from concur_thp.arch.system import system
from concur_thp.machine import Machine
from concur_thp.output import compile_progress, console, write_json, write_text
from stress.rundir import make_run_dir
from stress.scenarios.play import CHAOS, Played, machine_config, play
from stress.scenarios.scenario import Scenario

CLEAN, FOUND, BROKEN, INCONCLUSIVE = "clean", "found", "broken", "inconclusive"
EXIT = {CLEAN: 0, FOUND: 1, BROKEN: 3, INCONCLUSIVE: 4}
WORST = (FOUND, BROKEN, INCONCLUSIVE, CLEAN)
"""Verdicts, the one that counts for the whole run first."""
FREE, DELAYED = "free", "chaos"


@dataclass(frozen=True)
class RaceOptions:
    """What `races run` was asked to do."""

    scenarios: tuple[Scenario, ...]
    seconds: float = 5.0
    chaos: bool = False
    order: int = 3
    cpus: int = 1
    seed: int = 1
    run_dir: str = "runs"
    json: str = ""
    quiet: bool = False


@dataclass
class RaceReport:
    """What came of one scenario."""

    scenario: Scenario
    cpus: int
    played: dict[str, Played] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """Outcomes that had to be seen and were not."""
        seen = sum((played.outcomes for played in self.played.values()), Counter())
        return [outcome.name for outcome in self.scenario.outcomes if outcome.must and not seen[outcome.name]]

    @property
    def verdict(self) -> str:
        kinds = {played.crew.kind for played in self.played.values()}
        if any(played.failed for played in self.played.values()):
            return FOUND
        if "broken" in kinds:
            return BROKEN
        return INCONCLUSIVE if kinds - {"done"} or self.missing else CLEAN

    @property
    def json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "name": self.scenario.name, "pairs": list(self.scenario.pairs), "cpus": self.cpus, "verdict": self.verdict,
            "rounds": {way: played.rounds for way, played in self.played.items()},
            "seconds": {way: round(played.seconds, 3) for way, played in self.played.items()},
            "outcomes": [{"name": o.name, "must_be_seen": o.must,
                          "seen": {way: played.outcomes[o.name] for way, played in self.played.items()}}
                         for o in self.scenario.outcomes],
            "missing": self.missing,
            "unlisted": [text for played in self.played.values() for text in played.unlisted],
            "violations": [text for played in self.played.values() for text in played.violations],
            "what": [played.crew.what for played in self.played.values() if played.crew.what],
        }


def run_races(options: RaceOptions) -> int:
    """Run, report, return the exit status."""
    out = console(options.quiet)
    run_dir = make_run_dir(Path(options.run_dir), "races")
    reports: list[RaceReport] = []
    for scenario in options.scenarios:
        report = run_scenario(options, scenario, out)
        reports.append(report)
        show(out, report)
        for line in failure_lines(options, report):
            print(line, file=sys.stderr)
        if any(played.crew.kind == "interrupted" for played in report.played.values()):
            break
    verdict = next(v for v in WORST if any(report.verdict == v for report in reports))
    data = {"verdict": verdict, "order": options.order, "seed": options.seed, "seconds": options.seconds,
            "chaos": options.chaos, "scenarios": [report.json for report in reports], "run_dir": str(run_dir)}
    write_json(str(run_dir / "summary.json"), data)
    texts = [played.crew.report for report in reports for played in report.played.values() if played.crew.report]
    if texts:
        write_text(run_dir / "report.txt", "\n\n".join(texts))
    write_json(options.json, data)
    counts = Counter(report.verdict for report in reports)
    out.print(f"{len(reports)} races: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}; {run_dir}")
    return EXIT[verdict]


def run_scenario(options: RaceOptions, scenario: Scenario, out: Console) -> RaceReport:
    """One scenario, in each way; the second only when the first was clean."""
    report = RaceReport(scenario, max(options.cpus, len(scenario.cpus)))
    config = machine_config(scenario, options.order, report.cpus, options.seed)
    for way in (FREE, DELAYED) if options.chaos else (FREE,):
        with compile_progress(out) as progress, Machine(config, progress=progress) as machine:
            progress.finish()
            machine.listen_checks()
            if way == DELAYED:
                machine.listen_chaos(*CHAOS)
            report.played[way] = play(machine, scenario, options.seconds, report.cpus)
            if system.panicked.load() or report.played[way].failed or report.played[way].crew.kind != "done":
                break
    return report


def show(out: Console, report: RaceReport) -> None:
    """A table of outcomes, and how often each was seen."""
    scenario = report.scenario
    pairs = ", ".join(map(str, scenario.pairs))
    title = f"{scenario.name} (pair {pairs}; {report.cpus} CPUs): {report.verdict}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, title_style="bold")
    table.add_column("outcome", min_width=70)
    for way, played in report.played.items():
        table.add_column(f"{way}, {played.rounds / max(played.seconds, 1e-3):,.0f}/s", justify="right")
    for outcome in scenario.outcomes:
        seen = [played.outcomes[outcome.name] for played in report.played.values()]
        mark = "  <- not seen" if outcome.must and not any(seen) else ""
        table.add_row("  " + outcome.name + mark, *(f"{n:,}" for n in seen))
    out.print(table)


def failure_lines(options: RaceOptions, report: RaceReport) -> list[str]:
    """What went wrong, for standard error."""
    name = report.scenario.name
    lines: list[str] = []
    for way, played in report.played.items():
        lines += [f"{name}, {way}: no outcome allows {text}" for text in played.unlisted]
        lines += [f"{name}, {way}: audit: {text}" for text in played.violations]
        if played.crew.kind != "done":
            lines += [f"{name}, {way}: {played.crew.what}", *filter(None, [played.crew.report])]
    if lines:
        lines.append(f"again: {again(options, report)}")
    return lines


def again(options: RaceOptions, report: RaceReport) -> str:
    """The command that plays the race again. (Rounds repeat what each CPU does, not when.)"""
    words = [f"concur-thp races run {report.scenario.name} --seconds {options.seconds:g} --order {options.order}",
             f"--cpus {report.cpus} --seed {options.seed}"]
    return " ".join(words + (["--chaos"] if options.chaos else []))


__all__ = ["RaceOptions", "RaceReport", "run_races", "run_scenario"]
