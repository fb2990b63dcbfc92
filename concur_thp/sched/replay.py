"""Replay: the stretches of a plan, one after another. Exactly, or as far as they fit.

Strict: every stretch must end where and why it ended when it was recorded, else the run is DIVERGED.
Guided (for shrinking): a stretch whose CPU cannot run is left out, one that ends early goes on with the next; behind
the plan nobody is preempted any more.
"""

from concur_thp.arch.cpu import cpus
from concur_thp.arch.linker import kernel, quiet
from concur_thp.sched.control import NOBODY, can_run, finish
from concur_thp.sched.state import MAX_STRETCHES, Reason, Status, Verdict, sched, sched_cpus, sched_plan

FOREVER = 1 << 40
CANNOT = -1


@kernel
@quiet
def replay_prepare(seed: int):
    """From the first row.

    Context: before a run.
    Emulator: strategy replay.
    """
    sched.at = 0
    sched.eager = 0


@kernel
@quiet
def replay_pick(cpu: int, reason: int):
    """The plan's next CPU, after a look at whether the stretch that ended is the recorded one.

    Context: as pick().
    Emulator: strategy replay, strict.
    """
    if reason != Reason.START:
        row = sched_plan[sched.at]
        passed = sched_cpus[cpu].steps - sched_cpus[cpu].began
        stays = row.reason == Reason.BLOCK or row.reason == Reason.DONE
        if reason == Reason.YIELD and cpu == row.cpu and (passed < row.steps or (passed == row.steps and stays)):
            sched.grant = row.steps - passed if row.reason == Reason.PREEMPT else FOREVER
            return cpu  # Nobody else could go on when it was recorded either.
        if passed != row.steps or cpus[cpu].site != row.site or cpu != row.cpu:
            return diverged(cpu, reason)
        if row.reason == Reason.END:
            return NOBODY
        if reason != row.reason:
            return diverged(cpu, reason)
        sched.at = sched.at + 1
    if sched.at >= sched.expected:
        return diverged(cpu, reason)
    row = sched_plan[sched.at]
    status = sched_cpus[row.cpu].status
    if status != Status.READY and status != Status.YIELDED:
        return diverged(row.cpu, CANNOT)
    full = sched.at == MAX_STRETCHES - 1  # decide() ended it there: the log was full.
    sched.grant = row.steps if full or row.reason == Reason.PREEMPT else FOREVER
    return row.cpu


@kernel
@quiet
def diverged(cpu: int, why: int):
    """Not what was recorded: the run ends here. `why` the CPU stopped, or CANNOT go on.

    Context: as pick().
    Return: NOBODY, at the beginning of a run.
    Emulator: returns nowhere else.
    """
    sched.diverged = sched.steps
    sched.diverged_cpu = cpu
    sched.diverged_why = why
    sched.verdict = Verdict.DIVERGED
    if sched.current != NOBODY:  # Else no CPU has moved yet, and there is no stack to leave.
        finish(cpus[sched.current], Verdict.DIVERGED)
    return NOBODY


@kernel
@quiet
def guided_pick(cpu: int, reason: int):
    """The plan as far as it fits; where it does not, whoever moves goes on, else the lowest number.

    Context: as pick().
    Emulator: strategy replay, guided.
    """
    if cpu >= 0 and sched.at < sched.expected:
        row = sched_plan[sched.at]
        me = sched_cpus[cpu]
        passed = me.steps - me.began
        if row.cpu == cpu and (reason != Reason.PREEMPT or passed >= row.steps):
            sched.at = sched.at + 1
        elif row.cpu == cpu and can_run(cpu):
            sched.grant = row.steps - passed
            return cpu
    while sched.at < sched.expected and not can_run(sched_plan[sched.at].cpu):
        sched.at = sched.at + 1
    if sched.at < sched.expected:
        row = sched_plan[sched.at]
        sched.grant = row.steps if row.reason == Reason.PREEMPT else FOREVER
        return row.cpu
    sched.grant = FOREVER
    if cpu >= 0 and can_run(cpu):
        return cpu
    for i in range(sched.nr):
        if can_run(i):
            return i
    return NOBODY
