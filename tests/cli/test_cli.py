"""The command line: exit status, one clear line on standard error, JSON whole or not at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from concur_thp import cli
from concur_thp.errors import EmulatorError, KernelBug, Misuse
from concur_thp.output import check_json_path, write_json

COMMAND = [sys.executable, "-c", "from concur_thp.cli import main; main()"]


def run(*arguments, **kwargs):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=280, **kwargs)


@pytest.fixture
def failing(monkeypatch, tmp_path):
    """A command `fail` that raises what it is given; the log goes to tmp_path."""
    monkeypatch.setenv("CONCUR_THP_CACHE", str(tmp_path))

    def register(error):
        @click.command("fail")
        def fail():
            raise error

        monkeypatch.setitem(cli.cli.commands, "fail", fail)
        return cli.run(["fail"])

    return register


@pytest.mark.parametrize("error, status, line", [
    (Misuse("--memory 1: pass\nat least 1M"), 2, "concur-thp: --memory 1: pass at least 1M\n"),
    (KernelBug("a rule was broken"), 1, "concur-thp: a rule was broken\n"),
    (KeyboardInterrupt(), 4, "\nconcur-thp: interrupted\n"),
    (click.UsageError("no such thing"), 2, "concur-thp: no such thing\n"),
])
def test_each_kind_of_error_has_its_status_and_one_line(failing, capsys, error, status, line):
    assert failing(error) == status
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("error, said", [(EmulatorError("a worker is lost"), "yours: a worker is lost (traceback in "),
                                         (ValueError("bad"), "yours: ValueError: bad (traceback in ")])
def test_our_own_faults_leave_a_traceback_in_a_log(failing, capsys, tmp_path, error, said):
    assert failing(error) == 3
    text = capsys.readouterr().err
    assert said in text and text.count("\n") == 1
    assert "Traceback" in (tmp_path / "concur-thp.log").read_text()


@pytest.mark.parametrize("arguments, said", [
    ([], "pass a command"),
    (["explode"], "explode"),
    (["build", "--order", "1"], "pass 2 to 9"),
    (["build", "--nonsense"], "--nonsense"),
    (["doctor", "--memory", "lots"], "pass a number with K, M, G or T"),
    (["doctor", "--json", "/nowhere/at/all.json"], "pass a file in an existing directory"),
])
def test_wrong_usage_is_one_line(capsys, arguments, said):
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("concur-thp: ") and said in err and err.count("\n") == 1


@pytest.mark.parametrize("arguments, said", [
    (["--cpus", "9"], "at most 8"), (["--cpus", "0"], "pass 1 to 8"), (["--seconds", "0"], "above 0"),
    (["--seconds", "nan"], "above 0"), (["--seconds", "inf"], "above 0"), (["--seed", "-1"], "whole number"),
    (["--seed", "x"], "whole number"), (["--memory", "3Q"], "pass a number"), (["--enabled", "perhaps"], "madvise"),
    (["--mix", "nothing=1"], "--mix NAME=WEIGHT"),
    (["--mix", "frk=1"], "did you mean fork"), (["--mix", "fork=x"], "up to 1000000"),
    (["/nowhere.perf"], "no such file"), (["--json", "/"], "a directory"),
])
def test_stress_refuses_bad_input_before_it_begins(capsys, monkeypatch, tmp_path, arguments, said):
    from stress.cli import stress

    monkeypatch.setitem(cli.cli.commands, "stress", stress)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["stress", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments, said", [
    (["run"], "Missing argument"), (["run", "31"], "pass a number from 1 to 30"), (["run", "nothing"], "no race 'nothing'"),
    (["run", "1", "--order", "4"], "'4'"), (["run", "1", "--cpus", "9"], "pass 1 to 8"),
    (["run", "1", "--seconds", "0"], "above 0"),
    (["run", "1", "--json", "/"], "a directory"), (["walk"], "walk"), (["--json", "/nowhere/x"], "existing directory"),
    (["--json", "-", "run", "1"], "behind `races run`"), (["show", "99"], "pass a number from 1 to 30"),
    (["show"], "Missing argument"),
])
def test_races_refuses_bad_input_before_it_begins(capsys, monkeypatch, tmp_path, arguments, said):
    from stress.scenarios.cli import races

    monkeypatch.setitem(cli.cli.commands, "races", races)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["races", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_races_lists_every_pair(capsys, monkeypatch):
    from stress.scenarios.cli import races

    monkeypatch.setitem(cli.cli.commands, "races", races)
    assert cli.run(["races", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [row["number"] for row in data["pairs"]] == list(range(1, 31)) and len(data["scenarios"]) > 30
    assert cli.run(["races"]) == 0
    assert "fault_vs_collapse" in capsys.readouterr().out


def test_races_shows_one_whole_and_the_steps(capsys, monkeypatch):
    from stress.scenarios.cli import races

    monkeypatch.setitem(cli.cli.commands, "races", races)
    assert cli.run(["races", "show", "file_unmap_vs_drop", "2"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("dropped: drop_caches 0", "note", "CPU 2", "need not be seen", "read_vs_write_fault"))
    assert cli.run(["races", "steps", "--json", "-"]) == 0
    assert {"step": "load", "arguments": ["page"]}.items() <= json.loads(capsys.readouterr().out)[13].items()
    assert cli.run(["races", "steps"]) == 0 and "split_pmd" in capsys.readouterr().out


def test_doctor_json_on_standard_output_is_alone():
    result = run("doctor", "--json", "-")
    facts = json.loads(result.stdout)
    assert facts["cores"] == len(os.sched_getaffinity(0)) and facts["python"]
    assert result.returncode == (1 if facts["problems"] else 0)


def test_doctor_names_what_is_missing(monkeypatch):
    facts = cli.examine(1 << 50)
    assert any("of memory are available" in problem for problem in facts["problems"])


def test_doctor_beside_somebody_who_compiles(monkeypatch, tmp_path):
    """A file that had its temporary name when the folder was read, and has another one now."""
    (tmp_path / "object").write_bytes(b"code")
    monkeypatch.setenv("CONCUR_THP_CACHE", str(tmp_path))
    monkeypatch.setattr(Path, "rglob", lambda folder, pattern: iter([folder / "tmp1", folder / "object"]))
    facts = cli.examine(1 << 20)
    assert (facts["cache_files"], facts["cache_bytes"]) == (1, 4)


def test_build_compiles_once(tmp_path):
    environment = {**os.environ, "CONCUR_THP_CACHE": str(tmp_path / "cache")}
    first = run("build", "--order", "3", "--json", str(tmp_path / "first.json"), env=environment)
    again = run("build", "--order", "3", "--json", "-", env=environment)
    one, two = json.loads((tmp_path / "first.json").read_text()), json.loads(again.stdout)
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert one["compiled"] == one["functions"] > 300 and two["compiled"] == 0
    assert f"compiled {one['compiled']} of {one['functions']}" in first.stdout and first.stderr == ""


def test_a_reader_that_leaves_is_no_error():
    result = subprocess.run(f"{sys.executable} -c 'from concur_thp.cli import main; main()' doctor | true; exit "
                            "${PIPESTATUS[0]}", shell=True, executable="/bin/bash", capture_output=True, text=True,
                            timeout=280)
    assert "Traceback" not in result.stderr and "Broken" not in result.stderr


def test_json_replaces_a_file_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ValueError):
        write_json(str(path), {"x": float("nan")})
    assert path.read_text() == "old"
    write_json(str(path), {"x": 1})
    assert json.loads(path.read_text()) == {"x": 1} and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_json_into_a_pipe_and_through_a_link(tmp_path):
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    (tmp_path / "real.json").write_text("")
    link.symlink_to("real.json")
    check_json_path(str(link))
    write_json(str(link), [1])
    assert link.is_symlink() and json.loads((tmp_path / "real.json").read_text()) == [1]
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    check_json_path(str(fifo))
    write_json(str(fifo), [2])
    assert json.loads(os.read(reader, 100)) == [2]
    os.close(reader)


