"""How long a cycle is: cycles() of the emulated CPUs against this process's clock."""

import functools
import time

from concur_thp.arch import native
from concur_thp.arch.bug import report_bug
from concur_thp.arch.builtins import cycles
from concur_thp.arch.linker import kernel

CALIBRATION_NS = 5_000_000


@kernel
def read_cycles():
    """The clock that kernel functions stamp their events with.

    Context: any.
    Emulator: cycles() for host code.
    """
    return cycles()


def _now() -> tuple[int, int]:
    """Nanoseconds and cycles of one moment: of several tries the one that was interrupted least."""
    tries = [(time.perf_counter_ns(), read_cycles(), time.perf_counter_ns()) for _ in range(5)]
    begin, ticks, end = min(tries, key=lambda row: row[2] - row[0])
    return (begin + end) // 2, ticks


@functools.cache
def ns_per_cycle() -> float:
    """Nanoseconds of one cycle, measured once: 1.0 where kernel functions run as plain Python."""
    if not report_bug.address:
        return 1.0
    if not read_cycles.address:
        native.link([read_cycles])
    begin, first = _now()
    while time.perf_counter_ns() - begin < CALIBRATION_NS:
        pass
    end, last = _now()
    return (end - begin) / (last - first) if last > first else 1.0


__all__ = ["ns_per_cycle", "read_cycles"]
