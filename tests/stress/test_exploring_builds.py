"""Failures of the traced build from end to end: races and what dpor finds are shrunk, told, kept, and replayed."""

import json
import time

import pytest

from concur_thp import cli
from concur_thp.arch import native
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.program.rows import run_program
from concur_thp.rules.table import VARIANTS
from concur_thp.rules.variant import Variant
from stress.exploring.cell import Cell
from stress.exploring.explorer import link_for
from stress.exploring.job import Job
from stress.exploring.shrink import Shrinker
from stress.exploring.token import Token
from tests.unit.sched.small import small_words

SCENARIO = "dontneed_vs_split_pmd"
LOST_ZAP = "R19a"
pytestmark = pytest.mark.timeout(600)  # The traced build of the whole kernel may have to be compiled first.


@kernel
def racing_program(cpu: Cpu):
    """Both CPUs write a plain word, and nothing puts them in order. Emulator: a test."""
    small_words[0].plain = cpu.id
    run_program(cpu)


@kernel
def ordered_program(cpu: Cpu):
    """The same, handed over by an atomic word: looks as bad, and is not. Emulator: a test."""
    if cpu.id == 0:
        small_words[1].plain = 1
        small_words[1].count.store(1)
    elif small_words[1].count.load() == 1:
        small_words[1].plain = 2
    run_program(cpu)


@pytest.fixture
def program(monkeypatch):
    def use(body):
        def link(*arguments):
            link_for(*arguments)
            native.link([racing_program, ordered_program], kind=native.TRACED)

        monkeypatch.setattr("stress.exploring.main.link_for", link)
        monkeypatch.setattr("stress.exploring.cell.run_program", body)

    return use


def explore_races(tmp_path):
    return cli.run(["explore", SCENARIO, "--races", "--schedules", "100", "--seconds", "300", "--run-dir", str(tmp_path),
                    "--quiet", "--json", str(tmp_path / "out.json")])


def test_a_race_is_shrunk_kept_and_replayed(program, tmp_path):
    program(racing_program)
    assert explore_races(tmp_path) == 1
    found = json.loads((tmp_path / "out.json").read_text())["violations"][0]
    assert found["invariant"] == "race" and "test_small_words 0 plain: race: a field is written" in found["symptom"]
    assert found["preemptions"] == 0, "it does not matter whether the two meet"
    chart = (tmp_path / "latest" / "chart.txt").read_text()
    assert "CPU0" in chart and "CPU1" in chart
    again = tmp_path / "again.json"
    assert cli.run(["replay", str(tmp_path / "latest" / "token.txt"), "--times", "5", "--json", str(again)]) == 0
    assert json.loads(again.read_text())["same"] == 5


def test_what_an_atomic_word_puts_in_order_is_none(program, tmp_path):
    program(ordered_program)
    assert explore_races(tmp_path) == 0


def test_what_dpor_finds_is_shrunk_and_replayed_from_its_token():
    variant = Variant(VARIANTS[LOST_ZAP][1].edits, LOST_ZAP, native.TRACED)
    job = Job(SCENARIO, seed=7, strategy="dpor", build="traced", variant=LOST_ZAP)
    link_for(job, variant)
    with Cell(job) as cell:
        variant.put()
        cell.on_close(variant.take)
        _, failure = cell.explore(0, 20_000, time.monotonic() + 300, lambda tally: None)
    assert failure is not None and failure.kind == "outcome"
    small_job, small = Shrinker(job, variant, 20.0).shrink(failure)
    assert small.kind == failure.kind and small.preemptions <= min(failure.preemptions, 2)
    for one_job, one in ((job, failure), (small_job, small)):
        token = Token.parse(str(Token.of(one_job, one)))
        with Cell(token.job) as cell:
            variant.put()
            cell.on_close(variant.take)
            again = cell.follow(token.job.plan)
            assert again is not None and (again.kind, again.symptom, again.schedule) == (one.kind, one.symptom, one.schedule)
