"""lockdep: is this acquisition allowed, whatever the other CPUs do right now?

Each class remembers the set of classes that were held when it was taken and found lawful. An acquisition under a known
set costs one mask test; a new one is checked in full: rank, recursion, the order graph, irq-safety. It objects without
a deadlock having to happen, in whichever process sees the order first; the graph is shared by all.
"""

from concur_thp.arch.bug import bug, bug_on
from concur_thp.arch.builtins import cycles, ffs64
from concur_thp.arch.cpu import HELD_DEPTH, HELD_READ, NR_LOCK_CLASSES, Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import I32, I64, Struct, atomic, field
from concur_thp.arch.system import system
from concur_thp.sync.lock_classes import FIRST_USER_CLASS, LOCK_CLASSES, PAGE_LOCK, SPIN_CLASSES

SEGMENT = system.array.base
CLASS_MASK = 0xFF
NO_CLASS = 0
"""The class of memory that is no lock: one never made, or gone, as the ptl of a frame that is no page table."""
NEVER = 1 << 30
"""More than irqs are ever disabled."""


class DepClass(Struct, size=64):
    """What lockdep knows of one class."""

    rank = field(I32, "const", "its rank, 0 when only the graph orders it")
    irq = field(I32, "const", "1 when irqs are off while it is held; NEVER for NO_CLASS")
    before = atomic(I64, "classes that were lawfully held when this one was taken")


class Lockdep(Struct, size=64):
    """The switches of lockdep."""

    spin_mask = field(I64, "const", "classes whose holder must not sleep")


dep_classes = SharedArray("dep_classes", DepClass, lambda config: NR_LOCK_CLASSES)
lockdep = SharedOne("lockdep", Lockdep)


def init_lockdep() -> None:
    """Boot: fill the rows from the table."""
    for number, row in enumerate(LOCK_CLASSES):
        dep_classes[number].rank = row.rank
        dep_classes[number].irq = int(row.irq)
    dep_classes[NO_CLASS].irq = NEVER
    user = sum(1 << n for n in range(FIRST_USER_CLASS, NR_LOCK_CLASSES))
    lockdep.spin_mask = SPIN_CLASSES | user


@inline
def lock_offset(lock: int):
    """A lock's place in the segment: the same number in every process."""
    return lock - SEGMENT


@inline
def lock_acquire(cpu: Cpu, lock: int, cls: int, trylock: int):
    """Before taking a lock: is the order lawful? Also says, for a report, what this CPU is after."""
    cpu.acquiring = (lock_offset(lock) << 8) | cls
    cpu.beat = cpu.beat + 1
    if cpu.held_mask & ~dep_classes[cls].before.read() != 0:
        check_order(cpu, cls, trylock)
    if dep_classes[cls].irq > cpu.irq_off:
        lock_refused(cpu, lock, cls)


@kernel
def lock_refused(cpu: Cpu, lock: int, cls: int):
    """An acquisition that is wrong whatever else is held.

    Context: about to take it.
    Linux: kernel/locking/spinlock_debug.c debug_spin_lock_before, its "bad magic"; kernel/locking/lockdep.c check_usage
    """
    bug_on(cpu, cls == NO_CLASS, "lockdep: this is no lock, or none yet", lock, cpu.irq_off)
    bug(cpu, "lockdep: an irq-safe lock is taken with irqs on (value: class)", cls, lock)


@inline
def lock_acquired(cpu: Cpu, lock: int, cls: int, flags: int, stamp: int):
    """After taking it: onto the stack of held locks."""
    depth = cpu.depth
    bug_on(cpu, depth >= HELD_DEPTH, "lockdep: too many locks held", depth, cls)
    cpu.held[depth] = (lock_offset(lock) << 8) | cls | flags
    cpu.held_since[depth] = stamp
    cpu.depth = depth + 1
    cpu.held_mask = cpu.held_mask | (1 << cls)
    cpu.acquiring = 0


@inline
def lock_release(cpu: Cpu, lock: int):
    """Before releasing: off the stack, where it is nearly always the top."""
    top = cpu.depth - 1
    entry = cpu.held[top]
    if top >= 0 and ((entry & ~HELD_READ) >> 8) == lock_offset(lock) and cpu.held_since[top] == 0:
        cpu.depth = top
        cpu.held_mask = cpu.held_mask & ~(1 << (entry & CLASS_MASK))
    else:
        lock_release_slow(cpu, lock)


@kernel
def lock_release_slow(cpu: Cpu, lock: int):
    """Take a lock off the stack that is not its top, or whose hold was timed.

    Context: the holder, before the lock word changes.
    Linux: kernel/locking/lockdep.c lock_release
    """
    offset = lock_offset(lock)
    at = cpu.depth - 1
    while at >= 0 and ((cpu.held[at] & ~HELD_READ) >> 8) != offset:
        at -= 1
    if at < 0:
        bug(cpu, "lockdep: releasing a lock that this CPU does not hold", lock, cpu.depth)
        return 0
    cls = cpu.held[at] & CLASS_MASK
    stamp = cpu.held_since[at]
    for i in range(at, cpu.depth - 1):
        cpu.held[i] = cpu.held[i + 1]
        cpu.held_since[i] = cpu.held_since[i + 1]
    cpu.depth = cpu.depth - 1
    cpu.held_mask = cpu.held_mask & ~(1 << cls)
    if stamp != 0:
        lock_stat_hold(cpu, cls, stamp)
    return 0


@kernel
def check_order(cpu: Cpu, cls: int, trylock: int):
    """An acquisition never seen under these locks: check it in full and remember it.

    Context: about to take a lock of class `cls`.
    Linux: kernel/locking/lockdep.c validate_chain
    Differs: ranks from the table come first; the graph orders what has no rank.
    """
    held = cpu.held_mask
    bug_on(cpu, held & (1 << cls) != 0 and cls != PAGE_LOCK, "lockdep: recursive locking (value: class)", cls, held)
    if trylock != 0:
        return 0  # A trylock never waits, so it makes no dependency.
    # First, a full barrier: of two CPUs that find opposite orders at once, one at least sees the other's.
    dep_classes[cls].before.or_(held)
    left = held
    while left != 0:
        other = ffs64(left)
        left = left & (left - 1)
        rank = dep_classes[cls].rank
        if rank != 0 and dep_classes[other].rank != 0:
            bug_on(cpu, dep_classes[other].rank >= rank, "lockdep: lock order: values are class wanted, class held",
                   cls, other)
        bug_on(cpu, taken_before(other, cls), "lockdep: circular order: values are class wanted, class held", cls, other)
    return 0


@inline
def taken_before(other: int, cls: int):
    """Was `other` ever taken while `cls` was held, directly or through others?"""
    reach = dep_classes[other].before.read()
    grown = 1
    while grown:
        grown = 0
        left = reach
        while left != 0:
            via = ffs64(left)
            left = left & (left - 1)
            more = dep_classes[via].before.read() & ~reach
            if more != 0:
                reach = reach | more
                grown = 1
    return (reach >> cls) & 1


@inline
def might_sleep(cpu: Cpu):
    """This may sleep: no spinlock held, irqs on, preemption on."""
    if cpu.held_mask & lockdep.spin_mask != 0 or cpu.irq_off != 0 or cpu.preempt_off != 0:
        bug(cpu, "lockdep: sleeping while atomic (values: classes held, irqs off)", cpu.held_mask, cpu.irq_off)


@inline
def lock_stat_hold(cpu: Cpu, cls: int, stamp: int):
    """A sampled hold has ended."""
    row = cpu.lock_stat[cls]
    held = cycles() - stamp
    row.hold_samples = row.hold_samples + 1
    row.hold_total = row.hold_total + held
    if held > row.hold_max:
        row.hold_max = held


@inline
def lock_stat_acquired(cpu: Cpu, cls: int, last: int):
    """Count an acquisition; every 64th is timed. Returns the time stamp, 0 when not timed."""
    row = cpu.lock_stat[cls]
    count = row.acquisitions + 1
    row.acquisitions = count
    if last != cpu.id + 1:
        row.acq_bounces = row.acq_bounces + 1
    return cycles() if count & 63 == 0 else 0


@kernel
def lock_stat_waited(cpu: Cpu, cls: int, since: int, last: int):
    """A contended acquisition has come through.

    Context: the new holder.
    Linux: kernel/locking/lockdep.c lock_acquired, its lock_stat half
    """
    row = cpu.lock_stat[cls]
    waited = cycles() - since
    row.contentions = row.contentions + 1
    row.wait_total = row.wait_total + waited
    if last != cpu.id + 1:
        row.con_bounces = row.con_bounces + 1
    if waited > row.wait_max:
        row.wait_max = waited
    if row.wait_min == 0 or waited < row.wait_min:
        row.wait_min = waited
