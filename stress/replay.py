"""Recordings in the machine: plans become rows and tasks of the segment, and what came of them is read back."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.system import system
from concur_thp.check.views import view
from concur_thp.errors import EmulatorError, Misuse
from concur_thp.machine import Machine
from concur_thp.mm.file_table import file_alloc
from concur_thp.ops import Op
from stress.recordings import count
from stress.recordings.perf_script import read
from stress.recordings.plan import Plan, plan
from workers.rows import TaskState, program_rows, program_tasks, run_tasks

BUDGET = 50_000
TASK_ARGUMENT = (Op.FORK, Op.VFORK, Op.CLONE, Op.WAIT)
TWINS = (("-never", "-always"), ("-always", "-never"))


@dataclass
class Replay:
    """One recording: its plan, its twin, where it stands in the segment, what happened."""

    name: str
    plan: Plan
    twin: Plan | None
    without_thp: frozenset[str] = frozenset()
    first_task: int = 0
    first_row: int = 0
    faults: list[int] = field(default_factory=list)
    by_region: Counter[str] = field(default_factory=Counter)
    replayed: int = 0
    errors: int = 0
    foreign: int = 0

    @property
    def rows(self) -> int:
        return sum(len(task.rows) for task in self.plan.tasks)

    @property
    def faults_wanted(self) -> int | None:
        """What Linux counted with THP as it is in this run: the recording's own figure or its twin's."""
        return self.twin.faults_recorded if self.twin else None


def load_recordings(paths: tuple[str, ...]) -> list[Replay]:
    """Read and plan every recording, and its twin where one lies beside it."""
    replays = []
    for path in paths:
        planned = plan(read(Path(path)))
        twin = _twin(Path(path))
        always = twin if "-never" in Path(path).name else planned
        without = frozenset(count.programs_without_thp(always)) if twin and always else frozenset()
        replays.append(Replay(planned.name, planned, twin, without))
    first_row = first_task = 0
    for replay in replays:
        replay.first_row, replay.first_task = first_row, first_task
        first_row += replay.rows
        first_task += len(replay.plan.tasks)
    return replays


def _twin(path: Path) -> Plan | None:
    for mine, other in TWINS:
        if mine in path.name:
            twin = path.with_name(path.name.replace(mine, other))
            if twin.is_file():
                return plan(read(twin))
    return None


def load_programs(machine: Machine, replays: list[Replay]) -> None:
    """Write the rows of all recordings into the segment."""
    rows = view(program_rows, machine.config.rows)
    cpu = machine.cpu(0)
    for replay in replays:
        numbers = [0] + [file_alloc(cpu, machine.config.file_pages, n + 1) for n in range(replay.plan.files)]
        if min(numbers) < 0:
            raise Misuse(f"{replay.name}: it maps {replay.plan.files} files; more than a machine has")
        files = np.array(numbers)
        at = replay.first_row
        for task in replay.plan.tasks:
            block = rows[at : at + len(task.rows)]
            block["op"] = task.rows[:, 0]
            block["arg"] = task.rows[:, 1:7]
            block["line"] = task.rows[:, 7]
            _relocate(block, replay.first_task, files)
            at += len(task.rows)


def _relocate(block: Any, first_task: int, files: Any) -> None:
    """Task and file numbers of one recording become those of the machine."""
    mapped = block["op"] == int(Op.MMAP)
    block["arg"][mapped, 4] = files[block["arg"][mapped, 4]]
    tasks = np.isin(block["op"], [int(op) for op in TASK_ARGUMENT])
    block["arg"][tasks, 0] += first_task


def start_pass(replays: list[Replay]) -> None:
    """Every task back to its beginning."""
    for replay in replays:
        row = replay.first_row
        for number, planned in enumerate(replay.plan.tasks, replay.first_task):
            task = program_tasks[number]
            root = planned.parent < 0
            task.first, task.rows, task.root, task.mm = row, len(planned.rows), int(root), 0
            task.faults = task.errors = task.foreign = 0
            task.no_thp = int(planned.comm in replay.without_thp)
            task.done.store(0)
            task.state.store(int(TaskState.READY if root else TaskState.WAITING))
            row += len(planned.rows)


def replay_body(machine: Machine, cpu: Cpu) -> bool:
    """The body of a CPU process that replays; True when every task is done."""
    while not system.stop.load() and not system.panicked.load():
        if run_tasks(cpu, machine.config.tasks, BUDGET):
            return True
    return False


def end_pass(replays: list[Replay]) -> bool:
    """Read back what happened; False when some task did not finish."""
    complete = True
    rows = view(program_rows, sum(replay.rows for replay in replays))
    for replay in replays:
        tasks = [program_tasks[n] for n in range(replay.first_task, replay.first_task + len(replay.plan.tasks))]
        replay.replayed += sum(task.done.load() for task in tasks)
        if any(task.state.load() != TaskState.DONE for task in tasks):
            complete = False
            continue
        replay.faults.append(sum(task.faults for task in tasks))
        replay.errors += sum(task.errors for task in tasks)
        replay.foreign += sum(task.foreign for task in tasks)
        if len(replay.faults) == 1:
            replay.by_region = _by_region(replay, rows)
    return complete


def _by_region(replay: Replay, rows: Any) -> Counter[str]:
    regions: Counter[str] = Counter()
    at = replay.first_row
    kinds = [*(name.partition(":")[0] for name in replay.plan.region_names), "calls"]
    for task in replay.plan.tasks:
        faults = rows["faults"][at : at + len(task.rows)]
        for region in np.unique(task.regions):
            regions[kinds[region]] += int(faults[task.regions == region].sum())
        at += len(task.rows)
    return regions


def needed_memory(replays: list[Replay]) -> int:
    """Bytes of emulated memory that replaying all of them at once may need, with room to fault in huge pages."""
    if not replays:
        raise EmulatorError("no recording")
    return sum(replay.plan.frames_needed for replay in replays) * 4096
