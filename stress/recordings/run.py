"""Runs the rows of a plan in recorded order on a model of its mms, for whoever counts what the touches do."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from concur_thp.ops import Op
from stress.recordings.layout import Layout

Programs = Sequence[NDArray[np.int64]]
L = TypeVar("L", bound=Layout)


class Touch(NamedTuple):
    """Row `row` of `task` is a LOAD or STORE."""

    task: int
    row: int
    address: int
    write: bool


def run(
    programs: Programs, sequence: NDArray[np.int32], new_mm: Callable[[int, int], L]
) -> Iterator[tuple[L, Touch]]:
    """Every touch, with its mm as it is just before. `new_mm` makes one from a task and a heap start."""
    rows = [program.tolist() for program in programs]
    mms: dict[int, L] = {}
    for task, number in sequence.tolist():
        row = rows[task][number]
        op = row[0]
        if op in (Op.LOAD, Op.STORE):
            yield mms[task], Touch(task, number, row[1], op == Op.STORE)
        elif op in (Op.EXEC, Op.EXIT):
            left = mms.pop(task, None)
            if left and left not in mms.values():
                left.exit()
            if op == Op.EXEC:
                mms[task] = new_mm(task, row[1])
        elif op == Op.FORK:
            mms[row[1]] = mms[task].copy()
        elif op in (Op.VFORK, Op.CLONE):
            mms[row[1]] = mms[task]
        elif op not in (Op.WAIT, Op.END):
            mms[task].apply(row)
