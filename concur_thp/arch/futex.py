"""Sleeping and waking between processes, on words of the segment. The one place where a CPU gives up its processor.

Every sleep is short: whoever sleeps wakes up now and then to look at `system.panicked`, so a CPU that died while it
held something can hang nobody. All waiting ends in the four kernel functions below; a controlled run puts its own in
their slots (sched/waiting.py), and then nobody spins either (`spins()`).
"""

import platform

from concur_thp.arch.builtins import syscall
from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.arch.shared import SharedArray, Word
from concur_thp.arch.struct import I32, I64, Struct, atomic, field

_X86 = platform.machine() == "x86_64"
SYS_FUTEX = 202 if _X86 else 98
SYS_SCHED_YIELD = 24 if _X86 else 124
SYS_CLOCK_NANOSLEEP = 230 if _X86 else 115
FUTEX_WAIT = 0
FUTEX_WAKE = 1
ALL_WAITERS = 0x7FFFFFFF
NAP_NS = 20_000_000
"""Longest sleep between two looks at `system.panicked`."""


class Timespec(Struct):
    """struct timespec of the machine underneath."""

    tv_sec = field(I64, "const", "seconds")
    tv_nsec = field(I64, "const", "nanoseconds")


class FutexWord(Struct, size=4, align=4):
    """Any 32-bit word of the segment, seen as a futex."""

    value = atomic(I32, "the word")


SPINNING = Word("spinning")
"""All bits set in free runs, 0 when this process runs one CPU at a time."""
SPINNING.set(-1)

timespecs = SharedArray("timespecs", Timespec, lambda config: 4)
"""Constant time-outs: 0 is NAP_NS, 1 is 50 us."""


def init_timespecs() -> None:
    """Boot: fill the constants."""
    for index, nanoseconds in enumerate((NAP_NS, 50_000, 1_000_000)):
        timespecs[index].tv_sec = 0
        timespecs[index].tv_nsec = nanoseconds


@kernel
def futex_wait(address: int, expected: int):
    """Sleep while the 32-bit word at `address` is `expected`, NAP_NS at most.

    Context: may sleep. The caller loops over its condition.
    Emulator: how a CPU process sleeps.
    """
    syscall(SYS_FUTEX, address, FUTEX_WAIT, expected, int(timespecs[0]), 0, 0)


@kernel
def futex_wake(address: int, count: int):
    """Wake up to `count` sleepers on the word at `address`.

    Context: any.
    Emulator: how a CPU process wakes others.
    """
    syscall(SYS_FUTEX, address, FUTEX_WAKE, count, 0, 0, 0)


@kernel
@quiet
def sched_yield():
    """Let another process have this core.

    Context: any; the caller loops over its condition.
    Emulator: the end of a spin that takes too long.
    """
    syscall(SYS_SCHED_YIELD, 0, 0, 0, 0, 0, 0)


@kernel
@quiet
def nap():
    """Sleep 50 us.

    Context: may sleep. The caller loops over its condition.
    Emulator: waiting for what nobody announces.
    """
    syscall(SYS_CLOCK_NANOSLEEP, 1, 0, int(timespecs[1]), 0, 0, 0)


@inline
def spins(most: int):
    """How often to try before sleeping: `most`, or never when only one CPU moves at a time."""
    return most & int(SPINNING)
