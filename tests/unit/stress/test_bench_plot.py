"""The picture of a bench: drawn from any rows there may be, whole or not at all."""

import sys

import pytest

from concur_thp.errors import Misuse
from stress.bench import growth, plot
from stress.bench.main import result
from stress.bench.rows import Row

THROUGHPUT = {"name": "throughput_huge", "kind": "throughput", "emulator": 1.8, "kernel": None, "ceiling": 2.0, "processes": 2}


def rows():
    found = []
    for processes, mm in ((1, False), (2, False), (2, True)):
        for name in ("fault_huge", "spin_lock_pair"):
            sides = {"emulator": [[5.0, 6.0]], "kernel": [[50.0, 70.0]]}
            if name == "spin_lock_pair":
                sides |= {"multiprocess": [[30.0]], "pthread": [[-1.0]], "fcntl": [[900.0]]}
            found.append(result(Row(name, "fault"), processes, mm, sides, {}))
    return found


@pytest.mark.parametrize("drawn", [
    rows(), [*rows(), THROUGHPUT], [THROUGHPUT], rows()[:1],
    [growth.result("vmas_fork", [1e3, 1e4, 1e5, 1e6]), growth.result("queue_drain", [5.0] * 5)],
], ids=["rows", "all", "throughput", "one", "growth"])
@pytest.mark.parametrize("ending, begins", [(".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_a_picture_of_whatever_was_measured(tmp_path, drawn, ending, begins):
    plot.draw(drawn, str(tmp_path / f"bench{ending}"))
    assert (tmp_path / f"bench{ending}").read_bytes().startswith(begins)
    assert len(list(tmp_path.iterdir())) == 1


def test_without_matplotlib_one_line_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Misuse, match=r"--plot needs matplotlib.*pip install 'concur_thp\[plot\]'"):
        plot.draw(rows(), str(tmp_path / "bench.svg"))
    assert not list(tmp_path.iterdir())
