"""A process that runs a machine one CPU at a time: every CPU is a stack of this process (arch/stack.py)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from concur_thp.arch.bug import park_for_good
from concur_thp.arch.builtins import set_current
from concur_thp.arch.checked import GRANULE_SHIFT
from concur_thp.arch.cpu import cpus
from concur_thp.arch.futex import SPINNING, futex_wait, futex_wake, nap, sched_yield
from concur_thp.arch.linker import SLOTS, Kernel, redirect
from concur_thp.arch.listen import FREE_BUDGET, sched_point
from concur_thp.arch.stack import link_stacks, new_stack
from concur_thp.machine import Machine
from concur_thp.sched import batch as batches
from concur_thp.sched import control, pct, random, replay
from concur_thp.sched.snapshot import Snapshot
from concur_thp.sched.state import sched, sched_cpus

STRATEGIES: dict[str, tuple[Kernel, Kernel]] = {
    "random": (random.random_prepare, random.random_pick),
    "pct": (pct.pct_prepare, pct.pct_pick),
    "replay": (replay.replay_prepare, replay.replay_pick),
    "guided": (replay.replay_prepare, replay.guided_pick),
}
_STAND_INS = ((sched_point, control.control_point), (futex_wait, control.control_wait), (futex_wake, control.control_wake),
              (sched_yield, control.control_yield), (nap, control.control_yield), (park_for_good, control.control_park))
BOUND = 200_000


class Controlled:
    """The machine of this process, run one CPU at a time."""

    def __init__(self, machine: Machine, nr: int, body: Kernel):
        self.machine, self.nr = machine, nr
        link_stacks()
        self.snapshot = Snapshot(machine.base, machine.size, machine.places)
        for number in range(nr):
            sched_cpus[number].stack = new_stack()
        sched.nr = nr
        sched.bound = BOUND
        sched.depth = 3
        batches.batch.granules = machine.size >> GRANULE_SHIFT
        sched.body = control.control_main.address
        redirect(control.control_body, body)

    def strategy(self, name: str, depth: int = 3) -> None:
        """Choose who picks."""
        prepare, pick = STRATEGIES[name]
        redirect(control.prepare, prepare)
        redirect(control.pick, pick)
        sched.depth = depth

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Inside, waiting and points are the scheduler's; outside, this process runs CPUs as any other does."""
        kept = [(hook, SLOTS[hook.slot]) for hook, _ in _STAND_INS]
        for hook, stand_in in _STAND_INS:
            redirect(hook, stand_in)
        SPINNING.set(0)
        try:
            yield
        finally:
            SPINNING.set(-1)
            for hook, address in kept:
                SLOTS[hook.slot] = address
            set_current(int(cpus[0]))
            for number in range(self.nr):
                cpus[number].budget = FREE_BUDGET

    def keep(self) -> None:
        """Runs start from the state the machine is in now."""
        self.snapshot.take()

    def run(self, seed: int, count: int) -> int:
        """run_batch()."""
        with self.standing_in():
            return batches.run_batch(seed, count)

    def restore(self) -> None:
        """Back to the kept state."""
        self.snapshot.restore_all()


__all__: list[Any] = ["Controlled"]
