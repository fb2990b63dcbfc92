"""The words that belong to the whole machine, and the layout of the segment that holds everything.

Struct arrays register themselves (`SharedArray`); `layout()` places them behind each other for one configuration, each
on its own page so that what a small machine never touches is never resident.
"""

from typing import Any

from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import I32, I64, Struct, atomic, field


class System(Struct, size=256):
    """The machine as a whole."""

    panicked = atomic(I32, "1 from the first bug() on: every spin and every wait looks here and stops")
    listen = atomic(I32, "nonzero when somebody listens at points (sched/): bits of LISTEN_*")
    stop = atomic(I32, "1 asks every program to end at its next operation")
    nr_cpus = field(I32, "const", "CPUs of this machine")
    bug_cpu = field(I32, "init", "the CPU that called bug(), written by the one that set `panicked`")
    bug_text = field(I64, "init", "number of the message, see linker.texts()")
    bug_func = field(I64, "init", "number of the function's name")
    bug_a = field(I64, "init", "first value the message speaks of, often a pfn")
    bug_b = field(I64, "init", "second value")
    bug_done = atomic(I32, "1 once the bug_ fields are complete")
    seed = field(I64, "const", "seed of every random choice in this run")
    chaos_short = field(I32, "const", "chaos: one point in 2**chaos_short gets a short delay")
    chaos_long = field(I32, "const", "chaos: one point in 2**chaos_long gets a long delay")
    hold_cpu = field(I32, "init", "litmus: the CPU to be held")
    hold_point = field(I32, "init", "litmus: the Point where it is held")
    hold_state = atomic(I32, "litmus: HOLD_*")
    nr_frames = field(I64, "const", "frames of emulated memory")
    segment_bytes = field(I64, "const", "size of the segment")


system = SharedOne("system", System)

SEGMENT_ALIGN = 4096


def layout(config: Any) -> dict[str, tuple[int, int]]:
    """Array name -> (offset, bytes) for this configuration; the last entry '' gives the total."""
    places, at = {}, 0
    # What the scheduler of controlled runs notes lies behind everything else: it is no part of a snapshot.
    for name, array in sorted(SharedArray.all.items(), key=lambda item: item[0].startswith("sched")):
        size = array.stride * array.count(config)
        places[name] = (at, size)
        at += -(-size // SEGMENT_ALIGN) * SEGMENT_ALIGN
    places[""] = (at, 0)
    return places


def bind(base: int, places: dict[str, tuple[int, int]]) -> None:
    """Point this process's words at a segment mapped at `base`."""
    for name, (offset, _) in places.items():
        if name:
            SharedArray.all[name].base.set(base + offset)
