"""The watcher of CPU processes: when one is hung, and when everything stood still together."""

import pytest

from concur_thp import Machine
from workers import launch
from workers.launch import HUNG_SECONDS, Crew, Role


@pytest.fixture
def watch(monkeypatch):
    """A crew of one that is never started, and a clock to turn: look(seconds) is one look so much later."""
    now = [1000.0]
    monkeypatch.setattr(launch.time, "monotonic", lambda: now[0])
    with Machine(memory="4M", order=3, cpus=1) as machine:
        role = Role("cpu0", 0, lambda machine, cpu: None)
        crew = Crew(machine, [role])
        crew._processes[0] = (role, None, None)
        cpu = machine.cpu(0)

        def look(seconds: float, moves: bool = False) -> str:
            now[0] += seconds
            cpu.ops = cpu.ops + moves
            crew._check_movement()
            return crew.outcome.kind

        yield look


def test_a_cpu_that_does_not_move_while_we_look_is_hung(watch):
    looks = int(HUNG_SECONDS * 20) - 1
    assert watch(0.05) == "done" and {watch(0.05) for _ in range(looks)} == {"done"}
    assert watch(0.1) == watch(0.1) == "hung"


def test_a_cpu_that_moves_is_not(watch):
    assert {watch(HUNG_SECONDS, moves=True) for _ in range(100)} == {"done"}


def test_a_run_that_was_stopped_as_a_whole_has_not_hung(watch):
    """Ctrl-Z and fg half a minute later: whoever looks first used to find CPUs that had not moved for so long."""
    assert watch(0.05) == "done" and watch(30 * HUNG_SECONDS) == "done"
    assert watch(0.05, moves=True) == "done"
