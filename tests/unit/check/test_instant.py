"""How instant invariants are sampled, and that the compiled checks stop a CPU process of its own."""

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.arch.points import Point
from concur_thp.check import instant
from concur_thp.mm.gup_fast import get_user_pages_fast
from concur_thp.mm.mm_types import mem_map
from concur_thp.mm.put_page import put_page
from concur_thp.mm.uaccess import user_store
from tests.processes import run_until_bug
from tests.unit.check.invariant_cases import pinned
from tests.unit.check.tables import PAGE, SMALL, THP


def test_frequent_points_are_sampled_and_others_are_not(scene, monkeypatch):
    seen = []
    monkeypatch.setattr(instant.check_at, "function", lambda cpu, where, subject: seen.append(where))
    with interpreted():
        for every, least, most in ((1, 640, 640), (64, 1, 60)):
            instant.checking.every = every
            seen.clear()
            for _ in range(640):
                instant.check_sampled(scene.cpu, Point.USER, 0)
                instant.check_sampled(scene.cpu, Point.PAGE_FROZEN, scene.page(THP))
            assert least <= seen.count(Point.USER) <= most and seen.count(Point.PAGE_FROZEN) == 640


NATIVE = {
    "I3": lambda scene, cpu: put_page(cpu, scene.page(THP)),
    "I7": lambda scene, cpu: (scene.page(SMALL)._mapcount.store(-1), user_store(cpu, SMALL + 5 * PAGE, 1)),
    "I12": lambda scene, cpu: (setattr(mem_map[scene.pfn(THP) + 5], "compound_head", 0),
                               get_user_pages_fast(cpu, THP + 3 * PAGE, 1, 0, pinned[0])),
    "I16": lambda scene, cpu: (scene.entry(SMALL + PAGE).val.and_(~2), instant.check_sampled(cpu, Point.USER, 0)),
}
"""What real code does, compiled, when its machine is broken in one word."""


@pytest.mark.parametrize("invariant", NATIVE)
def test_compiled_checks_stop_the_cpu_that_passes(scene, invariant):
    scene.machine.listen_checks(every=1)
    scene.store(SMALL + PAGE)
    report = run_until_bug(scene.machine, lambda cpu: NATIVE[invariant](scene, cpu))
    assert report.startswith(f"{invariant}: ")
