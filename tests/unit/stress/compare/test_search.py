"""Many programs, few audits: who broke the machine is found all the same."""

from stress.compare.judge import PATIENCE, TRIES, Judge
from stress.compare.search import AUDIT_EVERY, Search
from stress.compare.steps import parse
from tests.unit.stress.compare.test_facts import seen


class FakeSide:
    """Answers at once. `bad` breaks its machine, which only an audit sees, and only a new one is rid of."""

    def __init__(self, bad=None, sees=None):
        self.bad, self.sees, self.answers, self.broken, self.audits = bad, sees, [], False, []

    def ask(self, program, detail=False, audited=True):
        self.broken = self.broken or program == self.bad
        self.audits.append(audited)
        self.answers.append(([self.sees or seen() for _ in program], "a page too few" if audited and self.broken else ""))

    def answer(self):
        return self.answers.pop(0)

    def stop(self):
        self.broken = False
        return ""


PROGRAMS = [parse(f"0 store {page} 1") for page in range(4 * AUDIT_EVERY)]


def search(monkeypatch, bad):
    def explore(number, seed, check, without, shrink=True):
        for program in PROGRAMS:
            check(program)

    monkeypatch.setattr("stress.compare.search.explore", explore)
    judge = Judge(FakeSide(bad), FakeSide())
    return judge, Search(judge, len(PROGRAMS), 1, frozenset(), lambda done: None).run()


def test_one_program_in_some_is_audited(monkeypatch):
    judge, verdict = search(monkeypatch, None)
    assert verdict is None and judge.programs == len(PROGRAMS)
    assert sum(judge.emulator.audits) == len(PROGRAMS) // AUDIT_EVERY


def test_the_one_that_broke_it_is_found_not_the_one_that_was_audited(monkeypatch):
    for bad in PROGRAMS[:AUDIT_EVERY] + PROGRAMS[AUDIT_EVERY + 1 : 2 * AUDIT_EVERY]:
        _, verdict = search(monkeypatch, bad)
        assert verdict.broken == "a page too few" and verdict.program == bad


class Disturbed(FakeSide):
    """The kernel beside somebody who has huge pages, for some runs."""

    def __init__(self, runs, moved):
        super().__init__()
        self.runs, self.moved, self.asked = runs, moved, 0

    def ask(self, program, detail=False, audited=True):
        self.asked += 1
        disturbed = self.asked <= self.runs
        self.answers.append(([seen(thp_fault_alloc=self.moved(self.asked) if disturbed else 0) for _ in program], ""))

def test_others_who_move_the_counters_are_waited_out():
    judge = Judge(FakeSide(), Disturbed(3 * TRIES, lambda run: 1 + run % 5))
    assert judge.verdict(PROGRAMS[0]).agree and judge.kernel.asked == 3 * TRIES + 1
    judge = Judge(FakeSide(), Disturbed(1000, lambda run: 1 + run % 5))
    assert not judge.verdict(PROGRAMS[0]).agree and judge.kernel.asked == PATIENCE


def test_what_counts_the_same_each_time_is_a_difference():
    judge = Judge(FakeSide(), Disturbed(1000, lambda run: 1))
    assert not judge.verdict(PROGRAMS[0]).agree and judge.kernel.asked == TRIES


def test_what_others_cannot_have_done_is_a_difference_at_once():
    """They only add to counters, and write in nobody's memory."""
    for ours in (seen(thp_fault_alloc=9), seen(seen().result, seen().looks[0]._replace(data=7))):
        judge = Judge(FakeSide(sees=ours), Disturbed(1000, lambda run: 1 + run % 5))
        assert not judge.verdict(PROGRAMS[0]).agree and judge.kernel.asked == TRIES
