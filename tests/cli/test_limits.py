"""A machine that refuses: no place for compiled code, too few files, too little memory. One line, and what to do."""

import errno
import os
import stat
import subprocess
import sys

import click
import pytest

from concur_thp import cli
from concur_thp.arch import native
from concur_thp.errors import Misuse


def test_a_cache_that_cannot_be_written_is_said(monkeypatch, capsys):
    monkeypatch.setenv("CONCUR_THP_CACHE", __file__)
    with pytest.raises(Misuse, match=f"cannot keep compiled code in {__file__}: Not a directory; let CONCUR_THP_CACHE name"):
        native._write(native.cache_dir() / "objects" / "aa" / "bb", b"code")
    assert cli.run(["doctor"]) == 1
    assert f"cannot keep compiled code in {__file__}" in capsys.readouterr().err


def test_a_full_disk_leaves_no_half_of_an_object(monkeypatch, tmp_path):
    monkeypatch.setenv("CONCUR_THP_CACHE", str(tmp_path))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(native.os, "replace", full)
    with pytest.raises(Misuse, match="No space left on device"):
        native._write(tmp_path / "objects" / "x", b"code")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_objects_can_be_read_by_other_users(tmp_path):
    native._write(tmp_path / "x", b"code")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


@pytest.mark.parametrize("own, user, place", [("", "/x", "/x/concur_thp"), ("/own", "/x", "/own"),
                                              ("", "", "/home/.cache/concur_thp")])
def test_where_the_cache_is(monkeypatch, own, user, place):
    for name, value in (("CONCUR_THP_CACHE", own), ("XDG_CACHE_HOME", user), ("HOME", "/home")):
        monkeypatch.setenv(name, value)
    assert str(native.cache_dir()) == place


@pytest.mark.parametrize("number, said", [(errno.EMFILE, "ulimit -n"), (errno.EAGAIN, "ulimit -u"), (errno.ENOMEM, "--memory")])
def test_limits_are_said_with_what_to_do(monkeypatch, capsys, number, said):
    @click.command("fail")
    def fail():
        raise OSError(number, os.strerror(number)) if number != errno.ENOMEM else MemoryError

    monkeypatch.setitem(cli.cli.commands, "fail", fail)
    assert cli.run(["fail"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"concur-thp: {os.strerror(number)}: ") and said in err and err.count("\n") == 1


def test_a_log_that_cannot_be_written_is_no_second_failure(monkeypatch, capsys, tmp_path):
    @click.command("fail")
    def fail():
        raise ValueError("bad")

    monkeypatch.setitem(cli.cli.commands, "fail", fail)
    monkeypatch.setattr(cli, "error_log", lambda: f"{__file__}/x.log")
    assert cli.run(["fail"]) == 3
    err = capsys.readouterr().err
    assert err.startswith("concur-thp: our own fault, not yours: ValueError: bad (no traceback could be kept: ")
    assert err.count("\n") == 1


def test_a_package_that_cannot_be_imported_is_one_line():
    code = "import sys; sys.modules['numpy'] = None; from concur_thp.__main__ import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert result.returncode == 3 and result.stdout == ""
    assert result.stderr.startswith("concur-thp: cannot be started: ") and result.stderr.count("\n") == 1
