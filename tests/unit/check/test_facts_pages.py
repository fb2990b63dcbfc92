"""Frames as columns: heads, tails and what does not lead anywhere."""

import numpy as np

from concur_thp.check.facts_pages import PageFacts
from concur_thp.mm.mm_types import NIL, mem_map
from concur_thp.mm.page_flags import PG_head, PG_lru
from concur_thp.mm.swap import lru_add_drain
from tests.unit.check.tables import HUGE, PAGE, SMALL, THP


def test_columns_are_the_struct_pages(scene):
    lru_add_drain(scene.cpu)
    facts, pfn = PageFacts(scene.config), scene.pfn(SMALL)
    assert facts.refcount[pfn] == 1 and facts.mapcount[pfn] == 0
    assert facts.mapping[pfn] == mem_map[pfn].mapping and facts.index[pfn] == mem_map[pfn].index
    assert facts.has(PG_lru)[pfn] and not facts.is_tail[pfn] and facts.head_of[pfn] == pfn
    assert int(facts.lru_next[pfn]) == mem_map[pfn].lru_next


def test_tails_lead_to_their_head(scene):
    facts, head = PageFacts(scene.config), scene.pfn(THP)
    assert facts.has(PG_head)[head] and head in facts.heads
    rows = facts.subpages(np.array([head, scene.pfn(THP + HUGE)]))
    assert rows.shape == (2, facts.nr) and rows[0].tolist() == list(range(head, head + facts.nr))
    assert (facts.head_of[rows[0]] == head).all() and facts.is_tail[rows[0]].tolist() == [False] + [True] * (facts.nr - 1)


def test_numbers_that_lead_nowhere_are_not_followed(scene):
    pfn = scene.pfn(SMALL + PAGE)
    mem_map[pfn].compound_head = (scene.config.frames + 5) << 1 | 1
    mem_map[scene.config.frames - 1].flags.or_(1 << PG_head)
    facts = PageFacts(scene.config)
    assert facts.is_tail[pfn] and facts.head_of[pfn] == pfn
    assert scene.config.frames - 1 not in facts.heads, "its block does not fit"
    assert facts.inside(np.array([-1, 0, facts.frames - 1, facts.frames])).tolist() == [False, True, True, False]


def test_who_else_has_references(scene):
    """Pins that programs have declared, and those that the caller of an audit brings."""
    pfn = scene.pfn(THP)
    assert PageFacts(scene.config).pins == {}
    assert PageFacts(scene.config, {pfn: 2}).pins == {pfn: 2}


def test_zero_pages(scene):
    facts = PageFacts(scene.config)
    assert facts.zero_pfn == 0 and facts.refcount[0] == 1 and facts.huge_zero_pfn in facts.heads
    scene.exit()
    assert facts.huge_zero_pfn != NIL, "the shrinker's reference keeps it"
