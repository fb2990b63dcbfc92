"""One CPU moves at a time. The CPUs of a run are stacks of one process; whoever stops picks who goes on.

A CPU stops when its budget of points is used up, when it sleeps on a futex, when it polls (sched_yield, nap), when its
program is done, and when bug() stops the machine: waiting.py says how these come here, runs.py how a run begins.

An interrupt arrives between two instructions: a CPU that goes on after others moved serves its IPIs first. With a grant of 0
it does only that, and stands where it stood: whoever waited for it may go on before it does.
"""

from concur_thp.arch.builtins import set_current
from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.irq import ipi_serve
from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.arch.stack import switch_stack
from concur_thp.sched.state import MAX_STRETCHES, Reason, Sched, SchedCpu, Status, Verdict, sched, sched_cpus, sched_log

READY, YIELDED, DONE = int(Status.READY), int(Status.YIELDED), int(Status.DONE)
MOST_IDLE = 200
"""A CPU that polls may look so often while nobody moves; then nobody ever will."""
NOBODY = -1
POINTER, MAIN = SchedCpu.FIELDS["pointer"].offset, Sched.FIELDS["main"].offset


@kernel
@quiet
def pick(cpu: int, reason: int):
    """Which CPU goes on? The strategy's answer; it also says for how many points, in sched.grant.

    Context: the machine stands still; `cpu` has stopped for `reason` (-1, START at the beginning).
    Return: a CPU that can_run(), NOBODY when there is none.
    Emulator: the one place where a strategy decides.
    """
    return NOBODY


@kernel
@quiet
def prepare(seed: int):
    """Before each run: the strategy draws its numbers.

    Context: the machine stands still.
    Emulator: the strategy's beginning of a run.
    """


@kernel
@quiet
def after():
    """Behind each run: a strategy that enumerates moves on, and says in sched.exhausted when it is through.

    Context: the machine stands still.
    Emulator: the strategy's end of a run.
    """


@inline
def can_run(number: int):
    """Could this CPU move? One that polls only after another has moved, or has sent it a request that it may serve."""
    it = sched_cpus[number]
    called = cpus[number].ipi_bits.read() != 0 and cpus[number].irq_off == 0
    return it.status == READY or (it.status == YIELDED and (called or sched.steps > it.since))


@inline
def count_steps(cpu: Cpu):
    """Enter the points that this CPU has passed since it was asked last."""
    me = sched_cpus[cpu.id]
    ran = me.granted - cpu.budget
    me.steps = me.steps + ran
    sched.steps = sched.steps + ran
    me.granted = cpu.budget
    if ran > 0:
        sched.idle = 0


@kernel
@quiet
def decide(cpu: Cpu, reason: int):
    """Stop here; come back when it is this CPU's turn again.

    Context: on the CPU's own stack, anywhere.
    Emulator: the scheduler of controlled runs.
    """
    me = sched_cpus[cpu.id]
    count_steps(cpu)
    if sched.steps > sched.bound or sched.stretches >= MAX_STRETCHES - 1:  # What could not be replayed counts as endless.
        finish(cpu, Verdict.LIVELOCK)
        return 0
    to = pick(cpu.id, reason)
    if to == NOBODY:
        to = poller(cpu.id)
    if to == NOBODY:
        finish(cpu, Verdict.DEADLOCK if unfinished() else Verdict.FINISHED)
        return 0
    sched.grant = min(sched.grant, sched.bound - sched.steps + 1)
    give(to)
    if to != cpu.id:
        log_stretch(cpu, reason)
        hand_over(cpu, to)
        serve(cpu)
        if me.granted == 0:
            decide(cpu, Reason.PREEMPT)  # A grant of 0 is for serving interrupts only.
            return 0
    me.status = READY
    return 0


@inline
def interrupted(number: int):
    """Has this CPU an IPI to serve before it goes on?"""
    return cpus[number].ipi_bits.read() != 0 and cpus[number].irq_off == 0


@inline
def other_interrupted(me: int):
    """Another CPU that has an IPI to serve and could move; NOBODY if there is none."""
    found = NOBODY
    for i in range(sched.nr):
        if i != me and found == NOBODY and can_run(i) and interrupted(i):
            found = i
    return found


@inline
def serve(cpu: Cpu):
    """Serve IPIs; whoever polls for an answer has something to see."""
    if interrupted(cpu.id):
        ipi_serve(cpu)
        for i in range(sched.nr):
            if sched_cpus[i].status == YIELDED:
                sched_cpus[i].since = -1


@inline
def give(to: int):
    """The picked CPU gets its grant; while stepping point by point."""
    sched_cpus[to].owed = 0
    if sched.stepping != 0 and sched.grant > 0:
        sched_cpus[to].owed = sched.grant - 1
        sched.grant = 1
    cpus[to].budget = sched.grant
    sched_cpus[to].granted = sched.grant


@inline
def log_stretch(cpu: Cpu, reason: int):
    """Write down the stretch that ends here."""
    me = sched_cpus[cpu.id]
    me.ended = reason
    if sched.stretches < MAX_STRETCHES:
        row = sched_log[sched.stretches]
        row.cpu = cpu.id
        row.reason = reason
        row.steps = me.steps - me.began
        row.site = cpu.site
        row.op = cpu.row
        sched.stretches = sched.stretches + 1
    me.began = me.steps


@kernel
@quiet
def hand_over(cpu: Cpu, to: int):
    """Let another CPU move; returns when it is this one's turn again.

    Context: as decide()'s. The next CPU's budget is set.
    Emulator: a change of stacks here; where CPUs are processes of their own, a futex.
    """
    sched.current = to
    set_current(cpus[to])
    switch_stack(int(sched_cpus[cpu.id]) + POINTER, sched_cpus[to].pointer)
    return 0


@inline
def unfinished():
    left = 0
    for i in range(sched.nr):
        if sched_cpus[i].status != DONE:
            left = 1
    return left


@inline
def poller(me: int):
    """Everybody sleeps or polls. Let those who poll look a few times more, in turn; what they wait for may be their own."""
    found = NOBODY
    sched.idle = sched.idle + 1
    if sched.idle < MOST_IDLE:
        for i in range(sched.nr):
            number = (me + 1 + i) % sched.nr
            if found == NOBODY and sched_cpus[number].status == YIELDED:
                found = number
                sched.grant = 1
    return found


@kernel
@quiet
def let_go(to: int):
    """The first CPU of a run moves; returns when the run is over.

    Context: the stack of the process itself.
    Emulator: as hand_over(), from outside of the machine.
    """
    sched.current = to
    set_current(cpus[to])
    switch_stack(int(sched) + MAIN, sched_cpus[to].pointer)


@kernel
@quiet
def finish(cpu: Cpu, verdict: int):
    """The run is over: back to whoever started it. Never returns; where CPUs are processes of their own, in the next run.

    Context: on a CPU's stack, which is given up as it stands.
    Emulator: the end of a controlled run.
    """
    sched.verdict = verdict
    log_stretch(cpu, Reason.END)
    switch_stack(int(sched_cpus[cpu.id]) + POINTER, sched.main)


__all__ = ["MOST_IDLE", "NOBODY", "after", "can_run", "count_steps", "decide", "finish", "hand_over", "interrupted", "let_go",
           "log_stretch", "other_interrupted", "pick", "prepare"]
