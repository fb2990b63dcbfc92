"""Reader-writer semaphores: mmap_sem, i_mmap_rwsem, anon_vma rwsem. Fair: first come, first served, writers not starved.

`count` holds the readers and two bits. While nobody waits, taking and releasing is one atomic operation. From the first
waiter on (RWSEM_WAITERS set) newcomers queue up behind, and whoever releases hands the lock over to the head of the
queue: to one writer, or to all readers up to the next writer. Owners: a writer is in `writer`, readers are in their
CPUs' stacks of held locks.
"""

from concur_thp.arch.bug import bug, bug_on
from concur_thp.arch.cpu import HELD_READ, Cpu
from concur_thp.arch.futex import spins
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point, point
from concur_thp.arch.points import Point
from concur_thp.sync.lockdep import (
    SEGMENT,
    lock_acquire,
    lock_acquired,
    lock_release,
    lock_stat_acquired,
    might_sleep,
)
from concur_thp.sync.rwsem_queue import (
    RWSEM_READERS,
    RWSEM_WAITERS,
    RWSEM_WRITER,
    WAIT_READ,
    WAIT_WRITE,
    RwSem,
    rwsem_wait,
    rwsem_wake,
)


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

