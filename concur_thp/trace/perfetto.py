"""A run as a trace for ui.perfetto.dev: a track for each CPU, slices for what it was in, instants for what happened.

A controlled run has no time of its own: a microsecond of its trace is one statement or access. A free run has: what its
event rings say.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent
from perfetto.trace_builder.proto_builder import TraceProtoBuilder

from concur_thp.arch.trace import RING_EVENTS, Tracepoint
from concur_thp.check.clock import ns_per_cycle
from concur_thp.check.events import Record, event_values, ring_events
from concur_thp.config import MachineConfig
from concur_thp.ops import OP_NAMES, SYS_OP_MASK
from concur_thp.trace.chart import plain
from concur_thp.trace.story import Line, Story

MACHINE_TRACK = 1
CPU_TRACK = 100
SEQUENCE = 1
TICK_NS = 1000


class Trace:
    """Builds one trace."""

    def __init__(self, name: str):
        self.builder = TraceProtoBuilder()
        self._track(MACHINE_TRACK, name)

    def _track(self, uuid: int, name: str, parent: int = 0) -> None:
        packet = self._packet(0)
        descriptor = packet.track_descriptor
        descriptor.uuid, descriptor.name = uuid, name
        if parent:
            descriptor.parent_uuid = parent

    def _packet(self, when: int) -> Any:
        packet = self.builder.add_packet()
        packet.timestamp = when
        packet.trusted_packet_sequence_id = SEQUENCE
        return packet

    def cpu(self, number: int, title: str) -> None:
        """A track for a CPU."""
        self._track(CPU_TRACK + number, f"CPU{number} {title}".strip(), MACHINE_TRACK)

    def event(self, cpu: int, when: int, kind: int, name: str = "", **notes: str) -> None:
        """TYPE_SLICE_BEGIN, TYPE_SLICE_END or TYPE_INSTANT."""
        event = self._packet(when).track_event
        event.type, event.track_uuid = kind, CPU_TRACK + cpu
        if name:
            event.name = name
        for key, text in notes.items():
            note = event.debug_annotations.add()
            note.name, note.string_value = key, text

    def begin(self, cpu: int, when: int, name: str, **notes: str) -> None:
        self.event(cpu, when, TrackEvent.TYPE_SLICE_BEGIN, name, **notes)

    def end(self, cpu: int, when: int) -> None:
        self.event(cpu, when, TrackEvent.TYPE_SLICE_END)

    def instant(self, cpu: int, when: int, name: str, **notes: str) -> None:
        self.event(cpu, when, TrackEvent.TYPE_INSTANT, name, **notes)

    def data(self) -> bytes:
        """The file's contents."""
        return bytes(self.builder.serialize())


def story_trace(story: Story, config: MachineConfig, titles: dict[int, str], name: str) -> bytes:
    """A controlled run: kernel functions as slices, statements inside, meetings and tracepoints as instants."""
    trace = Trace(name)
    begins = [line.begins for line in story.lines]
    end = (len(story.lines) + max((touch.number for line in story.lines for touch in line.touches), default=0) + 2) * TICK_NS
    for number in range(story.nr_cpus):
        trace.cpu(number, titles.get(number, ""))
        lines = [line for line in story.lines if line.cpu == number]
        events = [*_functions(trace, lines, end), *_instants(trace, config, lines, begins)]
        for _, event in sorted(events, key=lambda event: event[0]):
            event()
    return trace.data()


Timed = tuple[int, Callable[[], None]]


def _when(line: Line) -> int:
    return (line.number + line.begins) * TICK_NS


def _functions(trace: Trace, lines: list[Line], end: int) -> Iterator[Timed]:
    """One CPU's functions, nested by who called whom."""
    open_now: list[str] = []
    for line in lines:
        path, now = [*line.callers, line.function], _when(line)
        same = next((n for n, (a, b) in enumerate(zip(open_now, path, strict=False)) if a != b), min(len(open_now), len(path)))
        for _ in open_now[same:]:
            yield now, partial(trace.end, line.cpu, now)
        for function in path[same:]:
            yield now, partial(trace.begin, line.cpu, now, f"{function}()")
        open_now = path
    for _ in open_now:
        yield end, partial(trace.end, lines[-1].cpu, end)


def _instants(trace: Trace, config: MachineConfig, lines: list[Line], begins: list[int]) -> Iterator[Timed]:
    """One CPU's statements, where it met others, and its tracepoints."""
    for line in lines:
        now, where = _when(line), f"{line.where.file}:{line.where.line}"
        yield now, partial(trace.instant, line.cpu, now, plain(line.where.text), at=where)
        for event in line.events:
            yield now, partial(trace.instant, line.cpu, now, event.name, arguments=event_values(config, event))
        for touch in line.decisive:
            then = (touch.number + bisect_right(begins, touch.number)) * TICK_NS
            yield then, partial(trace.instant, line.cpu, then, touch.text, access=touch.kind)


def rings_trace(config: MachineConfig, titles: dict[int, str], name: str) -> bytes:
    """A free run: what is left in the event rings, in time. Operations and waits for locks are slices."""
    trace = Trace(name)
    events = {cpu: ring_events(cpu, RING_EVENTS) for cpu in range(config.cpus)}
    first = min((event.when for some in events.values() for event in some), default=0)
    for cpu, some in events.items():
        trace.cpu(cpu, titles.get(cpu, ""))
        _ring(trace, config, some, first)
    return trace.data()


def _ring(trace: Trace, config: MachineConfig, events: Iterable[Record], first: int) -> None:
    operation = waits = False
    when = 0
    for event in events:
        cpu, when = event.cpu, int((event.when - first) * ns_per_cycle())
        if event.what == Tracepoint.sys_enter:
            for _ in range(operation + waits):
                trace.end(cpu, when)
            operation, waits = True, False
            op = event.values[0] & SYS_OP_MASK
            trace.begin(cpu, when, OP_NAMES.get(op, f"op {op}"), arguments=event_values(config, event))
        elif event.what == Tracepoint.contention_begin and not waits:
            waits = True
            trace.begin(cpu, when, "waits", arguments=event_values(config, event))
        elif event.what == Tracepoint.contention_end and waits:
            waits = False
            trace.end(cpu, when)
        else:
            trace.instant(cpu, when, event.name, arguments=event_values(config, event))
    if operation or waits:
        for _ in range(operation + waits):
            trace.end(cpu, when + 1)


__all__ = ["Trace", "rings_trace", "story_trace"]
