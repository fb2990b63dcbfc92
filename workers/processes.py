"""Controlled runs whose CPUs are OS processes: what programs in Python need. Strategies, logs and verdicts are those of
workers/controlled.py; only the hand-over differs (concur_thp/sched/processes.py).

The CPU processes live from run to run. They are forked anew when a run ended in the middle of something, and when this
process has other code in its slots than they (another strategy, somebody who listens).
"""

import faulthandler
import mmap
import os
import signal
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress

from concur_thp.arch.bug import abort_when_parked
from concur_thp.arch.builtins import set_current
from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.linker import SLOTS, redirect
from concur_thp.arch.parent import end_with_parent
from concur_thp.machine import Machine
from concur_thp.sched import control, processes, runs
from concur_thp.sched.state import Verdict, sched
from workers.controlled import Controlled
from workers.programs import symptom_of, told

Body = Callable[[Cpu], object]
WORDS_BYTES = 1 << 14
_HEAD = struct.Struct("iii")


class ControlledProcesses(Controlled):
    """The machine of this process, run one CPU at a time, each a process that runs one of the bodies. close() it."""

    repeats = 2
    """A run that ended in the middle of something leaves CPU processes that cannot begin another."""

    def __init__(self, machine: Machine, bodies: Sequence[Body]):
        super().__init__(machine, len(bodies), runs.control_body)
        redirect(control.let_go, processes.process_let_go)
        self.bodies = list(bodies)
        self.pids: list[int] = []
        self.died: list[tuple[int, int]] = []
        """CPU processes that had ended by themselves when the last run did: number and exit status."""
        self._said = mmap.mmap(-1, WORDS_BYTES)
        self._forked_with = b""

    def run(self, seed: int, count: int) -> int:
        """As Controlled.run()."""
        with self.standing_in():
            if self._forked_with != bytes(SLOTS):
                self.close()
            if not self.pids:
                self._fork()
        done = super().run(seed, count)
        if not self.complete and sched.verdict != Verdict.FINISHED:
            self._bury()
        return done

    def _fork(self) -> None:
        for number in range(len(self.bodies) + 1):
            place = number if number < len(self.bodies) else processes.COORDINATOR
            processes.sched_turns[place].word.store(0)
        self._forked_with = bytes(SLOTS)
        parent = os.getpid()
        for number, body in enumerate(self.bodies):
            pid = os.fork()
            if pid == 0:
                self._live(number, body, parent)
            self.pids.append(pid)

    def _live(self, number: int, body: Body, parent: int) -> None:
        """The life of a CPU process. Never returns."""
        try:
            faulthandler.disable()  # A crash is a finding, told by the coordinator.
            end_with_parent(parent)
            abort_when_parked(False)
            cpu: Cpu = cpus[number]
            set_current(int(cpu))
            redirect(control.hand_over, processes.process_hand_over)
            redirect(control.finish, processes.process_finish)
            processes.take_turn(number)
            while True:
                self._once(cpu, number, body)
                processes.process_done(cpu)
        finally:
            os._exit(1)

    def _once(self, cpu: Cpu, number: int, body: Body) -> None:
        try:
            body(cpu)
        except BaseException as error:
            self._say(number, symptom_of(error), told(error))
            processes.process_raised(cpu)

    def _say(self, number: int, symptom: str, text: str) -> None:
        """Leave an exception where the coordinator finds it."""
        first, rest = symptom.encode()[:1000], text.encode()[-8000:]
        self._said[:_HEAD.size] = _HEAD.pack(number, len(first), len(rest))
        self._said[_HEAD.size:_HEAD.size + len(first) + len(rest)] = first + rest

    def said(self) -> tuple[int, str, str]:
        """CPU, symptom and traceback of the exception that ended the last run."""
        number, first, rest = _HEAD.unpack(self._said[:_HEAD.size])
        text = self._said[_HEAD.size:_HEAD.size + first + rest]
        return number, text[:first].decode(errors="replace"), text[first:].decode(errors="replace")

    def _bury(self) -> None:
        """A run ended in the middle of something: end the CPU processes, and remember who had died by himself."""
        self.died = []
        for number, pid in enumerate(self.pids):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self.died.append((number, os.waitstatus_to_exitcode(status)))
                self.pids[number] = 0
        self.close()

    def close(self) -> None:
        """End the CPU processes."""
        left = [pid for pid in self.pids if pid]
        self.pids = []
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            os.waitpid(pid, 0)


__all__ = ["ControlledProcesses"]
