"""`concur-thp explore` and `concur-thp replay`."""

import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loguru import logger

from concur_thp.errors import Misuse
from concur_thp.machine import Machine
from concur_thp.output import compile_progress, console, result_console, write_json
from stress.exploring.autopsy import Repeat, in_a_fork
from stress.exploring.cell import Cell
from stress.exploring.explorer import Explored, Explorer, link_for
from stress.exploring.handover import Told, tell, write_all
from stress.exploring.job import PROGRAMS, Failure, Job, Tally
from stress.exploring.shrink import shrink_in_a_fork
from stress.exploring.token import Token, fingerprint
from stress.exploring.variants import variant_of
from stress.progress import Line
from stress.rundir import log_for_later, make_run_dir
from stress.scenarios.registry import SCENARIOS, scenario_named

ALL = "all"
"""Stands for every scenario."""
EXIT = {"pass": 0, "fail": 1, "inconclusive": 4}
THROUGH = {"dfs": "every schedule with so few preemptions was run",
           "dpor": "every schedule was run, but for those that differ from one of them only in the order of steps that commute"}
"""What a strategy that is through has done."""
CLEAN_RUNS_BOUND = 3
"""After n clean runs the chance of a failure is below 3/n, at 95 % (the rule of three)."""


@dataclass(frozen=True)
class ExploreOptions:
    """What the command line said."""

    job: Job
    schedules: int
    seconds: float
    cells: int = 0
    json: str = ""
    quiet: bool = False
    run_dir: str = "runs"
    shrink_seconds: float = 10.0


def run_explore(options: ExploreOptions) -> int:
    """Explore a scenario, or all of them one after another; report, return the exit status."""
    job = options.job
    if job.scenario != ALL:
        scenario_named(job.scenario)
    with compile_progress(console(options.quiet)) as progress:
        link_for(job, None, progress)
    if job.scenario == ALL:
        return _explore_all(options)
    data, explored = _explore(options)
    write_json(options.json, data)
    _say(options, data, explored)
    return EXIT[explored.verdict]


def _explore_all(options: ExploreOptions) -> int:
    """Every scenario for its share of the time; a line each, and a list as JSON."""
    out = result_console(options.quiet, options.json)
    share = options.seconds / len(SCENARIOS)
    rows, worst = [], 0
    for name in SCENARIOS:
        data, explored = _explore(replace(options, job=replace(options.job, scenario=name), seconds=share))
        rows.append(data)
        worst = max(worst, EXIT[explored.verdict], key=lambda status: (status == 1, status))
        out.print(f"{explored.verdict:5} {name:40} {data['schedules']:>9} schedules, {data['states']:>5} ends, "
                  f"{len(data['outcomes'])} outcomes", highlight=False)
        if explored.failure is not None:
            _say_failure(data, explored.failure)
        if explored.interrupted:
            break
    write_json(options.json, rows)
    total, failed = sum(row["schedules"] for row in rows), sum(1 for row in rows if row["verdict"] == "fail")
    out.print(f"{len(rows)} scenarios, {total} schedules, {failed} with a failure", highlight=False)
    return worst


def _explore(options: ExploreOptions) -> tuple[dict[str, Any], Explored]:
    """One exploration."""
    job = options.job
    with log_for_later() as keep_log:
        logger.info("explore {}", {name: value for name, value in vars(job).items() if value})
        began = time.monotonic()
        explorer = Explorer(job, cells=options.cells, schedules=options.schedules, seconds=options.seconds)
        with Line(console(options.quiet)) as progress_line:
            explored = explorer.run(lambda tally: progress_line.say(_line(job, tally)))
        seconds = time.monotonic() - began
        logger.info("{}, {:.1f} s", _line(job, explored.tally), seconds)
        told = _shrunk(options, explored) if explored.failure else None
        data = summary(job, explored, seconds, told.token if told else None)
        if told is not None:
            _keep(options, data, told, keep_log)
            if told.chart and not options.quiet:
                print(f"\n{told.chart}\n", file=sys.stderr)
    return data, explored


def _line(job: Job, tally: Tally) -> str:
    return f"{job.scenario}: {tally.schedules} schedules, {tally.distinct} different, {tally.states} ends"


def _shrunk(options: ExploreOptions, explored: Explored) -> Told:
    """Shrink the failure, and tell it."""
    failure = explored.failure
    assert failure is not None
    logger.info("{} after {} runs, {} preemptions: {}", failure.kind, failure.runs, failure.preemptions, failure.symptom)
    job, small = shrink_in_a_fork(replace(options.job, repeat=False), None, failure, options.shrink_seconds)
    explored.failure = small
    small.seconds, small.runs = failure.seconds, failure.runs
    logger.info("shrunk to {} preemptions: {}", small.preemptions, small.symptom)
    return tell(Token.of(job, small), small)


def _keep(options: ExploreOptions, data: dict[str, Any], told: Told, keep_log: Callable[[Path], None]) -> None:
    """The run directory. Where none can be made, the failure is told on the terminal all the same."""
    name = f"explore-{options.job.scenario}"
    try:
        run_dir = make_run_dir(Path(options.run_dir), name)
    except Misuse as error:
        print(f"not kept: {error}", file=sys.stderr)
        return
    data["run_dir"] = str(run_dir)
    for problem in write_all(run_dir, told, data, name):
        print(f"not kept: {problem}", file=sys.stderr)
    with suppress(OSError):  # Said above, if it is the disk.
        keep_log(run_dir)


def summary(job: Job, explored: Explored, seconds: float, token: Token | None) -> dict[str, Any]:
    """`explore --json`."""
    tally, failure = explored.tally, explored.failure
    violations = []
    if failure is not None:
        violations = [{"rule": None, "invariant": failure.kind, "symptom": failure.symptom, "cpu": failure.cpu,
                       "function": failure.function, "token": str(token), "preemptions": failure.preemptions}]
    per_second = tally.schedules / tally.seconds if tally.seconds else 0.0
    return {"verdict": explored.verdict, "scenario": job.scenario, "strategy": job.strategy, "depth": job.depth,
            "order": job.order, "seed": job.seed, "schedules": tally.schedules, "distinct": tally.distinct,
            "distinct_at_least": tally.full, "cut": tally.cut, "steps": tally.steps, "states": tally.states,
            "seconds": round(seconds, 3), "schedules_per_second": round(per_second), "exhausted": tally.exhausted,
            "outcomes": tally.outcomes, "repeated": tally.schedules if job.repeat else 0,
            "bound": CLEAN_RUNS_BOUND / tally.schedules if tally.schedules and not failure else None,
            "token": str(token) if token else None, "violations": violations, "run_dir": None}


def _say(options: ExploreOptions, data: dict[str, Any], explored: Explored) -> None:
    out = result_console(options.quiet, options.json)
    what = (THROUGH.get(data["strategy"], "every schedule there is was run") if data["exhausted"]
            else f"with 95 % confidence fewer than one schedule in {max(data['schedules'] // 3, 1)} drawn like these fails")
    least = "at least " if data["distinct_at_least"] else ""
    out.print(f"{data['scenario']}: {data['verdict']}, {data['schedules']} schedules ({least}{data['distinct']} different, "
              f"{data['states']} ends) in {data['seconds']:.1f} s, {data['schedules_per_second']} a second, {data['strategy']}",
              highlight=False)
    if explored.outside:
        print(explored.outside, file=sys.stderr)
    if explored.failure is None:
        out.print(what, highlight=False)
        for name, count in sorted(data["outcomes"].items(), key=lambda item: -item[1]):
            out.print(f"  {count:>10}  {name}", highlight=False)
        return
    _say_failure(data, explored.failure)


def _say_failure(data: dict[str, Any], failure: Failure) -> None:
    for line in (f"{failure.kind}: {failure.symptom}",
                 f"after {failure.runs} runs; shrunk to {failure.preemptions} preemptions",
                 f"again: concur-thp replay {data['token']}", *([f"kept in {data['run_dir']}"] if data["run_dir"] else [])):
        print(line, file=sys.stderr)


def run_replay(token: Token, times: int, json: str, quiet: bool, draw: bool = False) -> int:
    """Run a token's schedule again and again; 0 when each time the same happened. `draw`: print its chart, too."""
    out = console(quiet)
    if token.job.scenario == PROGRAMS:
        raise Misuse(f"the token is of {PROGRAMS} ({', '.join(token.job.programs)}): replay it where they are declared, with "
                     "m.explore(token=\"...\")")
    Machine._import_kernel()
    variant = variant_of(token.job)
    with compile_progress(out) as progress:
        link_for(token.job, variant, progress)
    ends: Counter[str] = Counter()
    diverged = -1
    with Cell(token.job) as cell:
        if variant is not None:
            variant.put()
        for _ in range(times):
            failure = again(cell, token)
            ends[f"{failure.kind}: {failure.symptom}" if failure else "nothing"] += 1
            if failure is not None and failure.kind == "diverged" and diverged < 0:
                diverged = failure.diverged
    same = ends[f"{token.kind}: {token.symptom}"]
    data = {"times": times, "same": same, "diverged_at": None if diverged < 0 else diverged, "kind": token.kind,
            "symptom": token.symptom, "scenario": token.job.scenario, "code_changed": token.code != fingerprint()}
    write_json(json, data)
    result = result_console(quiet, json)
    for text, count in ends.items():
        result.print(f"{count} of {times}: {text}", highlight=False)
    if draw:
        told = tell(token)
        (sys.stderr if json == "-" else sys.stdout).write(f"\n{told.chart or 'the run could not be told, see the log'}\n")
    if data["code_changed"] and same < times:
        print("the kernel's code has changed since this was recorded", file=sys.stderr)
    return 0 if same == times else 1


def again(cell: Cell, token: Token) -> Failure | None:
    """One replay."""
    if token.kind in ("crash", "hung"):
        cell.controlled.choose("replay")
        cell.plan(token.job.plan)
        return in_a_fork(cell, Repeat())
    return cell.follow(token.job.plan)


__all__ = ["ExploreOptions", "again", "run_explore", "run_replay"]
