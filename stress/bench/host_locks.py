"""The lock rows of the bench done with `multiprocess.Lock`: ns per acquire and release, alone or contended.

With two or more processes they share one lock and meet before each sample, so that every sample is contended;
a sample is then the wall time one process needed per pair, its waiting included.
"""

import time
from collections.abc import Callable
from typing import Any

import multiprocess

from concur_thp.errors import Misuse
from stress.bench.children import SECONDS, Measured, check_counts, measured

#: One sample lasts a millisecond or more, long beside the time between two processes leaving a barrier.
PAIRS = 20_000


def _lock_pairs(lock: Any, _counter: Any) -> None:
    acquire, release = lock.acquire, lock.release
    for _ in range(PAIRS):
        acquire()
        release()


def _locked_increments(lock: Any, counter: Any) -> None:
    """How multiprocess adds to shared memory without losing a count: it has no atomic add."""
    for _ in range(PAIRS):
        with lock:
            counter.value += 1


def _empty_loop() -> None:
    for _ in range(PAIRS):
        pass


ROWS: dict[str, Callable[[Any, Any], None]] = {
    "atomic_add": _locked_increments,
    "spin_lock_pair": _lock_pairs,
    "mmap_sem_read_pair": _lock_pairs,  # multiprocess has no reader-writer lock
}


def _job(name: str, processes: int, rounds: int) -> Callable[[], list[float]]:
    fork = multiprocess.get_context("fork")
    lock, counter, meet = fork.Lock(), fork.RawValue("q", 0), fork.Barrier(processes)

    def one() -> float:
        meet.wait(2 * SECONDS)
        start = time.perf_counter_ns()
        ROWS[name](lock, counter)
        middle = time.perf_counter_ns()
        _empty_loop()
        return (2 * middle - start - time.perf_counter_ns()) / PAIRS

    def job() -> list[float]:
        return [one() for _ in range(rounds + 1)][1:]

    return job


def measure(name: str, processes: int = 1, rounds: int = 30) -> Measured:
    """ns per operation of lock row `name` done with multiprocess, by `processes` processes on one lock."""
    check_counts(processes, rounds)
    if name not in ROWS:
        raise Misuse(f"no lock row {name!r}; pass one of {', '.join(ROWS)}")
    return measured(name, _job(name, processes, rounds), processes)
