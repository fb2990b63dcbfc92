"""Spinlocks: a word with its owner, a short spin, then a sleep on the futex.

The word is 0 or owner + 1, with WAITERS set when somebody may sleep on it. A CPU that waits serves flush requests; the
irq-safe variants therefore wait with irqs back on and disable them again for each try.
(Linux spins without end; with fewer cores than CPUs that would burn the holder's time slice.)
"""

from concur_thp.arch.bug import bug_on, panic_check
from concur_thp.arch.builtins import cpu_relax, cycles, prefetchw
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.futex import futex_wait, futex_wake, spins
from concur_thp.arch.irq import cpu_sleep, ipi_poll, local_irq_disable, local_irq_enable
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point, point
from concur_thp.arch.points import Point
from concur_thp.arch.struct import I16, I32, Struct, atomic, field
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.sync.lockdep import (
    dep_classes,
    lock_acquire,
    lock_acquired,
    lock_release,
    lock_stat_acquired,
    lock_stat_waited,
)

WAITERS = 1 << 30
SPINS = 150
"""Tries before sleeping: about 3 us, a little more than a short critical section on the other core."""


class SpinLock(Struct, size=8):
    """A spinlock. It knows its class and, while held, its owner."""

    word = atomic(I32, "0, or owner + 1, | WAITERS")
    cls = field(I16, "init", "its row in LOCK_CLASSES")
    last = field(I16, "owner", "the CPU that had it last, + 1")


@inline
def spin_lock_init(lock: SpinLock, cls: int):
    """Make an unlocked lock; nobody else can reach it yet."""
    lock.word.write(0)
    lock.cls = cls
    lock.last = 0


@kernel
def spin_lock(cpu: Cpu, lock: SpinLock):
    """Take a spinlock.

    Context: any; serves flush requests while it waits.
    Linux: include/linux/spinlock.h spin_lock
    Differs: sleeps after a short spin.
    """
    prefetchw(lock)
    _spin_lock(cpu, lock, lock.cls)


@kernel
def spin_lock_nested(cpu: Cpu, lock: SpinLock):
    """Take the second lock of a class, in the order that the class's `nesting` allows.

    Context: as spin_lock(); another lock of the class is held.
    Linux: include/linux/spinlock.h spin_lock_nested, SINGLE_DEPTH_NESTING
    """
    prefetchw(lock)
    _spin_lock(cpu, lock, lock.cls + 1)


@inline
def _spin_lock(cpu: Cpu, lock: SpinLock, cls: int):
    point(cpu, Point.SPIN_LOCK)
    lock_acquire(cpu, lock, cls, 0)
    if lock.word.cas(0, cpu.id + 1) != 0:
        spin_lock_slow(cpu, lock, cls)
    stamp = lock_stat_acquired(cpu, cls, lock.last)
    lock.last = spins(cpu.id + 1)  # Not kept in controlled runs, where it would only tell equal states apart.
    lock_acquired(cpu, lock, cls, 0, stamp)


@kernel
def spin_lock_slow(cpu: Cpu, lock: SpinLock, cls: int):
    """Wait for a spinlock: spin a little, then sleep.

    Context: as the caller's; with irqs off they are turned on while waiting.
    Linux: kernel/locking/qspinlock.c queued_spin_lock_slowpath
    Differs: no queue; the futex's order decides between sleepers.
    """
    bug_on(cpu, (lock.word.read() & ~WAITERS) == cpu.id + 1, "spinlock recursion (value: class)", cls, lock)
    since = cycles()
    last = lock.last
    trace(cpu, Tracepoint.contention_begin, lock, cls, 2)
    # Alone, an irq-safe lock is waited for with irqs on. Inside another irq-off section they stay off: its holder does
    # not wait for flushes either, so the wait is short, and nobody may think that the section has ended.
    irqs = cpu.irq_off
    open_irqs = 0 if irqs == 1 and dep_classes[cls].irq != 0 else irqs
    cpu.irq_off = open_irqs
    mine = cpu.id + 1
    for _ in range(spins(SPINS)):
        ipi_poll(cpu)
        if lock.word.read() == 0 and _try(cpu, lock, mine, irqs, open_irqs):
            _waited(cpu, lock, cls, since, last)
            return 0
        cpu_relax()
    while not _try(cpu, lock, mine | WAITERS, irqs, open_irqs):
        panic_check(cpu)
        seen = lock.word.read()
        if seen != 0:
            if seen & WAITERS == 0 and lock.word.cas(seen, seen | WAITERS) != seen:
                continue
            if open_irqs == 0:
                cpu_sleep(cpu, lock, seen | WAITERS)
            else:
                futex_wait(lock, seen | WAITERS)  # Not parked: a flusher must wait until our irqs are on.
    _waited(cpu, lock, cls, since, last)
    return 0


@inline
def _try(cpu: Cpu, lock: SpinLock, word: int, irqs: int, open_irqs: int):
    """One try, with irqs as the caller had them from the moment the lock is ours."""
    cpu.irq_off = irqs
    if lock.word.cas(0, word) == 0:
        return 1
    cpu.irq_off = open_irqs
    return 0


@inline
def _waited(cpu: Cpu, lock: SpinLock, cls: int, since: int, last: int):
    trace(cpu, Tracepoint.contention_end, lock, cls, 0)
    lock_stat_waited(cpu, cls, since, last)


@kernel
def spin_trylock(cpu: Cpu, lock: SpinLock):
    """Take a spinlock if it is free. Returns 1 when taken.

    Context: any order of locks: it never waits.
    Linux: include/linux/spinlock.h spin_trylock
    """
    lock_acquire(cpu, lock, lock.cls, 1)
    if lock.word.cas(0, cpu.id + 1) != 0:
        cpu.acquiring = 0
        return 0
    stamp = lock_stat_acquired(cpu, lock.cls, lock.last)
    lock.last = spins(cpu.id + 1)  # Not kept in controlled runs, where it would only tell equal states apart.
    lock_acquired(cpu, lock, lock.cls, 0, stamp)
    return 1


@kernel
def spin_unlock(cpu: Cpu, lock: SpinLock):
    """Release a spinlock.

    Context: the owner.
    Linux: include/linux/spinlock.h spin_unlock
    """
    check_point(cpu, Point.SPIN_UNLOCK, lock)
    lock_release(cpu, lock)
    old = lock.word.xchg(0)
    bug_on(cpu, (old & ~WAITERS) != cpu.id + 1, "spinlock released by another than its owner", lock, old)
    if old & WAITERS != 0:
        futex_wake(lock, 1)
    point(cpu, Point.SPIN_UNLOCK)


@inline
def spin_lock_irq(cpu: Cpu, lock: SpinLock):
    """Take an irq-safe spinlock: no flush request is served until it is released."""
    local_irq_disable(cpu)
    spin_lock(cpu, lock)


@inline
def spin_unlock_irq(cpu: Cpu, lock: SpinLock):
    spin_unlock(cpu, lock)
    local_irq_enable(cpu)


@inline
def assert_spin_locked(cpu: Cpu, lock: SpinLock):
    """This CPU holds the lock."""
    bug_on(cpu, (lock.word.read() & ~WAITERS) != cpu.id + 1, "spinlock not held", lock, lock.word.read())
