"""Happens-before race detection on plain fields, in controlled runs of the traced build: vector clocks, as FastTrack has them.

A CPU's clock counts its releases. Edges come from what the kernel's own code does, down in its locks: every
read-modify-write acquires and releases its word, load() acquires, store() releases; read() and write() give no edge by
themselves, but write() behind smp_wmb() releases what was done before the barrier, and smp_rmb() acquires what read() saw
before it. Spinlocks, rwsems, page locks, IPIs and futexes are made of these words, so each orders what it should.

A race: two accesses of one plain field, one of them a write, neither before the other. Whether a read may race is in the
field's row (`|racy`). It does not matter whether the two met in this schedule, only that nothing kept them apart.

All of it is forgotten between two runs by counting `races.generation` up.
"""

from concur_thp.arch.bug import report_bug
from concur_thp.arch.builtins import lsr, text_id, wrap_mul
from concur_thp.arch.checked import FENCE, FOR_DPOR, QUIET, RACY
from concur_thp.arch.cpu import cpus
from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import I32, I64, Struct, field
from concur_thp.sched.state import sched

MOST_CPUS = 8
"""CPUs whose clocks are kept; more of them cannot be watched."""
VARIABLES = 1 << 15
FULL = VARIABLES * 3 // 4
MULTIPLY = 0x9E3779B97F4A7C15 - (1 << 64)
ATOMIC, KIND_MASK = 16, 15
LOAD, READ, STORE, WRITE = 0, 1, 2, 3
MB, WMB, RMB = 1, 2, 3
TEXT_WRITE = text_id(
    "race: a field is written while another CPU's write is not ordered before (values: this statement, the other)")
TEXT_READ = text_id(
    "race: a field is read while another CPU's write is not ordered before (values: this statement, the other)")
TEXT_LATE = text_id(
    "race: a field is written while another CPU's read is not ordered before (values: this statement, the other)")


class Clock(Struct, size=192):
    """A CPU's clocks."""

    now = field(I64, "owner", "of each CPU's releases, those that are before what this CPU does next", count=MOST_CPUS)
    behind = field(I64, "owner", "the same at its last smp_wmb()", count=MOST_CPUS)
    seen = field(I64, "owner", "what its relaxed reads came upon, acquired by smp_rmb()", count=MOST_CPUS)


class Variable(Struct, size=192):
    """A field of an object, or an atomic word."""

    address = field(I64, "owner", "where")
    generation = field(I64, "owner", "of races.generation; any other: the place is empty")
    clock = field(I64, "owner", "plain: of each CPU's last read; atomic: what the word's last value releases", count=MOST_CPUS)
    site = field(I64, "owner", "statement of each CPU's last read", count=MOST_CPUS)
    writer = field(I32, "owner", "the CPU that wrote it last, + 1")
    when = field(I64, "owner", "its clock at that")
    write_site = field(I64, "owner", "statement that wrote it last")


class Races(Struct, align=64):
    """The detector."""

    generation = field(I64, "owner", "runs watched")
    variables = field(I64, "owner", "variables of this run")
    address = field(I64, "owner", "the last race: of the field")
    cpu = field(I32, "owner", "the CPU that found it")
    site = field(I64, "owner", "its statement")
    other = field(I32, "owner", "the other CPU")
    other_site = field(I64, "owner", "that one's statement, earlier in this run")
    wanted = field(I32, "const", "1 when runs are to be watched")
    watching = field(I32, "owner", "1 inside of a run")


races = SharedOne("sched_races", Races)
clocks = SharedArray("sched_clocks", Clock, lambda c: MOST_CPUS)
variables = SharedArray("sched_variables", Variable, lambda c: VARIABLES if c.controlled else 1)


@kernel
@quiet
def begin_races():
    """A run begins: nothing has happened, all that was before is before everything.

    Context: the machine stands still.
    Emulator: reset of race detection.
    """
    races.watching = races.wanted
    if races.wanted == 0:
        return 0
    races.generation = races.generation + 1
    races.variables = 0
    for i in range(MOST_CPUS):
        for j in range(MOST_CPUS):
            clocks[i].now[j] = 0
            clocks[i].behind[j] = 0
            clocks[i].seen[j] = 0
        clocks[i].now[i] = 1
    return 0


@inline
def variable_at(address: int) -> Variable:
    """The row of a variable; a new one when this run has not come by it."""
    at = lsr(wrap_mul(address, MULTIPLY), 49)
    while variables[at].generation == races.generation and variables[at].address != address:
        at = (at + 1) & (VARIABLES - 1)
    row = variables[at]
    if row.generation != races.generation:
        row.generation = races.generation
        row.address = address
        row.writer = 0
        for i in range(MOST_CPUS):
            row.clock[i] = 0
        races.variables = races.variables + 1
    return row


@kernel
@quiet
def watch_access(cpu: int, address: int, width: int, kind: int, site: int):
    """access_hook() of runs that are watched for races.

    Context: before the access, one CPU at a time.
    Emulator: race detection.
    """
    me = sched.current
    if races.watching == 0 or races.variables >= FULL or me >= MOST_CPUS or kind & FOR_DPOR != 0:
        return 0
    if kind & FENCE != 0:
        watch_fence(me, width)
    elif kind & ATOMIC != 0:
        watch_atomic(me, variable_at(address), kind & KIND_MASK)
    elif kind & QUIET == 0 and kind & KIND_MASK in (LOAD, STORE):  # Else bulk, of words that are atomic one by one.
        watch_plain(me, variable_at(address), kind, site)
    return 0


@inline
def watch_fence(me: int, which: int):
    """smp_mb(), smp_wmb(), smp_rmb()."""
    mine = clocks[me]
    for i in range(MOST_CPUS):
        if which != WMB:
            mine.now[i] = max(mine.now[i], mine.seen[i])
        if which != RMB:
            mine.behind[i] = mine.now[i]
    if which != RMB:
        mine.now[me] = mine.now[me] + 1


@inline
def watch_atomic(me: int, word: Variable, kind: int):
    """An access of an atomic word: edges, never a race."""
    mine = clocks[me]
    for i in range(MOST_CPUS):
        if kind == READ:
            mine.seen[i] = max(mine.seen[i], word.clock[i])
        elif kind == WRITE:
            word.clock[i] = mine.behind[i]
        elif kind == STORE:
            word.clock[i] = mine.now[i]
        else:
            mine.now[i] = max(mine.now[i], word.clock[i])
    if kind > WRITE:  # A read-modify-write goes on with what was released before it.
        for i in range(MOST_CPUS):
            word.clock[i] = mine.now[i]
    if kind == STORE or kind > WRITE:
        mine.now[me] = mine.now[me] + 1


@inline
def watch_plain(me: int, it: Variable, kind: int, site: int):
    """An access of a plain field: is what other CPUs did to it before this?"""
    mine = clocks[me]
    writes = kind & KIND_MASK == STORE
    who = it.writer - 1
    if who >= 0 and who != me and it.when > mine.now[who] and (writes or kind & RACY == 0):
        if writes:
            report_race(me, TEXT_WRITE, it.address, site, who, it.write_site)
        else:
            report_race(me, TEXT_READ, it.address, site, who, it.write_site)
    if writes:
        for i in range(MOST_CPUS):
            if i != me and it.clock[i] > mine.now[i]:
                report_race(me, TEXT_LATE, it.address, site, i, it.site[i])
            it.clock[i] = 0
        it.writer = me + 1
        it.when = mine.now[me]
        it.write_site = site
    elif kind & RACY == 0:
        it.clock[me] = mine.now[me]
        it.site[me] = site
    return 0


@kernel
@quiet
def report_race(me: int, text: int, address: int, site: int, other: int, other_site: int):
    """Keep what a race was and end the run with it.

    Context: before the second access.
    Emulator: bug() of race detection.
    """
    races.address = address
    races.cpu = me
    races.site = site
    races.other = other
    races.other_site = other_site
    cpus[me].site = site
    report_bug(cpus[me], text, site, other_site, cpus[me].func)


__all__ = ["MOST_CPUS", "begin_races", "races", "watch_access"]
