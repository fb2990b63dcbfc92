"""A cell whose CPUs are processes that run Python: stress/exploring/cell.py with other CPUs.

It works on a copy of the machine that the programs were declared on, so that machine stays as it is whatever happens here.
"""

import signal
from collections.abc import Callable, Iterator

from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.linker import kernel
from concur_thp.check.dump import report_text
from concur_thp.errors import EmulatorError
from concur_thp.machine import Machine
from concur_thp.program.call import leave_mm
from concur_thp.program.declared import Declared, Programs
from concur_thp.program.processor import Processor
from concur_thp.sched.batch import batch
from concur_thp.sched.state import Verdict, sched
from stress.exploring.cell import Cell, where_is
from stress.exploring.job import KINDS, Failure, Job
from stress.scenarios.arena import arena
from workers.processes import Body, ControlledProcesses
from workers.programs import symptom_of

Check = Callable[[Processor], object]


class ProgramCell(Cell):
    """The programs of a machine, ready to run in this process, which must be a fork of the one that booted the machine."""

    def __init__(self, machine: Machine, programs: Programs, job: Job, check: Check | None = None):
        every = programs.ready()
        self.job, self.nr, self.machine, self.check = job, len(every), machine, check
        machine.move(job.build)
        programs.start()
        arena.parties = arena.actors = self.nr
        self.processes = ControlledProcesses(machine, [_body(program) for program in every])
        self.controlled = self.processes
        self.controlled.choose(job.strategy, job.depth)
        sched.bound = job.bound
        if job.checks:
            machine.listen_checks(job.checks)
        if job.repeat:
            self.controlled.repeat()
        self.before = {}  # Programs in Python have no outcomes that counters decide.
        self.controlled.keep()
        self.outcomes = []
        self.last = ()
        self._closing = [self.processes.close]

    def _stopped(self, failure: Failure, verdict: Verdict) -> Failure:
        if verdict not in (Verdict.RAISED, Verdict.CRASHED, Verdict.HUNG):
            return super()._stopped(failure, verdict)
        failure.kind, failure.cpu, text = KINDS[verdict], sched.current, ""
        if verdict == Verdict.RAISED:
            failure.cpu, symptom, text = self.processes.said()
            what = symptom
        elif verdict == Verdict.CRASHED:
            failure.cpu, code = (self.processes.died or [(sched.current, 0)])[0]
            what = f"was ended by {signal.Signals(-code).name if code < 0 else f'status {code}'} in {where_is(failure.cpu)}"
        else:
            what = f"does not come back from {where_is(failure.cpu)}: it loops, or waits for what is not of the machine"
        failure.function = where_is(failure.cpu)
        failure.symptom = f"{self.job.programs[failure.cpu]}: {what}"
        failure.report = f"{text}\n{report_text(self.machine.config, what=failure.symptom)}".lstrip("\n")
        return failure

    def _same_again(self) -> Failure | None:
        """A program that keeps something from run to run is its author's mistake as likely as ours: a finding, not a fault."""
        try:
            super()._same_again()
        except EmulatorError as error:
            hint = "a program may depend on its arguments and on the machine's memory only, or the emulator is at fault"
            return Failure("diverged", f"{error} ({hint})", seed=batch.seed)
        return None

    def _laws(self, full: bool = True) -> Iterator[tuple[str, list[str]]]:
        if self.check is not None:
            try:
                self.check(Processor(cpus[0]))
            except Exception as error:  # What the user's own check raises is a finding.
                yield "raised", [f"check: {symptom_of(error)}"]
        if self.controlled.alone(programs_end) != Verdict.FINISHED:
            yield "stopped", []
        yield from super()._laws(full)


def _body(program: Declared) -> Body:
    return lambda cpu: program.body(Processor(cpu))


@kernel
def programs_end(cpu: Cpu) -> None:
    """Every CPU leaves its mm.

    Context: parked; the CPU processes stand still.
    Emulator: the end of all programs.
    """
    for number in range(sched.nr):
        leave_mm(cpus[number])


__all__ = ["Check", "ProgramCell", "programs_end"]
