"""Dynamic partial order reduction: few schedules of all that differ only in the order of steps that do not conflict.

As dfs a path of decisions is followed and its last one with an untried answer is changed. But an answer is tried only if
a run has shown a race (reversals.py) that it turns round: source sets, with sleep sets that end a run as soon as all that can
go on was explored from an equal state before (Flanagan, Godefroid, POPL 2005; Abdulla et al., POPL 2014). There is no
bound of preemptions; when it is through, every end that any schedule can come to was seen.

With two CPUs the interrupts of each are a thread of their own: serving an IPI is a step that commutes with all steps of its CPU
but those that use the TLB. The CPU goes on only when it has served. That leaves nothing out: a sender does nothing
between its request and the ack, so a step of the target between the two can as well come before the request. (A third
CPU could tell the two apart. There an IPI is served with the CPU's next step, and each step reads ipi_bits.)

A CPU that polls can go on when another has written what it has read since it last looked. That is enough where polling in
the same state changes nothing, as everywhere here; if nobody else can go on it looks all the same, as under any strategy.
"""

from concur_thp.arch.cpu import cpus
from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import I32, I64, Struct, field
from concur_thp.sched.control import MOST_IDLE, NOBODY, finish
from concur_thp.sched.dfs import lowest
from concur_thp.sched.state import Reason, Status, Verdict, sched, sched_cpus
from concur_thp.sched.touches import meet, sleeps_on, touch_first, touches

MOST_CPUS = 8
"""CPUs, or twice the CPUs when interrupts are threads of their own: CPU n's have number sched.nr + n."""
MOST_NODES = 1 << 14
"""Steps of a run. A longer one is given up, and then nothing is proved."""


class Node(Struct, align=64):
    """A step of the path: what could run, who was chosen, and what is known of the others. Sets have a bit for each CPU."""

    cpu = field(I32, "owner", "whose step this is")
    able = field(I32, "owner", "set: could run")
    wanted = field(I32, "owner", "set: answers to be tried, or tried")
    done = field(I32, "owner", "set: answers that were explored")
    asleep = field(I32, "owner", "set: explored from a state that differs only by steps which do not conflict with theirs")
    site = field(I64, "owner", "where the CPU stood")
    sent = field(I64, "owner", "of a step that serves an IPI: the step that sent it, + 1")
    began = field(I64, "owner", "first touch of the step")
    ended = field(I64, "owner", "behind its last touch")
    first = field(I64, "owner", "by CPU, of those done or asleep: first touch of its step from here", count=MOST_CPUS)
    last = field(I64, "owner", "behind the last touch", count=MOST_CPUS)
    clock = field(I64, "owner", "by CPU: its last step that happens before the end of this one, + 1", count=MOST_CPUS)


class Dpor(Struct, align=64):
    """Where the search stands."""

    at = field(I64, "owner", "steps of the run so far")
    depth = field(I64, "owner", "steps of the path")
    fresh = field(I64, "owner", "first step of the path that no run has taken yet")
    run = field(I64, "owner", "runs so far")
    given_up = field(I64, "owner", "1 when a run did not fit: nothing is proved any more")
    threads = field(I32, "owner", "CPUs, and their interrupts if those are apart")
    pending = field(I32, "owner", "set: CPUs that have been sent an IPI")
    sender = field(I64, "owner", "by CPU: the last step that sent it one, + 1", count=MOST_CPUS)
    news = field(I32, "owner", "set: polling CPUs whose words another has written since")
    polled = field(I64, "owner", "by CPU: its first step since it last went on polling", count=MOST_CPUS)
    polls_at = field(I64, "owner", "by CPU: where it last polled", count=MOST_CPUS)


dpor = SharedOne("sched_dpor", Dpor)
nodes = SharedArray("sched_nodes", Node, lambda c: MOST_NODES if c.controlled else 1)


@kernel
@quiet
def dpor_prepare(seed: int):
    """From the root.

    Context: before a run.
    Emulator: strategy dpor.
    """
    if sched.expected == 0:  # As choose() leaves it: a new search.
        sched.expected = 1
        dpor.depth = 0
        dpor.fresh = 0
        dpor.run = 0
        dpor.given_up = 0
        touches.overflow = 0
        touches.top = 0
    sched.eager = 0
    dpor.threads = 2 * sched.nr if sched.nr == 2 else sched.nr
    dpor.pending = 0
    dpor.run = dpor.run + 1
    dpor.at = 0
    dpor.news = 0
    touches.noting = 0
    for i in range(sched.nr):
        dpor.polled[i] = 0
        dpor.polls_at[i] = 0
        sleeps_on[i].value = 0


@kernel
@quiet
def dpor_pick(cpu: int, reason: int):
    """The path's answer, or behind its end whoever moves goes on.

    Context: as pick().
    Emulator: strategy dpor.
    """
    at = dpor.at
    if reason == Reason.YIELD and first_look(cpu, at):
        sched.grant = 1
        return cpu
    if at > 0:
        step_over(reason)
    bits = able_now()
    if bits == 0:
        return NOBODY
    if at >= MOST_NODES:
        dpor.given_up = 1
        finish(cpus[sched.current], Verdict.CUT)
    node = nodes[at]
    if at >= dpor.depth:
        new_node(at, bits)
        awake = bits & ~node.asleep
        if awake == 0:
            finish(cpus[sched.current], Verdict.CUT)
        node.cpu = cpu if cpu >= 0 and awake & (1 << cpu) != 0 else lowest(awake)
        node.wanted = 1 << node.cpu
        dpor.depth = at + 1
    elif node.able != bits or (at < dpor.fresh and node.site != cpus[node.cpu % sched.nr].site):
        sched.diverged = sched.steps
        finish(cpus[sched.current], Verdict.DIVERGED)
    begin_step(at)
    sched.grant = 1 if node.cpu < sched.nr else 0
    return node.cpu % sched.nr


@inline
def first_look(number: int, at: int):
    """Does this CPU begin to poll? It looks once more as part of the same step: what it touches from now on is what it waits
    for; before, nobody knows where its loop began."""
    fresh = dpor.polls_at[number] != cpus[number].site
    if fresh:
        dpor.polls_at[number] = cpus[number].site
        dpor.polled[number] = at - 1
    return fresh


@inline
def able_now():
    """Who can run. When only polling CPUs are left they look a few times more, as in control.poller()."""
    bits = 0
    polling = 0
    for i in range(sched.nr):
        status = sched_cpus[i].status
        if status == Status.YIELDED:
            polling = polling | (1 << i)
        asked = cpus[i].ipi_bits.read() != 0
        if asked and dpor.threads > sched.nr and cpus[i].irq_off == 0 and (status == Status.READY or status == Status.YIELDED):
            bits = bits | (1 << (sched.nr + i))
        elif status == Status.READY or (status == Status.YIELDED and (dpor.news & (1 << i) != 0 or asked)):
            bits = bits | (1 << i)
    if bits == 0 and sched.idle < MOST_IDLE:
        sched.idle = sched.idle + 1
        bits = polling
    return bits


@inline
def new_node(at: int, bits: int):
    """Behind the end of the path: those asleep before the last step still are if it does not conflict with theirs."""
    node = nodes[at]
    node.able = bits
    node.done = 0
    node.asleep = 0
    if at > 0:
        before = nodes[at - 1]
        known = (before.asleep | before.done) & ~(1 << before.cpu)
        for i in range(dpor.threads):
            if known & (1 << i) != 0 and not meet(before.began, before.ended, before.first[i], before.last[i], 1):
                node.asleep = node.asleep | (1 << i)
                node.first[i] = before.first[i]
                node.last[i] = before.last[i]
    node.began = touches.top


@inline
def begin_step(at: int):
    """The step's CPU is about to go on."""
    node = nodes[at]
    number = node.cpu % sched.nr
    node.sent = 0
    if at >= dpor.fresh:
        touches.noting = 1
        touches.top = node.began
        touches.began = node.began
        node.site = cpus[number].site
    dpor.at = at + 1
    if node.cpu >= sched.nr:
        node.sent = dpor.sender[number]
        return 0
    if sched_cpus[number].status == Status.YIELDED:
        dpor.polled[number] = at
        dpor.news = dpor.news & ~(1 << number)
    touch_first(number)
    return 0


@inline
def step_over(reason: int):
    """The last step has ended: is there news for those who poll?"""
    at = dpor.at
    node = nodes[at - 1]
    if touches.noting != 0:
        node.ended = touches.top
    for i in range(sched.nr):
        if cpus[i].ipi_bits.read() == 0:
            dpor.pending = dpor.pending & ~(1 << i)
        elif dpor.pending & (1 << i) == 0:
            dpor.pending = dpor.pending | (1 << i)
            dpor.sender[i] = at
        if i != node.cpu and sched_cpus[i].status == Status.YIELDED and dpor.news & (1 << i) == 0:
            if has_news(i, at - 1, at):
                dpor.news = dpor.news | (1 << i)
    if reason == Reason.YIELD and has_news(node.cpu, dpor.polled[node.cpu], at):
        dpor.news = dpor.news | (1 << node.cpu)


@kernel
@quiet
def has_news(number: int, start: int, end: int):
    """Has a step of another CPU in start .. end-1 written what a CPU had touched before since it last went on polling?

    Context: as pick().
    Emulator: strategy dpor.
    """
    for k in range(start, end):
        other = nodes[k]
        if other.cpu % sched.nr != number:
            for m in range(dpor.polled[number], k):
                mine = nodes[m]
                if mine.cpu == number and meet(other.began, other.ended, mine.began, mine.ended, 0):
                    return 1
    return 0


@kernel
@quiet
def find_races(start: int, end: int):
    """Ask for the other order of each race whose later step is in start .. end-1.

    Context: after a run.
    Emulator: strategy dpor, see reversals.py.
    """


@kernel
@quiet
def dpor_after():
    """The next path; none is left when no node has an untried answer that is wanted.

    Context: after a run.
    Emulator: strategy dpor.
    """
    touches.noting = 0
    if dpor.at > dpor.fresh:
        nodes[dpor.at - 1].ended = touches.top
    find_races(dpor.fresh, dpor.at)
    while dpor.depth > 0:
        node = nodes[dpor.depth - 1]
        node.done = node.done | (1 << node.cpu)
        node.first[node.cpu] = node.began
        node.last[node.cpu] = node.ended
        left = node.wanted & ~node.done & ~node.asleep
        if left != 0:
            node.cpu = lowest(left)
            node.began = node.ended
            dpor.fresh = dpor.depth - 1
            return 0
        dpor.depth = dpor.depth - 1
    sched.exhausted = 2 if dpor.given_up or touches.overflow else 1
    return 0
