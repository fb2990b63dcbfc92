"""Bit locks with waiters: one bit of a flags word is the lock, a second says that somebody sleeps. (PG_locked.)

The futex is the low half of the word, so the two bits live there. An unlock wakes every sleeper; they try again.
"""

from concur_thp.arch.bug import bug_on, panic_check
from concur_thp.arch.builtins import cpu_relax, cycles
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.futex import ALL_WAITERS, futex_wake, spins
from concur_thp.arch.irq import cpu_sleep, ipi_poll
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.struct import I64, Struct, atomic
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.sync.lockdep import lock_acquire, lock_stat_acquired, lock_stat_waited, might_sleep

SPINS = 60
LOW_HALF = 0xFFFFFFFF


class FlagWord(Struct, size=8):
    """A word of flags, one of which is a lock."""

    bits = atomic(I64, "the flags")


@kernel
def bit_trylock(cpu: Cpu, flags: FlagWord, bit: int, cls: int):
    """Take the lock if it is free. Returns 1 when taken (acquire), 0 when not.

    Context: any order of locks: it never waits.
    Linux: include/linux/pagemap.h trylock_page
    """
    if flags.bits.or_(1 << bit) & (1 << bit) != 0:
        return 0
    _count(cpu, cls)
    lock_stat_acquired(cpu, cls, cpu.id + 1)
    return 1


@kernel
def bit_lock(cpu: Cpu, flags: FlagWord, bit: int, waiters: int, cls: int):
    """Take the lock, sleeping while another has it.

    Context: may sleep; irqs on.
    Linux: mm/filemap.c __lock_page
    Differs: sleeps on the flags word itself, not on a hashed wait queue.
    """
    might_sleep(cpu)
    lock_acquire(cpu, flags, cls, 0)
    if flags.bits.or_(1 << bit) & (1 << bit) != 0:
        since = cycles()
        trace(cpu, Tracepoint.contention_begin, flags, cls, 2)
        tries = 0
        while flags.bits.or_(1 << bit) & (1 << bit) != 0:
            ipi_poll(cpu)
            panic_check(cpu)
            tries += 1
            if tries < spins(SPINS):
                cpu_relax()
            else:
                bit_sleep(cpu, flags, bit, waiters)
        trace(cpu, Tracepoint.contention_end, flags, cls, 0)
        lock_stat_waited(cpu, cls, since, 0)
    cpu.acquiring = 0
    _count(cpu, cls)
    lock_stat_acquired(cpu, cls, cpu.id + 1)


@kernel
def bit_sleep(cpu: Cpu, flags: FlagWord, bit: int, waiters: int):
    """Sleep once while the bit is set; the caller looks again.

    Context: may sleep; irqs on.
    Linux: mm/filemap.c wait_on_page_bit_common
    """
    seen = flags.bits.or_(1 << waiters) | (1 << waiters)
    if seen & (1 << bit) != 0:
        cpu_sleep(cpu, flags, seen & LOW_HALF)
    return 0


@kernel
def bit_wait(cpu: Cpu, flags: FlagWord, bit: int, waiters: int):
    """Wait until the lock is free, without taking it.

    Context: may sleep; irqs on.
    Linux: mm/filemap.c wait_on_page_locked
    """
    might_sleep(cpu)
    tries = 0
    while True:
        seen = flags.bits.load()
        if seen & (1 << bit) == 0:
            return 0
        ipi_poll(cpu)
        panic_check(cpu)
        tries += 1
        want = seen | (1 << waiters)
        if tries < spins(SPINS):
            cpu_relax()
        # By cas, so that the waiters bit is only ever set while the lock is held: no unlock would clear it otherwise.
        elif seen == want or flags.bits.cas(seen, want) == seen:
            cpu_sleep(cpu, flags, want & LOW_HALF)


@kernel
def bit_unlock(cpu: Cpu, flags: FlagWord, bit: int, waiters: int, cls: int):
    """Release the lock (release) and wake whoever sleeps on it.

    Context: the owner.
    Linux: mm/filemap.c unlock_page
    """
    cpu.page_locks = cpu.page_locks - 1
    if cpu.page_locks == 0:
        cpu.held_mask = cpu.held_mask & ~(1 << cls)
    old = flags.bits.and_(~((1 << bit) | (1 << waiters)))
    bug_on(cpu, old & (1 << bit) == 0, "unlocking a bit lock that is not locked", flags, old)
    if old & (1 << waiters) != 0:
        futex_wake(flags, ALL_WAITERS)


@inline
def _count(cpu: Cpu, cls: int):
    """One more bit lock held; they are counted, not stacked: khugepaged holds hundreds at once."""
    cpu.page_locks = cpu.page_locks + 1
    cpu.held_mask = cpu.held_mask | (1 << cls)
