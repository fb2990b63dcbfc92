"""The bench's own side: every row does what it says, on one CPU process and on two; what is made of samples."""

import pytest

from concur_thp.check.audit import audit
from concur_thp.errors import EmulatorError
from concur_thp.mm.thp_sysfs import set_switch
from stress.bench import emulator, growth, kernels, throughput
from stress.bench.children import NotHere
from stress.bench.emulator import Bed, timed
from stress.bench.kernels import HAND_OVERS
from stress.bench.main import _turn, measure_row, result
from stress.bench.rows import ROWS, Row
from stress.bench.statistics import growth as grown
from stress.bench.statistics import ratio, spread
from stress.bench.table import number
from stress.bench.throughput import Span, fair, line_times

KEYS = {"name", "unit", "emulator", "kernel", "multiprocess", "ratio_kernel", "ratio_multiprocess"}
"""Of `bench --json`, design section 10."""


class Quiet:
    quiet = True


@pytest.fixture
def machine(machine_factory):
    machine = machine_factory(memory="256M", swap="64M", cpus=2)
    set_switch("enabled", "always")
    set_switch("defrag", "always")
    yield machine
    assert not audit(machine.config).violations


def test_every_row_runs_and_leaves_a_machine_in_order(machine):
    for name, row in emulator.ROWS.items():
        bed = Bed(machine, 0)
        one = row(bed)
        assert min(one(), one()) != 0, name
        bed.close()


@pytest.mark.parametrize("one_mm", [False, True])
@pytest.mark.parametrize("name", ["fault_huge", "split_huge_page", "collapse", "dontneed_part", "spin_lock_pair"])
def test_two_processes_in_mms_of_their_own_and_in_one(machine, name, one_mm):
    row = measure_row(machine, ROWS[name], 2, one_mm, 1, Quiet())
    assert set(row) >= KEYS and (row["mm"], row["processes"]) == ("one" if one_mm else "own", 2)
    assert row["emulator_q1"] <= row["emulator"] <= row["emulator_q3"]
    assert row["kernel"] is not None or "kernel:" in row["reason"]
    assert (row.get("fcntl") is not None) == (row["kind"] == "lock")


def test_a_row_that_did_something_else_is_our_error():
    assert timed(4, lambda: 4, 4) > 0
    with pytest.raises(EmulatorError, match="3 operations where 4 were expected"):
        timed(4, lambda: 3, 4)
    with pytest.raises(EmulatorError, match="failed with -12"):
        timed(1, lambda: -12)


def test_ratios_are_taken_turn_by_turn():
    """A machine that becomes three times slower meanwhile changes no ratio."""
    assert ratio([[10.0], [30.0], [60.0]], [[1.0], [3.0], [4.0]]) == (10.0, 10.0, 15.0)
    assert ratio([[]], [[1.0]]) is None
    assert ratio([[10.0], [-30.0]], [[1.0], [3.0]]) == (10.0, 10.0, 10.0)
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


@pytest.mark.parametrize("value, text", [(None, "-"), (0.5, "0.50"), (9994, "9994"), (9999, "10k"), (999_400, "999k"),
                                         (999_600, "1M"), (2.32e9, "2.32G"), (-42e3, "-42k")])
def test_three_figures(value, text):
    assert number(value) == text


def test_a_side_without_figures_has_its_reason():
    row = result(Row("fault_huge", "fault"), 1, False, {"emulator": [[5.0], [7.0]]}, {"kernel": "no such kernel"})
    assert (row["emulator"], row["kernel"], row["ratio_kernel"], row["reason"]) == (6.0, None, None, "kernel: no such kernel")


def test_what_is_not_above_nothing_is_no_figure():
    """A time that another was taken away from, on a machine with other things to do."""
    row = result(Row("fork_huge_pmd", "huge page"), 1, False, {"emulator": [[5.0]], "kernel": [[-9.0, -7.0, 3.0]]}, {})
    assert (row["kernel"], row["kernel_q1"], row["ratio_kernel"]) == (None, None, None)
    assert row["reason"] == "kernel: lost in the noise of this machine"


def test_a_turn_that_somebody_came_between_is_taken_again():
    said = [NotHere("smaps shows 8 huge pages"), NotHere("smaps shows 8 huge pages"), [3.0]]

    def take():
        if isinstance(said[0], NotHere):
            raise said.pop(0)
        return said[0]

    found = []
    assert _turn(take, found) == "" and found == [[3.0]]
    said[:0] = [NotHere("no swap")] * 5
    assert _turn(take, found) == "no swap" and found == [[3.0]]


@pytest.mark.parametrize("costs, word", [
    ([100, 104, 99, 102], "constant"),
    ([100, 1000, 10_000, 100_000], "linear"),
    ([1010, 1100, 2000, 11_000], "linear"),  # with a fixed part
    ([100, 200, 300, 400], "logarithmic"),
    ([1, 100, 10_000, 1_000_000], "size^2.0"),
])
def test_how_a_cost_grows_has_a_name(costs, word):
    assert grown([10, 100, 1000, 10_000], costs).word == word


def test_stretches_count_only_while_both_had_a_processor():
    """Process 1 is taken off its processor in its second stretch: only what both did meanwhile is left out."""
    mine = [Span(0, 0, 100, 100, 5), Span(0, 100, 200, 100, 5), Span(0, 200, 300, 100, 5)]
    others = [Span(1, 0, 110, 110, 5), Span(1, 110, 190, 20, 5), Span(1, 190, 320, 128, 5)]
    assert fair(mine + others, 2) == [mine[0], mine[2], others[0]]
    assert fair(mine, 1) == mine
    assert fair(mine, 2) == []


def test_a_line_is_timed_where_both_were_there(monkeypatch):
    """A stretch in which nothing was handed over to and fro says nothing."""
    monkeypatch.setattr(throughput, "ns_per_cycle", lambda: 0.5)
    assert line_times([Span(0, 0, 1000, 1000, 0), Span(0, 0, 1000, 1000, 2 * 80 * HAND_OVERS)]) == [40.0]


def test_nobody_to_hand_a_line_to(machine):
    bed = Bed(machine, 0)
    assert kernels.bench_hand_over(bed.cpu, 2) == 0
    bed.close()


@pytest.mark.parametrize("name", throughput.ROWS)
def test_throughput_of_two_processes_beside_that_of_one(machine, name):
    row = throughput.measure(machine, name, 1)
    assert set(row) >= KEYS | {"ceiling", "line", "line_low", "line_high", "undisturbed", "emulator_one", "emulator_two"}
    assert min(row["emulator"], row["ceiling"], row["line"] or 0) >= 0
    assert row["kernel"] is not None or row["reason"]


@pytest.mark.parametrize("dimension", dict.fromkeys(row.dimension for row in growth.ROWS.values()), ids=lambda d: d.what)
def test_every_growth_row_runs_at_its_smallest_size(dimension):
    names = [name for name, row in growth.ROWS.items() if row.dimension is dimension]
    found = growth.take(dimension, dimension.sizes[0], names, 1)
    assert {name: len(samples) for name, samples in found.items()} == dict.fromkeys(names, 1)
