"""Races played for real, for a moment: listed outcomes pass, everything else is found and reported."""

import faulthandler
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from concur_thp.machine import Machine
from stress.scenarios.registry import SCENARIOS
from stress.scenarios.run import RaceOptions, again, failure_lines, run_races, run_scenario
from workers.launch import Crew, Role

COMMAND = [sys.executable, "-m", "concur_thp", "races"]
GOOD = SCENARIOS["dontneed_vs_split_pmd"]


def options(tmp_path, scenario=GOOD, **given):
    return RaceOptions(scenarios=(scenario,), run_dir=str(tmp_path / "runs"), quiet=True, **{"seconds": 0.4, **given})


@pytest.mark.parametrize("order", ["3", "9"])
def test_two_races_through_the_command(tmp_path, order):
    result = subprocess.run([*COMMAND, "run", "dontneed_vs_split_pmd", "29", "--seconds", "0.4", "--chaos", "--order", order,
                             "--cpus", "5", "--seed", "7", "--run-dir", str(tmp_path / "runs"), "--json", "-"],
                            capture_output=True, text=True, timeout=280)
    data = json.loads(result.stdout)
    assert result.returncode in (0, 4), result.stderr  # 4: an outcome that has to be seen was not, in so short a time
    assert data["verdict"] == ("clean" if result.returncode == 0 else "inconclusive")
    names = [scenario["name"] for scenario in data["scenarios"]]
    assert names == ["dontneed_vs_split_pmd", "collapse_vs_exit", "scan_vs_two_exits"]
    for scenario in data["scenarios"]:
        assert scenario["cpus"] == 5 and not scenario["unlisted"] and not scenario["violations"]
        for way in ("free", "chaos"):
            assert sum(outcome["seen"][way] for outcome in scenario["outcomes"]) == scenario["rounds"][way] > 0
    assert data["seed"] == 7 and json.loads((tmp_path / "runs/latest/summary.json").read_text()) == data


def test_an_outcome_that_is_not_listed_is_found(tmp_path, capfd):
    scenario = replace(GOOD, always={**GOOD.always, "queue": 1})
    assert run_races(options(tmp_path, scenario)) == 1
    said = capfd.readouterr().err
    assert "no outcome allows kind=0" in said and "again: concur-thp races run dontneed_vs_split_pmd" in said
    assert "--seed 1" in said


def test_a_step_that_fails_without_a_label_is_found(tmp_path):
    scenario = replace(GOOD, cpus=(GOOD.cpus[0], "enter 0; split_pmd 9h"))
    report = run_scenario(options(tmp_path), scenario, _silent())
    assert report.verdict == "found" and "'split_pmd 9h' returned -14" in report.played["free"].unlisted[0]


def test_a_broken_rule_is_found_and_reported(tmp_path):
    scenario = replace(GOOD, cpus=(GOOD.cpus[0] + "; expect 0 1", GOOD.cpus[1]))
    report = run_scenario(options(tmp_path), scenario, _silent())
    assert report.verdict == "found" and report.played["free"].crew.kind == "bug"
    assert any("does not expect" in line for line in failure_lines(options(tmp_path), report))


@pytest.mark.parametrize("number, kind", [(signal.SIGSEGV, "crashed"), (signal.SIGKILL, "killed")])
def test_a_crash_is_told_from_a_kill(number, kind):
    """Native code that follows a wild pointer is the emulated kernel's fault; a kill comes from outside."""
    role = Role("cpu0", 0, lambda machine, cpu: _end_by(number))
    with Machine(memory="4M", order=3, cpus=1) as machine, Crew(machine, [role]) as crew:
        outcome = crew.watch(200)
    assert outcome.kind == kind and f"was ended by {number.name}" in outcome.what


def _end_by(number):
    faulthandler.disable()
    os.kill(os.getpid(), number)


def test_whatever_a_scenario_makes_is_cleared_away(tmp_path):
    """More spaces, pins and files than the race needs; every round ends with an audit of an empty machine."""
    scenario = replace(GOOD, setup=GOOD.setup + "held: pin 3 0 write; file 2 3; map_file 2h 3 rw shared 2; store 2h 1; "
                       "new 5; enter 5; map 0 1 rw; store 0 1; fork 4; leave")
    scenario = replace(scenario, always={**scenario.always, "queue": {0, 1}, "held": 1})
    report = run_scenario(options(tmp_path), scenario, _silent())
    assert report.verdict in ("clean", "inconclusive"), failure_lines(options(tmp_path), report)


def test_an_outcome_that_had_to_be_seen_makes_it_inconclusive(tmp_path):
    alone = replace(GOOD, cpus=(GOOD.cpus[0], "drain"))  # Nobody splits: one of the two outcomes cannot be.
    report = run_scenario(options(tmp_path), alone, _silent())
    assert report.missing == ["split, then zapped page by page"] and report.verdict == "inconclusive"
    assert again(options(tmp_path), report).startswith("concur-thp races run dontneed_vs_split_pmd --seconds 0.4 --order 3")


def _silent():
    from concur_thp.output import console

    return console(quiet=True)
