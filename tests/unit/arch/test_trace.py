"""Event rings: the last events, in order, each with its number."""

from contextlib import nullcontext

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import interpreted, kernel
from concur_thp.arch.trace import RING_EVENTS, Tracepoint, rings, trace


@kernel
def write_events(cpu: Cpu, count: int):
    """Context: any. Emulator: a test."""
    for i in range(count):
        trace(cpu, Tracepoint.mm_page_alloc, i, 2 * i, 3 * i)


@pytest.mark.parametrize("mode", [nullcontext, interpreted], ids=["native", "interpreted"])
def test_a_ring_keeps_the_last_events(machine_factory, mode):
    machine = machine_factory(order=3)
    with mode():
        write_events(machine.cpu(1), RING_EVENTS + 5)
    assert machine.cpu(1).ring_next == RING_EVENTS + 5
    events = sorted((rings[RING_EVENTS + i] for i in range(RING_EVENTS)), key=lambda event: event.number)
    assert [event.number for event in events] == list(range(5, RING_EVENTS + 5))
    assert all((e.what, e.a, e.b, e.c) == (2, e.number, 2 * e.number, 3 * e.number) for e in events)
    times = [event.when for event in events]
    assert times == sorted(times)
    assert rings[0].what == 0, "CPU 0's ring is its own"
