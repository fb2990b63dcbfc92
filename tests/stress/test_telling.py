"""Failures of broken variants are told: the same schedule in the traced build, what decides in the right columns, files."""

import errno
import json
import os
import time

import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

from concur_thp.rules.table import VARIANTS
from concur_thp.sched.state import Verdict
from concur_thp.trace.perfetto import rings_trace
from stress.breaking.hunt import job_for
from stress.exploring import handover
from stress.exploring.cell import Cell
from stress.exploring.explorer import Explorer, link_for
from stress.exploring.handover import programs_of, tell, write_all
from stress.exploring.shrink import Shrinker
from stress.exploring.telling import Teller
from stress.exploring.token import Token
from stress.exploring.variants import variant_of

FILES = ("summary.json", "token.txt", "schedule.json", "chart.txt", "report.txt", "report.html", "trace.pftrace")


def failure_of(name: str, schedules: int = 50_000):
    """A failure of a broken variant, as simple as it gets."""
    job = job_for(VARIANTS[name][1], 1)
    variant = variant_of(job)
    link_for(job, variant)
    with Cell(job) as cell:
        variant.put()
        cell.on_close(variant.take)
        _, failure = cell.explore(0, schedules, time.monotonic() + 240, lambda tally: None)
    assert failure is not None
    small, failure = Shrinker(job, variant, 60.0).shrink(failure)
    return Token.of(small, failure), failure


def columns(token: Token, chart: str) -> dict[int, str]:
    """What stands in the column of each CPU."""
    head, *rows = chart.partition("\n\n")[0].splitlines()
    starts = [head.index(f"CPU{cpu}") for cpu in programs_of(token.job)]
    found = dict.fromkeys(range(len(starts)), "")
    for row in rows:
        indent = len(row) - len(row.lstrip())
        found[max(cpu for cpu, start in enumerate(starts) if start <= indent)] += row.strip() + "\n"
    return found


@pytest.mark.parametrize("name, decisive", [
    ("R19a", {0: ("pmd[0x200000] is table", "__pmd_trans_huge_lock()"), 1: ("-> table",)}),
    ("R18a", {0: ("pmd[0x200000] is huge",), 1: ("pmd_populate", "-> table")}),
    ("X10a", {0: ("pmd[0x200000] huge 0x110 -> none", "pmd[0x200000] none -> huge 0x110"), 1: ("pmd[0x200000] is none",)}),
])
def test_the_traced_build_takes_the_same_schedule_and_the_chart_has_what_decides(name, decisive):
    token, failure = failure_of(name)
    with Teller(token.job) as teller:
        story = teller.tell(token.job.plan)
        assert teller.schedule() == token.job.plan
        assert teller.tell(token.job.plan).lines[-1].where == story.lines[-1].where
    text = tell(token, failure).chart
    found = columns(token, text)
    for cpu, parts in decisive.items():
        for part in parts:
            assert part in found[cpu], text
    assert len(text.partition("\n\n")[0].splitlines()) <= 25
    rule = VARIANTS[name][0]
    assert rule.statement in text and token.symptom in text and "mm/" in text


def test_a_run_that_kills_its_process_is_told():
    job = job_for(VARIANTS["X16a"][1], 1)
    variant = variant_of(job)
    link_for(job, variant)
    failure = Explorer(job, variant, 1, schedules=20_000, seconds=240).run().failure
    assert failure is not None
    told = tell(Token.of(job, failure), failure)
    assert "<- here" in told.chart and told.trace and told.dump


def test_the_files_are_there_and_can_be_read(tmp_path):
    token, failure = failure_of("R18a")
    told = tell(token, failure)
    assert write_all(tmp_path, told, {"verdict": "fail"}, "break R18a") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    rows = json.loads((tmp_path / "schedule.json").read_text())
    assert [row["steps"] for row in rows] == [stretch.steps for stretch in token.job.plan]
    assert all(row["statement"] and ".py:" in row["at"] for row in rows if row["reason"] == "preempt")
    assert Token.parse(str(tmp_path / "token.txt")).job.plan == token.job.plan
    report = (tmp_path / "report.html").read_text()
    assert "pmd_populate" in report and str(token) in report and "page pfn" in report
    assert balanced((tmp_path / "trace.pftrace").read_bytes()) > 100


def balanced(data: bytes) -> int:
    """Each track's slices end as often as they begin, in time; returns the number of events."""
    trace = Trace()
    trace.ParseFromString(data)
    depth: dict[int, int] = {}
    last: dict[int, int] = {}
    events = [packet for packet in trace.packet if packet.HasField("track_event")]
    for packet in events:
        track, kind = packet.track_event.track_uuid, packet.track_event.type
        assert packet.timestamp >= last.get(track, 0)
        last[track] = packet.timestamp
        depth[track] = depth.get(track, 0) + {TrackEvent.TYPE_SLICE_BEGIN: 1, TrackEvent.TYPE_SLICE_END: -1}.get(kind, 0)
        assert depth[track] >= 0
    assert not any(depth.values()) and {t.track_descriptor.uuid for t in trace.packet} >= depth.keys()
    return len(events)


def test_the_event_rings_are_a_trace():
    link_for(job_for(VARIANTS["R18a"][1], 1))
    with Cell(job_for(VARIANTS["R18a"][1], 1)) as cell:
        cell.controlled.run(3, 1)
        assert balanced(rings_trace(cell.machine.config, {0: "first"}, "a run")) > 3


def test_a_disk_that_refuses_leaves_nothing_half_written(tmp_path, monkeypatch):
    token, failure = failure_of("R18a")
    told = tell(token, failure)
    real, written = os.replace, []

    def refuse(source, target):
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    problems = write_all(tmp_path, told, {}, "x")
    assert len(problems) == len(FILES) - 1 and all("No space left" in problem for problem in problems)
    assert [path.name for path in tmp_path.iterdir()] == ["token.txt"], "no temporary file stays behind"


def test_a_failure_that_cannot_be_told_is_still_handed_over(monkeypatch):
    token, failure = failure_of("R18a")

    class Broken:
        def __init__(self, job):
            raise RuntimeError("no")

    monkeypatch.setattr(handover, "Teller", Broken)
    told = tell(token, failure)
    assert told.chart == "" and told.dump == failure.report and told.schedule

    def changed(schedule):
        raise OSError("lineno is out of bounds")

    monkeypatch.setattr(handover, "readable", changed)  # Somebody edits the source while this runs.
    told = tell(token, failure)
    assert told.chart == "" and told.dump == failure.report and str(told.token) == str(token)


def test_a_livelock_of_one_cpu_ends_when_it_is_replayed_and_told():
    """The first grant of a run was not held to the bound: a replay whose only stretch goes round for ever never came back."""
    token, _ = failure_of("R12a")
    assert token.kind == "livelock"
    with Teller(token.job) as teller:
        story = teller.tell(token.job.plan)
        assert teller.schedule() == token.job.plan and story.verdict == Verdict.LIVELOCK
