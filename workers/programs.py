"""Free runs of programs that are Python functions: each CPU is a forked process, all of them let go at once."""

import traceback
from dataclasses import dataclass, field
from typing import Any

from concur_thp.arch import native
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.system import system
from concur_thp.check.audit import audit
from concur_thp.machine import Machine
from concur_thp.program.call import gate, pass_gate
from concur_thp.program.declared import Declared, ProgramFailure, Programs
from concur_thp.program.processor import Processor
from workers.launch import Crew, Outcome, Role


@dataclass
class Ran:
    """What came of one free run."""

    verdict: str
    """pass, fail, or inconclusive: interrupted, killed from outside, or out of time."""
    kind: str = "done"
    """done, raised, audit, bug, crashed, hung, killed, late, interrupted."""
    symptom: str = ""
    results: dict[str, Any] = field(default_factory=dict)
    """What each program returned, by its name (name-CPU where two have the same)."""
    report: str = ""

    def check(self) -> "Ran":
        """Raise ProgramFailure unless all went well."""
        if self.verdict != "pass":
            raise ProgramFailure(f"{self.kind}: {self.symptom}\n\n{self.report}".rstrip())
        return self


def names_of(programs: list[Declared]) -> list[str]:
    """A name of its own for each program."""
    names = [program.name for program in programs]
    return [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names)]


def run(machine: Machine, programs: Programs, seconds: float | None = 60.0) -> Ran:
    """Run every program once, all at the same time; `seconds` is when patience ends. The machine keeps what they did."""
    every = programs.ready()
    native.link(kind=machine.build)
    gate.arrived.store(0)
    system.stop.store(0)
    programs.start()
    names = names_of(every)

    def role(number: int) -> Role:
        def body(machine: Machine, cpu: Cpu) -> tuple[str, Any]:
            pass_gate(cpu, len(every))
            try:
                return "returned", every[number].body(Processor(cpu))
            except Exception as error:  # What a program raises is a finding, not a fault of ours.
                return "raised", (symptom_of(error), told(error))

        return Role(names[number], number, body)

    with Crew(machine, [role(number) for number in range(len(every))]) as crew:
        outcome = crew.watch(seconds)
    return _judge(machine, programs, names, outcome)


def _judge(machine: Machine, programs: Programs, names: list[str], outcome: Outcome) -> Ran:
    kind, symptom, report = outcome.kind, outcome.what, outcome.report
    results = {name: value for name, (how, value) in outcome.results.items() if how == "returned"}
    if kind == "done":
        programs.stop()
        raised = {name: value for name, (how, value) in outcome.results.items() if how == "raised"}
        if raised:
            kind, symptom = "raised", "; ".join(f"{name}: {what}" for name, (what, _) in raised.items())
            report = "\n".join(f"{name}:\n{text}" for name, (_, text) in raised.items())
        elif missing := [name for name in names if name not in outcome.results]:
            kind, symptom = "late", f"{', '.join(missing)} did not end in time"
        elif violations := audit(machine.config).violations:
            kind, symptom = "audit", "; ".join(map(str, violations[:4]))
    verdict = "pass" if kind == "done" else "inconclusive" if kind in ("interrupted", "killed", "late") else "fail"
    return Ran(verdict, kind, symptom, results, report)


def symptom_of(error: BaseException) -> str:
    """An exception in one line; one without words, such as a bare assert's, speaks through the statement that raised it."""
    lines = str(error).strip().splitlines()
    if not lines:
        lines = [frame.line for frame in traceback.extract_tb(error.__traceback__)[-1:] if frame.line]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def told(error: BaseException) -> str:
    """An exception of a program: its traceback from the program on."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return "".join([*traceback.format_list(frames), *traceback.format_exception_only(error)])


__all__ = ["Ran", "names_of", "run", "symptom_of", "told"]
