"""Whole runs through the real command: a mix, recordings, a killed CPU, Ctrl-C, bad recordings. Nothing may be left."""

import json
import lzma
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from concur_thp.check.instant import PLACES
from stress.main import DAEMONS
from tests.processes import hears_ctrl_c, is_running, wait_for

COMMAND = [sys.executable, "-m", "concur_thp", "stress"]
KEYS = {"verdict", "seconds", "cpus", "seed", "operations", "operations_per_second", "violations", "audit", "vmstat",
        "lock_stat", "recordings", "run_dir"}
"""Of `stress --json`, design section 10."""
PATIENCE = (1.5, 5, 20, 80)
"""Seconds of a run that has to do something: the first is mostly enough."""
FAULT = "exceptions:page_fault_user:"


def stress(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, "--run-dir", str(tmp_path / "runs"), *arguments], capture_output=True, text=True,
                          timeout=280, check=False)


def stress_until(done: Callable[[dict[str, Any]], object], tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """Clean runs, each longer than the one before, until one has done it all: how long that takes is the machine's affair."""
    for seconds in PATIENCE:
        ran = stress(tmp_path, "--seconds", str(seconds), "--json", "-", *arguments)
        assert ran.returncode == 0, ran.stderr
        data: dict[str, Any] = json.loads(ran.stdout)
        assert data["verdict"] == "pass" and not data["violations"] and data["audit"]["failed"] == 0
        if done(data):
            return data
    raise AssertionError(f"it did not happen in {seconds} s: {data}")


def event(pid: int, number: int, what: str, comm: str = "prog") -> str:
    return f"{comm:>16} {pid}/{pid} [000]  100.{number:06d}: {what:>36}"


def recording(pid: int = 100) -> str:
    """A program that maps 4 MiB and a bit, writes every page, forks, and unmaps a part."""
    base, rows = 0x7F0000000000, []

    def add(what: str, task: int = pid) -> None:
        rows.append(event(task, len(rows), what))

    add("syscalls:sys_enter_mmap: addr: 0x00000000, len: 0x00500000, prot: 0x00000003, flags: 0x00000022, "
        "fd: 0xffffffff, off: 0x00000000")
    add(f"syscalls:sys_exit_mmap: {base:#x}")
    for page in range(1280):
        add(f"{FAULT} address={base + page * 4096:#x} ip=0x401000 error_code=0x6")
    add("syscalls:sys_enter_clone: clone_flags: 0x01200011, newsp: 0x00000000, parent_tidptr: 0x00000000, "
        "child_tidptr: 0x00000000, tls: 0x00000000")
    add(f"sched:sched_process_fork: comm=prog pid={pid} child_comm=prog child_pid={pid + 1}")
    add(f"syscalls:sys_exit_clone: {pid + 1:#x}")
    add("syscalls:sys_exit_clone: 0x0", pid + 1)
    add(f"{FAULT} address={base:#x} ip=0x401000 error_code=0x7", pid + 1)
    add("syscalls:sys_enter_exit_group: error_code: 0x00000000", pid + 1)
    add(f"sched:sched_process_exit: comm=prog pid={pid + 1} prio=120 group_dead=true", pid + 1)
    add(f"syscalls:sys_enter_munmap: addr: {base + 4096:#x}, len: 0x00003000")
    add("syscalls:sys_exit_munmap: 0x0")
    add("syscalls:sys_enter_exit_group: error_code: 0x00000000")
    add(f"sched:sched_process_exit: comm=prog pid={pid} prio=120 group_dead=true")
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("arguments", [("--cpus", "2"), ("--cpus", "8"), ("--cpus", "3", "--order", "3"),
                                       ("--cpus", "4", "--chaos"), ("--cpus", "2", "--enabled", "madvise")])
def test_a_mix_is_clean_and_its_json_is_complete(tmp_path, arguments):
    data = stress_until(lambda data: data["operations"]["write"] and data["vmstat"]["pgfault"], tmp_path, "--seed", "1",
                        *arguments)
    assert set(data) >= KEYS
    assert data["audit"]["checks"] > 10_000
    assert json.loads((Path(data["run_dir"]) / "summary.json").read_text()) == data


@pytest.mark.parametrize("packed", [False, True])
def test_a_recording_is_replayed_whole(tmp_path, packed):
    path = tmp_path / ("prog.perf.xz" if packed else "prog.perf")
    data = recording().encode()
    path.write_bytes(lzma.compress(data) if packed else data)
    done = stress(tmp_path, str(path), "--seconds", "0.5", "--cpus", "2", "--seed", "1", "--json", "-")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)["recordings"][0]
    assert row["tasks"] == 2 and row["errors"] == 0 and row["foreign_words"] == 0
    assert row["faults_recorded"] == 1281
    # Two aligned blocks of 2 MiB are one fault each, the rest are 256 small ones; then the child's copy.
    assert row["faults"] == 2 + 256 + 1


@pytest.mark.parametrize("text, said", [
    ("", "empty"), ("\x00\x01\x02\xff" * 50, "recording"), ("a b c d\n" * 5, "perf script"),
    (recording()[:-20], "cut"),
    (event(1, 1, "sched:sched_switch: prev_comm=a") + "\n", "page_fault_user"),
])
def test_a_bad_recording_is_one_line(tmp_path, text, said):
    path = tmp_path / "bad.perf"
    path.write_bytes(text.encode("latin-1"))
    done = stress(tmp_path, str(path), "--seconds", "1", "--json", str(tmp_path / "out.json"))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
    assert not (tmp_path / "out.json").exists() and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_every_instant_invariant_is_asked(tmp_path):
    """A mix that does everything passes every place of check/invariants.py, and checks there."""
    sizes = ("--cpus", "3", "--order", "3", "--memory", "24M", "--swap", "32M")
    result = stress(tmp_path, "--seconds", "15", *sizes, "--json", "-", "--quiet")
    assert result.returncode == 0, result.stderr
    made = json.loads(result.stdout)["instant_checks"]
    assert made.keys() == {place.name for place in PLACES} and all(made.values()), made


def test_too_little_memory_for_a_recording_says_how_much_is_needed(tmp_path):
    path = tmp_path / "prog.perf"
    path.write_text(recording())
    done = stress(tmp_path, str(path), "--memory", "32M")
    assert done.returncode == 2 and re.search(r"pass at least \d+M", done.stderr), done.stderr


@contextmanager
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A long run with its CPU processes; ended when the test leaves it."""
    process = subprocess.Popen([*COMMAND, "--run-dir", str(tmp_path / "runs"), "--seconds", "600", "--cpus", "3"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hears_ctrl_c)

    def cpus() -> list[int]:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(pid) for pid in children if is_running(int(pid)) and not _is_tracker(pid)]

    with process:
        try:
            wait_for(lambda: process.poll() is not None or (len(cpus()) == 3 + len(DAEMONS) and _booted(tmp_path)), "the CPUs")
            yield process, cpus()
        finally:
            process.kill()


def _is_tracker(pid: str) -> bool:
    """Python's own, for shared memory. A compiler may end while we look."""
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _booted(tmp_path: Path) -> bool:
    """The run directory is made when everything is compiled; before that children are compilers."""
    return (tmp_path / "runs").exists()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_cpu_ends_the_run_with_a_report(tmp_path, seed):
    rng = random.Random(seed)
    with running(tmp_path) as (process, cpus):
        deadline = time.monotonic() + rng.uniform(0, 0.5)
        wait_for(lambda: time.monotonic() > deadline, "a random moment")
        victim = rng.choice(cpus)
        os.kill(victim, signal.SIGKILL)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 4, said
    assert f"pid {victim}) was ended by SIGKILL" in said
    assert re.search(rf"cpu \d \(pid {victim}\): \w+, at \w+ in ", said), said
    assert not [pid for pid in cpus if is_running(pid)]


def test_ctrl_c_leaves_nothing(tmp_path):
    with running(tmp_path) as (process, cpus):
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 4 and "interrupted" in said, said
    assert "Traceback" not in said
    assert not [pid for pid in cpus if is_running(pid)]


def test_a_killed_launcher_leaves_nothing(tmp_path):
    with running(tmp_path) as (process, cpus):
        process.kill()
        process.communicate(timeout=200)
    wait_for(lambda: not [pid for pid in cpus if is_running(pid)], "the CPU processes' end")
