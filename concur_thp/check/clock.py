"""How long a cycle is: cycles() of the emulated CPUs against this process's clock."""

import functools
import time

from concur_thp.arch import native
from concur_thp.arch.bug import bug
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


@functools.cache
def ns_per_cycle() -> float:
    """Nanoseconds of one cycle, measured once: 1.0 where kernel functions run as plain Python."""
    if not bug.address:
        return 1.0
    if not read_cycles.address:
        native.link([read_cycles])
    read_cycles()
    begin, clock = time.perf_counter_ns(), read_cycles()
    while time.perf_counter_ns() - begin < CALIBRATION_NS:
        pass
    elapsed, ticks = time.perf_counter_ns() - begin, read_cycles() - clock
    return elapsed / ticks if ticks > 0 else 1.0


__all__ = ["ns_per_cycle", "read_cycles"]
