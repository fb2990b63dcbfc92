"""A failure handed over whole: everything that is known about it, as files of a run directory, and the chart for the terminal.

Each file appears whole or not at all. A directory that cannot be written takes nothing away from what is said on the terminal.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loguru import logger

from concur_thp.arch.checked import sites
from concur_thp.check.dump import dump_page, report_text
from concur_thp.output import write_bytes, write_text
from concur_thp.rules.table import ROOT, VARIANTS, resolve
from concur_thp.sched.state import Reason, Verdict
from concur_thp.trace.chart import LEAST_WEIGHT, chart
from concur_thp.trace.html import ReportPage, report_html
from concur_thp.trace.perfetto import story_trace
from concur_thp.trace.story import Line, Story
from stress.exploring.job import Failure, Job, Schedule
from stress.exploring.telling import Teller
from stress.exploring.token import Token
from stress.scenarios.registry import scenario_named

MOST_PAGES = 4


@dataclass
class Told:
    """A failure, told."""

    token: Token
    chart: str = ""
    dump: str = ""
    trace: bytes = b""
    schedule: list[dict[str, Any]] = field(default_factory=list)


def programs_of(job: Job) -> dict[int, str]:
    """What each CPU's program does; that it enters its mm first goes without saying."""
    programs = job.programs or scenario_named(job.scenario).cpus
    return {number: text.strip().removeprefix("enter 0;").strip() for number, text in enumerate(programs)}


def tell(token: Token, failure: Failure | None = None) -> Told:
    """Step through a failure's schedule once more and draw it. `link_for` of its job was called before."""
    told = Told(token)
    if failure is not None:
        told.dump = failure.report
    if not token.job.plan:
        return told
    try:
        told.schedule = readable(token.job.plan)
        with Teller(token.job) as teller:
            story = teller.tell(token.job.plan)
            config = teller.cell.machine.config
            titles = programs_of(token.job)
            told.chart = chart(story, titles, ending(story, token))
            pages = "\n".join(dump_page(config, pfn) for pfn in pages_of(story)[:MOST_PAGES])
            told.dump = f"{told.dump or report_text(config, what=token.symptom)}\n\n{pages}".rstrip()
            told.trace = story_trace(story, config, titles, f"{token.job.scenario}: {token.symptom}")
    except Exception as error:  # The failure is what matters; that it cannot be drawn is for the log.
        logger.opt(exception=True).error(f"the run could not be told: {error}")
    return told


def ending(story: Story, token: Token) -> str:
    """Below the chart: what was found, which rule forbids it, and where each CPU stood."""
    lines = [f"{token.kind}: {token.symptom}"]
    if token.job.variant in VARIANTS:
        rule, variant = VARIANTS[token.job.variant]
        lines += [f"{rule.id}: {rule.statement}", f"broken by {variant.id}: {variant.mistake}"]
        lines += [f"  {line.function} {line}: {line.text}" for line in map(resolve, rule.enforced_in[:2])]
    for cpu in range(story.nr_cpus):
        mine = [line for line in story.lines if line.cpu == cpu]
        if story.verdict == Verdict.FINISHED:  # They all stood at their ends: where each met another last.
            mine = [line for line in mine if any(t.name.weight >= LEAST_WEIGHT for t in line.decisive)] or mine
        if here := mine[-1:]:
            lines.append(f"CPU{cpu}: {here[0].function} {at(here[0])}: {here[0].where.text}")
    return "\n".join(lines)


def at(line: Line) -> str:
    """File and line, from the top of the project."""
    path = Path(line.where.file)
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{line.where.line}"


def pages_of(story: Story) -> list[int]:
    """Frames that the CPUs met at, those met most often first."""
    counts: dict[int, int] = {}
    for line in story.lines:
        for touch in line.decisive:
            if touch.name.text.startswith("page 0x"):
                pfn = int(touch.name.text.split()[1], 16)
                counts[pfn] = counts.get(pfn, 0) + 1
    return sorted(counts, key=lambda pfn: -counts[pfn])


def readable(schedule: Schedule) -> list[dict[str, Any]]:
    """A schedule with names for its numbers."""
    known = sites()
    rows = []
    for stretch in schedule:
        site = known.get(stretch.site)
        path = Path(site.file) if site else Path()
        where = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        rows.append({"cpu": stretch.cpu, "steps": stretch.steps, "reason": Reason(stretch.reason).name.lower(),
                     "function": site.function if site else "user code", "at": f"{where}:{site.line}" if site else "",
                     "statement": site.text if site else ""})
    return rows


def write_all(run_dir: Path, told: Told, summary: Any, name: str) -> list[str]:
    """The files of a failure; returns what could not be written and why."""
    token = told.token
    page = ReportPage(
        title=name, symptom=f"{token.kind}: {token.symptom}", facts=facts(token), again=f"concur-thp replay {token}",
        texts={"What happened": told.chart, "The machine at the end": told.dump}, schedule=told.schedule)
    files: Sequence[tuple[str, str | bytes]] = (
        ("token.txt", f"{token}\n"), ("summary.json", json.dumps(summary, indent=2) + "\n"),
        ("schedule.json", json.dumps(told.schedule, indent=1) + "\n"), ("chart.txt", f"{told.chart}\n"),
        ("report.txt", f"{token.kind}: {token.symptom}\n\n{told.dump}\n"), ("report.html", report_html(page)),
        ("trace.pftrace", told.trace))
    return write_files(run_dir, files)


def write_files(run_dir: Path, files: Sequence[tuple[str, str | bytes]]) -> list[str]:
    """Each whole or not at all; what is empty is left out."""
    failed = []
    for file, data in files:
        try:
            if isinstance(data, bytes) and data:
                write_bytes(run_dir / file, data)
            elif isinstance(data, str) and data.strip():
                write_text(run_dir / file, data)
        except OSError as error:
            failed.append(f"{run_dir / file}: {error.strerror}")
    return failed


def facts(token: Token) -> dict[str, str]:
    """What the run was."""
    job = token.job
    found = {"scenario": job.scenario, "order": str(job.order), "seed": str(job.seed), "code": token.code}
    found |= {f"CPU{number}": text for number, text in programs_of(job).items() if text}
    if job.variant in VARIANTS:
        rule, variant = VARIANTS[job.variant]
        found |= {"rule": f"{rule.id}: {rule.statement}", "variant": f"{variant.id}: {variant.mistake}"}
    return found


__all__ = ["Told", "ending", "facts", "programs_of", "readable", "tell", "write_all", "write_files"]
