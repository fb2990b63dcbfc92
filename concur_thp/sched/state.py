"""What the scheduler of controlled runs knows. None of it is part of a snapshot: it says how the machine moved."""

from enum import IntEnum, unique

from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import I32, I64, Struct, field
from concur_thp.config import NR_CPUS

MAX_STRETCHES = 1 << 16
MAX_CHANGES = 16


@unique
class Status(IntEnum):
    """Of a CPU in a controlled run."""

    ABSENT = 0  # takes no part
    READY = 1
    BLOCKED = 2  # sleeps on a futex word until somebody wakes it
    YIELDED = 3  # polls for something: not before another CPU has moved
    DONE = 4


@unique
class Reason(IntEnum):
    """Why the scheduler was asked, or why a stretch of a CPU ended."""

    START = 0
    PREEMPT = 1  # its budget was used up
    BLOCK = 2
    YIELD = 3
    DONE = 4
    END = 5  # the run ended here: bug(), nobody can go on, too many steps


@unique
class Verdict(IntEnum):
    """How a controlled run ended."""

    RUNNING = 0
    FINISHED = 1  # every CPU did all it had to; what that left behind is for the audit to say
    BUG = 2  # bug()
    DEADLOCK = 3  # nobody can go on
    LIVELOCK = 4  # more steps than the bound
    DIVERGED = 5  # replay only: not what was recorded
    CRASHED = 6  # the process that ran it died
    CUT = 7  # the strategy knows already how this goes on
    RAISED = 8  # a program in Python raised an exception
    HUNG = 9  # a CPU process does not come back


class SchedCpu(Struct, align=64):
    """One CPU, to the scheduler."""

    status = field(I32, "owner", "Status")
    stack = field(I64, "owner", "address behind the high end of its stack")
    pointer = field(I64, "owner", "its stack pointer while it does not run")
    address = field(I64, "owner", "the futex word it sleeps on, while BLOCKED")
    since = field(I64, "owner", "steps of the whole run when it yielded")
    granted = field(I64, "owner", "budget it was given for this stretch")
    owed = field(I64, "owner", "while stepping: what is left of its grant behind this point")
    steps = field(I64, "owner", "points it has passed in this run")
    began = field(I64, "owner", "steps at the beginning of this stretch")
    ended = field(I32, "owner", "Reason why its last stretch ended")
    priority = field(I64, "owner", "pct: the highest that can run runs; negative while it polls")
    kept_priority = field(I64, "owner", "pct: what it had before it began to poll")


class Sched(Struct, align=64):
    """The run as a whole."""

    nr = field(I32, "const", "CPUs that take part: 0 .. nr-1")
    current = field(I32, "owner", "the CPU that moves")
    verdict = field(I32, "owner", "Verdict")
    main = field(I64, "owner", "stack pointer of whoever started the run")
    steps = field(I64, "owner", "points passed by all CPUs in the stretches that have ended")
    bound = field(I64, "const", "steps after which a run is a livelock")
    idle = field(I64, "owner", "times in a row that a CPU that polls was let go on though nobody had moved")
    grant = field(I64, "owner", "what the strategy gives the CPU it picks")
    stretches = field(I64, "owner", "rows of sched_log")
    rng = field(I64, "owner", "the strategy's random numbers")
    eager = field(I32, "owner", "1 when the strategy wants to be asked as soon as somebody is woken")
    stepping = field(I32, "const", "1 to write every point into sched_steps")
    logged = field(I64, "owner", "rows of sched_steps")
    accesses = field(I64, "owner", "rows of sched_accesses")
    statements = field(I64, "owner", "rows of sched_statements")
    body = field(I64, "const", "address of the native function that a CPU runs")
    alone = field(I64, "const", "the same for run_alone()")
    longest = field(I64, "owner", "most steps of a run so far")
    depth = field(I32, "const", "pct: d; dfs: preemption bound; random: binary logarithm of a mean stretch")
    next_change = field(I32, "owner", "pct: first change point not yet reached")
    change = field(I64, "owner", "pct: steps at which the running CPU loses its priority", count=MAX_CHANGES)
    diverged = field(I64, "owner", "replay: step at which something else happened, -1")
    diverged_cpu = field(I32, "owner", "replay: the CPU that did it, or that cannot go on")
    diverged_why = field(I32, "owner", "replay: Reason why it stopped, -1 when it cannot go on")
    expected = field(I64, "const", "replay: rows of sched_plan")
    at = field(I64, "owner", "replay, dfs: next row of sched_plan")
    spent = field(I64, "owner", "dfs: preemptions of this run so far")
    exhausted = field(I64, "owner", "1 when the strategy has no schedule left, 2 when some did not fit")


class Stretch(Struct, size=40):
    """A CPU moved for some steps and stopped."""

    cpu = field(I32, "owner", "which")
    reason = field(I32, "owner", "Reason why it stopped")
    steps = field(I64, "owner", "points it passed")
    site = field(I64, "owner", "number of the statement before which it stopped")
    op = field(I64, "owner", "cpu.row: what its program was doing")
    spare = field(I64, "owner", "strategy's own")


class Step(Struct, size=32):
    """One point that a CPU passed."""

    cpu = field(I64, "owner", "which")
    site = field(I64, "owner", "statement it is about to run")
    func = field(I64, "owner", "kernel function it is in")
    row = field(I64, "owner", "cpu.row")


class Access(Struct, size=48):
    """One access of the traced build."""

    cpu = field(I32, "owner", "which CPU")
    kind = field(I32, "owner", "checked.KIND; + 16 when the field is atomic")
    address = field(I64, "owner", "where, in this process")
    width = field(I32, "owner", "bytes")
    stretch = field(I32, "owner", "rows of sched_log before it")
    step = field(I64, "owner", "rows of sched_steps before it")
    site = field(I64, "owner", "number of its statement")
    value = field(I64, "owner", "what was there; 0 for what is wider than a word")


class Statement(Struct, size=48):
    """A statement that a CPU began in the traced build."""

    cpu = field(I32, "owner", "which CPU")
    stretch = field(I32, "owner", "rows of sched_log before it")
    site = field(I64, "owner", "number of the statement")
    func = field(I64, "owner", "the kernel function it was compiled into")
    row = field(I64, "owner", "cpu.row")
    accesses = field(I64, "owner", "rows of sched_accesses before it")
    events = field(I64, "owner", "events of the CPU's ring before it")


MAX_STEPS_LOGGED = 1 << 16
sched_cpus = SharedArray("sched_cpus", SchedCpu, lambda c: NR_CPUS)
sched = SharedOne("sched", Sched)
sched_log = SharedArray("sched_log", Stretch, lambda c: MAX_STRETCHES if c.controlled else 1)
sched_plan = SharedArray("sched_plan", Stretch, lambda c: MAX_STRETCHES if c.controlled else 1)
sched_steps = SharedArray("sched_steps", Step, lambda c: MAX_STEPS_LOGGED if c.controlled else 1)
sched_accesses = SharedArray("sched_accesses", Access, lambda c: MAX_STEPS_LOGGED * 4 if c.controlled else 1)
sched_statements = SharedArray("sched_statements", Statement, lambda c: MAX_STEPS_LOGGED * 4 if c.controlled else 1)

__all__ = ["MAX_CHANGES", "MAX_STEPS_LOGGED", "MAX_STRETCHES", "Access", "Reason", "Sched", "SchedCpu", "Statement", "Status",
           "Step", "Stretch", "Verdict", "sched", "sched_accesses", "sched_cpus", "sched_log", "sched_plan", "sched_statements",
           "sched_steps"]
