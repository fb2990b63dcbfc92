"""Recordings on both sides: the faults Linux took, and the faults of the same touches and calls in the emulator.

A recording's own touches, with THP as it was when they were recorded, have to come to Linux's faults. The touches of the run
without THP are also replayed with THP, beside what Linux took in a second run with it: this is shown and not judged, because
no program does the same twice (redis under load took 40 % more copy-on-write faults in one of its runs).
"""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from concur_thp.config import MachineConfig
from concur_thp.errors import EmulatorError, KernelBug
from concur_thp.machine import Machine
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.output import compile_progress, console, result_console, write_json
from stress.recordings.count import faults_by_region, recorded_by_region, tasks_of
from stress.replay import Replay, end_pass, load_programs, load_recordings, needed_memory, replay_body, start_pass
from workers.launch import Crew, Role

NEAR = 0.02
"""Of the faults that Linux took: more is a difference. Programs do not do the same twice to the page."""
ROOM = 1.25


def compare_recordings(paths: tuple[str, ...], json_path: str, quiet: bool) -> int:
    """Replay each with THP as it was recorded, print the table; 0 when all are near."""
    rows = [row for path in paths for row in _recording(path, console(quiet))]
    differ = [row for row in rows if row["own"] and not row["near"]]
    data = {"verdict": "differ" if differ else "agree", "recordings": rows, "programs": len(rows),
            "steps": sum(row["steps"] for row in rows), "agree": sum(row["own"] for row in rows) - len(differ),
            "differ": [row["name"] for row in differ],
            "compared": [{"fact": f"faults of {row['name']}", "number": row["linux"]} for row in rows if row["own"]],
            "skipped": sum(row["linux"] for row in rows if not row["own"])}
    write_json(json_path, data)
    out = result_console(quiet, json_path)
    for row in rows:
        _say(out, row)
    for row in differ:
        print(f"concur-thp: {row['name']}: {row['emulator']:,} faults here and {row['linux']:,} on Linux", file=sys.stderr)
    return 1 if differ else 0


def _recording(path: str, out: Console) -> list[dict[str, Any]]:
    """A recording replayed by itself; and one made without THP also with THP, against its twin."""
    alone = load_recordings((path,))[0]
    twin, alone.twin = alone.twin, None
    never = "-never" in Path(path).name
    rows = [_row(alone, "never" if never else "always", alone, out)]
    if never and twin is not None:
        again = load_recordings((path,))[0]
        rows.append(_row(again, "always", Replay(again.name, twin, None, again.without_thp), out))
    return rows


def _row(replay: Replay, enabled: str, wanted: Replay, out: Console) -> dict[str, Any]:
    """`wanted`: whose recorded faults are Linux's."""
    _run(replay, enabled, out)
    linux = recorded_by_region(wanted.plan)
    once = faults_by_region(wanted.plan, enabled == "always", disabled=tasks_of(wanted.plan, wanted.without_thp))
    total, here = sum(linux.values()), replay.faults[0]
    regions = {name: {"emulator": replay.by_region[name], "linux": linux[name], "linux_once": once[name]}
               for name in sorted(replay.by_region.keys() | linux.keys()) if replay.by_region[name] or linux[name]}
    own = wanted.plan is replay.plan
    return {"name": f"{replay.name} with THP {enabled}" + ("" if own else ", beside the run that was recorded so"), "own": own,
            "recording": replay.name, "enabled": enabled, "steps": replay.replayed, "emulator": here, "linux": total,
            "linux_once": sum(once.values()), "ratio": round(here / total, 4) if total else None,
            "near": abs(here - total) <= NEAR * total or abs(here - sum(once.values())) <= NEAR * total,
            "regions": regions}


def _run(replay: Replay, enabled: str, out: Console) -> None:
    """One pass on one CPU."""
    memory = int(needed_memory([replay]) * ROOM) + (64 << 20)
    tasks = len(replay.plan.tasks)
    config = MachineConfig(cpus=1, memory=memory >> 20 << 20, rows=replay.rows, tasks=tasks,
                           files=max(1024, replay.plan.files + 64), mms=max(64, 2 * tasks + 8))
    with compile_progress(out) as progress, Machine(config, progress=progress) as machine:
        progress.finish()
        set_switch("enabled", enabled)
        load_programs(machine, [replay])
        start_pass([replay])
        with Crew(machine, [Role("cpu0", 0, replay_body)]) as crew:
            outcome = crew.watch(None, lambda: None)
        if outcome.kind == "bug":
            raise KernelBug(f"{replay.name}: {outcome.what}")
        if outcome.kind != "done" or not end_pass([replay]):
            raise EmulatorError(f"{replay.name}: the replay did not finish: {outcome.what or outcome.kind}")


def _say(out: Console, row: dict[str, Any]) -> None:
    out.print(f"{row['name']}: {row['emulator']:,} faults here, {row['linux']:,} on Linux (ratio {row['ratio']:.3f})"
              f"{'' if row['near'] or not row['own'] else '  DIFFER'}", markup=False)
    for name, figures in row["regions"].items():
        out.print(f"  {name:10} {figures['emulator']:>9,} here {figures['linux']:>9,} on Linux"
                  f" {figures['linux_once']:>9,} without second faults of the same moment", markup=False)
