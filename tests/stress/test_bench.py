"""`concur-thp bench` through the real command."""

import json
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "concur_thp", "bench"]
KEYS = {"name", "unit", "emulator", "kernel", "multiprocess", "ratio_kernel", "ratio_multiprocess"}


def bench(*arguments):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=280, check=False)


def test_json_and_picture_of_a_few_rows(tmp_path):
    picture = tmp_path / "bench.svg"
    done = bench("--only", "fault_huge", "--only", "rwsem_write_pair", "--processes", "1,2", "--rounds", "1", "--json", "-",
                 "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["name"], row["processes"], row["mm"]) for row in rows] == [
        (name, n, mm) for name in ("fault_huge", "rwsem_write_pair") for n, mm in ((1, "own"), (2, "own"), (2, "one"))]
    assert all(set(row) >= KEYS and row["emulator"] > 0 for row in rows)
    assert picture.stat().st_size > 1000


def test_tables_for_people_and_a_file_for_programs(tmp_path):
    done = bench("--only", "zap_huge", "--only", "page_lock_pair", "--processes", "1", "--rounds", "1", "--json",
                 str(tmp_path / "rows.json"))
    assert done.returncode == 0, done.stderr
    assert "zap_huge" in done.stdout and "pthread" in done.stdout
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 2


def test_growth(tmp_path):
    done = bench("--growth", "--only", "mms_unmap", "--rounds", "1", "--json", "-")
    assert done.returncode == 0, done.stderr
    row, = json.loads(done.stdout)
    assert set(row) >= KEYS | {"with", "sizes", "costs", "grows", "exponent"}
    assert len(row["sizes"]) == len(row["costs"]) == 5


@pytest.mark.parametrize("arguments, line", [
    (("--only", "fault_5"), "there is no row 'fault_5': did you mean fault_pte"),
    (("--growth", "--only", "fault_huge"), "there is no row 'fault_huge'"),
    (("--processes", "0,2"), "--processes 0,2: pass numbers from 1 to 16 with commas between"),
    (("--processes", "two"), "--processes two: pass numbers"),
    (("--rounds", "0"), "pass 1 to"),
    (("--plot", "bench.gif"), "--plot bench.gif: pass a file name that ends in .svg, .png, .pdf"),
    (("--plot", "nowhere/bench.svg"), "in an existing directory"),
])
def test_bad_input_is_one_line(arguments, line):
    done = bench(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert line in done.stderr and done.stderr.count("\n") == 1
