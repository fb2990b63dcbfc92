"""A measurement taken in child processes, where it cannot disturb the caller, as median and spread."""

import signal
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait as wait_for_any
from typing import Any, TypeVar

import multiprocess
import numpy as np

from concur_thp.errors import EmulatorError, Misuse

SECONDS = 240.0
"""Of a turn: many times what it takes on an idle machine; a loaded one may be slow."""
T = TypeVar("T")


class NotHere(Exception):
    """This kernel or machine cannot do the row; the text says why."""


@dataclass(frozen=True)
class Measured:
    name: str
    median_ns: float | None
    spread_ns: tuple[float, float] | None  # first and third quartile
    reason: str | None  # why there is no figure
    samples: tuple[float, ...] = field(default=(), repr=False)


def in_children(job: Callable[[], list[T]], processes: int, seconds: float = SECONDS) -> list[T]:
    """Fork `processes` children, run `job` in all of them at once, return all their samples."""
    fork = multiprocess.get_context("fork")
    start_line = fork.Barrier(processes)

    def child(answer: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, and it kills us
        try:
            start_line.wait(2 * seconds)  # the parent gives up, and kills, before this does
            answer.send(job())
        except NotHere as why:
            answer.send(why)
        except OSError as why:
            answer.send(NotHere(str(why)))
        except Exception as error:
            answer.send(EmulatorError(f"a bench row is broken: {type(error).__name__}: {error}"))

    crew = []
    try:
        for _ in range(processes):
            ours, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=child, args=(theirs,))
            process.start()
            theirs.close()
            crew.append((process, ours))
        return _gather(crew, time.monotonic() + seconds, seconds)
    finally:
        for process, ours in crew:
            process.kill()
            process.join()
            ours.close()


def _gather(crew: list[Any], deadline: float, seconds: float) -> list[Any]:
    waiting: dict[Any, Any] = {ours: process for process, ours in crew}
    samples: list[Any] = []
    while waiting:
        ready: list[Any] = wait_for_any(list(waiting), max(0.0, deadline - time.monotonic()))
        if not ready:
            raise NotHere(f"no answer within {seconds:g} s")
        for ours in ready:
            process, got = waiting.pop(ours), None
            with suppress(EOFError):
                got = ours.recv()
            if got is None:
                process.join()
                raise NotHere(f"the measuring process died (exit code {process.exitcode})")
            if isinstance(got, Exception):
                raise got
            samples += got
    return samples


def sampled(row: Callable[[ExitStack], Callable[[], float]], crew: int, rounds: int,
            threads: bool = False) -> Callable[[], list[float]]:
    """A job for in_children(): `rounds` samples of a row by each of `crew` processes, or threads of one process.

    Whoever has his samples goes on until all have theirs: nobody's last samples are taken alone.
    """
    finished = multiprocess.get_context("fork").Value("i", 0)

    def one_of_them() -> list[float]:
        with ExitStack() as stack:
            try:
                one = row(stack)
                one()  # The first round warms allocator, page tables and code, and is thrown away.
                samples = [one() for _ in range(rounds)]
            finally:
                with finished.get_lock():
                    finished.value += 1
            while finished.value < crew:
                one()
        return samples

    def all_threads() -> list[float]:
        with ThreadPoolExecutor(crew) as pool:
            return sum(pool.map(lambda _number: one_of_them(), range(crew)), [])

    return all_threads if threads else one_of_them


def measured(name: str, job: Callable[[], list[float]], processes: int, seconds: float = SECONDS) -> Measured:
    try:
        samples = in_children(job, processes, seconds)
    except NotHere as why:
        return Measured(name, None, None, str(why))
    low, high = (float(value) for value in np.percentile(samples, (25, 75)))
    return Measured(name, statistics.median(samples), (low, high), None, tuple(samples))


def check_counts(processes: int, rounds: int) -> None:
    for what, value in (("processes", processes), ("rounds", rounds)):
        if not isinstance(value, int) or value < 1:
            raise Misuse(f"{what} is {value!r}; pass a whole number from 1 up")
