"""Faults of recordings on both sides: near is agreement, far is not, and another run's are only shown."""

import json

import pytest

from stress.compare import recordings


@pytest.fixture
def replayed(monkeypatch):
    """compare_recordings() of rows given by hand."""

    def run(tmp_path, *rows):
        made = [{"name": f"r{n}", "own": own, "near": near, "steps": 5, "emulator": 90, "linux": 100, "ratio": 0.9,
                 "regions": {"[anon]": {"emulator": 90, "linux": 100, "linux_once": 95}}}
                for n, (own, near) in enumerate(rows)]
        monkeypatch.setattr(recordings, "_recording", lambda path, out: made)
        status = recordings.compare_recordings(("x",), str(tmp_path / "a.json"), False)
        return status, json.loads((tmp_path / "a.json").read_text())

    return run


@pytest.mark.parametrize("rows, status, agree, differ", [
    ([(True, True)], 0, 1, []), ([(True, False), (True, True)], 1, 1, ["r0"]), ([(True, True), (False, False)], 0, 1, []),
])
def test_own_touches_decide(replayed, tmp_path, capsys, rows, status, agree, differ):
    got, data = replayed(tmp_path, *rows)
    out, err = capsys.readouterr()
    assert (got, data["agree"], data["differ"]) == (status, agree, differ)
    assert data["skipped"] == 100 * sum(not own for own, _ in rows)
    assert "[anon]" in out and out.count("DIFFER") == len(differ) == err.count("\n")


RECORDING = """\
prog 7/7 [000] 10.000000: sched:sched_process_exec: filename=/bin/prog pid=7 old_pid=7
prog 7/7 [000] 10.000010: exceptions:page_fault_user: address=0x555555554000 ip=0x7ffff7fe4540 error_code=0x14
prog 7/7 [000] 10.000020: exceptions:page_fault_user: address=0x555555558000 ip=0x7ffff7fe4540 error_code=0x7
"""


def test_a_recording_is_replayed_as_it_was_recorded(tmp_path, capsys):
    path = tmp_path / "prog-never.perf"
    path.write_text(RECORDING)
    assert recordings.compare_recordings((str(path),), "-", True) == 0
    data = json.loads(capsys.readouterr().out)
    row = data["recordings"][0]
    assert (row["name"], row["enabled"], row["emulator"], row["linux"]) == ("prog-never with THP never", "never", 2, 2)
    assert row["regions"]["image"] == {"emulator": 2, "linux": 2, "linux_once": 2}
