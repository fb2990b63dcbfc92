"""Cells that die, stand still or are stopped: what is a finding, what came from outside, and that nothing is left."""

import errno
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from concur_thp import cli
from concur_thp.errors import EmulatorError
from concur_thp.sched.state import sched
from stress.breaking.hunt import undisturbed
from stress.exploring.autopsy import Repeat, in_a_fork
from stress.exploring.cell import Cell
from stress.exploring.explorer import Explorer, Unrepeatable, link_for
from stress.exploring.job import Job, Tally
from stress.exploring.settle import settle
from tests.processes import is_running, wait_for
from tests.stress.test_exploring import LOST_ZAP, variant_named

PCT = Job("dontneed_vs_split_pmd", seed=7)


def cells_of(explorer: Explorer) -> list[int]:
    return [process.pid for process, _, _ in explorer._cells.values()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_cell_that_others_end_is_no_finding(number):
    """A SIGKILL from outside used to be reported as a crash of the kernel."""
    link_for(PCT)
    explorer = Explorer(PCT, cells=2, seconds=240)

    def end_one(tally: Tally) -> None:
        if tally.schedules:
            os.kill(cells_of(explorer)[0], number)

    explored = explorer.run(end_one)
    assert explored.failure is None and explored.verdict == "inconclusive"
    assert number.name in explored.outside


def test_a_crash_that_does_not_repeat_is_our_own_fault():
    """It used to be reported as a crash of the kernel, with a token of nothing."""
    link_for(PCT)
    explorer = Explorer(PCT, cells=1, seconds=240)
    ended = []

    def crash_one(tally: Tally) -> None:
        if tally.schedules and not ended:
            ended.append(True)
            os.kill(cells_of(explorer)[0], signal.SIGSEGV)

    with pytest.raises(Unrepeatable, match="ended by SIGSEGV in the run of seed .* and not when that was repeated"):
        explorer.run(crash_one)


def test_a_crash_of_broken_code_that_does_not_repeat_disturbs_the_hunt():
    """Broken code may write anywhere: the hunt goes on, and says so."""
    explorer = Explorer(PCT, variant_named(LOST_ZAP), cells=1)

    def run(tick):
        raise Unrepeatable("a cell was ended by SIGSEGV")

    explorer.run = run
    explored = undisturbed(explorer)
    assert explored.failure is None and explored.outside == "a cell was ended by SIGSEGV"
    explorer.variant = None
    with pytest.raises(Unrepeatable):
        undisturbed(explorer)


def test_a_cell_that_never_begins_is_given_up(monkeypatch):
    """Nobody looked before the first run: the exploration would have waited for ever."""
    monkeypatch.setattr("stress.exploring.explorer.START_SECONDS", 0.2)
    explorer = Explorer(PCT, cells=1)

    def start_life(number, core, sender, words, parent):
        settle(parent)
        while True:
            pass

    explorer._start_life = start_life
    with pytest.raises(EmulatorError, match="stood still before its first run"):
        explorer.run()


def test_a_cell_that_is_ended_before_its_first_run_is_no_finding():
    link_for(PCT)
    explorer = Explorer(PCT, cells=1, seconds=240)
    start = explorer._start

    def start_and_kill() -> None:
        start()
        os.kill(cells_of(explorer)[0], signal.SIGKILL)

    explorer._start = start_and_kill
    assert explorer.run().verdict == "inconclusive"


def test_a_cell_that_was_stopped_for_long_is_no_finding(monkeypatch):
    """A laptop that sleeps, a debugger, SIGSTOP: the run ends well when it is repeated."""
    monkeypatch.setattr("stress.exploring.explorer.HUNG_SECONDS", 0.5)
    link_for(PCT)
    explorer = Explorer(PCT, cells=1, seconds=240)
    stopped = []

    def stop(tally: Tally) -> None:
        if tally.schedules and not stopped:
            stopped.append(True)
            os.kill(cells_of(explorer)[0], signal.SIGSTOP)

    explored = explorer.run(stop)
    assert explored.failure is None and explored.verdict == "inconclusive" and "stood still" in explored.outside


def test_pct_repeats_a_run_when_it_knows_the_longest_before():
    """Its change points are drawn from the length of runs seen before: a fresh cell ran another schedule."""
    link_for(PCT)
    with Cell(PCT) as cell:
        cell.explore(0, 50, time.monotonic() + 240, lambda tally: None)
        _, _, longest = struct.unpack("qqq", cell.controlled.progress)
        cell.controlled.run(50, 1)
        wanted = cell.schedule()
        assert longest == sched.longest
    found = {}
    for known in (0, longest):
        with Cell(PCT) as cell:
            assert in_a_fork(cell, Repeat(50, known)) is None
            found[known] = cell.schedule()
    assert found[longest] == wanted and found[0] != wanted


def test_dfs_is_repeated_from_its_beginning():
    job = Job("dontneed_vs_split_pmd", seed=7, strategy="dfs", depth=1)
    link_for(job)
    with Cell(job) as cell:
        cell.explore(0, 40, time.monotonic() + 240, lambda tally: None)
        wanted = cell.schedule()
    with Cell(job) as cell:
        assert in_a_fork(cell, Repeat(39, 0, 40)) is None
        assert cell.schedule() == wanted


def test_when_the_parent_is_killed_its_cells_end(tmp_path):
    """Also in the middle of an exploration that nobody else would end."""
    command = [sys.executable, "-m", "concur_thp", "explore", PCT.scenario, "--seconds", "300", "--run-dir", str(tmp_path)]
    explore = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{explore.pid}/task/{explore.pid}/children")
    try:
        wait_for(lambda: explore.poll() is not None or len(children.read_text().split()) == 2, "two cells, or compilers")
        pids = children.read_text().split()
    finally:
        explore.kill()
        explore.wait()
    assert pids
    wait_for(lambda: not any(is_running(int(pid)) for pid in pids), "the cells' end")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError()], ids=["mmap", "malloc"])
def test_a_cell_that_gets_no_memory_is_wrong_usage(monkeypatch, capsys, tmp_path, error):
    """RLIMIT_AS lets the process itself start and refuses a cell its machine: a limit of this computer, no fault of ours."""

    def refused(job):
        raise error

    monkeypatch.setattr("stress.exploring.explorer.Cell", refused)
    assert cli.run(["explore", PCT.scenario, "--seconds", "100", "--run-dir", str(tmp_path / "runs"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Cannot allocate memory: " in said and "ulimit -v" in said
