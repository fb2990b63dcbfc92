"""Depth first: every schedule with at most so many preemptions, once each; says when there are no more.

The path is a stack of decisions, one for each moment at which more than one CPU could go on. A run follows it and goes on by
the default: whoever moves goes on, else the lowest number. Afterwards the last decision that has an untried answer gets it, and
what lies behind is forgotten. Taking the processor from a CPU that could go on is a preemption; a CPU that has stopped
by itself may be followed by anyone for nothing. (Musuvathi, Qadeer: iterative context bounding, PLDI 2007)

An interrupt is served by itself, and behind it anyone may go on for nothing: else a CPU would make its next step before whoever
waited for the flush goes on, and what a stale value does afterwards would never be seen.
"""

from concur_thp.arch.cpu import cpus
from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.sched.control import NOBODY, can_run, finish, interrupted
from concur_thp.sched.state import MAX_STRETCHES, Reason, Status, Stretch, Verdict, sched, sched_cpus, sched_plan

ALONE_GRANT = 16
FOREVER = 1 << 40


@kernel
@quiet
def dfs_prepare(seed: int):
    """From the root.

    Context: before a run.
    Emulator: strategy dfs. Its path is in sched_plan: cpu is the answer, reason the set of CPUs that could go on, steps the set
    of answers tried, op who moved (+ 1, 0 when it cannot go on), spare the preemptions before.
    """
    sched.at = 0
    sched.eager = 1
    sched.spent = 0


@inline
def able():
    """A bit for each CPU that can run."""
    bits = 0
    for i in range(sched.nr):
        if can_run(i):
            bits = bits | (1 << i)
    return bits


@inline
def polling():
    """Does any CPU wait for what nobody announces?"""
    found = 0
    for i in range(sched.nr):
        if sched_cpus[i].status == Status.YIELDED:
            found = 1
    return found


@inline
def cost(node: Stretch, to: int):
    """Preemptions that an answer costs."""
    return 1 if node.op != 0 and node.op != to + 1 else 0


@inline
def only_served(cpu: int, reason: int):
    """Has this CPU served an interrupt, and stands where it stood?"""
    return reason == Reason.PREEMPT and sched_cpus[cpu].steps == sched_cpus[cpu].began


@kernel
@quiet
def dfs_pick(cpu: int, reason: int):
    """The path's answer, or the default behind its end.

    Context: as pick().
    Emulator: strategy dfs.
    """
    to = answer(cpu, reason)
    if to != NOBODY and to != cpu and interrupted(to):
        sched.grant = 0
    return to


@inline
def answer(cpu: int, reason: int):
    """Who goes on; a decision is entered behind the end of the path."""
    bits = able()
    if bits == 0:
        return NOBODY
    stays = 0
    if reason == Reason.PREEMPT and bits & (1 << cpu) != 0 and not only_served(cpu, reason):
        stays = cpu + 1
    sched.grant = 1
    if bits & (bits - 1) == 0:
        # Nobody else can. Whoever is woken has us asked again; whoever polls may find something after each step.
        sched.grant = 1 if polling() else ALONE_GRANT
        return lowest(bits)
    if stays != 0 and sched.spent >= sched.depth:
        sched.grant = FOREVER
        return cpu
    if sched.at >= MAX_STRETCHES - 1:
        finish(cpus[sched.current], Verdict.LIVELOCK)  # No path goes on for so long.
    node = sched_plan[sched.at]
    if sched.at >= sched.expected:
        node.cpu = cpu if stays != 0 else lowest(bits)
        node.reason = bits
        node.steps = 1 << node.cpu
        node.op = stays
        node.spare = sched.spent
        sched.expected = sched.at + 1
    to = node.cpu
    sched.spent = sched.spent + cost(node, to)
    sched.at = sched.at + 1
    return to


@inline
def lowest(bits: int):
    to = 0
    while bits & (1 << to) == 0:
        to += 1
    return to


@kernel
@quiet
def dfs_after():
    """The next path; none is left when the root has no untried answer.

    Context: after a run.
    Emulator: strategy dfs.
    """
    while sched.expected > 0:
        node = sched_plan[sched.expected - 1]
        for to in range(sched.nr):
            if node.reason & ~node.steps & (1 << to) != 0 and node.spare + cost(node, to) <= sched.depth:
                node.cpu = to
                node.steps = node.steps | (1 << to)
                return 0
        sched.expected = sched.expected - 1
    sched.exhausted = 1
    return 0
