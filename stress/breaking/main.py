"""`concur-thp break ID...` and `break --all`: break rules on purpose, one variant after another, and say what noticed."""

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from loguru import logger
from rich.table import Table

from concur_thp.errors import Misuse
from concur_thp.machine import Machine
from concur_thp.output import compile_progress, console, result_console, write_json
from concur_thp.rules import rule as data
from concur_thp.rules.table import RULES, variants_named
from stress.breaking.hunt import Hunted, hunt, job_for
from stress.exploring.explorer import link_for
from stress.exploring.handover import tell, write_all
from stress.progress import Line
from stress.rundir import log_in, make_run_dir
from stress.scenarios.registry import SCENARIOS


@dataclass(frozen=True)
class BreakOptions:
    """What the command line said."""

    ids: tuple[str, ...]
    everything: bool
    seconds: float
    seed: int
    order: int | None
    json: str
    quiet: bool
    run_dir: str


def run_break(options: BreakOptions) -> int:
    """Hunt variants; 0 when each was caught and the real code was clean, else 1."""
    Machine._import_kernel()
    rows = wanted(options)
    out, result = console(options.quiet), result_console(options.quiet, options.json, soft_wrap=False)
    with compile_progress(out) as progress:
        link_for(job_for(rows[0], options.seed, options.order), None, progress)
    run_dir = make_run_dir(Path(options.run_dir), "break")
    hunted: list[Hunted] = []
    with log_in(run_dir), Line(out) as progress_line:
        for number, row in enumerate(rows, 1):
            logger.info("{}: {}, on {}", row.id, row.mistake, row.scenario)
            what = f"{number} of {len(rows)}: {row.id} {row.mistake}"
            one = hunt(row.id, options.seed, options.seconds, options.order,
                       lambda tally, what=what: progress_line.say(f"{what}: {tally.schedules} schedules"))  # type: ignore[misc]
            logger.info(line(one))
            hunted.append(one)
            drawn = _keep(run_dir, one)
            if len(rows) > 1:
                result.print(line(one), highlight=False, markup=False, soft_wrap=True)
    rows_json = [one.json for one in hunted]
    write_json(str(run_dir / "summary.json"), rows_json)
    write_json(options.json, rows_json if options.everything or len(rows) > 1 else rows_json[0])
    if len(rows) == 1:
        result.print(whole(hunted[0]))
        result.out(f"\n{drawn}", highlight=False)
    else:
        result.print(total(hunted), highlight=False, soft_wrap=True)
    return status(hunted)


def status(hunted: list[Hunted]) -> int:
    """0 when each was as it should be; 4 when the only ones that were not are those that somebody disturbed; else 1."""
    bad = [one for one in hunted if not good(one)]
    if not bad:
        return 0
    return 4 if all(one.problem and one.control is None for one in bad) else 1


def wanted(options: BreakOptions) -> list[data.Variant]:
    """The variants that were asked for; those whose scenario does not exist are refused."""
    if options.everything:
        rows = [variant for rule in RULES for variant in rule.variants]
    else:
        rows = [variant for name in options.ids for variant in variants_named(name)]
    missing = sorted({row.scenario for row in rows} - set(SCENARIOS))
    if missing and not options.everything:
        raise Misuse(f"the scenario {missing[0]} of {', '.join(r.id for r in rows if r.scenario == missing[0])} does not exist")
    rows = [row for row in rows if row.scenario in SCENARIOS]
    if not rows:
        raise Misuse("pass rules or variants, such as R18 or R18a, or --all; `concur-thp rules` lists them")
    return rows


def good(one: Hunted) -> bool:
    """Caught, or equivalent and not caught; and the real code was clean."""
    return bool(one.control_clean) and one.caught != one.variant.equivalent


def _keep(run_dir: Path, one: Hunted) -> str:
    """Everything about a failure, in a directory of its own; returns its chart."""
    if one.failure is None or one.token is None:
        return ""
    told = tell(one.token, one.failure)
    folder = run_dir / one.id
    folder.mkdir()
    for problem in write_all(folder, told, one.json, f"break {one.id}"):
        print(f"not kept: {problem}", file=sys.stderr)
    return told.chart


def line(one: Hunted) -> str:
    """A variant in one line."""
    if one.failure is None:
        verdict = "equivalent, not noticed" if one.variant.equivalent else "NOT CAUGHT"
        verdict += f" ({one.problem})" if one.problem else ""
        return f"{one.id:6} {verdict} in {one.seconds:.1f} s, {one.tries} schedules of {one.variant.scenario}"
    clean = "  AND SO IS THE REAL CODE" if one.control else f"  (the real code: {one.problem})" if not one.control_clean else ""
    symptom = one.failure.symptom if len(one.failure.symptom) < 100 else one.failure.symptom[:97] + "..."
    attempt = f"{one.attempt.strategy} {one.attempt.depth}" if one.attempt else ""
    return (f"{one.id:6} caught in {one.seconds:.1f} s, {one.tries} schedules ({attempt}), {one.failure.preemptions} "
            f"preemptions: {one.failure.kind}: {symptom}{clean}")


def whole(one: Hunted) -> Table:
    """Everything about one variant."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    failure = one.failure
    facts = [("variant", f"{one.id}: {one.variant.mistake}"), ("scenario", one.variant.scenario),
             ("expected", "; ".join(one.variant.symptoms)),
             ("caught", f"in {one.seconds:.2f} s, {one.tries} schedules" if one.caught else f"no, {one.tries} schedules")]
    if failure is not None:
        facts += [("symptom", f"{failure.kind}: {failure.symptom}"), ("shrunk", f"{failure.preemptions} preemptions"),
                  ("again", f"concur-thp replay {one.token}")]
    if one.problem:
        facts.append(("disturbed", one.problem))
    dirty = f"NOT CLEAN: {one.control.symptom}" if one.control else "not known"
    facts.append(("real code", "clean" if one.control_clean else dirty))
    for name, value in facts:
        table.add_row(name, value)
    return table


def total(hunted: list[Hunted]) -> str:
    """The last line of a campaign."""
    aimed = [one for one in hunted if not one.variant.equivalent]
    caught = [one for one in aimed if one.caught]
    seconds = [one.seconds for one in caught] or [0.0]
    preemptions = [one.failure.preemptions for one in caught if one.failure] or [0]
    dirty = [one.id for one in hunted if one.control]
    unknown = [one.id for one in hunted if one.control_clean is None]
    return (f"{len(caught)} of {len(aimed)} broken variants caught, median {statistics.median(seconds):.2f} s, "
            f"most {max(seconds):.1f} s; median of {statistics.median(preemptions):g} preemptions; "
            f"{sum(1 for one in hunted if one.variant.equivalent and not one.caught)} equivalent ones passed; "
            + (f"real code not clean in {', '.join(dirty)}" if dirty else "real code clean")
            + (f"; somebody ended cells of {', '.join(unknown)}" if unknown else ""))


__all__ = ["BreakOptions", "run_break"]
