"""One program on both sides and the verdict; a program that differs made as short as it goes."""

from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

from concur_thp.errors import EmulatorError
from stress.compare.facts import COUNTER_KINDS, KINDS, Verdict, compare, least
from stress.compare.observed import Run
from stress.compare.sides import EmulatorSide, KernelSide
from stress.compare.steps import Program, runnable

TRIES, PATIENCE = 6, 60
"""Runs on the kernel before a difference counts: when all counted the same, and when others keep moving the counters."""
ALL = frozenset(KINDS)


class Judge:
    """Both sides, and what was compared so far."""

    def __init__(self, emulator: EmulatorSide, kernel: KernelSide):
        self.emulator, self.kernel = emulator, kernel
        self.programs = self.steps = self.again = 0
        self.compared: Counter[str] = Counter()
        self.skipped: Counter[tuple[str, str]] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.emulator.stop()
        self.kernel.stop()

    def start(self) -> None:
        """Both sides run the empty program: what stands in their way is said before anything is compared."""
        for side in (self.emulator, self.kernel):
            side.ask(())
            _, broken = side.answer()
            if broken:
                raise EmulatorError(f"compare: {broken}")

    def judge(self, program: Program, kinds: frozenset[str] = ALL) -> Verdict:
        """Run it, and count it."""
        verdict = self.verdict(program, kinds)
        self.count(verdict)
        return verdict

    def count(self, verdict: Verdict) -> None:
        """Add it to what was done."""
        self.programs += 1
        self.steps += len(verdict.program)
        self.compared.update(verdict.compared)
        self.skipped.update(verdict.skipped)

    def ask(self, program: Program, audited: bool) -> None:
        """Hand it to both sides."""
        self.emulator.ask(program, audited=audited)
        self.kernel.ask(program)

    def verdict(self, program: Program, kinds: frozenset[str] = ALL) -> Verdict:
        """Run it. What differs is run again on the kernel, and agrees when one run does, or the least of all its counters.

        Others move the counters, forwards; and a split fails for a reference that a queue of another CPU happens to have.
        """
        self.ask(program, audited=True)
        run, said = self.kernel.answer()
        emulator, broken = self.emulator.answer()
        runs = [run]
        while True:
            verdict = compare(program, emulator, run, kinds)
            if not verdict.agree and len(runs) > 1:
                verdict = compare(program, emulator, least(runs), kinds)
            verdict.broken = broken or said or ended(program, emulator, run)
            if verdict.agree or broken or len(runs) == PATIENCE or (len(runs) >= TRIES and not disturbed(verdict, runs)):
                return verdict
            self.again += 1
            self.kernel.ask(program)
            run, said = self.kernel.answer()
            runs.append(run)

    def watch(self, program: Program) -> tuple[Run, Run]:
        """Both sides' states step by step, with details."""
        self.emulator.ask(program, detail=True)
        self.kernel.ask(program, detail=True)
        kernel, _ = self.kernel.answer()
        emulator, _ = self.emulator.answer()
        return emulator, kernel


def disturbed(verdict: Verdict, runs: list[Run]) -> bool:
    """Can it be the work of others? The kernel has only counted more, and not the same in every run."""
    more = all(fact.kind in COUNTER_KINDS and fact.kernel > fact.emulator for fact in verdict.differ)
    return more and not verdict.broken and len({tuple(seen.counters for seen in run) for run in runs}) > 1


def ended(program: Program, emulator: Run, kernel: Run) -> str:
    """Which side did not get to the end, and where it stopped."""
    for name, run in (("emulator", emulator), ("kernel", kernel)):
        if len(run) < len(program):
            return f"{name}: the task died at step {len(run)}: {program[len(run)]}"
    return ""


def shorten(program: Program, bad: Callable[[Program], bool]) -> Program:
    """Leave out all that can be left out, halves first, then simplify what is left. `bad` is asked about candidates."""
    size = len(program) // 2
    while size:
        at = 0
        while at < len(program):
            candidate = runnable(program[:at] + program[at + size :])
            if len(candidate) < len(program) and bad(candidate):
                program = candidate
            else:
                at += size
        size //= 2
    for at, step in enumerate(program):
        for simpler in (step._replace(pages=1), step._replace(page=step.page // 512 * 512, pages=512)):
            if step.pages > 1 and step != simpler and simpler.pages < program[at].pages:
                candidate = program[:at] + (simpler,) + program[at + 1 :]
                if bad(candidate):
                    program = candidate
                    break
    return program
