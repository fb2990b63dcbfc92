"""Ctrl-C of a comparison: it is heard wherever it comes, and what was compared is told."""

import json
import signal
from collections import Counter
from contextlib import suppress

import pytest

from concur_thp import cli
from stress.compare import main
from stress.compare.interrupt import heard_ctrl_c


@pytest.fixture(autouse=True)
def hears_ctrl_c():
    """As a command of a terminal does: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_heard_at_once():
    with pytest.raises(KeyboardInterrupt), heard_ctrl_c():
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it goes on")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_that_came_to_nothing_is_heard_later():
    with pytest.raises(KeyboardInterrupt), heard_ctrl_c() as check:
        with suppress(KeyboardInterrupt):  # As Python does in a callback of the garbage collector.
            signal.raise_signal(signal.SIGINT)
        check()
    with heard_ctrl_c() as check:
        check()


def test_who_does_not_hear_ctrl_c_is_left_alone():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with heard_ctrl_c() as check:
        signal.raise_signal(signal.SIGINT)
        check()


class Nobody:
    """In place of the kernel's switches and of both sides."""

    programs, steps, again, compared, skipped = 7, 70, 0, Counter(data=5), Counter()

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start(self):
        pass


def test_what_was_compared_is_told(monkeypatch, tmp_path, capsys):
    def interrupted(judge, result, *_):
        result.agree = 7
        raise KeyboardInterrupt

    for name, stand_in in (("missing", list), ("lacking", dict), ("_link", lambda _: None), ("Switches", Nobody),
                           ("Judge", Nobody), ("KernelSide", Nobody), ("_all", interrupted)):
        monkeypatch.setattr(main, name, stand_in)
    monkeypatch.setattr(Nobody, "close_inherited", None, raising=False)
    monkeypatch.setattr(main, "EmulatorSide", Nobody)
    path = tmp_path / "compare.json"
    assert cli.run(["compare", "--json", str(path)]) == 4
    data = json.loads(path.read_text())
    assert (data["verdict"], data["programs"], data["agree"]) == ("interrupted", 7, 7)
    out = capsys.readouterr().out
    assert out.startswith("interrupted") and "7 agree, 0 differ" in out
