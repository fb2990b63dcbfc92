"""The queue of a semaphore: who gets it, and that nobody touches it behind the hand-over."""

import pytest

from concur_thp.arch.cpu import cpus
from concur_thp.arch.linker import interpreted
from concur_thp.sync.lock_classes import MMAP_SEM
from concur_thp.sync.rwsem import down_write, up_write
from concur_thp.sync.rwsem_queue import RWSEM_WAITERS, WAIT_READ, WAIT_WRITE
from tests.unit.sync.locks import boot, lock


@pytest.mark.parametrize("kinds", [(WAIT_WRITE,), (WAIT_READ, WAIT_READ), (WAIT_READ, WAIT_WRITE)])
def test_whoever_is_told_that_it_owns_the_semaphore_may_free_it(machine_factory, monkeypatch, kinds):
    """The granter used to store into wait_lock afterwards, in what the new owner may have freed and given away."""
    machine = boot(machine_factory, cpus=3)
    sem = lock(MMAP_SEM).sem
    holder, *waiters = (machine.cpu(n) for n in range(3))
    told = []

    def wake(address, count):
        told.append(sem.wait_lock.load())
        sem.wait_lock.store(99)  # The owner has freed it, and somebody else keeps something there.

    with interpreted():
        down_write(holder, sem)
        sem.count.or_(RWSEM_WAITERS)
        for waiter, kind in zip(waiters, kinds, strict=False):
            waiter.wait_kind, waiter.wait_next = kind, 0
            if sem.head == 0:
                sem.head = waiter.id + 1
            else:
                cpus[sem.tail - 1].wait_next = waiter.id + 1
            sem.tail = waiter.id + 1
        monkeypatch.setattr("concur_thp.sync.rwsem_queue.futex_wake", wake)
        up_write(holder, sem)
    granted = 1 if WAIT_WRITE in kinds else 2
    assert [waiter.wait_granted.load() for waiter in waiters[:len(kinds)]] == [1] * granted + [0] * (len(kinds) - granted)
    assert told[0] == 0 and len(told) == granted and sem.wait_lock.load() == 99
    assert sem.head == (3 if len(kinds) > granted else 0)
    assert bool(sem.count.load() & RWSEM_WAITERS) == (len(kinds) > granted)
