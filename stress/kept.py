"""What a failed free run leaves in its directory: a report, its event rings as a trace, and the search for a schedule."""

import sys
from pathlib import Path
from typing import Any

from concur_thp.check.dump import dump_cpu
from concur_thp.config import MachineConfig
from concur_thp.output import console
from concur_thp.trace.html import ReportPage, report_html
from concur_thp.trace.perfetto import rings_trace
from stress.clues import Clue, noticed_by, read_clue
from stress.exploring.handover import tell, write_all, write_files
from stress.options import StressOptions
from stress.progress import Line
from stress.reproduce import Reproduced, reproduce

LAST_EVENTS = 24
"""Of each CPU, in the report."""


def keep(config: MachineConfig, run_dir: Path, symptom: str, text: str, again: str) -> Clue:
    """Write down the machine that is still there."""
    clue = read_clue(config, symptom, noticed_by())
    titles = {cpu: "; ".join(steps) for cpu, steps in clue.steps.items()}
    texts = {
        "What was found": text,
        "Each CPU, and its last events": "\n\n".join(dump_cpu(config, cpu, LAST_EVENTS) for cpu in range(config.cpus)),
        "What each CPU did last, as steps": "\n".join(f"cpu {cpu}: {title}" for cpu, title in titles.items()),
    }
    facts = {"order": str(config.order), "seed": str(config.seed)}
    page = ReportPage(f"stress: {run_dir.name}", symptom, facts, again, texts)
    trace = rings_trace(config, titles, run_dir.name)
    for problem in write_files(run_dir, (("report.html", report_html(page)), ("trace.pftrace", trace))):
        print(f"not kept: {problem}", file=sys.stderr)
    return clue


def search(clue: Clue, options: StressOptions, run_dir: Path, data: dict[str, Any]) -> None:
    """Try to reproduce the failure one CPU at a time; what is found is told, kept, and named in the summary."""
    with Line(console(options.quiet)) as line:
        found = reproduce(clue, options.reproduce, tick=line.say)
    print(found, file=sys.stderr)
    data["reproduced"] = {"token": str(found.token) if found.token else None, "schedules": found.schedules,
                          "programs": found.attempts, "seconds": round(found.seconds, 1),
                          "other": str(found.other) if found.other else None}
    if found.token and data["violations"]:
        data["violations"][0]["token"] = str(found.token)
    if found.token or found.other:
        _keep_schedule(found, options, run_dir, data["reproduced"])


def _keep_schedule(found: Reproduced, options: StressOptions, run_dir: Path, data: dict[str, Any]) -> None:
    token = found.token or found.other
    assert token is not None
    told = tell(token, found.failure)
    if told.chart and not options.quiet:
        print(f"\n{told.chart}\n", file=sys.stderr)
    folder = run_dir / ("reproduced" if found.token else "another")
    try:
        folder.mkdir()
    except OSError as error:
        print(f"not kept: {folder}: {error.strerror}", file=sys.stderr)
        return
    for problem in write_all(folder, told, data, folder.name):
        print(f"not kept: {problem}", file=sys.stderr)


__all__ = ["keep", "search"]
