"""A run directory of `explore` or `break` has the log; what a shell cannot replay is said in one line."""

import json

import pytest

from concur_thp import cli
from concur_thp.arch import native
from concur_thp.arch.bug import bug
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.program.rows import run_program
from stress.exploring.explorer import link_for
from stress.exploring.job import PROGRAMS, Job
from stress.exploring.token import Token

SCENARIO = "dontneed_vs_split_pmd"


@kernel
def failing_program(cpu: Cpu):
    """Emulator: a test."""
    run_program(cpu)
    bug(cpu, "the test says so", 1, 2)


@pytest.fixture
def failing(monkeypatch):
    def link(*arguments):
        link_for(*arguments)
        native.link([failing_program], kind=native.CHECKED)

    monkeypatch.setattr("stress.exploring.main.link_for", link)
    monkeypatch.setattr("stress.exploring.cell.run_program", failing_program)


def test_explore_keeps_its_log(failing, tmp_path, capsys):
    arguments = ["explore", SCENARIO, "--schedules", "50", "--seconds", "100", "--run-dir", str(tmp_path), "--quiet"]
    assert cli.run(arguments) == 1
    assert "the test says so" in capsys.readouterr().err
    lines = (tmp_path / "latest" / "log.txt").read_text().splitlines()
    assert any(SCENARIO in line for line in lines)
    assert any("shrunk to 0 preemptions: the test says so" in line for line in lines)
    assert json.loads((tmp_path / "latest" / "summary.json").read_text())["verdict"] == "fail"


@pytest.mark.slow
def test_break_keeps_its_log(tmp_path):
    assert cli.run(["break", "R19a", "--run-dir", str(tmp_path), "--quiet", "--seed", "5"]) == 0
    assert "R19a" in (tmp_path / "latest" / "log.txt").read_text()


def test_a_token_of_programs_in_python_says_where_it_is_replayed(capsys):
    token = Token(Job(PROGRAMS, programs=("writer", "hinter")), "raised", "an assertion", "0")
    assert cli.run(["replay", str(token)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "writer, hinter" in said and "m.explore(token=" in said
