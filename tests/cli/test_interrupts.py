"""Ctrl-C, once and again: one line, exit 4, and no traceback. (The line break ends the terminal's `^C`.)"""

import signal
import subprocess
import sys

import pytest

from tests.processes import hears_ctrl_c

WAITING = ("import time; from concur_thp import cli\n"
           "@cli.cli.command()\ndef wait():\n    print('waiting', flush=True)\n"
           "    while True:\n        time.sleep(0.01)\ncli.main()")
SAID = "concur-thp: interrupted\n"


@pytest.fixture
def process():
    """A command that waits."""
    process = subprocess.Popen([sys.executable, "-c", WAITING, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, preexec_fn=hears_ctrl_c)
    try:
        assert process.stdout.readline() == "waiting\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=280)


def test_ctrl_c_is_one_line(process):
    process.send_signal(signal.SIGINT)
    assert (process.stderr.readline(), process.stderr.readline()) == ("\n", SAID)
    assert process.wait(timeout=280) == 4 and process.stderr.read() == ""


def test_ctrl_c_again_while_the_first_is_answered_changes_nothing(process):
    process.send_signal(signal.SIGINT)
    assert (process.stderr.readline(), process.stderr.readline()) == ("\n", SAID)
    process.send_signal(signal.SIGINT)  # Wherever it is now: still in run(), behind it, or at the interpreter's end.
    assert process.wait(timeout=280) == 4 and process.stderr.read() == ""
