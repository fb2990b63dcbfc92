"""What stands in the slots of sched_point(), futex_wait(), futex_wake(), sched_yield(), nap() and park_for_good() while a
process runs controlled: everything that a CPU stops for. Each tells decide() why; nobody here says who goes on.
"""

from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.futex import FutexWord
from concur_thp.arch.linker import kernel, quiet
from concur_thp.sched.control import count_steps, decide, finish
from concur_thp.sched.state import MAX_STEPS_LOGGED, Reason, Status, Verdict, sched, sched_cpus, sched_steps

READY, BLOCKED, YIELDED = int(Status.READY), int(Status.BLOCKED), int(Status.YIELDED)


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
    count_steps(cpu)  # The last stretch is part of the story.
    finish(cpu, Verdict.BUG)


__all__ = ["control_park", "control_point", "control_wait", "control_wake", "control_yield"]
