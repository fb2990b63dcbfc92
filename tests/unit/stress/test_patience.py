"""Who is stuck, and who only waits for a processor."""

import os
import signal
import time

from stress.exploring import patience
from stress.exploring.patience import Patience, processor_seconds
from tests.processes import wait_for


def forked(work):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return child


def spin():
    while True:
        pass


def ended(child):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_process_that_goes_round_is_stuck_when_it_has_used_its_time():
    child = forked(spin)
    try:
        waits = Patience(child, 0.2)
        wait_for(lambda: waits.over(b""), "the end of patience")
        assert processor_seconds(child) >= 0.2
    finally:
        ended(child)


def test_a_process_without_a_processor_is_not(monkeypatch):
    """Stopped for five times its seconds: only the clock, far away, may give it up."""
    monkeypatch.setattr(patience, "STOPPED", 1e6)
    child = forked(lambda: time.sleep(3600))
    try:
        waits, end = Patience(child, 0.05), time.monotonic() + 0.25
        while time.monotonic() < end:
            assert not waits.over(b"")
        monkeypatch.setattr(patience, "STOPPED", 2)
        wait_for(lambda: waits.over(b""), "the clock")
    finally:
        ended(child)


def test_each_sign_of_movement_begins_anew():
    child = forked(spin)
    try:
        waits = Patience(child, 0.1)
        signs = 0
        while processor_seconds(child) < 0.5:
            signs += 1
            assert not waits.over(b"%d" % signs)
    finally:
        ended(child)


def test_who_is_gone_has_used_nothing():
    child = forked(lambda: None)
    os.waitpid(child, 0)
    assert processor_seconds(child) == 0.0
