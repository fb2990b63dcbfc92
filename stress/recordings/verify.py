"""Checks a plan: in recorded order, does a mapping allow every touch, and is every wait for the past?"""

from dataclasses import dataclass

from concur_thp.ops import Op
from stress.recordings.layout import Layout
from stress.recordings.plan import Plan

STARTS = (Op.FORK, Op.VFORK, Op.CLONE)


@dataclass(frozen=True)
class Illegal:
    """Row `row` of task `task`, from line `line` of the recording, and what is wrong with it."""

    task: int
    row: int
    line: int
    why: str


def verify(plan: Plan) -> list[Illegal]:
    """Everything in `plan` that a kernel would refuse or nobody could replay; empty for a sound plan."""
    check = _Check(plan)
    for task, number, row in plan.rows_in_order():
        why = check.step(task, number, row)
        if why:
            check.found.append(Illegal(task, number, row[7], why))
    check.ends()
    return check.found


class _Check:
    def __init__(self, plan: Plan) -> None:
        self.found: list[Illegal] = []
        self._plan = plan
        self._mms: dict[int, Layout] = {}
        self._next = [0] * len(plan.tasks)
        self._started = {index for index, task in enumerate(plan.tasks) if task.kind == "root"}

    def step(self, task: int, number: int, row: list[int]) -> str:
        if number != self._next[task]:
            return "out of order"
        self._next[task] += 1
        if task not in self._started:
            return "before the task was started"
        op = Op(row[0])
        if op == Op.END:
            return "in an mm after its exit" if task in self._mms else ""
        if op == Op.EXEC:
            self._mms[task] = Layout(row[1])
            return ""
        mm = self._mms.get(task)
        if mm is None:
            return f"{op.name} without an mm"
        return self._in_mm(task, op, row, mm)

    def _in_mm(self, task: int, op: Op, row: list[int], mm: Layout) -> str:
        if op in (Op.LOAD, Op.STORE):
            vma = mm.space.find(row[1])
            if vma is None:
                return f"{op.name} outside every mapping"
            return "" if vma.allows(op == Op.STORE) else f"{op.name} the mapping forbids"
        if op == Op.WAIT:
            return "" if self._next[row[1]] > row[2] else "waits for what comes later"
        if op == Op.EXIT:
            del self._mms[task]
        elif op in STARTS:
            if row[1] in self._started:
                return "starts a task twice"
            self._started.add(row[1])
            self._mms[row[1]] = mm.copy() if op == Op.FORK else mm
        elif not mm.apply(row):
            return f"{op.name} that fails"
        return ""

    def ends(self) -> None:
        for index, task in enumerate(self._plan.tasks):
            if self._next[index] != len(task.rows) or not len(task.rows) or task.rows[-1, 0] != Op.END:
                self.found.append(Illegal(index, self._next[index], 0, "the task does not come to its end"))
