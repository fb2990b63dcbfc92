"""One CPU moves at a time. The CPUs of a run are stacks of one process; whoever stops picks who goes on.

A CPU stops when its budget of points is used up, when it sleeps on a futex, when it polls (sched_yield, nap), when its
program is done, and when bug() stops the machine. These functions stand in the slots of sched_point(), futex_wait(),
futex_wake(), sched_yield(), nap() and park_for_good() while this process runs controlled.

An interrupt arrives between two instructions: a CPU that goes on after others moved serves its IPIs first. With a grant of 0
it does only that, and stands where it stood: whoever waited for it may go on before it does.
"""

from concur_thp.arch.builtins import set_current
from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.futex import FutexWord
from concur_thp.arch.irq import ipi_serve
from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.arch.stack import lay_out_stack, switch_stack
from concur_thp.arch.struct import I64, Struct, field
from concur_thp.sched.races import begin_races, races
from concur_thp.sched.state import (
    MAX_STEPS_LOGGED,
    MAX_STRETCHES,
    Reason,
    Sched,
    SchedCpu,
    Status,
    Verdict,
    sched,
    sched_cpus,
    sched_log,
    sched_steps,
)

ABSENT, READY, BLOCKED, YIELDED, DONE = (int(s) for s in Status)
MOST_IDLE = 200
"""A CPU that polls may look so often while nobody moves; then nobody ever will."""
ALONE_BOUND = 10_000_000
"""Points of run_alone(); broken code may go round in a circle."""
NOBODY = -1
POINTER, MAIN = SchedCpu.FIELDS["pointer"].offset, Sched.FIELDS["main"].offset


class Long(Struct, size=8):
    """Any 64-bit word."""

    value = field(I64, "owner", "the word")


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


@kernel
@quiet
def decide(cpu: Cpu, reason: int):
    """Stop here; come back when it is this CPU's turn again.

    Context: on the CPU's own stack, anywhere.
    Emulator: the scheduler of controlled runs.
    """
    me = sched_cpus[cpu.id]
    ran = me.granted - cpu.budget
    me.steps = me.steps + ran
    sched.steps = sched.steps + ran
    me.granted = cpu.budget
    if ran > 0:
        sched.idle = 0
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


@kernel
@quiet
def control_point(cpu: Cpu):
    """sched_point() of controlled runs: the budget is used up.

    Context: anywhere a statement touches shared memory, also with irqs off.
    Emulator: a preemption.
    """
    if sched.stepping != 0:
        if sched.logged < MAX_STEPS_LOGGED:
            step = sched_steps[sched.logged]
            step.cpu = cpu.id
            step.site = cpu.site
            step.func = cpu.func
            step.row = cpu.row
            sched.logged = sched.logged + 1
        me = sched_cpus[cpu.id]
        if me.owed > 0:
            me.owed = me.owed - 1
            me.granted = me.granted + 1
            cpu.budget = 1
            return 0
    decide(cpu, Reason.PREEMPT)
    return 0


@kernel
@quiet
def control_wait(address: int, expected: int):
    """futex_wait() of controlled runs: sleep until somebody wakes this CPU. Nobody wakes up by himself.

    Context: as futex_wait().
    Emulator: blocking.
    """
    word = FutexWord(address)
    if word.value.read() == (expected << 32) >> 32:
        cpu = cpus[sched.current]
        me = sched_cpus[cpu.id]
        me.status = BLOCKED
        me.address = address
        decide(cpu, Reason.BLOCK)


@kernel
@quiet
def control_wake(address: int, count: int):
    """futex_wake() of controlled runs.

    Context: as futex_wake().
    Emulator: the sleepers can run from now on; a strategy that wants to know is asked at the next point.
    """
    woken = 0
    for i in range(sched.nr):
        it = sched_cpus[i]
        if woken < count and it.status == BLOCKED and it.address == address:
            it.status = READY
            woken += 1
    if woken != 0 and sched.eager != 0:
        cpu = cpus[sched.current]
        me = sched_cpus[cpu.id]
        me.granted = me.granted - cpu.budget + 1
        me.owed = 0
        cpu.budget = 1


@kernel
@quiet
def control_yield():
    """sched_yield() and nap() of controlled runs: this CPU polls for something that only another can bring about.

    Context: as sched_yield().
    Emulator: not runnable before another CPU has moved.
    """
    cpu = cpus[sched.current]
    me = sched_cpus[cpu.id]
    me.status = YIELDED
    me.since = sched.steps + me.granted - cpu.budget
    decide(cpu, Reason.YIELD)


@kernel
@quiet
def control_park(cpu: Cpu):
    """park_for_good() of controlled runs: the machine has panicked, so the run is over.

    Context: as park_for_good().
    Emulator: the end of a run by bug().
    """
    finish(cpu, Verdict.BUG)


@kernel
@quiet
def control_body(cpu: Cpu):
    """What a CPU runs: its program.

    Context: user mode.
    Emulator: defined by concur_thp/program.
    """


@kernel
@quiet
def control_main(cpu: Cpu):
    """A CPU's whole run.

    Context: the first function on a CPU's stack.
    Emulator: never returns.
    """
    control_body(cpu)
    sched_cpus[cpu.id].status = DONE
    decide(cpu, Reason.DONE)


@kernel
@quiet
def run_once(seed: int):
    """One controlled run of every CPU's program from the state the machine is in.

    Context: the stack of the process itself.
    Return: Verdict.
    Emulator: between prepare() and finish() only the CPUs' stacks run.
    """
    for i in range(sched.nr):
        it = sched_cpus[i]
        it.status = READY
        it.steps = 0
        it.began = 0
        it.granted = 0
        it.ended = 0
        it.since = 0
        it.pointer = lay_out_stack(it.stack, sched.body, int(cpus[i]))
        cpus[i].budget = 0
        cpus[i].site = 0
    sched.steps = 0
    sched.idle = 0
    sched.stretches = 0
    sched.logged = 0
    sched.accesses = 0
    sched.statements = 0
    sched.verdict = 0
    sched.diverged = -1
    prepare(seed)
    begin_races()
    sched.current = NOBODY
    to = pick(-1, Reason.START)
    if to == NOBODY:
        return sched.verdict
    sched.grant = min(sched.grant, sched.bound + 1)
    give(to)
    let_go(to)
    if sched.steps > sched.longest:
        sched.longest = sched.steps
    return sched.verdict


@kernel
@quiet
def alone_body(cpu: Cpu):
    """What run_alone() runs.

    Context: user mode.
    Emulator: redirected by the caller.
    """


@kernel
@quiet
def alone_main(cpu: Cpu):
    """CPU 0, while the others have nothing to do.

    Context: the first function on its stack.
    Emulator: never returns.
    """
    alone_body(cpu)
    sched_cpus[cpu.id].status = DONE
    decide(cpu, Reason.DONE)


@kernel
@quiet
def alone_pick(cpu: int, reason: int):
    """Only CPU 0.

    Context: as pick().
    Emulator: the strategy of run_alone().
    """
    sched.grant = 1 << 40
    return 0 if can_run(0) else NOBODY


@kernel
@quiet
def run_alone():
    """alone_body() on CPU 0's own stack, so that a bug() in it, or a wait that nobody ends, comes back here.

    Context: the stack of the process itself; the machine is at rest; pick() is alone_pick().
    Return: Verdict.
    Emulator: looks and clears away after a run.
    """
    for i in range(sched.nr):
        sched_cpus[i].status = DONE
        sched_cpus[i].granted = 0
        cpus[i].budget = 1 << 40  # CPU 0 may act for the others.
    it = sched_cpus[0]
    it.status = READY
    it.steps = 0
    it.began = 0
    it.pointer = lay_out_stack(it.stack, sched.alone, int(cpus[0]))
    races.watching = 0
    sched.steps = 0
    sched.idle = 0
    sched.verdict = 0
    sched.current = 0
    cpus[0].budget = ALONE_BOUND
    it.granted = ALONE_BOUND
    set_current(cpus[0])
    kept = sched.stretches
    switch_stack(int(sched) + MAIN, it.pointer)
    sched.stretches = kept  # Nothing of this belongs to the schedule that went before.
    return sched.verdict


__all__ = ["NOBODY", "after", "can_run", "control_body", "control_main", "decide", "finish", "hand_over", "interrupted",
           "let_go", "log_stretch", "other_interrupted", "pick", "prepare", "run_once"]
