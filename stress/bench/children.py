"""A measurement taken in child processes, where it cannot disturb the caller, as median and spread."""

import signal
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait as wait_for_any
from typing import Any

import multiprocess
import numpy as np

from concur_thp.errors import EmulatorError, Misuse

SECONDS = 60.0


class NotHere(Exception):
    """This kernel or machine cannot do the row; the text says why."""


@dataclass(frozen=True)
class Measured:
    name: str
    median_ns: float | None
    spread_ns: tuple[float, float] | None  # 10th and 90th percentile
    reason: str | None  # why there is no figure
    samples: tuple[float, ...] = field(default=(), repr=False)


def in_children(job: Callable[[], list[float]], processes: int, seconds: float = SECONDS) -> list[float]:
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


def _gather(crew: list[Any], deadline: float, seconds: float) -> list[float]:
    waiting: dict[Any, Any] = {ours: process for process, ours in crew}
    samples: list[float] = []
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


def measured(name: str, job: Callable[[], list[float]], processes: int, seconds: float = SECONDS) -> Measured:
    try:
        samples = in_children(job, processes, seconds)
    except NotHere as why:
        return Measured(name, None, None, str(why))
    low, high = (float(value) for value in np.percentile(samples, (10, 90)))
    return Measured(name, statistics.median(samples), (low, high), None, tuple(samples))


def check_counts(processes: int, rounds: int) -> None:
    for what, value in (("processes", processes), ("rounds", rounds)):
        if not isinstance(value, int) or value < 1:
            raise Misuse(f"{what} is {value!r}; pass a whole number from 1 up")
