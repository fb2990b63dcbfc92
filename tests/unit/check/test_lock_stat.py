"""lock_stat adds up what every CPU counted, in nanoseconds."""

from pytest import approx

from concur_thp.check.clock import ns_per_cycle, read_cycles
from concur_thp.check.lock_stat import COLUMNS, lock_stat, lock_stat_text
from concur_thp.sync.lock_classes import CLASS_ID
from concur_thp.sync.rwsem import down_read, up_read

ZONE = CLASS_ID["zone_lock"]


def test_rows_are_sums_over_cpus(scene):
    counted = ((scene.cpu, 3, 3000, 100, 2000), (scene.other, 1, 5000, 5000, 5000))
    for cpu, contentions, total, shortest, longest in counted:
        row = cpu.lock_stat[ZONE]
        row.acquisitions, row.acq_bounces, row.con_bounces = 100, 10, 2
        row.contentions, row.wait_total, row.wait_min, row.wait_max = contentions, total, shortest, longest
        row.hold_total, row.hold_max, row.hold_samples = 600, 500, 2
    found = next(row for row in lock_stat() if row.name == "zone_lock")
    unit = ns_per_cycle()
    assert (found.acquisitions, found.acq_bounces, found.contentions, found.con_bounces) == (200, 20, 4, 4)
    waits = (found.waittime_min, found.waittime_max, found.waittime_total, found.waittime_avg)
    assert waits == approx((100 * unit, 5000 * unit, 8000 * unit, 2000 * unit))
    holds = (found.holdtime_max, found.holdtime_total, found.holdtime_avg)
    assert holds == approx((500 * unit, 60000 * unit, 300 * unit))
    assert lock_stat()[0].name == "zone_lock"


def test_only_classes_that_were_taken_have_a_row(scene):
    before = {row.name: row.acquisitions for row in lock_stat()}
    assert "swap_lock" not in before
    down_read(scene.cpu, scene.mm.mmap_sem)
    up_read(scene.cpu, scene.mm.mmap_sem)
    assert {row.name: row.acquisitions for row in lock_stat()}["mmap_sem"] == before["mmap_sem"] + 1


def test_text_has_the_kernels_columns(scene):
    lines = lock_stat_text().splitlines()
    assert lines[0].split() == list(COLUMNS)
    assert COLUMNS[1:4] == ("con-bounces", "contentions", "waittime-min") and len(lines) == 1 + len(lock_stat())
    assert lock_stat_text([]).split() == list(COLUMNS)


def test_a_cycle_has_a_length(scene):
    assert 0.01 < ns_per_cycle() < 1000
    assert read_cycles() < read_cycles()
