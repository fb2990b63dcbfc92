"""`concur-thp break --locks`: every cut of cuts.py, hunted for a bounded time with the scenarios that come by there."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from concur_thp.arch.checked import sites
from concur_thp.errors import Misuse
from concur_thp.machine import Machine
from concur_thp.output import compile_progress, console, result_console, write_json
from concur_thp.rules.variant import Variant
from concur_thp.sched.state import sched, sched_steps
from stress.breaking.cuts import Cut, all_cuts
from stress.breaking.hunt import undisturbed
from stress.exploring.cell import Cell
from stress.exploring.explorer import Explorer, link_for
from stress.exploring.job import Failure, Job
from stress.progress import Line
from stress.rundir import make_run_dir
from stress.scenarios.registry import SCENARIOS

LOOKS = ((1, "random"), (2, "random"), (3, "pct"), (4, "pct"))
"""Runs of each scenario that say which functions it comes by."""
ATTEMPTS = (("pct", 3, 1), ("random", 1, 0), ("pct", 5, 1))
SCENARIOS_OF_A_CUT = 4
BARRIERS = ("smp_mb", "smp_wmb", "smp_rmb")
ASKED_AGAIN = "saves time: the collapse asks again in hugepage_vma_revalidate()"
HARMLESS: dict[tuple[str, str], str] = {
    ("wake_all_kswapds", "if kswapd_wait.asleep.load() != 0"): "saves a system call: nobody waits for this wake-up",
    ("wakeup_kcompactd", "if kcompactd_wait.max_order.read() < order"): "saves a wake-up; kcompactd looks at the zones itself",
    ("__collapse_huge_page_copy", "spin_lock(cpu, mem_map[table].ptl)"):
        "the table is detached, mmap_sem and the anon_vma are held for write: nobody else gets there (I22)",
    ("khugepaged_scan_ptes", "spin_lock(cpu, ptl)"):
        "the scan is a hint: everything is looked at again under mmap_sem write before a page is taken",
    ("khugepaged_scan_pte", "if page_ref_count(page) != 1 + PageSwapCache(page)"): "a hint: isolation counts again",
    ("khugepaged_scan_vma", "if not khugepaged_test_exit(mm)"): ASKED_AGAIN,
    ("khugepaged_scan_vmas", "if not khugepaged_test_exit(mm)"): ASKED_AGAIN,
    ("follow_huge_pmd", "if pmd_none(pmdval)"): "what is none fails the next question too",
    ("page_lock_anon_vma_read", "if mapping & PAGE_MAPPING_ANON == 0 or not page_mapped(head)"):
        "saves a lock: whether the page is still mapped is asked again with the lock, or the reference, in hand",
}
"""(function, statement) -> why its loss cannot be noticed. Only what was thought through stands here."""


@dataclass
class Result:
    """What became of a cut."""

    cut: Cut
    verdict: str
    """caught, not caught, not reached, does not compile, or harmless."""
    scenario: str = ""
    failure: Failure | None = None
    seconds: float = 0.0
    why: str = ""

    @property
    def json(self) -> dict[str, Any]:
        """A row of `break --locks --json`."""
        symptom = f"{self.failure.kind}: {self.failure.symptom}" if self.failure else None
        return {"id": self.cut.id, "kind": self.cut.kind, "function": self.cut.function, "line": self.cut.line,
                "statement": self.cut.what, "verdict": self.verdict, "scenario": self.scenario, "symptom": symptom,
                "seconds": round(self.seconds, 2), "why": self.why}


def coverage(order: int = 3) -> dict[str, Counter[str]]:
    """Function -> scenarios that come by, and how often in a few runs."""
    found: dict[str, Counter[str]] = {}
    for name in SCENARIOS:
        job = Job(name, order=order)
        link_for(job)
        with Cell(job) as cell:
            for seed, strategy in LOOKS:
                for function, count in _functions(cell, strategy, seed).items():
                    found.setdefault(function, Counter())[name] += count
    return found


def _functions(cell: Cell, strategy: str, seed: int) -> Counter[str]:
    known = sites()
    cell.controlled.choose(strategy, 3)
    sched.stepping = 1
    cell.controlled.run(seed, 1)
    seen = Counter(known[site].function for i in range(sched.logged) if (site := sched_steps[i].site) in known)
    cell.controlled.restore()
    sched.stepping = 0
    return seen


def harmless(cut: Cut) -> str:
    """Why the loss of a cut cannot be noticed here; empty when it should be."""
    if cut.what.startswith(BARRIERS):
        return "controlled runs are sequentially consistent: what this barrier orders is in order anyway"
    return HARMLESS.get((cut.function, cut.what), "")


def hunt_cut(cut: Cut, scenarios: Iterable[str], seconds: float, seed: int) -> Result:
    """Look for a failure without it; `seconds` in all."""
    if why := harmless(cut):
        return Result(cut, "harmless", why=why)
    names = list(scenarios)[:SCENARIOS_OF_A_CUT]
    if not names:
        return Result(cut, "not reached", why="no scenario comes by this function")
    began = time.monotonic()
    try:
        variant = Variant((cut.edit,), f"cut-{cut.function}-{cut.line}", Job(names[0]).build)
        link_for(Job(names[0]), variant)
    except Exception as error:
        return Result(cut, "does not compile", why=str(error))
    share = seconds / (len(ATTEMPTS) * len(names))
    for strategy, depth, checks in ATTEMPTS:
        for name in names:
            job = replace(Job(name, seed=seed), strategy=strategy, depth=depth, checks=checks)
            explored = undisturbed(Explorer(job, variant, seconds=share))
            if explored.failure is not None:
                return Result(cut, "caught", name, explored.failure, time.monotonic() - began)
    return Result(cut, "not caught", ", ".join(names), None, time.monotonic() - began)


@dataclass(frozen=True)
class LocksOptions:
    """What the command line said."""

    ids: tuple[str, ...]
    seconds: float
    seed: int
    json: str
    quiet: bool
    run_dir: str


def run_locks(options: LocksOptions) -> int:
    """Hunt every cut, or those in the functions named; 0 when the campaign was carried out."""
    Machine._import_kernel()
    out, result = console(options.quiet), result_console(options.quiet, options.json)
    cuts = [cut for cut in all_cuts() if not options.ids or {cut.function, cut.id} & set(options.ids)]
    if not cuts:
        raise Misuse(f"nothing of {', '.join(options.ids)} is a function of mm/ with a lock, a flush or a second look")
    with compile_progress(out) as progress:
        link_for(Job(next(iter(SCENARIOS))), None, progress)
    reached = coverage()
    run_dir = make_run_dir(Path(options.run_dir), "locks")
    results = []
    with Line(out) as progress_line:
        for number, cut in enumerate(cuts, 1):
            progress_line.say(f"{number} of {len(cuts)}: {cut.id} without {cut.what}")
            names = [name for name, _ in reached.get(cut.function, Counter()).most_common()]
            one = hunt_cut(cut, names, options.seconds, options.seed)
            results.append(one)
            result.print(line(one), highlight=False, markup=False)
    rows = [one.json for one in results]
    write_json(str(run_dir / "summary.json"), rows)
    write_json(options.json, rows)
    counts = Counter(one.verdict for one in results)
    result.print(f"{len(results)} cuts: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common()), highlight=False)
    return 0


def line(one: Result) -> str:
    """A cut in one line."""
    head = f"{one.verdict:11} {one.cut.kind:7} {one.cut.id}: {one.cut.what}"
    if one.failure is not None:
        return f"{head}  [{one.scenario}, {one.seconds:.1f} s] {one.failure.kind}: {one.failure.symptom[:100]}"
    return f"{head}  {one.why or f'[{one.scenario}]'}"


__all__ = ["HARMLESS", "LocksOptions", "Result", "coverage", "harmless", "hunt_cut", "run_locks"]
