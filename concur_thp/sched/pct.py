"""PCT: random priorities, and d - 1 points of the run at which whoever moves falls behind all others.

A bug that needs d ordered events is found by a run with a probability of at least 1 / (n * k**(d-1)) for n CPUs and k
steps (Burckhardt et al., ASPLOS 2010).
"""

from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.sched.control import NOBODY, can_run, interrupted, other_interrupted
from concur_thp.sched.draw import draw_below, seed_draws
from concur_thp.sched.state import MAX_CHANGES, Reason, Status, sched, sched_cpus

FIRST_LENGTH = 400
"""Assumed steps of a run before one has been seen."""
POLL_GRANT = 16
FOREVER = 1 << 40


@kernel
@quiet
def pct_prepare(seed: int):
    """Draw priorities and change points.

    Context: before a run.
    Emulator: strategy pct.
    """
    seed_draws(seed)
    sched.eager = 1
    for i in range(sched.nr):
        sched_cpus[i].priority = MAX_CHANGES + i
    for i in range(sched.nr - 1):  # Fisher-Yates
        other = i + draw_below(sched.nr - i)
        kept = sched_cpus[i].priority
        sched_cpus[i].priority = sched_cpus[other].priority
        sched_cpus[other].priority = kept
    length = sched.longest
    if length == 0:
        length = FIRST_LENGTH
    for i in range(sched.depth - 1):
        insert_change(i, 1 + draw_below(length))
    sched.next_change = 0


@inline
def insert_change(have: int, step: int):
    """Into the sorted change points."""
    at = have
    while at > 0 and sched.change[at - 1] > step:
        sched.change[at] = sched.change[at - 1]
        at -= 1
    sched.change[at] = step


@kernel
@quiet
def pct_pick(cpu: int, reason: int):
    """The highest priority among those who can run.

    Context: as pick().
    Emulator: strategy pct.
    """
    changes = sched.depth - 1
    while sched.next_change < changes and sched.steps >= sched.change[sched.next_change]:
        if cpu >= 0:
            sched_cpus[cpu].priority = changes - sched.next_change
        sched.next_change = sched.next_change + 1
    if reason == Reason.YIELD:
        let_others_go_first(cpu)
    elif reason == Reason.PREEMPT:
        end_of_polling()
    if reason == Reason.YIELD and other_interrupted(cpu) != NOBODY:
        sched.grant = 0  # It waits for answers: each comes at once, and whoever gives it stands where it stood.
        return other_interrupted(cpu)
    to = NOBODY
    polls = 0
    for i in range(sched.nr):
        if can_run(i):
            if to == NOBODY or sched_cpus[i].priority > sched_cpus[to].priority:
                to = i
        if sched_cpus[i].status == Status.YIELDED:
            polls = 1
    grant = FOREVER
    if sched.next_change < changes:
        grant = sched.change[sched.next_change] - sched.steps
    sched.grant = min(grant, POLL_GRANT) if polls else grant
    if to != NOBODY and to != cpu and interrupted(to):
        sched.grant = 0
    return to


@inline
def let_others_go_first(cpu: int):
    """It polls; with its priority it would poll for ever."""
    me = sched_cpus[cpu]
    if me.priority >= 0:
        me.kept_priority = me.priority
    me.priority = -1 - sched.steps


@inline
def end_of_polling():
    """Somebody has moved, or served an interrupt: whoever may have waited for that looks again, with the priority he had."""
    for i in range(sched.nr):
        if sched_cpus[i].status == Status.YIELDED and sched_cpus[i].priority < 0:
            sched_cpus[i].priority = sched_cpus[i].kept_priority
