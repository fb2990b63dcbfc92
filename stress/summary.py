"""What a stress run was: the JSON of design section 10, and the closing table."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from concur_thp.check.instant import checks_made
from concur_thp.check.lock_stat import lock_stat
from concur_thp.mm.vmstat import vmstat
from stress.mix.load import mix_operations
from stress.progress import operations_done
from stress.recordings.count import faults_by_region, recorded_by_region, tasks_of
from stress.replay import Replay

HAPPENED: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("huge pages", (("thp_fault_alloc", "faulted in"), ("thp_fault_fallback", "fell back"),
                    ("thp_collapse_alloc", "collapses begun"), ("khugepaged_pages_collapsed", "done"))),
    ("splits", (("thp_split_pmd", "pmds"), ("thp_split_page", "pages"), ("thp_split_page_failed", "refused"),
                ("thp_deferred_split_page", "queued for later"), ("deferred_split_drained", "of the queue split"))),
    ("reclaim", (("allocstall", "direct"), ("pageoutrun", "by kswapd"), ("pgsteal_direct", "pages direct"),
                 ("pgsteal_kswapd", "by kswapd"), ("pglazyfreed", "lazily freed"), ("alloc_failed", "out of memory"))),
    ("swap", (("pswpout", "pages out"), ("pswpin", "in"), ("thp_swpout", "THPs whole"),
              ("thp_swpout_fallback", "THPs split for it"))),
    ("moved", (("pgmigrate_success", "pages migrated"), ("pgmigrate_fail", "not"), ("thp_migration_success", "THPs"),
               ("thp_migration_fail", "not"), ("compact_stall", "direct compactions"), ("compact_success", "with success"))),
    ("by frame", (("pfn_scan_got", "looked at by the scanner"), ("pfn_scan_missed", "not to be had"),
                  ("memory_failure", "memory failures"), ("memory_unpoisoned", "given back"))),
)
"""Rows of the closing table: what happened, by counters of vmstat. What never happened is left out."""
NEAR = 0.02
"""Replayed faults further than this from Linux's are explained by region."""


def summary(run: Any, run_dir: Path) -> dict[str, Any]:
    """The keys of `stress --json`."""
    done = operations_done()
    operations = {} if run.replays else {name: row["done"] for name, row in mix_operations().items()}
    verdict = {0: "pass", 1: "fail", 3: "error", 4: "inconclusive"}[run.exit_status]
    return {
        "verdict": verdict, "seconds": round(run.seconds, 3), "cpus": run.options.cpus, "seed": run.options.seed,
        "operations": operations or {"rows": done}, "operations_per_second": round(done / max(run.seconds, 1e-9)),
        "violations": _violations(run),
        "instant_checks": checks_made(),
        "audit": {"checks": run.audit.checks, "failed": len(run.audit.violations)},
        "vmstat": vmstat(), "lock_stat": [row._asdict() for row in lock_stat()],
        "recordings": [_recording(replay) for replay in run.replays],
        "passes": run.passes, "outcome": run.outcome.kind, "what": run.outcome.what, "run_dir": str(run_dir),
    }


def _violations(run: Any) -> list[dict[str, Any]]:
    rows = [{"rule": v.law, "invariant": v.law, "symptom": v.what, "cpu": None, "function": None, "token": None}
            for v in run.audit.violations]
    if run.outcome.kind in ("bug", "crashed", "hung"):
        what = run.outcome.what
        law = what.partition(":")[0] if ":" in what[:10] else run.outcome.kind
        function = what.partition(" in ")[2].partition(" on cpu")[0] or None
        rows.insert(0, {"rule": law, "invariant": law, "symptom": what, "cpu": run.outcome.cpu, "function": function,
                        "token": None})
    return rows


def _recording(replay: Replay) -> dict[str, Any]:
    faults = replay.faults[0] if replay.faults else None
    wanted = replay.faults_wanted
    return {
        "name": replay.name, "tasks": len(replay.plan.tasks), "events": replay.plan.events,
        "replayed": replay.replayed, "faults": faults, "faults_recorded": replay.plan.faults_recorded,
        "faults_twin": wanted, "ratio_twin": round(faults / wanted, 4) if faults and wanted else None,
        "errors": replay.errors, "foreign_words": replay.foreign, "without_thp": sorted(replay.without_thp),
        "by_region": regions(replay),
    }


def closing_table(out: Console, run: Any, data: dict[str, Any]) -> None:
    """For people."""
    table = Table(title=f"stress: {data['verdict']}", title_justify="left", show_header=False, box=None)
    stat = data["vmstat"]
    table.add_row("operations", f"{sum(data['operations'].values()):,} in {data['seconds']:.1f} s "
                                f"({data['operations_per_second']:,} a second) on {data['cpus']} CPU processes")
    for label, parts in HAPPENED:
        if any(stat[name] for name, _ in parts):
            table.add_row(label, ", ".join(f"{stat[name]:,} {what}" for name, what in parts))
    contended = sorted(data["lock_stat"], key=lambda row: -row["contentions"])[:4]
    table.add_row("contended", ", ".join(f"{row['name']} {row['contentions']:,}" for row in contended))
    table.add_row("audit", f"{data['audit']['checks']:,} checks, {data['audit']['failed']} failed")
    table.add_row("run", data["run_dir"])
    out.print(table)
    for replay in run.replays:
        _replay_lines(out, replay)


def regions(replay: Replay) -> dict[str, dict[str, int]]:
    """Faults by kind of region: here, in the twin, and what the twin's own touches come to when each page faults once.

    The difference of the last two is timing: two threads that touch a page at the same moment both fault on Linux.
    """
    out = {name: {"here": number} for name, number in sorted(replay.by_region.items()) if number}
    if replay.twin:
        recorded = recorded_by_region(replay.twin)
        once = faults_by_region(replay.twin, True, disabled=tasks_of(replay.twin, replay.without_thp))
        for name in sorted(set(out) | set(recorded)):
            out.setdefault(name, {"here": 0}).update(twin=recorded[name], twin_once=once[name])
    return out


def _replay_lines(out: Console, replay: Replay) -> None:
    if not replay.faults:
        return
    faults, wanted = replay.faults[0], replay.faults_wanted
    line = f"{replay.name}: {faults:,} faults; Linux recorded {replay.plan.faults_recorded:,}"
    if wanted:
        line += f", and {wanted:,} in its twin (ratio {faults / wanted:.3f})"
    out.print(line)
    if replay.without_thp:
        out.print(f"  without THP, as its twin shows: {', '.join(sorted(replay.without_thp))}")
    if wanted and abs(faults / wanted - 1) > NEAR:
        rows = regions(replay)
        for name, row in rows.items():
            out.print(f"  {name:8} {row['here']:>7,} here  {row['twin']:>7,} in the twin"
                      f"  {row['twin_once']:>7,} of its touches")
        timing = sum(row["twin"] - row["twin_once"] for row in rows.values())
        out.print(f"  {timing:,} of the twin's faults are second faults of threads that touched a page at the same moment;")
        out.print(f"  the other {wanted - timing - faults:,} are touches that one of the recordings has and the other has not")
