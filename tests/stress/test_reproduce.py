"""From stress to schedule: a broken variant fails in a free run, and is found again one CPU at a time from the event rings."""

import json

import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace

from concur_thp.arch.trace import Tracepoint
from concur_thp.check.events import Record
from concur_thp.config import PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.ops import SYS_ARGUMENT_SHIFT, Op
from concur_thp.program.table import ADVICES
from concur_thp.rules.table import VARIANTS
from concur_thp.rules.variant import Variant
from stress import kept, main
from stress.clues import Clue, Scale, last_steps, noticed_by, read_clue
from stress.exploring.cell import Cell
from stress.exploring.explorer import link_for
from stress.exploring.job import Failure, Job
from stress.exploring.token import Token
from stress.exploring.variants import variant_of
from stress.kept import keep
from stress.mix.load import load_mix
from stress.options import StressOptions
from stress.reproduce import alike, candidates, reproduce
from stress.scenarios.play import CHAOS, machine_config, play
from stress.scenarios.registry import SCENARIOS

LOST_CHECK = "R18a"
HUGE = PAGE_SIZE << 3


def event(number: int, what: int, *values: int) -> Record:
    return Record(0, number, number, what, values)


def test_events_become_steps_of_a_small_machine():
    base = 0x7F0000000000
    dontneed = Op.MADVISE | ADVICES["dontneed"] << SYS_ARGUMENT_SHIFT
    events = [event(0, Tracepoint.mm_page_alloc, 5, 0, 0), event(1, Tracepoint.page_fault_user, base + 3 * PAGE_SIZE, 6, 0),
              event(2, Tracepoint.sys_enter, dontneed, base, HUGE), event(3, Tracepoint.sys_enter, dontneed, base, HUGE),
              event(4, Tracepoint.mm_collapse_huge_page, 1, base + HUGE, 1)]
    assert last_steps(events, Scale(3)) == ("store 11 7", "advise 8 8 dontneed", "collapse 0 0")
    assert last_steps(events[:2], Scale(3)) == ("store 3 7",)
    wide = [event(1, Tracepoint.page_fault_user, base + 511 * PAGE_SIZE, 4, 0)]
    assert last_steps(wide, Scale(9)) == ("load 7",), "a page of 512 is scaled to one of 8"


def test_addresses_of_other_blocks_than_the_first_few_are_left_out():
    scale = Scale(3)
    pages = [scale.page(n * HUGE) for n in range(4)]
    assert pages == [0, 8, None, None] and scale.page(HUGE) == 8


@pytest.mark.parametrize("symptom, kind, text, same", [
    ("BUG page_remove_rmap: not a head (value: pfn) (values 0x103, 0x0) in page_remove_rmap on cpu 0", "bug",
     "page_remove_rmap: not a head (value: pfn) (values 0x9, 0x1) in page_remove_rmap on cpu 1", True),
    ("page_remove_rmap: not a head (value: pfn) (values 0x1, 0x0)", "bug", "put_page_testzero: free (value: pfn)", False),
    ("Q5: refcount of pfn 0x3", "audit", "Q1: another; Q5: refcount of pfn 0x7", True),
    ("Q5: refcount of pfn 0x3", "audit", "Q6: something", False),
    ("I15: stale", "bug", "I15: stale (values: x) in y on cpu 1", True),
])
def test_only_the_same_report_or_law_is_a_reproduction(symptom, kind, text, same):
    assert alike(symptom, Failure(kind, text)) == same


def test_every_candidate_is_a_program_that_can_be_loaded():
    clue = Clue("Q5: x", 0, {0: ("advise 0 8 dontneed", "store 3 7"), 1: ("collapse 0 0",), 5: ("swap_out 0", "fork 1")})
    jobs = list(candidates(clue))
    assert any(job.programs for job in jobs) and any(not job.programs for job in jobs)
    link_for(jobs[0])
    for job in jobs[:4]:
        with Cell(job) as cell:
            cell.controlled.run(1, 1)


def test_a_free_run_that_failed_is_reproduced_in_a_schedule(tmp_path):
    row = VARIANTS[LOST_CHECK][1]
    scenario = SCENARIOS[row.scenario]
    config = machine_config(scenario, 3, len(scenario.cpus), 1)
    clue = None
    for seed in range(100):
        with Machine(config) as machine, Variant(row.edits, row.id).in_place():
            machine.listen_checks(every=1)
            machine.listen_chaos(*CHAOS)
            played = play(machine, scenario, 2.0, len(scenario.cpus))
            if played.crew.kind == "bug":
                clue = read_clue(config, played.crew.what, noticed_by())
                left = keep(config, tmp_path, played.crew.what, played.crew.report, f"seed {seed}")
                break
    assert clue is not None, "the free runs did not notice"
    assert clue.steps and clue.cpu >= 0 and left == clue
    assert played.crew.what.split(" (")[0] in (tmp_path / "report.html").read_text()
    Trace().ParseFromString((tmp_path / "trace.pftrace").read_bytes())
    broken = variant_of(Job(row.scenario, variant=LOST_CHECK))
    found = reproduce(clue, 100.0, LOST_CHECK, broken)
    assert found.token is not None, str(found)
    assert "reproduced in" in str(found) and found.token.job.variant == LOST_CHECK
    real = reproduce(clue, 3.0)
    assert real.token is None and real.other is None and str(real).startswith("not reproduced in ")
    assert real.schedules > 0 and real.attempts > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_mix_that_fails_ends_with_a_schedule_and_its_files(tmp_path, monkeypatch):
    def broken_mix(machine, weights):
        load_mix(machine, weights)
        Variant(VARIANTS[LOST_CHECK][1].edits, LOST_CHECK).put()

    def on_broken_code(clue, seconds, tick=None):
        return reproduce(clue, seconds, LOST_CHECK, variant_of(Job(VARIANTS[LOST_CHECK][1].scenario, variant=LOST_CHECK)), tick)

    monkeypatch.setattr(main, "load_mix", broken_mix)
    monkeypatch.setattr(kept, "reproduce", on_broken_code)
    out = tmp_path / "out.json"
    options = StressOptions(seconds=30, seed=3, chaos=True, quiet=True, reproduce=40, run_dir=str(tmp_path), json=str(out))
    assert main.run_stress(options) == 1
    data = json.loads(out.read_text())
    token = Token.parse(data["reproduced"]["token"])
    assert token.symptom.startswith("page_remove_rmap") and data["violations"][0]["token"] == str(token)
    run_dir = tmp_path / "latest"
    assert {"report.html", "trace.pftrace", "report.txt", "summary.json"} <= {path.name for path in run_dir.iterdir()}
    assert "here" in (run_dir / "reproduced" / "chart.txt").read_text()
    assert json.loads((run_dir / "summary.json").read_text())["reproduced"] == data["reproduced"]
