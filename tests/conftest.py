"""What every test gets: a leak check, `--slow`, and a way to boot machines."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from multiprocess import resource_tracker

from concur_thp.machine import Machine

LEAK_SECONDS = 60.0
"""How long a process that is ending may take to be gone."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


def children() -> set[str]:
    """Processes started by this one; not the tracker that Python keeps for shared memory."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # A thread that has just ended, such as pytest-timeout's.
            found |= set((task / "children").read_text().split())
    return found - {str(getattr(resource_tracker._resource_tracker, "_pid", None))}


def segments() -> set[str]:
    """Segments in /dev/shm with the names that Python gives them."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("psm_", "concur_thp"))}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """A test ends with no machine booted, nothing new in /dev/shm and no child process."""
    before = segments(), children()
    yield
    if Machine.booted is not None:
        Machine.booted.close()
        pytest.fail("the test left a machine booted: use `with Machine(..)` or the fixture machine_factory")
    deadline = time.monotonic() + LEAK_SECONDS
    while (left := (segments() - before[0], children() - before[1])) != (set(), set()):
        if time.monotonic() > deadline:
            for pid in left[1]:
                os.kill(int(pid), signal.SIGKILL)
            pytest.fail(f"the test left segments {left[0]} or child processes {left[1]}: end them, and wait for them")
        time.sleep(0.01)


@pytest.fixture
def machine_factory() -> Iterator[Callable[..., Machine]]:
    """`machine_factory(cpus=2, order=3)` boots a machine that is closed when the test ends."""
    machines: list[Machine] = []

    def boot(**sizes: Any) -> Machine:
        for machine in machines:
            machine.close()
        machines.append(Machine(**{"memory": "64M", "cpus": 2, **sizes}))
        return machines[-1]

    yield boot
    for machine in machines:
        machine.close()
