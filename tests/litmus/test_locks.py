"""Locks between processes: exact counts, fairness, order, and CPUs that serve flush requests while they wait."""

import os

import pytest

from concur_thp.arch import native
from concur_thp.arch.bug import bug_on, panic_check, park_for_good
from concur_thp.arch.builtins import cpu_relax
from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.futex import nap, sched_yield
from concur_thp.arch.irq import cpu_park, cpu_resume, ipi_poll
from concur_thp.arch.linker import SLOTS, kernel
from concur_thp.arch.listen import LISTEN_CHAOS
from concur_thp.arch.random import random_below
from concur_thp.arch.system import system
from concur_thp.arch.tlbflush import flush_tlb_mm_range, switch_mm
from concur_thp.sync.bit_lock import FlagWord, bit_lock, bit_unlock
from concur_thp.sync.lock_classes import LRU_LOCK, MMAP_SEM, PAGE_LOCK, PTE_PTL
from concur_thp.sync.rwsem import (
    down_read,
    down_read_trylock,
    down_write,
    downgrade_write,
    up_read,
    up_write,
)
from concur_thp.sync.rwsem_queue import RWSEM_WAITERS
from concur_thp.sync.spinlock import (
    WAITERS,
    spin_lock,
    spin_lock_irq,
    spin_trylock,
    spin_unlock,
    spin_unlock_irq,
)
from tests.processes import end, finish, run_all, start, wait_for
from tests.unit.sync.locks import TestLocks, boot, lock, shared, test_locks

ROUNDS = 200_000
WRITER_BIT = 1 << 32
CROWDS = pytest.mark.parametrize("crowd", [2, 4])


@kernel
def gather(cpu: Cpu):
    """Begin when all have come.

    Context: irqs on. Emulator: a test.
    """
    shared.word[6].add(1)
    while shared.word[6].read() < system.nr_cpus:
        sched_yield()


@kernel
def spin_count(cpu: Cpu, rounds: int):
    """Context: irqs on. Emulator: a test."""
    gather(cpu)
    cpu_resume(cpu)
    for _ in range(rounds):
        spin_lock(cpu, test_locks[PTE_PTL].spin)
        shared.plain[0] += 1
        spin_unlock(cpu, test_locks[PTE_PTL].spin)
    cpu_park(cpu)


@kernel
def irq_count(cpu: Cpu, rounds: int):
    """An irq-safe lock, and now and then a flush of a context that everybody runs in.

    Context: irqs on. Emulator: a test.
    """
    gather(cpu)
    cpu_resume(cpu)
    switch_mm(cpu, 1)
    for i in range(rounds):
        spin_lock_irq(cpu, test_locks[LRU_LOCK].spin)
        bug_on(cpu, cpu.irq_off != 1, "irqs on inside an irq-safe lock", cpu.irq_off, i)
        shared.plain[0] += 1
        spin_unlock_irq(cpu, test_locks[LRU_LOCK].spin)
        if i % 100 == 0:
            flush_tlb_mm_range(cpu, 1, 0x1000, 0x2000)
    switch_mm(cpu, 0)
    cpu_park(cpu)


@kernel
def try_count(cpu: Cpu, rounds: int):
    """Context: irqs on. Emulator: a test."""
    gather(cpu)
    cpu_resume(cpu)
    done = 0
    while done < rounds:
        if spin_trylock(cpu, test_locks[PTE_PTL].spin):
            shared.plain[0] += 1
            spin_unlock(cpu, test_locks[PTE_PTL].spin)
            done += 1
        else:
            cpu_relax()
    cpu_park(cpu)


FLAGS_OFFSET = TestLocks.FIELDS["flags"].offset


@kernel
def bit_count(cpu: Cpu, rounds: int):
    """Context: irqs on. Emulator: a test."""
    gather(cpu)
    cpu_resume(cpu)
    flags = FlagWord(int(test_locks[PAGE_LOCK]) + FLAGS_OFFSET)
    for _ in range(rounds):
        bit_lock(cpu, flags, 0, 1, PAGE_LOCK)
        shared.plain[0] += 1
        bit_unlock(cpu, flags, 0, 1, PAGE_LOCK)
    cpu_park(cpu)


@kernel
def rwsem_count(cpu: Cpu, rounds: int):
    """One in four writes; who is inside is counted, so that a writer beside anybody is seen at once.

    Context: irqs on. Emulator: a test.
    """
    gather(cpu)
    cpu_resume(cpu)
    sem = test_locks[MMAP_SEM].sem
    for _ in range(rounds):
        kind = random_below(cpu, 8)
        if kind < 2:
            down_write(cpu, sem)
            bug_on(cpu, shared.word[0].add(WRITER_BIT) != 0, "a writer is not alone", shared.word[0].load(), 0)
            shared.plain[0] += 1
            shared.word[0].sub(WRITER_BIT)
            if kind == 0:
                downgrade_write(cpu, sem)
                bug_on(cpu, shared.word[0].add(1) >= WRITER_BIT, "a writer beside who downgraded", 0, 0)
                shared.word[0].sub(1)
                up_read(cpu, sem)
            else:
                up_write(cpu, sem)
            shared.word[1].add(1)
        elif kind > 2 or down_read_trylock(cpu, sem):
            if kind > 2:
                down_read(cpu, sem)
            bug_on(cpu, shared.word[0].add(1) >= WRITER_BIT, "a reader beside a writer", shared.word[0].load(), 0)
            shared.word[0].sub(1)
            up_read(cpu, sem)
    cpu_park(cpu)


@CROWDS
@pytest.mark.parametrize("chaos", [False, True], ids=["free", "chaos"])
@pytest.mark.parametrize("count", [spin_count, irq_count, try_count, bit_count], ids=lambda f: f.name)
def test_no_update_is_lost(machine_factory, count, chaos, crowd):
    machine = boot(machine_factory, cpus=crowd)
    rounds = 2000 if chaos else ROUNDS
    if chaos:
        system.chaos_short, system.chaos_long = 3, 6
        system.listen.store(LISTEN_CHAOS)
    run_all(machine, *[lambda cpu: count(cpu, rounds)] * crowd)
    assert shared.plain[0] == crowd * rounds
    assert lock(PTE_PTL).spin.word.load() == lock(LRU_LOCK).spin.word.load() == lock(PAGE_LOCK).flags.load() == 0


@CROWDS
@pytest.mark.parametrize("chaos", [False, True], ids=["free", "chaos"])
def test_a_writer_is_alone_and_readers_are_not(machine_factory, crowd, chaos):
    machine = boot(machine_factory, cpus=crowd)
    if chaos:
        system.chaos_short, system.chaos_long = 3, 6
        system.listen.store(LISTEN_CHAOS)
    run_all(machine, *[lambda cpu: rwsem_count(cpu, 2000 if chaos else ROUNDS)] * crowd)
    sem = lock(MMAP_SEM).sem
    assert shared.plain[0] == shared.word[1].load() > 0
    assert (sem.count.load(), sem.head, sem.tail, sem.writer, sem.wait_lock.load()) == (0, 0, 0, 0, 0)


@kernel
def read_until_told(cpu: Cpu):
    """Two readers that overlap without a gap: who has the token stays inside until the other has come in.

    Context: irqs on. Emulator: a test.
    """
    cpu_resume(cpu)
    sem = test_locks[MMAP_SEM].sem
    other = 1 - cpu.id
    while shared.word[7].read() == 0:
        down_read(cpu, sem)
        shared.word[6].xchg(cpu.id)
        shared.word[cpu.id].add(1)
        # The other cannot come in when it is queued behind the writer: then, and only then, leave without it.
        while shared.word[6].read() == cpu.id and shared.word[7].read() == 0 and sem.tail != other + 1:
            ipi_poll(cpu)
            panic_check(cpu)
            sched_yield()
        up_read(cpu, sem)
    cpu_park(cpu)


@kernel
def write_once(cpu: Cpu):
    """Come when both readers are under way, and stop them from inside.

    Context: irqs on. Emulator: a test.
    """
    cpu_resume(cpu)
    while shared.word[0].read() < 5 or shared.word[1].read() < 5:
        ipi_poll(cpu)
        sched_yield()
    down_write(cpu, test_locks[MMAP_SEM].sem)
    shared.word[7].store(1)
    up_write(cpu, test_locks[MMAP_SEM].sem)
    cpu_park(cpu)


def test_a_writer_is_not_starved_by_overlapping_readers(machine_factory):
    """The readers stop only when the writer has been inside: with unfair readers this would never end."""
    run_all(boot(machine_factory, cpus=3), read_until_told, read_until_told, write_once)


@kernel
def queue_up(cpu: Cpu, write: int):
    """Take the semaphore, note when, leave.

    Context: irqs on. Emulator: a test.
    """
    cpu_resume(cpu)
    if write:
        down_write(cpu, test_locks[MMAP_SEM].sem)
        shared.plain[cpu.id] = shared.word[0].add(1) + 1
        up_write(cpu, test_locks[MMAP_SEM].sem)
    else:
        down_read(cpu, test_locks[MMAP_SEM].sem)
        shared.plain[cpu.id] = shared.word[0].add(1) + 1
        # Leave only when the second reader is in as well: readers come in together.
        while shared.word[0].read() < 3:
            ipi_poll(cpu)
            sched_yield()
        up_read(cpu, test_locks[MMAP_SEM].sem)
    cpu_park(cpu)


def queued(cpu_number):
    return lock(MMAP_SEM).sem.tail == cpu_number + 1


def test_the_queue_is_served_in_order_and_readers_together(machine_factory):
    """CPU 0 writes; behind it queue a writer, two readers, a writer. They come in as they queued."""
    machine = boot(machine_factory, cpus=5)
    sem = lock(MMAP_SEM).sem
    down_write(machine.cpu(0), sem)
    pids = []
    for number, write in ((1, 1), (2, 0), (3, 0), (4, 1)):
        pids.append(start(machine, number, lambda cpu, write=write: queue_up(cpu, write)))
        wait_for(lambda n=number: queued(n), f"cpu {number} in the queue")
    up_write(machine.cpu(0), sem)
    assert finish(pids) == [0] * 4
    order = [shared.plain[n] for n in range(1, 5)]
    assert order[0] == 1 and {order[1], order[2]} == {2, 3} and order[3] == 4


def test_downgrading_lets_waiting_readers_in_but_no_writer(machine_factory):
    machine = boot(machine_factory, cpus=4)
    sem = lock(MMAP_SEM).sem
    shared.word[0].store(1)
    down_write(machine.cpu(0), sem)
    pids = []
    for number, write in ((1, 0), (2, 0), (3, 1)):
        pids.append(start(machine, number, lambda cpu, write=write: queue_up(cpu, write)))
        wait_for(lambda n=number: queued(n), f"cpu {number} in the queue")
    downgrade_write(machine.cpu(0), sem)
    wait_for(lambda: shared.word[0].load() == 3, "both readers inside, beside who downgraded")
    assert shared.plain[3] == 0 and sem.head == sem.tail == 4, "the writer still waits"
    up_read(machine.cpu(0), sem)
    assert finish(pids) == [0] * 3 and shared.plain[3] == 4


@kernel
def wait_for_lock(cpu: Cpu, kind: int):
    """Wait for a lock that CPU 0 holds, in mm 1.

    Context: irqs on. Emulator: a test.
    """
    cpu_resume(cpu)
    switch_mm(cpu, 1)
    if kind == 0:
        spin_lock(cpu, test_locks[PTE_PTL].spin)
        spin_unlock(cpu, test_locks[PTE_PTL].spin)
    elif kind == 1:
        spin_lock_irq(cpu, test_locks[LRU_LOCK].spin)
        spin_unlock_irq(cpu, test_locks[LRU_LOCK].spin)
    elif kind == 2:
        down_read(cpu, test_locks[MMAP_SEM].sem)
        up_read(cpu, test_locks[MMAP_SEM].sem)
    else:
        flags = FlagWord(int(test_locks[PAGE_LOCK]) + FLAGS_OFFSET)
        bit_lock(cpu, flags, 0, 1, PAGE_LOCK)
        bit_unlock(cpu, flags, 0, 1, PAGE_LOCK)
    switch_mm(cpu, 0)
    cpu_park(cpu)


@kernel
def hold_and_flush(cpu: Cpu, kind: int):
    """Hold the lock until CPU 1 waits for it, then flush: this returns only if the waiter serves, or has parked.

    Context: irqs on. Emulator: a test.
    """
    cpu_resume(cpu)
    flags = FlagWord(int(test_locks[PAGE_LOCK]) + FLAGS_OFFSET)
    if kind == 0:
        spin_lock(cpu, test_locks[PTE_PTL].spin)
    elif kind == 2:
        down_write(cpu, test_locks[MMAP_SEM].sem)
    elif kind == 3:
        bit_lock(cpu, flags, 0, 1, PAGE_LOCK)
    shared.word[0].store(1)
    while cpus[1].acquiring == 0:
        sched_yield()
    for i in range(50):
        flush_tlb_mm_range(cpu, 1, 0x1000, 0x2000)
        shared.word[1].add(1)
        for _ in range(10 * i):
            cpu_relax()
    if kind == 0:
        spin_unlock(cpu, test_locks[PTE_PTL].spin)
    elif kind == 2:
        up_write(cpu, test_locks[MMAP_SEM].sem)
    elif kind == 3:
        bit_unlock(cpu, flags, 0, 1, PAGE_LOCK)
    cpu_park(cpu)


@pytest.mark.parametrize("kind", [0, 2, 3], ids=["spinlock", "rwsem", "page lock"])
def test_who_waits_for_a_lock_serves_the_holders_flushes(machine_factory, kind):
    """The holder of a lock flushes under it, as zap_pte_range does: a waiter that served nothing would block it."""
    machine = boot(machine_factory)
    holder = start(machine, 0, lambda cpu: hold_and_flush(cpu, kind))
    wait_for(lambda: shared.word[0].load(), "the holder")
    waiter = start(machine, 1, lambda cpu: wait_for_lock(cpu, kind))
    assert finish([holder, waiter]) == [0, 0] and shared.word[1].load() == 50


def test_who_waits_for_an_irq_lock_serves_flushes(machine_factory):
    """CPU 2 has the irq-safe lock; CPU 1 waits for it with irqs back on; CPU 0 flushes and must not have to wait."""
    machine = boot(machine_factory, cpus=3)
    take_irq_lock(machine.cpu(2))
    waiter = start(machine, 1, lambda cpu: wait_for_lock(cpu, 1))
    flusher = start(machine, 0, lambda cpu: hold_and_flush(cpu, 1))
    wait_for(lambda: shared.word[1].load() == 50, "50 flushes under way")
    assert os.waitpid(waiter, os.WNOHANG) == (0, 0), "it still waits"
    drop_irq_lock(machine.cpu(2))
    assert finish([waiter, flusher]) == [0, 0]


@kernel
def take_irq_lock(cpu: Cpu):
    """Context: irqs on. Emulator: a test."""
    spin_lock_irq(cpu, test_locks[LRU_LOCK].spin)


@kernel
def drop_irq_lock(cpu: Cpu):
    """Context: the holder. Emulator: a test."""
    spin_unlock_irq(cpu, test_locks[LRU_LOCK].spin)


@kernel
def says_parked(cpu: Cpu):
    """In place of park_for_good().

    Context: anywhere. Emulator: a test.
    """
    shared.word[5].store(1)
    while True:
        nap()


@pytest.fixture
def parking_is_said():
    """From here on, who parks for good says so."""
    native.link([says_parked, park_for_good])
    address = SLOTS[park_for_good.slot]
    SLOTS[park_for_good.slot] = says_parked.address
    yield
    SLOTS[park_for_good.slot] = address


@pytest.mark.parametrize("kind", [0, 1, 2, 3], ids=["spinlock", "irq spinlock", "rwsem", "page lock"])
def test_a_panic_ends_every_wait(machine_factory, kind, request):
    """The holder is gone for good; once the machine panics the waiter parks instead of waiting on."""
    machine = boot(machine_factory)
    request.getfixturevalue("parking_is_said")
    holder = machine.cpu(0)
    if kind == 0:
        spin_lock(holder, lock(PTE_PTL).spin)
    elif kind == 1:
        take_irq_lock(holder)
    elif kind == 2:
        down_write(holder, lock(MMAP_SEM).sem)
    else:
        lock(PAGE_LOCK).flags.store(1)
    waiter = start(machine, 1, lambda cpu: wait_for_lock(cpu, kind))
    try:
        wait_for(lambda: asleep(kind), "the waiter")
        assert shared.word[5].load() == 0
        system.panicked.store(1)
        wait_for(lambda: shared.word[5].load(), "parking for good")
        assert cpus[1].acquiring != 0, "it never got the lock"
    finally:
        end([waiter])


def asleep(kind):
    if kind < 2:
        return lock((PTE_PTL, LRU_LOCK)[kind]).spin.word.load() & WAITERS
    return lock(MMAP_SEM).sem.count.load() & RWSEM_WAITERS if kind == 2 else lock(PAGE_LOCK).flags.load() & 2
