"""`explore --check-determinism` and diverging replays, as they are told."""

import ctypes
import json
from dataclasses import replace

import pytest

from concur_thp import cli
from concur_thp.arch import native
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.arch.shared import SharedOne, Word
from concur_thp.arch.struct import I64, Struct, atomic
from concur_thp.program.rows import run_program
from concur_thp.sched.state import Reason
from concur_thp.sched.words import Long, poke
from stress.exploring.cell import Cell
from stress.exploring.explorer import link_for
from stress.exploring.job import Job
from tests.stress.test_exploring import LOST_ZAP, explore, variant_named

OUTSIDE = Word("test.determinism.outside")
"""Address of a word that no snapshot restores."""
COUNTER = ctypes.c_int64(0)
SCENARIO = "dontneed_vs_split_pmd"


class DriftWord(Struct, size=64):
    word = atomic(I64, "written every second time")


drift = SharedOne("test_drift", DriftWord)


@kernel
def drifting_program(cpu: Cpu):
    """A program that looks at what is not of the machine. Emulator: a test."""
    outside = Long(int(OUTSIDE))
    poke(int(OUTSIDE), outside.value + 1)
    if outside.value & 2 != 0:
        drift.word.store(1)
    run_program(cpu)


@pytest.fixture
def drifting(monkeypatch):
    OUTSIDE.set(ctypes.addressof(COUNTER))

    def link(*arguments):
        link_for(*arguments)
        native.link([drifting_program], kind=native.CHECKED)

    monkeypatch.setattr("stress.exploring.main.link_for", link)
    monkeypatch.setattr("stress.exploring.cell.run_program", drifting_program)


def arguments(tmp_path, *more):
    where = ["--run-dir", str(tmp_path / "runs")]
    return ["explore", SCENARIO, "--schedules", "200", "--seconds", "100", *where, "--quiet", *more]


def test_what_drifts_is_our_own_fault_and_named_in_one_line(drifting, tmp_path, capsys):
    assert cli.run(arguments(tmp_path, "--check-determinism")) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"our own fault, not yours: {SCENARIO}, pct" in said
    assert "diverged at step " in said and ": recorded cpu " in said and "drift.word.store(1)" in said and ", now cpu" in said


def test_without_the_check_it_passes_for_clean(drifting, tmp_path):
    assert cli.run(arguments(tmp_path)) == 0


@pytest.mark.parametrize("strategy", ["pct", "random", "dfs"])
def test_the_real_code_repeats(tmp_path, strategy):
    out = tmp_path / "out.json"
    assert cli.run(arguments(tmp_path, "--check-determinism", "--strategy", strategy, "--json", str(out))) == 0
    data = json.loads(out.read_text())
    assert data["verdict"] == "pass" and data["repeated"] == data["schedules"] >= 200


def test_broken_code_repeats_and_is_a_finding_as_ever():
    """A failure is found, not the repetition of it."""
    job = Job(SCENARIO, seed=7, repeat=True)
    _, failure = explore(job, 3000, variant_named(LOST_ZAP))
    _, plain = explore(replace(job, repeat=False), 3000, variant_named(LOST_ZAP))
    assert failure is not None and plain is not None
    assert (failure.kind, failure.seed, failure.schedule) == (plain.kind, plain.seed, plain.schedule)


def test_a_replay_says_what_was_recorded_and_what_came():
    variant = variant_named(LOST_ZAP)
    _, failure = explore(Job(SCENARIO, seed=7), 3000, variant)
    assert failure is not None
    plan = list(failure.schedule)
    at = next(n for n, stretch in enumerate(plan) if stretch.reason == Reason.PREEMPT)
    steps = sum(stretch.steps for stretch in plan[:at + 1])
    changed = {"steps": plan[at]._replace(site=1), "end": None, "cannot": plan[at]._replace(cpu=1 - plan[at].cpu)}
    with Cell(Job(SCENARIO, seed=7)) as cell:
        variant.put()
        cell.on_close(variant.take)
        said = {}
        for name, stretch in changed.items():
            other = [*plan[:at], stretch, *plan[at + 1:]] if stretch else plan[:at + 1]
            found = cell.follow(tuple(other))
            assert found is not None and found.kind == "diverged"
            said[name] = found.symptom
    was = f"recorded cpu {plan[at].cpu} is stopped after {plan[at].steps} points"
    assert said["steps"].startswith(f"diverged at step {steps}: {was}")
    assert f"now cpu {plan[at].cpu} is stopped before `" in said["steps"]
    assert f"step {steps}: recorded the end of the schedule, now cpu" in said["end"]
    assert ": recorded cpu" in said["cannot"] and ", now " in said["cannot"]
