"""A schedule that did not bring about again what it was recorded with: at which step, what was recorded, and what came."""

import numpy as np

from concur_thp.arch.checked import Site, sites
from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.linker import texts
from concur_thp.check.lock_names import describe_wait
from concur_thp.check.views import Column, raw
from concur_thp.config import MachineConfig
from concur_thp.sched.batch import batch
from concur_thp.sched.repeat import FIRST_END, FIRST_MAP, first_steps, repeating
from concur_thp.sched.replay import CANNOT
from concur_thp.sched.snapshot import GRANULE, SEGMENT, SNAPSHOT, Snapshot
from concur_thp.sched.state import Reason, Status, Step, Verdict, sched, sched_cpus, sched_plan, sched_steps
from concur_thp.trace.places import place_name

CPU_FIELDS = ("irq_off", "preempt_off", "depth", "page_locks", "context", "held_mask", "generation", "tlb_small", "tlb_huge",
              "vmstat")
"""What of a CPU belongs to the state a run ends in, see snapshot.cpu_number()."""

ENDED = {Reason.PREEMPT: "is stopped", Reason.BLOCK: "waits", Reason.YIELD: "polls", Reason.DONE: "is done",
         Reason.END: "is where the run ends", Reason.START: "starts"}
"""What a CPU does where a stretch of it ends."""


def describe_repetition(config: MachineConfig, snapshot: Snapshot, places: dict[str, tuple[int, int]]) -> str:
    """Where the second run went another way, and how. The machine is as that run left it."""
    at = repeating.diverged
    first, second = repeating.points, sched.logged
    if at < first or at < second:
        was = step_text(first_steps[at]) if at < first else end_text(repeating.verdict, repeating.steps)
        now = step_text(sched_steps[at]) if at < second else end_text(sched.verdict, sched.steps)
    elif (repeating.verdict, repeating.steps) != (sched.verdict, sched.steps):
        was, now = end_text(repeating.verdict, repeating.steps), end_text(sched.verdict, sched.steps)
    else:
        was, now = end_difference(config, snapshot, places)
    return f"seed {batch.seed}: diverged at step {at + 1}: recorded {was}, now {now}"


def step_text(step: Step) -> str:
    """A point: which CPU stood before which statement."""
    site = sites().get(step.site, Site(texts().get(step.func, "?"), "?", 0, "?"))
    inside = texts().get(step.func, site.function)
    where = f" in {inside}" if inside != site.function else ""
    return f"cpu {step.cpu} before `{site.text}` of {site.function}{where}"


def end_text(verdict: int, steps: int) -> str:
    """The end of a run."""
    return f"the end of the run ({Verdict(verdict).name.lower()}, {steps} points)"


def end_difference(config: MachineConfig, snapshot: Snapshot, places: dict[str, tuple[int, int]]) -> tuple[str, str]:
    """The first word that the two runs left different."""
    before, after = first_end(snapshot), raw(int(SEGMENT), snapshot.size)
    counted = np.repeat(np.frombuffer(snapshot.counted, np.uint8, snapshot.granules), GRANULE).astype(bool)
    start, size = places["cpus"]
    own = np.zeros(Cpu.SIZE, bool)
    for name in CPU_FIELDS:
        row = Cpu.FIELDS[name]
        own[row.offset:row.offset + row.stride * max(row.count, 1)] = True
    counted[start:start + size] = np.tile(own, size // Cpu.SIZE)
    different = ((before != after) & counted).nonzero()[0]
    if not len(different):
        return f"an end with the number {repeating.state:#x}", "another"
    at = int(different[0]) & ~7
    was, now = (int(state[at:at + 8].copy().view(np.int64)[0]) for state in (before, after))
    return f"an end with {place_name(config, int(SEGMENT) + at)} = {was:#x}", f"with {now:#x} there"


def first_end(snapshot: Snapshot) -> Column:
    """The segment as the first run left it."""
    state = raw(int(SNAPSHOT), snapshot.size).copy()
    written = raw(int(FIRST_MAP), snapshot.granules).nonzero()[0]
    rows, kept = state.reshape(-1, GRANULE), raw(int(FIRST_END), snapshot.size).reshape(-1, GRANULE)
    rows[written] = kept[written]
    return state


def describe_replay(config: MachineConfig) -> str:
    """Where a replay left its plan. The machine is as that run left it."""
    at, cpu, why = sched.at, sched.diverged_cpu, sched.diverged_why
    if at >= sched.expected:
        was = "the end of the schedule"
    elif why == CANNOT:
        was = f"cpu {cpu} goes on"
    else:
        row = sched_plan[at]
        was = stop_text(row.cpu, row.reason, row.steps, row.site)
    if why == CANNOT:
        now = "it cannot: " + (describe_wait(config, cpu) if sched_cpus[cpu].status != Status.DONE else "it is done")
    elif why == Reason.START:
        now = "another beginning"
    else:
        me = sched_cpus[cpu]
        now = stop_text(cpu, why, me.steps - me.began, cpus[cpu].site)
    return f"diverged at step {sched.diverged}: recorded {was}, now {now}"


def stop_text(cpu: int, reason: int, steps: int, number: int) -> str:
    """A CPU at the end of a stretch."""
    site = sites().get(number)
    where = f" before `{site.text}` of {site.function}" if site else ""
    return f"cpu {cpu} {ENDED[Reason(reason)]}{where} after {steps} points"


__all__ = ["ENDED", "describe_repetition", "describe_replay"]
