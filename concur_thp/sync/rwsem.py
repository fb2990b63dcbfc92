"""Reader-writer semaphores: mmap_sem, i_mmap_rwsem, anon_vma rwsem. Fair: first come, first served, writers not starved.

`count` holds the readers and two bits. While nobody waits, taking and releasing is one atomic operation. From the first
waiter on (RWSEM_WAITERS set) newcomers queue up behind, and whoever releases hands the lock over to the head of the
queue: to one writer, or to all readers up to the next writer. Owners: a writer is in `writer`, readers are in their
CPUs' stacks of held locks.
"""

from concur_thp.arch.bug import bug, bug_on, panic_check
from concur_thp.arch.builtins import cpu_relax, cycles
from concur_thp.arch.cpu import HELD_READ, Cpu, cpus
from concur_thp.arch.futex import futex_wake, sched_yield, spins
from concur_thp.arch.irq import cpu_sleep, ipi_poll
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point, point
from concur_thp.arch.points import Point
from concur_thp.arch.struct import I16, I32, I64, Struct, atomic, field
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.sync.lockdep import (
    SEGMENT,
    lock_acquire,
    lock_acquired,
    lock_release,
    lock_stat_acquired,
    lock_stat_waited,
    might_sleep,
)

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


@inline
def init_rwsem(sem: RwSem, cls: int):
    """Make an unlocked semaphore; nobody else can reach it yet."""
    sem.count.write(0)
    sem.wait_lock.write(0)
    sem.writer = 0
    sem.head = 0
    sem.tail = 0
    sem.cls = cls
    sem.last = 0


@kernel
def down_read(cpu: Cpu, sem: RwSem):
    """Take for reading.

    Context: may sleep; irqs on.
    Linux: kernel/locking/rwsem.c down_read
    """
    point(cpu, Point.DOWN_READ)
    might_sleep(cpu)
    lock_acquire(cpu, sem, sem.cls, 0)
    seen = sem.count.read()
    if seen >= RWSEM_WRITER or sem.count.cas(seen, seen + 1) != seen:
        rwsem_wait(cpu, sem, sem.cls, WAIT_READ)
    _have(cpu, sem, sem.cls, HELD_READ)


@kernel
def down_write(cpu: Cpu, sem: RwSem):
    """Take for writing.

    Context: may sleep; irqs on.
    Linux: kernel/locking/rwsem.c down_write
    """
    _down_write(cpu, sem, sem.cls)


@kernel
def down_write_nested(cpu: Cpu, sem: RwSem):
    """Take a second semaphore of the class for writing, as fork does with the child's mmap_sem.

    Context: as down_write(); another of the class is held.
    Linux: kernel/locking/rwsem.c down_write_nested, SINGLE_DEPTH_NESTING
    """
    _down_write(cpu, sem, sem.cls + 1)


@inline
def _down_write(cpu: Cpu, sem: RwSem, cls: int):
    point(cpu, Point.DOWN_WRITE)
    might_sleep(cpu)
    lock_acquire(cpu, sem, cls, 0)
    if sem.count.cas(0, RWSEM_WRITER) != 0:
        rwsem_wait(cpu, sem, cls, WAIT_WRITE)
    sem.writer = cpu.id + 1
    _have(cpu, sem, cls, 0)


@inline
def _have(cpu: Cpu, sem: RwSem, cls: int, flags: int):
    stamp = lock_stat_acquired(cpu, cls, sem.last)
    sem.last = spins(cpu.id + 1)
    lock_acquired(cpu, sem, cls, flags, stamp)


@kernel
def down_read_trylock(cpu: Cpu, sem: RwSem):
    """Take for reading if that needs no waiting. Returns 1 when taken.

    Context: any order of locks: it never waits.
    Linux: kernel/locking/rwsem.c down_read_trylock
    """
    lock_acquire(cpu, sem, sem.cls, 1)
    seen = sem.count.read()
    while seen < RWSEM_WRITER:
        now = sem.count.cas(seen, seen + 1)
        if now == seen:
            _have(cpu, sem, sem.cls, HELD_READ)
            return 1
        seen = now
    cpu.acquiring = 0
    return 0


@kernel
def down_write_trylock(cpu: Cpu, sem: RwSem):
    """Take for writing if that needs no waiting. Returns 1 when taken.

    Context: any order of locks: it never waits.
    Linux: kernel/locking/rwsem.c down_write_trylock
    """
    lock_acquire(cpu, sem, sem.cls, 1)
    if sem.count.cas(0, RWSEM_WRITER) != 0:
        cpu.acquiring = 0
        return 0
    sem.writer = cpu.id + 1
    _have(cpu, sem, sem.cls, 0)
    return 1


@kernel
def up_read(cpu: Cpu, sem: RwSem):
    """Release a semaphore held for reading.

    Context: a reader.
    Linux: kernel/locking/rwsem.c up_read
    """
    check_point(cpu, Point.UP_READ, sem)
    lock_release(cpu, sem)
    old = sem.count.sub(1)
    bug_on(cpu, old & RWSEM_READERS == 0, "rwsem released for reading without a reader", sem, old)
    if old & RWSEM_READERS == 1 and old & RWSEM_WAITERS != 0:
        rwsem_wake(cpu, sem)
    point(cpu, Point.UP_READ)


@kernel
def up_write(cpu: Cpu, sem: RwSem):
    """Release a semaphore held for writing.

    Context: the writer.
    Linux: kernel/locking/rwsem.c up_write
    """
    lock_release(cpu, sem)
    bug_on(cpu, sem.writer != cpu.id + 1, "rwsem released by another than its writer", sem, sem.writer)
    sem.writer = 0
    old = sem.count.sub(RWSEM_WRITER)
    if old & RWSEM_WAITERS != 0:
        rwsem_wake(cpu, sem)
    point(cpu, Point.UP_WRITE)


@kernel
def downgrade_write(cpu: Cpu, sem: RwSem):
    """From writer to reader, without a moment in between.

    Context: the writer.
    Linux: kernel/locking/rwsem.c downgrade_write
    """
    bug_on(cpu, sem.writer != cpu.id + 1, "rwsem downgraded by another than its writer", sem, sem.writer)
    for i in range(cpu.depth):
        if (cpu.held[i] >> 8) == int(sem) - SEGMENT:
            cpu.held[i] = cpu.held[i] | HELD_READ
    sem.writer = 0
    old = sem.count.add(1 - RWSEM_WRITER)
    if old & RWSEM_WAITERS != 0:
        rwsem_wake(cpu, sem)  # Readers at the head of the queue may come in beside us.


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


@inline
def rwsem_is_locked(sem: RwSem):
    return sem.count.load() & (RWSEM_WRITER | RWSEM_READERS) != 0


@inline
def holds(cpu: Cpu, lock: int):
    """Does this CPU hold `lock`, in whatever mode?"""
    found = 0
    for i in range(cpu.depth):
        if ((cpu.held[i] & ~HELD_READ) >> 8) == lock - SEGMENT:
            found = 1
    return found


@inline
def assert_held(cpu: Cpu, lock: int):
    """This CPU holds the semaphore for reading or writing."""
    if not holds(cpu, lock):
        bug(cpu, "rwsem not held", lock, cpu.held_mask)


@inline
def assert_held_write(cpu: Cpu, sem: RwSem):
    bug_on(cpu, sem.writer != cpu.id + 1, "rwsem not held for writing", sem, sem.writer)

