"""Random programs by the thousand: both sides kept busy, and when one differs, the shortest that does."""

from collections import deque
from collections.abc import Callable
from contextlib import suppress

from stress.compare.facts import Verdict, compare
from stress.compare.generate import explore
from stress.compare.judge import ALL, Judge, ended, shorten
from stress.compare.steps import Program

AHEAD = 4
"""Programs that have been handed to both sides and not been looked at."""
DRAWN = 3
"""Some programs are drawn more than once."""
AUDIT_EVERY = 4
"""The emulator's machine is audited behind every so many programs: an audit costs more than the rest. When one finds something,
those since the last are run again, each on its own and audited."""
SHRINK_RUNS = 100
"""Programs that hypothesis may try to find a shorter one; and how many may be tried behind it."""


class Differs(Exception):
    """This program does."""


class Stop(BaseException):
    """Leave hypothesis: it takes every Exception for the program's that it has just drawn."""


class Search:
    """`number` programs of one seed."""

    def __init__(self, judge: Judge, number: int, seed: int, without: frozenset[str], tick: Callable[[int], None]):
        self.judge, self.number, self.seed, self.without, self.tick = judge, number, seed, without, tick
        self.waiting: deque[Program] = deque()
        self.handed = 0
        self.unaudited: list[Program] = []
        """Those that agreed since the last audit."""
        self.good: set[Program] = set()
        self.bad: dict[Program, Verdict] = {}
        self.left = SHRINK_RUNS

    def run(self) -> Verdict | None:
        """None when all agree, else the verdict on the shortest program found."""
        with suppress(Stop):
            explore(DRAWN * self.number, self.seed, self._hand_over, self.without, shrink=False)
        with suppress(Stop):
            while self.waiting:
                self._look(self.waiting[0])
        return self._shortest() if self.bad else None

    def _hand_over(self, program: Program) -> None:
        if program in self.good or program in self.waiting:
            return
        if len(self.good) + len(self.waiting) == self.number:
            raise Stop
        self.handed += 1
        self.judge.ask(program, audited=self._audited(self.handed))
        self.waiting.append(program)
        if len(self.waiting) > AHEAD:
            self._look(self.waiting[0])

    @staticmethod
    def _audited(number: int) -> bool:
        return number % AUDIT_EVERY == 0

    def _look(self, program: Program) -> None:
        """The oldest one's answers. When they do not agree, it and those behind it are run again, one by one."""
        kernel, said = self.judge.kernel.answer()
        emulator, broken = self.judge.emulator.answer()
        verdict = compare(program, emulator, kernel)
        number = self.handed - len(self.waiting) + 1
        if verdict.agree and not said and not broken and not ended(program, emulator, kernel):
            self.waiting.popleft()
            self.unaudited = [] if self._audited(number) else [*self.unaudited, program]
            self._passed(verdict)
            return
        again = list(self.waiting)
        self.waiting.clear()
        for _ in again[1:]:
            self.judge.kernel.answer()
            self.judge.emulator.answer()
        if broken:
            self.judge.emulator.stop()
            self._who_broke_it()
        for suspect in again:
            self._alone(suspect)

    def _who_broke_it(self) -> None:
        """What is wrong with the machine may be the work of a program that agreed and was not audited."""
        for suspect in self.unaudited:
            self._judge_alone(suspect)
        self.unaudited = []

    def _alone(self, program: Program) -> None:
        self._passed(self._judge_alone(program))

    def _judge_alone(self, program: Program) -> Verdict:
        verdict = self.judge.verdict(program)
        if not verdict.agree:
            self.bad[program] = verdict
            raise Stop
        return verdict

    def _passed(self, verdict: Verdict) -> None:
        self.good.add(verdict.program)
        self.judge.count(verdict)
        self.tick(len(self.good))

    def _shortest(self) -> Verdict:
        """By hypothesis first, which draws the same programs again and then simplifies; then step by step."""
        with suppress(Differs, Stop):
            explore(DRAWN * self.number, self.seed, self._judge_known, self.without)
        shortest = min(self.bad, key=len)
        self.left = 3 * SHRINK_RUNS
        shortest = shorten(shortest, self._is_bad)
        verdict = self.bad[shortest]
        self.judge.count(verdict)
        return verdict

    def _judge_known(self, program: Program) -> None:
        if self.left <= 0:
            raise Stop  # Hypothesis would go on for minutes with what cannot be tried any more.
        if self._is_bad(program):
            raise Differs

    def _is_bad(self, program: Program) -> bool:
        if program in self.bad:
            return True
        if program in self.good or self.left <= 0:
            return False
        self.left -= 1
        verdict = self.judge.verdict(program, ALL)
        if verdict.agree:
            self.good.add(program)
        else:
            self.bad[program] = verdict
        return not verdict.agree
