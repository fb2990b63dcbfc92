"""The queue of a reader-writer semaphore: who waits, and how the semaphore is handed over. (Linux: rwsem-xadd.c)

Whoever waits is in line from cpu to cpu, first come, first served. A hand-over is made by the one who makes it possible: who
releases, or who has just queued up and finds that the last holder left before he could know of a waiter.
"""

from concur_thp.arch.bug import panic_check
from concur_thp.arch.builtins import cpu_relax, cycles
from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.futex import futex_wake, sched_yield, spins
from concur_thp.arch.irq import cpu_sleep, ipi_poll
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.struct import I16, I32, I64, Struct, atomic, field
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.sync.lockdep import lock_stat_waited

RWSEM_READERS = 0xFFFF
RWSEM_WRITER = 1 << 16
RWSEM_WAITERS = 1 << 17
WAIT_READ = 1
WAIT_WRITE = 2
SPINS = 60
GRANTED = Cpu.FIELDS["wait_granted"].offset


class RwSem(Struct, size=40):
    """A reader-writer semaphore."""

    count = atomic(I64, "readers | RWSEM_WRITER | RWSEM_WAITERS")
    wait_lock = atomic(I32, "guards the queue; owner + 1. Held for a few instructions, by CPUs that do not sleep")
    writer = field(I32, "owner", "the CPU that holds it for writing, + 1")
    head = field(I32, "wait_lock", "first waiting CPU + 1")
    tail = field(I32, "wait_lock", "last waiting CPU + 1")
    cls = field(I16, "init", "its row in LOCK_CLASSES")
    last = field(I16, "owner", "the CPU that took it last, + 1")


@kernel
def rwsem_wait(cpu: Cpu, sem: RwSem, cls: int, kind: int):
    """Spin a little, then queue up and sleep until the semaphore is handed over.

    Context: may sleep; irqs on.
    Linux: kernel/locking/rwsem-xadd.c rwsem_down_read_failed, rwsem_down_write_failed
    Differs: always handed over in order, nobody steals.
    """
    since = cycles()
    last = sem.last
    for _ in range(spins(SPINS)):
        ipi_poll(cpu)
        if _take_free(sem, kind):
            lock_stat_waited(cpu, cls, since, last)
            return 0
        cpu_relax()
    trace(cpu, Tracepoint.contention_begin, sem, cls, kind)
    cpu.wait_granted.store(0)
    cpu.wait_kind = kind
    cpu.wait_next = 0
    _lock_queue(cpu, sem)
    if sem.tail != 0:
        cpus[sem.tail - 1].wait_next = cpu.id + 1
    else:
        sem.head = cpu.id + 1
    sem.tail = cpu.id + 1
    # With the bit set the holders will call rwsem_wake(); if the last one went before that, nobody would: so grant now.
    sem.count.or_(RWSEM_WAITERS)
    rwsem_grant(cpu, sem)
    while cpu.wait_granted.load() == 0:
        cpu_sleep(cpu, int(cpu) + GRANTED, 0)
    trace(cpu, Tracepoint.contention_end, sem, cls, 0)
    lock_stat_waited(cpu, cls, since, last)
    return 0


@inline
def _take_free(sem: RwSem, kind: int):
    """One try while nobody waits."""
    seen = sem.count.read()
    if kind == WAIT_READ:
        return seen < RWSEM_WRITER and sem.count.cas(seen, seen + 1) == seen
    return seen == 0 and sem.count.cas(0, RWSEM_WRITER) == 0


@inline
def _lock_queue(cpu: Cpu, sem: RwSem):
    """Take the queue. Its holder runs a few instructions, unless the machine took its core away or killed it."""
    tries = 0
    while sem.wait_lock.cas(0, cpu.id + 1) != 0:
        ipi_poll(cpu)
        panic_check(cpu)
        tries += 1
        if tries > spins(SPINS):
            sched_yield()
        else:
            cpu_relax()


@kernel
def rwsem_wake(cpu: Cpu, sem: RwSem):
    """The semaphore may have become free for those who wait.

    Context: any; the caller has just released or downgraded.
    Linux: kernel/locking/rwsem-xadd.c rwsem_wake
    """
    _lock_queue(cpu, sem)
    rwsem_grant(cpu, sem)


@kernel
def rwsem_grant(cpu: Cpu, sem: RwSem):
    """Hand over to the head of the queue: one writer, or every reader up to the next writer.

    Context: wait_lock held, and released here. RWSEM_WAITERS is set, so nobody takes the semaphore past us; readers may
    still leave.
    Linux: kernel/locking/rwsem-xadd.c __rwsem_mark_wake, wake_up_q
    """
    first = sem.head
    granted = 0
    more = 1
    while more and sem.head != 0:
        waiter = cpus[sem.head - 1]
        more = _grant_one(sem, waiter)
        if more != 0:
            granted += 1
            sem.head = waiter.wait_next
            more = waiter.wait_kind == WAIT_READ
    if granted != 0 and sem.head == 0:
        sem.tail = 0
        sem.count.and_(~RWSEM_WAITERS)
    # The last of us to touch the semaphore: whoever is told that it owns it may free what it stands in.
    sem.wait_lock.store(0)
    while granted != 0:
        owner = cpus[first - 1]
        first = owner.wait_next  # Before it is told: then it may wait for another.
        owner.wait_granted.store(1)
        futex_wake(int(owner) + GRANTED, 1)
        granted -= 1


@inline
def _grant_one(sem: RwSem, waiter: Cpu):
    """Count the waiter in, if the semaphore is free for it. Returns 1 then."""
    seen = sem.count.read()
    free = 0
    if waiter.wait_kind == WAIT_WRITE:
        if seen & (RWSEM_WRITER | RWSEM_READERS) == 0:
            sem.count.add(RWSEM_WRITER)
            free = 1
    elif seen & RWSEM_WRITER == 0:
        sem.count.add(1)
        free = 1
    return free


__all__ = ["RWSEM_READERS", "RWSEM_WAITERS", "RWSEM_WRITER", "WAIT_READ", "WAIT_WRITE", "RwSem", "rwsem_wait", "rwsem_wake"]
