"""The lock rows of the bench done with what a Python program has: ns per acquire and release, alone or contended.

`multiprocess.Lock`; pthread's process-shared rwlock through ctypes; fcntl's record locks. What a call through ctypes costs
is measured with a function that does nothing and subtracted; the others are called as a program calls them. With two or more
processes on one lock a sample is the wall time that one process needed per pair, its waiting included.
"""

import ctypes
import fcntl
import mmap
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext

import multiprocess

from concur_thp.errors import Misuse
from stress.bench.children import Measured, NotHere, check_counts, measured, sampled

PAIRS = {"multiprocess": 10_000, "pthread": 1_000, "fcntl": 1_000}
"""Of one sample: a millisecond or more, long beside the time between the first and the last process to start."""
PTHREAD_PROCESS_SHARED = 1
LOCK_ROWS = {"atomic_add": "write", "spin_lock_pair": "write", "rwsem_read_pair": "read", "rwsem_write_pair": "write",
             "page_lock_pair": "write"}
"""Row -> how a lock is taken for it. None of them has an atomic add: they lock, add and unlock."""

Pair = Callable[[], object]
_pthread = ctypes.PyDLL(None)
"""Keeps the interpreter's lock: the processes have one thread each."""


class Shared:
    """What the processes of one run share: made before they are forked."""

    def __init__(self, side: str, kind: str):
        fork = multiprocess.get_context("fork")
        self.side, self.kind = side, kind
        self.counter = fork.RawValue("q", 0)
        self.lock = fork.Lock()
        self.memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  __exit__ closes it
        if side == "pthread":
            self._rwlock()

    def __enter__(self) -> "Shared":
        return self

    def __exit__(self, *_error: object) -> None:
        self.file.close()

    def _rwlock(self) -> None:
        attributes = ctypes.create_string_buffer(64)
        _pthread.pthread_rwlockattr_init(attributes)
        _pthread.pthread_rwlockattr_setpshared(attributes, PTHREAD_PROCESS_SHARED)
        if _pthread.pthread_rwlock_init(ctypes.c_void_p(self.address), attributes):
            raise NotHere("pthread_rwlock_init failed")

    def pair(self) -> tuple[Pair, Pair, Pair | None]:
        """Acquire, release, and with ctypes a call that costs as much as either and does nothing."""
        if self.side == "multiprocess":
            return self.lock.acquire, self.lock.release, None
        if self.side == "pthread":
            address = ctypes.c_void_p(self.address)
            take = getattr(_pthread, "pthread_rwlock_rdlock" if self.kind == "read" else "pthread_rwlock_wrlock")
            nothing = _pthread.pthread_equal
            return (lambda: take(address)), (lambda: _pthread.pthread_rwlock_unlock(address)), (lambda: nothing(address))
        how, number = (fcntl.LOCK_SH if self.kind == "read" else fcntl.LOCK_EX), self.file.fileno()
        return (lambda: fcntl.lockf(number, how)), (lambda: fcntl.lockf(number, fcntl.LOCK_UN)), None


def _pairs(acquire: Pair, release: Pair, times: int) -> int:
    start = time.perf_counter_ns()
    for _ in range(times):
        acquire()
        release()
    return time.perf_counter_ns() - start


def _empty_loop(times: int) -> int:
    start = time.perf_counter_ns()
    for _ in range(times):
        pass
    return time.perf_counter_ns() - start


def _adds(shared: Shared, acquire: Pair, release: Pair, times: int) -> int:
    counter = shared.counter
    start = time.perf_counter_ns()
    for _ in range(times):
        acquire()
        counter.value += 1
        release()
    return time.perf_counter_ns() - start


def _row(name: str, side: str, one_lock: Shared | None) -> Callable[[ExitStack], Callable[[], float]]:
    def row(stack: ExitStack) -> Callable[[], float]:
        shared = one_lock or stack.enter_context(Shared(side, LOCK_ROWS[name]))
        acquire, release, nothing = shared.pair()
        times = PAIRS[side]

        def one() -> float:
            took = _adds(shared, acquire, release, times) if name == "atomic_add" else _pairs(acquire, release, times)
            return (took - (_pairs(nothing, nothing, times) if nothing else _empty_loop(times))) / times

        return one

    return row


def measure(name: str, processes: int = 1, rounds: int = 30, side: str = "multiprocess", one_lock: bool = True) -> Measured:
    """ns per pair of lock row `name`, by `processes` processes on one lock or each on its own."""
    check_counts(processes, rounds)
    if name not in LOCK_ROWS:
        raise Misuse(f"no lock row {name!r}; pass one of {', '.join(LOCK_ROWS)}")
    if side not in PAIRS:
        raise Misuse(f"no such locks: {side!r}; pass one of {', '.join(PAIRS)}")
    with Shared(side, LOCK_ROWS[name]) if one_lock else nullcontext() as shared:
        return measured(name, sampled(_row(name, side, shared), processes, rounds), processes)
