"""A controlled run from outside: of every CPU's program, or of one function on CPU 0 while the others rest.

Both begin on the stack of the process itself and come back there, whatever the CPUs' stacks were at when the run ended: a
stack that was left in the middle of something is laid out anew for the next run.
"""

from concur_thp.arch.builtins import set_current
from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.linker import kernel, quiet
from concur_thp.arch.stack import lay_out_stack, switch_stack
from concur_thp.sched.control import MAIN, NOBODY, can_run, decide, give, let_go, pick, prepare
from concur_thp.sched.races import begin_races, races
from concur_thp.sched.state import Reason, Status, sched, sched_cpus

READY, DONE = int(Status.READY), int(Status.DONE)
ALONE_BOUND = 10_000_000
"""Points of run_alone(); broken code may go round in a circle."""


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


__all__ = ["alone_body", "alone_pick", "control_body", "control_main", "run_alone", "run_once"]
