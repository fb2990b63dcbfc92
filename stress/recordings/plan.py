"""Turns a recording into one program per task, for concurrent replay: `plan(recording) -> Plan`."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stress.recordings.calls import actions
from stress.recordings.frames import frames_needed
from stress.recordings.perf_script import Recording
from stress.recordings.planner import Planner


@dataclass(frozen=True)
class TaskPlan:
    """One task. `rows` are as in `concur_thp.ops`; `regions` numbers what each LOAD or STORE hits, else -1.

    A WAIT row counts rows of the other task from 0. Tasks of kind root start by themselves, the others by a
    FORK, VFORK or CLONE row of `parent`, an index into `Plan.tasks`.
    """

    tid: int
    pid: int
    comm: str
    parent: int
    kind: str
    rows: NDArray[np.int64]
    regions: NDArray[np.int32]


@dataclass(frozen=True)
class Plan:
    """A recording, ready to be replayed.

    `files` numbers 1..files are used. `faults_recorded` counts the fault lines, `touches` those of them that
    are replayed; `dropped` says why the others, and some calls, are not. `frames_needed` is an upper estimate
    in 4 KiB frames that holds with THP on and off, page tables included. `addresses` is the range that
    mappings lie in. `sequence` lists (task, row) in recorded order.
    """

    name: str
    tasks: list[TaskPlan]
    files: int
    events: int
    faults_recorded: int
    touches: int
    frames_needed: int
    addresses: tuple[int, int]
    region_names: list[str]
    sequence: NDArray[np.int32]
    dropped: dict[str, int]

    def rows_in_order(self) -> list[tuple[int, int, list[int]]]:
        """(task, row number, row) of every row in recorded order."""
        rows = [task.rows.tolist() for task in self.tasks]
        return [(task, row, rows[task][row]) for task, row in self.sequence.tolist()]


def plan(recording: Recording) -> Plan:
    """The programs of all tasks of `recording`."""
    dropped: Counter[str] = Counter()
    planner = Planner(actions(recording, dropped), dropped)
    planner.run()
    tasks = [
        TaskPlan(
            task.tid,
            task.pid,
            task.comm,
            task.parent,
            task.kind,
            np.array(program.rows, dtype=np.int64).reshape(-1, 8),
            np.array(program.regions, dtype=np.int32),
        )
        for task, program in zip(planner.tasks, planner.programs, strict=True)
    ]
    sequence = np.array(planner.sequence, dtype=np.int32).reshape(-1, 2)
    return Plan(
        name=recording.name,
        tasks=tasks,
        files=planner.files,
        events=len(recording.events),
        faults_recorded=recording.faults,
        touches=planner.touches,
        frames_needed=frames_needed([t.rows for t in tasks], sequence),
        addresses=(planner.lowest, planner.highest),
        region_names=planner.region_names,
        sequence=sequence,
        dropped=dict(dropped),
    )
