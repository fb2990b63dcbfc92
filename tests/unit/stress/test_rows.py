"""Programs of rows when there are not enough mms: what cannot start counts as failed, and the program still ends."""

from concur_thp.machine import Machine
from concur_thp.ops import Op
from workers.rows import TaskState, program_rows, program_tasks, run_tasks

BUDGET = 1000

Program = list[list[tuple[int, ...]]]


def load(program: Program, roots: set[int]) -> None:
    at = 0
    for number, rows in enumerate(program):
        task = program_tasks[number]
        task.first, task.rows, task.root = at, len(rows), int(number in roots)
        task.state.store(TaskState.READY if number in roots else TaskState.WAITING)
        for row in rows:
            program_rows[at].op = row[0]
            for i, value in enumerate(row[1:]):
                program_rows[at].arg[i] = value
            at += 1


def run(program: Program, roots: set[int], mms: int) -> tuple[int, list[int], list[int]]:
    """All done?, each task's rows done, each task's errors."""
    with Machine(cpus=1, memory="4M", order=3, mms=mms, tasks=len(program), rows=sum(map(len, program))) as machine:
        load(program, roots)
        done = run_tasks(machine.cpu(0), len(program), BUDGET)
        tasks = [program_tasks[n] for n in range(len(program))]
        return done, [task.done.load() for task in tasks], [task.errors for task in tasks]


def test_a_fork_that_fails_takes_the_childs_children_with_it() -> None:
    program: Program = [
        [(Op.FORK, 1), (Op.FORK, 2), (Op.EXIT,)],
        [(Op.WAIT, 0, 1), (Op.EXIT,)],  # Keeps its mm until the second fork has failed.
        [(Op.FORK, 3), (Op.EXIT,)],
        [(Op.CLONE, 4), (Op.EXIT,)],
        [(Op.EXIT,)],
    ]
    assert run(program, {0}, mms=2) == (1, [3, 2, 2, 2, 1], [1, 0, 2, 2, 1])
    assert run(program, {0}, mms=5) == (1, [3, 2, 2, 2, 1], [0, 0, 0, 0, 0])


def test_a_program_for_which_there_is_no_mm_fails_and_does_not_crash() -> None:
    program: Program = [
        [(Op.WAIT, 1, 0), (Op.EXIT,)],
        [(Op.FORK, 2), (Op.EXIT,)],
        [(Op.EXIT,)],
    ]
    assert run(program, {0, 1}, mms=1) == (1, [2, 2, 1], [0, 2, 1])
