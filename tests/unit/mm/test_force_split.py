"""R14: native handling of huge pmds is a matter of cost. With the split forced in every walker the same programs see the same.

The programs are random (test_mm_random.py): every load is compared with a model of the address spaces, the audit speaks in
between. What they do depends on the seed alone, so both runs do the same.
"""

from typing import Any

import pytest

from concur_thp.machine import Machine
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.vmstat import vmstat
from tests.unit.mm.test_mm_random import World

STEPS = 1200
MAY_DIFFER = ("thp_", "wp_", "pg", "nr_tlb", "mremap_huge", "NR_", "khugepaged", "scan_result",
              "alloc_fallback", "compact", "deferred")
"""How the work was done: faults, copies, splits, flushes. And what is mapped huge, or with a table of its own, at the end."""


def run(seed: int, order: int, force: int, steps: int) -> tuple[list[Any], dict[str, int]]:
    """What the programs of a seed saw, and the counters."""
    with Machine(memory="16M" if order == 3 else "128M", order=order, cpus=1) as machine:
        set_switch("force_split_pmd", force)
        world = World(machine, seed)
        seen: list[Any] = []
        for k in range(steps):
            world.step()
            if k % 100 == 0:
                world.check()
                seen.append((sorted(world.models), len(world.here), world.value, [v.vm_start for v in world.vmas()]))
        world.check()
        for number in list(world.models):
            seen.append([(page, mapped.prot, sorted(mapped.own.items())) for page, mapped in world.models[number].items()])
        return seen, vmstat()


@pytest.mark.parametrize("seed", range(100, 104))
def test_only_counters_differ(seed: int) -> None:
    native, forced = run(seed, 3, 0, STEPS), run(seed, 3, 1, STEPS)
    assert native[0] == forced[0]
    assert forced[1]["thp_split_pmd"] > native[1]["thp_split_pmd"] > 0
    assert forced[1]["mremap_huge"] == 0 < native[1]["mremap_huge"] + 1
    other = {name for name in native[1] if native[1][name] != forced[1][name]}
    assert not [name for name in other if not name.startswith(MAY_DIFFER)], other


def test_only_counters_differ_x86() -> None:
    native, forced = run(7, 9, 0, 60), run(7, 9, 1, 60)
    assert native[0] == forced[0] and forced[1]["thp_split_pmd"] > native[1]["thp_split_pmd"]
