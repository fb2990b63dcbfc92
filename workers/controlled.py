"""A process that runs a machine one CPU at a time: every CPU is a stack of this process (arch/stack.py)."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager

from concur_thp.arch.bug import park_for_good
from concur_thp.arch.builtins import set_current
from concur_thp.arch.checked import access_hook
from concur_thp.arch.cpu import cpus
from concur_thp.arch.futex import SPINNING, futex_wait, futex_wake, nap, sched_yield
from concur_thp.arch.linker import SLOTS, Kernel, kernel, redirect
from concur_thp.arch.listen import FREE_BUDGET, sched_point
from concur_thp.arch.stack import link_stacks, new_stack
from concur_thp.machine import Machine
from concur_thp.sched import batch as batches
from concur_thp.sched import control, dfs, dpor, pct, random, repeat, replay, reversals, runs, touches, waiting
from concur_thp.sched.snapshot import Snapshot, address_of
from concur_thp.sched.state import MAX_CHANGES, Verdict, sched, sched_cpus

STRATEGIES: dict[str, tuple[Kernel, ...]] = {
    "random": (random.random_prepare, random.random_pick),
    "pct": (pct.pct_prepare, pct.pct_pick),
    "dfs": (dfs.dfs_prepare, dfs.dfs_pick, dfs.dfs_after),
    "dpor": (dpor.dpor_prepare, dpor.dpor_pick, dpor.dpor_after),
    "replay": (replay.replay_prepare, replay.replay_pick),
    "guided": (replay.replay_prepare, replay.guided_pick),
}
"""Strategy -> its prepare(), its pick(), and its after() if it has one."""
_STAND_INS = ((sched_point, waiting.control_point), (futex_wait, waiting.control_wait), (futex_wake, waiting.control_wake),
              (sched_yield, waiting.control_yield), (nap, waiting.control_yield), (park_for_good, waiting.control_park))
_TOUCHING = ((futex_wait, touches.touching_wait), (futex_wake, touches.touching_wake), (access_hook, touches.touch),
             (dpor.find_races, reversals.find_reversals))
"""What stands in besides under dpor."""
BOUND = 100_000


@kernel
def nothing_after() -> None:
    """The after() of a strategy that has none.

    Context: the machine stands still.
    Emulator: strategies that draw.
    """


class Controlled:
    """The machine of this process, run one CPU at a time."""

    repeats = 1
    """How repeat() wants runs repeated: 1 is all of them."""
    complete = True
    """Did the last run() do all it was asked for? If not, its last run needs a judge, and restore() behind that."""

    def __init__(self, machine: Machine, nr: int, body: Kernel):
        self.machine, self.nr = machine, nr
        self._first_end: tuple[mmap.mmap, mmap.mmap] | None = None
        self._stand_ins: tuple[tuple[Kernel, Kernel], ...] = _STAND_INS
        link_stacks()
        self.snapshot = Snapshot(machine.base, machine.size, machine.places)
        for number in range(nr):
            sched_cpus[number].stack = new_stack()
        sched.nr, sched.bound = nr, BOUND
        sched.body, sched.alone = runs.control_main.address, runs.alone_main.address
        batches.batch.granules = self.snapshot.granules
        self.progress = mmap.mmap(-1, batches.PROGRESS_BYTES)
        self.report_to(self.progress)
        redirect(runs.control_body, body)

    def report_to(self, memory: mmap.mmap) -> None:
        """Where the seed and the number of the run under way are written; see PROGRESS."""
        self.progress = memory
        batches.PROGRESS.set(address_of(memory))

    def choose(self, strategy: str, depth: int = 3) -> None:
        """Choose who picks."""
        prepare, pick, *after = STRATEGIES[strategy]
        self._stand_ins = _STAND_INS + (_TOUCHING if strategy == "dpor" else ())
        redirect(control.prepare, prepare)
        redirect(control.pick, pick)
        redirect(control.after, after[0] if after else nothing_after)
        # pct keeps so many change points; shrinking asks for one more than a failure has preemptions.
        sched.depth = min(depth, MAX_CHANGES) if strategy == "pct" else depth
        sched.expected = sched.exhausted = 0
        repeat.repeating.wanted = sched.stepping = 0

    def repeat(self) -> None:
        """From now on, and until choose(), run each schedule that the strategy chooses a second time; see sched/repeat.py."""
        for either, first, own in ((repeat.either_prepare, repeat.first_prepare, control.prepare),
                                   (repeat.either_pick, repeat.first_pick, control.pick)):
            SLOTS[first.slot] = SLOTS[own.slot]
            redirect(own, either)
        if self._first_end is None:
            self._first_end = mmap.mmap(-1, self.snapshot.size), mmap.mmap(-1, self.snapshot.granules + 8)
            repeat.FIRST_END.set(address_of(self._first_end[0]))
            repeat.FIRST_MAP.set(address_of(self._first_end[1]))
        repeat.repeating.wanted, repeat.repeating.diverged = self.repeats, repeat.NOWHERE
        sched.stepping = 1

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Inside, waiting and points are the scheduler's; outside, this process runs CPUs as any other does."""
        kept = {hook: SLOTS[hook.slot] for hook, _ in self._stand_ins}
        for hook, stand_in in self._stand_ins:
            redirect(hook, stand_in)
        SPINNING.set(0)
        try:
            yield
        finally:
            SPINNING.set(-1)
            for hook, address in kept.items():
                SLOTS[hook.slot] = address
            set_current(int(cpus[0]))
            for number in range(self.nr):
                cpus[number].budget = FREE_BUDGET

    def keep(self) -> None:
        """Runs start from the state the machine is in now."""
        self.snapshot.take()

    def run(self, seed: int, count: int) -> int:
        """Run with `count` seeds from `seed` on; returns how many ended in states known to be good."""
        with self.standing_in():
            done = batches.run_batch(seed, count)
        self.complete = not batches.batch.unjudged
        return done

    def alone(self, body: Kernel) -> Verdict:
        """Run `body` on CPU 0 while the others rest: whatever it breaks comes back as a verdict."""
        picked = SLOTS[control.pick.slot]
        redirect(control.pick, runs.alone_pick)
        redirect(runs.alone_body, body)
        try:
            with self.standing_in():
                return Verdict(runs.run_alone())
        finally:
            SLOTS[control.pick.slot] = picked

    @property
    def exhausted(self) -> bool:
        """Has the strategy no schedule left?"""
        return bool(sched.exhausted)

    @property
    def proved(self) -> bool:
        """Has it run every schedule, or one for each that ends as it?"""
        return sched.exhausted == 1

    def restore(self) -> None:
        """Back to the kept state."""
        self.snapshot.restore_all()


__all__ = ["STRATEGIES", "Controlled"]
