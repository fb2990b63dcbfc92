"""`concur-thp compare` as a new user meets it: bad input, and a machine where it is not possible. Nothing is changed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from concur_thp import cli
from stress.compare.switches import THP, WANTED

AS_NOBODY = """
import os, sys
import stress.compare.main
from concur_thp import cli
if os.geteuid() == 0:
    os.setgroups([])
    os.setresuid(65534, 65534, 65534)
sys.exit(cli.run(sys.argv[1:]))
"""


@pytest.mark.parametrize("arguments, said", [
    (["--programs", "many"], "pass 0 to"), (["--program", "0 explode 1 2"], "one of mmap, munmap"),
    (["--program", "0 store 0 9999"], "pages 0..2047"), (["--recording"], "pass X-never.perf.xz"),
    (["x.perf"], "no such file"), (["--seed", "x"], "whole number"), (["--json", "/"], "a directory"),
    ([__file__], "pass --recording"),
])
def test_wrong_usage_is_one_line(capsys, arguments, said):
    assert cli.run(["compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1


def test_a_kernel_without_thp_is_said_and_left_alone(capsys, monkeypatch, tmp_path):
    path = tmp_path / "compare.json"
    monkeypatch.setattr("stress.compare.main.missing", lambda: ["this kernel has no Transparent Hugepages"])
    assert cli.run(["compare", "--json", str(path)]) == 4
    out, err = capsys.readouterr()
    assert (out, err) == ("", "concur-thp: compare is not possible here: this kernel has no Transparent Hugepages\n")
    assert json.loads(path.read_text()) == {"verdict": "not possible here",
                                            "missing": ["this kernel has no Transparent Hugepages"]}


def switches():
    return {name: (THP / name).read_text() for name in WANTED if Path(THP / name).exists()}


def test_without_root_it_says_what_is_missing_and_changes_nothing(tmp_path):
    before = switches()
    result = subprocess.run([sys.executable, "-c", AS_NOBODY, "compare", "--json", "-"], capture_output=True, text=True,
                            timeout=280)
    if result.returncode == 0:  # root has set the switches for us: everything that needs them is there
        assert json.loads(result.stdout)["verdict"] == "agree"
    else:
        assert result.returncode == 4, result.stderr
        data = json.loads(result.stdout)
        assert data["verdict"] == "not possible here" and data["missing"]
        lines = result.stderr.splitlines()
        assert lines == [f"concur-thp: compare is not possible here: {line}" for line in data["missing"]]
        if (THP / "enabled").exists():
            assert lines[-1].endswith("run it as root, or have root write those values first")
    assert switches() == before
