"""Two CPU processes in mms of their own: how much more do they get done than one?

Each runs stretches of half a millisecond for a while and notes when they began and ended and how long its processor worked
on them. Only stretches count during which both processes had a processor to themselves: other programs on the machine then
cost samples and not the result. Beside it the same on the running kernel, and what two processors can do here: `private`
is the row's work on pages (throughput_huge) or adds, in memory that nobody else touches, and `line` the time in which a
cache line gets from one processor to the other. The fewer caches they share, the more costs each lock that the other has had:
on virtual processors that are moved about it is 40 ns in one minute and 170 in the next.
"""

import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import multiprocess

from concur_thp.check.clock import ns_per_cycle
from concur_thp.config import HPAGE_PMD_ORDER, PAGE_SIZE
from concur_thp.errors import EmulatorError
from concur_thp.machine import Machine
from concur_thp.mm.flags import GFP_TRANSHUGE, MADV_HUGEPAGE, MADV_NOHUGEPAGE
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, Page, Slot, mem_map
from concur_thp.mm.page_alloc import __free_pages, alloc_pages
from stress.bench import kernels
from stress.bench.children import NotHere, in_children
from stress.bench.emulator import BLOCKS, Bed
from stress.bench.host_memory import Region, need_thp
from stress.bench.statistics import spread

TURNS = 8
SECONDS = 0.1
"""Of one measurement; a turn has two for each side."""
WORKED = 0.93
"""A processor that worked less than this part of a stretch was taken away meanwhile."""
ADDS = 250_000
BATCHES = 30

Stretch = Callable[[], int]
"""Does something for half a millisecond or so, less than a time slice; returns how many operations."""


class Span(NamedTuple):
    """One stretch: whose, when, how long it was worked on, operations."""

    process: int
    begin: int
    end: int
    worked: int
    operations: int

    @property
    def undisturbed(self) -> bool:
        return self.worked > WORKED * (self.end - self.begin)

    @property
    def rate(self) -> float:
        """Operations per microsecond."""
        return self.operations * 1e3 / max(self.end - self.begin, 1)


def _filled_and_emptied(bed: Bed, huge: bool) -> Stretch:
    bed.map(MADV_HUGEPAGE if huge else MADV_NOHUGEPAGE)
    step, rounds = (bed.huge, 40) if huge else (PAGE_SIZE, 1)
    return lambda: kernels.bench_fault_zap(bed.cpu, bed.base, step, bed.size, rounds)


def _adds(bed: Bed) -> Stretch:
    def stretch() -> int:
        kernels.bench_atomic_add(bed.cpu, bed.mm, ADDS)
        return ADDS

    return stretch


def _frame_work(bed: Bed) -> Stretch:
    heads = [Page(alloc_pages(bed.cpu, int(HPAGE_PMD_ORDER), MIGRATE_MOVABLE, GFP_TRANSHUGE)) for _ in range(BLOCKS)]
    slots = kernels.pinned[32 * int(bed.cpu.id)]
    for number, head in enumerate(heads):
        if not head:
            raise EmulatorError("bench: no huge page is free")
        Slot(int(slots) + 4 * number).value = mem_map.index(head)
        bed.at_end.callback(__free_pages, bed.cpu, head, int(HPAGE_PMD_ORDER))
    return lambda: kernels.bench_frame_work(bed.cpu, slots, BLOCKS, 40)


def _hand_over(bed: Bed) -> Stretch:
    """Each process on a processor of its own: on one they would never meet."""
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[int(bed.cpu.id) % len(processors)]})
    return lambda: kernels.bench_hand_over(bed.cpu, BATCHES)


def _host_filled_and_emptied(stack: ExitStack, huge: bool) -> Stretch:
    if huge:
        need_thp()
    region = stack.enter_context(Region(BLOCKS, huge=huge))

    def stretch() -> int:
        region.touch()
        region.drop()
        return region.length // region.step

    return stretch


ROWS: dict[str, tuple[Callable[[Bed], Stretch], Callable[[ExitStack], Stretch] | None, str]] = {
    "throughput_small": (lambda bed: _filled_and_emptied(bed, False),
                         lambda stack: _host_filled_and_emptied(stack, False), "fault and zap"),
    "throughput_huge": (lambda bed: _filled_and_emptied(bed, True),
                        lambda stack: _host_filled_and_emptied(stack, True), "huge fault and zap"),
    "throughput_mix": (lambda bed: lambda: kernels.bench_life(bed.cpu, bed.base, BLOCKS, 4), None,
                       "mmap, fault, split, madvise, munmap"),
}
"""Name -> the emulator's stretch, the running kernel's, what an operation is."""


def spans(make: Callable[[ExitStack, int], Stretch], processes: int, seconds: float = SECONDS) -> list[Span]:
    """What `processes` processes did at once."""
    tickets = multiprocess.get_context("fork").Value("i", 0)

    def job() -> list[Any]:
        with tickets.get_lock():
            number, tickets.value = tickets.value, tickets.value + 1
        found: list[Any] = []
        with ExitStack() as stack:
            stretch = make(stack, number)
            until = time.monotonic() + seconds
            while time.monotonic() < until or not found:
                worked, begin = time.thread_time_ns(), time.monotonic_ns()
                operations = stretch()
                end = time.monotonic_ns()
                if operations < 0:
                    raise EmulatorError(f"throughput: an operation failed with {operations}")
                found.append(Span(number, begin, end, time.thread_time_ns() - worked, operations))
        return found

    return list(in_children(job, processes))


def fair(found: list[Span], processes: int) -> list[Span]:
    """Stretches that were undisturbed, and during which every other process was at work and undisturbed too."""
    good = []
    for span in found:
        others = [[other for other in found if other.process == number and other.begin < span.end and other.end > span.begin]
                  for number in range(processes) if number != span.process]
        if span.undisturbed and all(
                meanwhile and min(o.begin for o in meanwhile) <= span.begin and max(o.end for o in meanwhile) >= span.end
                and all(o.undisturbed for o in meanwhile) for meanwhile in others):
            good.append(span)
    return good


def rates(make: Callable[[ExitStack, int], Stretch], processes: int) -> tuple[float, float]:
    """Operations per microsecond of all processes together, and which part of the stretches was undisturbed."""
    found = spans(make, processes)
    good = fair(found, processes)
    by_process = [[s.rate for s in good if s.process == n] for n in range(processes)]
    if not all(by_process):
        by_process = [[s.rate for s in found if s.process == n] for n in range(processes)]
    return sum(statistics.median(one) for one in by_process), len(good) / len(found)


def line_times(found: list[Span]) -> list[float]:
    """ns in which a line went from one processor to the other, from the fastest batch of each stretch in which they met."""
    return [span.operations * ns_per_cycle() / (2 * kernels.HAND_OVERS) for span in found if span.operations]


def measure(machine: Machine, name: str, turns: int) -> dict[str, Any]:
    """One row: one process and two, in turns; `turns` of 1 is enough to see that it runs."""
    ours, theirs, per = ROWS[name]

    def on_a_bed(make: Callable[[Bed], Stretch]) -> Callable[[ExitStack, int], Stretch]:
        def made(stack: ExitStack, number: int) -> Stretch:
            bed = Bed(machine, number)
            stack.callback(bed.close)
            return make(bed)

        return made

    makes: dict[str, Callable[[ExitStack, int], Stretch]] = {
        "emulator": on_a_bed(ours), "ceiling": on_a_bed(_frame_work if name == "throughput_huge" else _adds)}
    reason = "kernel: there is no such loop on its side" if theirs is None else None
    if theirs is not None:
        makes["kernel"] = lambda stack, _number: theirs(stack)
    turns_of: dict[str, list[tuple[float, float, float]]] = {side: [] for side in makes}
    lines: list[float] = []
    for _ in range(turns):
        lines += line_times(spans(on_a_bed(_hand_over), 2))
        for side, make in makes.items():
            try:
                (alone, _), (both, part) = rates(make, 1), rates(make, 2)
            except NotHere as why:
                reason = f"{side}: {why}"
                continue
            turns_of[side].append((alone, both, part))
    # Turns without one undisturbed stretch count only where there are no others.
    kept = {side: [turn for turn in those if turn[2] > 0] or those for side, those in turns_of.items()}
    return _result(name, per, kept, reason, lines)


def _result(name: str, per: str, turns: dict[str, list[tuple[float, float, float]]], reason: str | None,
            lines: list[float]) -> dict[str, Any]:
    """A row for JSON, from what one process did, what two did, and how much of that was undisturbed, turn by turn."""
    scaled = {side: [both / alone for alone, both, _ in those] for side, those in turns.items()}
    one, two, parts = zip(*turns["emulator"], strict=True)
    data: dict[str, Any] = {"name": name, "kind": "throughput", "unit": "times one process", "per": per, "processes": 2,
                            "mm": "own", "multiprocess": None}
    for side in ("emulator", "kernel"):
        figures = spread(scaled[side]) if scaled.get(side) else None
        data |= {side: figures and round(figures.median, 2), f"{side}_q1": figures and round(figures.q1, 2),
                 f"{side}_q3": figures and round(figures.q3, 2)}
    data |= {"ratio_kernel": None, "ratio_multiprocess": None, "ceiling": round(statistics.median(scaled["ceiling"]), 2),
             "emulator_one": round(statistics.median(one), 4), "emulator_two": round(statistics.median(two), 4),
             "line": round(statistics.median(lines), 1) if lines else None,
             "line_low": round(min(lines), 1) if lines else None, "line_high": round(max(lines), 1) if lines else None,
             "undisturbed": round(statistics.median(parts), 4), "reason": reason}
    return data
