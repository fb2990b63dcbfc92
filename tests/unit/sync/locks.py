"""A few locks outside of mm/, for the tests of sync/."""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import I64, Struct, atomic, embed, field
from concur_thp.machine import Machine
from concur_thp.sync.lock_classes import FIRST_USER_CLASS, LOCK_CLASSES
from concur_thp.sync.rwsem import init_rwsem
from concur_thp.sync.rwsem_queue import RwSem
from concur_thp.sync.spinlock import SpinLock, spin_lock_init

USER_A, USER_B, USER_C = FIRST_USER_CLASS + 4, FIRST_USER_CLASS + 5, FIRST_USER_CLASS + 6
NR_TEST_LOCKS = 32
SHARED_WORDS = 8


class TestLocks(Struct, align=64):
    """One of each kind, of one class."""

    __test__ = False
    spin = embed(SpinLock, "a spinlock")
    sem = embed(RwSem, "a semaphore")
    flags = atomic(I64, "bit 0 is a lock, bit 1 its waiters")


class Shared(Struct, size=256):
    """What the processes of a test share."""

    plain = field(I64, "owner", "counters under a lock", count=SHARED_WORDS)
    word = atomic(I64, "steps", count=SHARED_WORDS)


test_locks = SharedArray("test_locks", TestLocks, lambda config: NR_TEST_LOCKS * 2)
shared = SharedOne("test_shared", Shared)


@kernel
def init_locks(n: int, cls: int):
    """Context: boot. Emulator: a test."""
    spin_lock_init(test_locks[n].spin, cls)
    init_rwsem(test_locks[n].sem, cls)


def boot(machine_factory, **sizes) -> Machine:
    """A machine with locks: number n is of class n, number NR_TEST_LOCKS + n is another of the same class."""
    machine = machine_factory(**{"order": 3, "memory": "1M", **sizes})
    for n in range(NR_TEST_LOCKS):
        if n < len(LOCK_CLASSES) or n >= FIRST_USER_CLASS:
            init_locks(n, n)
            init_locks(NR_TEST_LOCKS + n, n)
    return machine


def lock(cls: int, other: bool = False) -> TestLocks:
    """The lock of a class, or the other one."""
    return test_locks[cls + (NR_TEST_LOCKS if other else 0)]


__all__ = ["Cpu", "boot", "lock", "shared", "test_locks"]
