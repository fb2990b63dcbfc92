"""How many faults Linux would take for a plan, with THP off and on, and how near that is to what it took.

`python -m stress.recordings.count FILE...` prints a table by region: for each recording made with THP off,
the faults recorded, the count for THP off and on, what its `-always` twin recorded, and the count for the
twin's own calls and touches. Linux puts large anonymous mappings elsewhere with THP on (aligned to 2 MiB), so
the last two columns are the stricter test of the model, and where they differ two tasks faulted on one page
at once.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from concur_thp.errors import Misuse
from stress.recordings.model import BLOCK_SHIFT, LINUX_6_18, Rules, simulate
from stress.recordings.perf_script import read
from stress.recordings.plan import Plan, plan

NEVER, ALWAYS = "-never.perf", "-always.perf"
ROW = "{:<14} {:<10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8}"
HEAD = ("recording", "region", "recorded", "never", "always", "twin", "modelled", "ratio")
CONTRADICTIONS = 100
"""More than ever come from two tasks that fault on one huge page at once (39 in numpy-always)."""


def expected_faults(plan: Plan, huge: bool, rules: Rules = LINUX_6_18) -> int:
    """The faults of running `plan` in recorded order, with THP always or never.

    Two tasks that touch one page at once both fault in the recording; here the second finds the page.
    """
    return sum(faults_by_region(plan, huge, rules).values())


def faults_by_region(
    plan: Plan, huge: bool, rules: Rules = LINUX_6_18, disabled: frozenset[int] = frozenset()
) -> Counter[str]:
    """The same per kind of region. `disabled` tasks have THP off in any case."""
    programs = [task.rows for task in plan.tasks]
    count: Counter[str] = Counter()
    kinds = _kinds(plan)
    regions = [task.regions.tolist() for task in plan.tasks]
    for _, touch, faulted in simulate(programs, plan.sequence, huge, rules, disabled):
        if faulted:
            count[kinds[regions[touch.task][touch.row]]] += 1
    return count


def programs_without_thp(plan: Plan) -> frozenset[str]:
    """Of a recording made with THP on: the programs that faulted small where a huge page would have fitted.

    prctl(PR_SET_THP_DISABLE), which redis-server calls, is not among the recorded events.
    """
    programs = [task.rows for task in plan.tasks]
    contradictions: Counter[str] = Counter()
    for mm, touch, faulted in simulate(programs, plan.sequence, True, LINUX_6_18):
        if not faulted and touch.address >> BLOCK_SHIFT in mm.huge:
            contradictions[plan.tasks[touch.task].comm] += 1
    return frozenset(comm for comm, number in contradictions.items() if number >= CONTRADICTIONS)


def recorded_by_region(plan: Plan) -> Counter[str]:
    """The recorded faults that are replayed, per kind of region."""
    kinds = _kinds(plan)
    count: Counter[str] = Counter()
    for task in plan.tasks:
        numbers = np.bincount(task.regions[task.regions >= 0], minlength=len(kinds))
        for kind, number in zip(kinds, numbers.tolist(), strict=True):
            count[kind] += number
    return count


def _kinds(plan: Plan) -> list[str]:
    return [name.partition(":")[0] for name in plan.region_names]


def _twin(path: Path) -> Path | None:
    """The recording of the same program with THP on."""
    twin = path.with_name(path.name.replace(NEVER, ALWAYS))
    return twin if twin != path and twin.exists() else None


def _table(path: Path) -> Iterator[str]:
    never = plan(read(path))
    twin_path = _twin(path)
    twin = plan(read(twin_path)) if twin_path else None
    names = programs_without_thp(twin) if twin else frozenset()
    columns = [
        recorded_by_region(never),
        faults_by_region(never, False),
        faults_by_region(never, True, disabled=tasks_of(never, names)),
        recorded_by_region(twin) if twin else Counter(),
        faults_by_region(twin, True, disabled=tasks_of(twin, names)) if twin else Counter(),
    ]
    yield _row(never.name, "all", [sum(column.values()) for column in columns])
    for kind in sorted(columns[0]):
        yield _row("", kind, [column[kind] for column in columns])
    if names:
        plain = expected_faults(never, True)
        yield f"  with THP off in {', '.join(sorted(names))}, as its twin shows; {plain} without that"


def tasks_of(plan: Plan, comms: frozenset[str]) -> frozenset[int]:
    """The tasks that run one of these programs."""
    return frozenset(index for index, task in enumerate(plan.tasks) if task.comm in comms)


def _row(name: str, kind: str, counts: list[int]) -> str:
    ratio = f"{counts[2] / counts[3]:.3f}" if counts[3] else "-"
    return ROW.format(name, kind, *counts, ratio)


def main(paths: list[str]) -> int:
    """Prints the table; 2 if a recording is missing or bad."""
    if not paths:
        print(f"no recording given; pass some made with THP off (*{NEVER} or *{NEVER}.xz)", file=sys.stderr)
        return 2
    try:
        rows = [line for path in paths for line in _table(Path(path))]
    except Misuse as error:
        print(error, file=sys.stderr)
        return 2
    print(ROW.format(*HEAD))
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
