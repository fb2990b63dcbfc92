"""What refers to frames: entries, vmas, caches, gathered from a machine at rest."""

import numpy as np

from concur_thp.check.facts import Facts
from concur_thp.check.walk import present
from concur_thp.mm.mm_types import files, mms, vma_slots
from concur_thp.mm.swap import lru_add_drain
from tests.unit.check.tables import FILE, HOLES, HUGE, PAGE, SMALL, THP, ZERO


def test_who_maps_each_frame(scene):
    child = scene.fork()
    facts = Facts(scene.config)
    assert facts.live_mms.tolist() == sorted([scene.mm.id, child.id])
    head = scene.pfn(THP)
    assert facts.pmd_maps[head] == 2 and facts.pte_maps[head] == 0
    assert facts.pte_maps[scene.pfn(SMALL)] == 2
    holes = facts.subpages(np.array([scene.pfn(HOLES)]))[0]
    assert sorted(facts.pte_maps[holes].tolist()) == [0, 0] + [2] * (facts.nr - 2)
    assert present(facts.pte.val).all() and scene.pfn(ZERO) == facts.huge_zero_pfn
    assert facts.huge_zero_pfn in facts.huge.pfn and facts.huge_zero_pfn not in facts.thp.pfn


def test_an_address_leads_to_its_vma(scene):
    facts = Facts(scene.config)
    addresses = np.array([THP - PAGE, THP, THP + 4 * HUGE - 1, SMALL + PAGE, SMALL + 6 * PAGE])
    found = facts.find_vma(np.full(len(addresses), scene.mm.id), addresses)
    assert (found > 0).tolist() == [False, True, True, True, False] and found[1] == found[2] != found[3]
    assert facts.linear_index(found[3:4], addresses[3:4]) - facts.linear_index(found[3:4], np.array([SMALL])) == 1
    assert facts.find_vma(np.array([scene.mm.id + 1]), np.array([THP])).tolist() == [0]


def test_a_wild_vma_number_is_left_out(scene):
    before = len(Facts(scene.config).vma_list)
    slot = vma_slots[scene.mm.id * scene.config.max_map_count]
    slot.value = scene.config.vmas + 7
    facts = Facts(scene.config)
    assert len(facts.vma_list) == before - 1 == len(facts.vma_mm)


def test_cached_pages_of_files(scene):
    lru_add_drain(scene.cpu)
    facts = Facts(scene.config)
    file, index, pfn = facts.cached
    assert facts.live_files.tolist() == [scene.file] and set(file.tolist()) == {scene.file}
    assert scene.pfn(FILE) in pfn and files[scene.file].nrpages == len(pfn)
    assert facts.index[pfn].tolist() == index.tolist()


def test_an_mm_without_references_is_not_there(scene):
    scene.exit()
    assert Facts(scene.config).live_mms.tolist() == [] and mms[1].mm_count.read() == 0
