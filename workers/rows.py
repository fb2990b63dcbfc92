"""A program of rows (concur_thp/ops.py), run natively: what recordings become.

Tasks stand in a table in the segment. A CPU takes any task that can go on, runs a stretch of its rows and puts it
back, so tasks of one program run concurrently on as many CPUs as there are. FORK, VFORK and CLONE make the child task
ready; WAIT holds a task back until another has passed a row.
"""

from enum import IntEnum

from concur_thp.arch.bug import panic_check
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.futex import nap
from concur_thp.arch.irq import cpu_park, cpu_resume, ipi_poll
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, I64, Struct, atomic, field
from concur_thp.arch.system import system
from concur_thp.arch.tlbflush import switch_mm
from concur_thp.config import PAGE_SHIFT
from concur_thp.mm.errno import ENOMEM
from concur_thp.mm.flags import MAP_FIXED, MMF_DISABLE_THP
from concur_thp.mm.fork import dup_mm, mm_alloc, mmget, mmput
from concur_thp.mm.mm_types import Mm, mms, percpu
from concur_thp.mm.syscall import (
    sys_brk,
    sys_madvise,
    sys_mlock,
    sys_mmap,
    sys_mprotect,
    sys_mremap,
    sys_munlock,
    sys_munmap,
)
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.mm.vmstat import Stat
from concur_thp.ops import Op

STRETCH = 512
"""Rows a task runs before its CPU looks for another."""
BLOCKED = -1000
"""Not an error: the row cannot run yet."""
VALUE_MARK = 1 << 62


class TaskState(IntEnum):
    """Of a recorded task."""

    WAITING = 0  # its parent has not forked it yet
    READY = 1
    RUNNING = 2
    DONE = 3


class Row(Struct, size=72):
    """One row of a program: eight words as in ops.py, and what became of it."""

    op = field(I64, "const", "Op")
    arg = field(I64, "const", "its arguments", count=6)
    line = field(I64, "const", "line of the recording")
    faults = field(I32, "owner", "page faults it took")
    status = field(I32, "owner", "0 or an error")


class Task(Struct, size=128):
    """A recorded task."""

    state = atomic(I32, "TaskState")
    done = atomic(I64, "rows finished: what WAIT looks at")
    first = field(I64, "const", "its first row")
    rows = field(I64, "const", "how many it has")
    mm = field(I32, "owner", "the mm it runs in, with a reference; 0 for none")
    root = field(I32, "const", "1 when it starts by itself")
    no_thp = field(I32, "const", "1 when the program runs with PR_SET_THP_DISABLE")
    faults = field(I64, "owner", "page faults it took")
    errors = field(I64, "owner", "rows that ended with an error")
    foreign = field(I64, "owner", "loads that returned a word no program could have written")


program_rows = SharedArray("program_rows", Row, lambda c: max(c.rows, 1))
program_tasks = SharedArray("program_tasks", Task, lambda c: max(c.tasks, 1))


@kernel
def run_tasks(cpu: Cpu, nr_tasks: int, budget: int):
    """Run whatever tasks can go on, up to `budget` rows.

    Context: user mode, in no mm; ends in no mm, parked.
    Return: 1 when every task is done, else 0.
    Emulator: the scheduler and main loop of a CPU that replays a recording.
    """
    cpu_resume(cpu)
    while budget > 0 and system.stop.read() == 0:
        found = 0
        left = 0
        for i in range(nr_tasks):
            # Each CPU starts its search elsewhere, so that tasks spread over CPUs.
            number = (i + cpu.id) % nr_tasks
            task = program_tasks[number]
            state = task.state.read()
            if state != TaskState.DONE:
                left = 1
            if state == TaskState.READY and task.state.cas(TaskState.READY, TaskState.RUNNING) == TaskState.READY:
                ran = run_task(cpu, task)
                budget -= ran
                if ran > 0:
                    found = 1
        panic_check(cpu)
        if left == 0:
            cpu_park(cpu)
            return 1
        if found == 0:
            budget -= 1
            cpu_park(cpu)
            nap()
            cpu_resume(cpu)
    cpu_park(cpu)
    return 0


@kernel
def run_task(cpu: Cpu, task: Task):
    """Run one stretch of a task.

    Context: user mode, in no mm; this CPU has just made the task RUNNING.
    Return: rows run.
    Emulator: one time slice.
    """
    if task.root != 0 and task.mm == 0 and task.done.read() == 0:
        mm = mm_alloc(cpu)
        if not mm:
            never_starts(cpu, task)
            return 1
        task.mm = mm.id
        set_thp_disable(mm, task)
    enter_mm(cpu, task.mm)
    at = task.done.read()
    ran = 0
    while ran < STRETCH and at < task.rows:
        row = program_rows[task.first + at]
        cpu.row = task.first + at
        cpu.op = row.op
        before = cpu.vmstat[Stat.pgfault]
        status = run_row(cpu, task, row)
        if status == BLOCKED:
            break
        taken = cpu.vmstat[Stat.pgfault] - before
        row.faults = taken
        row.status = status
        task.faults = task.faults + taken
        if status < 0:
            task.errors = task.errors + 1
        at += 1
        ran += 1
        task.done.store(at)
        cpu.ops = cpu.ops + 1
        ipi_poll(cpu)
    if at >= task.rows:
        leave(cpu, task)
    enter_mm(cpu, 0)
    task.state.store(TaskState.DONE if at >= task.rows else TaskState.READY)
    return ran


@kernel
def never_starts(cpu: Cpu, task: Task):
    """There is no mm for a task: all its rows have failed, and so have those of the tasks that it would have started.

    Context: user mode; nobody else runs these tasks.
    Emulator: so that nobody waits for them for ever.
    """
    for i in range(task.rows):
        row = program_rows[task.first + i]
        row.status = -ENOMEM
        if row.op in (Op.FORK, Op.VFORK, Op.CLONE):
            never_starts(cpu, program_tasks[row.arg[0]])
    task.errors = task.rows
    task.done.store(task.rows)
    task.state.store(TaskState.DONE)


@inline
def set_thp_disable(mm: Mm, task: Task):
    """prctl(PR_SET_THP_DISABLE) is not in the recordings' event set; the plan says who called it."""
    if task.no_thp != 0:
        mm.flags.or_(1 << MMF_DISABLE_THP)


@inline
def enter_mm(cpu: Cpu, mm: int):
    percpu[cpu.id].mm = mm
    switch_mm(cpu, mm)


@kernel
def leave(cpu: Cpu, task: Task):
    """Leave the task's mm, if it has one.

    Context: user mode.
    Emulator: exit_mm().
    """
    old = task.mm
    if old != 0:
        task.mm = 0
        enter_mm(cpu, 0)
        mmput(cpu, mms[old])


@kernel
def run_row(cpu: Cpu, task: Task, row: Row):
    """Do one row.

    Context: user mode, in the task's mm.
    Return: 0, an error, or BLOCKED.
    Emulator: from a recorded event to a system call or an access.
    """
    op = row.op
    a0 = row.arg[0]
    if op == Op.STORE:
        return user_store(cpu, a0, VALUE_MARK | (a0 >> PAGE_SHIFT))
    if op == Op.LOAD:
        return checked_load(cpu, task, a0)
    if op == Op.WAIT:
        return 0 if program_tasks[a0].done.load() > row.arg[1] else BLOCKED
    if op in (Op.FORK, Op.VFORK, Op.CLONE, Op.EXEC, Op.EXIT):
        return run_task_row(cpu, task, op, a0)
    status = run_call(cpu, row, op, a0)
    return status if status < 0 else 0


@inline
def checked_load(cpu: Cpu, task: Task, addr: int):
    """Load; a word that is neither zero, nor some program's, nor a file's is counted."""
    status = user_load(cpu, addr)
    if status == 0:
        value = cpu.scratch[0]
        if value != 0 and value >> 60 == 0:
            task.foreign = task.foreign + 1
    return status


@kernel
def run_call(cpu: Cpu, row: Row, op: int, a0: int):
    """A system call on the address space.

    Context: user mode.
    Return: what it said.
    Emulator: the rows that are system calls.
    """
    if op == Op.MMAP:
        return sys_mmap(cpu, a0, row.arg[1], row.arg[2], row.arg[3] | MAP_FIXED, row.arg[4], row.arg[5])
    if op == Op.MUNMAP:
        return sys_munmap(cpu, a0, row.arg[1])
    if op == Op.BRK:
        return sys_brk(cpu, a0)
    if op == Op.MPROTECT:
        return sys_mprotect(cpu, a0, row.arg[1], row.arg[2])
    if op == Op.MREMAP:
        return sys_mremap(cpu, a0, row.arg[1], row.arg[2], row.arg[3])
    if op == Op.MADVISE:
        return sys_madvise(cpu, a0, row.arg[1], row.arg[2])
    if op == Op.MLOCK:
        return sys_mlock(cpu, a0, row.arg[1])
    if op == Op.MUNLOCK:
        return sys_munlock(cpu, a0, row.arg[1])
    return 0


@kernel
def run_task_row(cpu: Cpu, task: Task, op: int, a0: int):
    """A row that makes, replaces or ends a task.

    Context: user mode, in the task's mm.
    Return: 0 or -ENOMEM.
    Emulator: fork, vfork, clone, exec and exit of a recording.
    """
    if op == Op.EXIT:
        leave(cpu, task)
        return 0
    if op == Op.EXEC:
        mm = mm_alloc(cpu)
        if not mm:
            return -ENOMEM
        mm.start_brk = a0
        mm.brk = a0
        set_thp_disable(mm, task)
        leave(cpu, task)
        task.mm = mm.id
        enter_mm(cpu, mm.id)
        return 0
    child = program_tasks[a0]
    mm = mms[task.mm]
    if op == Op.FORK:
        mm = dup_mm(cpu, mm)
        if not mm:
            never_starts(cpu, child)
            return -ENOMEM
    else:
        mmget(mm)
    child.mm = mm.id
    child.state.store(TaskState.READY)
    return 0


__all__ = ["Mm", "Task", "TaskState", "program_rows", "program_tasks", "run_tasks"]
