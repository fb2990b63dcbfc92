"""How instant invariants are sampled, and that no place of the table is passed over in a life of a machine."""

from concur_thp.arch.linker import interpreted
from concur_thp.arch.points import Point
from concur_thp.check import instant


def test_frequent_points_are_sampled_and_others_are_not(scene, monkeypatch):
    seen = []
    monkeypatch.setattr(instant.check_at, "function", lambda cpu, where, subject: seen.append(where))
    with interpreted():
        for every, least, most in ((1, 640, 640), (64, 1, 60)):
            instant.checking.every = every
            seen.clear()
            for _ in range(640):
                instant.check_sampled(scene.cpu, Point.USER, 0)
                instant.check_sampled(scene.cpu, Point.PAGE_FROZEN, scene.page(0x80000))
            assert least <= seen.count(Point.USER) <= most and seen.count(Point.PAGE_FROZEN) == 640
