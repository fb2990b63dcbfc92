"""Vmas of both sides: one boundary more is a difference, unless its neighbours say why."""

import pytest

from stress.compare.facts import compare
from stress.compare.mappings import around, boundaries, differing, in_block
from stress.compare.observed import LOOKED_AT, Block, Look, Seen
from stress.compare.steps import parse

ONE, TWO = ((0, 1024),), ((0, 300), (300, 1024))
NOTHING = Block(0, 0, 0, 0, 0)
EVENTS = {"wp_huge_copy": 0, "wp_huge_fallback_pages": 0, "empty": 0, "pins": 0, "wp_reuse": 0}


def test_parts_of_mappings_in_a_block():
    assert in_block(TWO, 0) == ((0, 300), (300, 512))
    assert in_block(TWO, 1) == in_block(ONE, 1) == ((511, 1024),)  # A boundary of another block is not seen here...
    assert in_block(((0, 512), (512, 1024)), 1) == ((512, 1024),)  # ... but one at the block's own beginning is.
    assert in_block(TWO, 2) == ()


def test_boundaries():
    assert boundaries(TWO) == {300} and boundaries(ONE) == set() and boundaries(((0, 5), (6, 7))) == set()
    assert differing(ONE, TWO) == differing(TWO, ONE) == {300}
    assert differing(((0, 5), (6, 7)), ((0, 5),)) == set()  # Not the same is mapped: that is no matter of merging.
    assert around(ONE, 300) == (0, 1024) and around(TWO, 300) == (300, 300)


def seen(mappings, letters=(), tasks=(0,), blocks="....", places=(0, 0, 0, 0), huge=0):
    look = Look(huge, 0, 0, 0, 0, hash(places), 0, tuple(NOTHING._replace(places=one) for one in places), mappings)
    return Seen(0, (0,) * len(LOOKED_AT), dict.fromkeys(tasks, look), EVENTS, dict.fromkeys(tasks, blocks),
                dict.fromkeys(tasks, letters))


STEP = parse("0 munlock 0 1024")


@pytest.mark.parametrize("ours, letters, theirs, reason", [
    (TWO, ("a", ""), ONE, "anon-merge"), (TWO, ("", "a"), ONE, "anon-merge"), (TWO, ("a", "a"), ONE, ""),
    (TWO, ("", ""), ONE, ""), (ONE, ("a",), TWO, ""), (ONE, ("p",), TWO, "unaccounted"), (TWO, ("", "p"), ONE, "unaccounted"),
    (((0, 300), (300, 900)), ("a", ""), ONE, ""),
])
def test_a_boundary_of_one_side_has_a_reason_or_differs(ours, letters, theirs, reason):
    verdict = compare(STEP, [seen(ours, letters)], [seen(theirs)])
    assert verdict.agree == bool(reason)
    assert verdict.skipped.total() == (1 if reason else 0) and (not reason or verdict.skipped["mappings", reason] == 1)


def test_other_blocks_are_compared():
    theirs = ((0, 700), (700, 1024))
    verdict = compare(STEP, [seen(TWO, ("a", ""))], [seen(theirs)])
    assert {fact.block for fact in verdict.differ} == {1}


@pytest.mark.parametrize("step, agrees", [
    ("0 mremap 200 50 200 100", True), ("0 mremap 200 150 200 100", False), ("0 mremap 200 50 200 90", False),
    ("0 mremap 700 50 200 100", False)])
def test_a_vma_that_grows_up_to_the_next_is_merged_with_it_on_one_side(step, agrees):
    verdict = compare(parse(step), [seen(TWO, ("", ""))], [seen(ONE)])
    assert verdict.agree == agrees and verdict.skipped["mappings", "grown"] == agrees
    assert not compare(parse(step), [seen(ONE, ("",))], [seen(TWO)]).agree, "it is we who do not merge"


def test_what_a_fork_copied_of_a_merged_vma_is_passed_over():
    program = parse("0 munlock 0 1024; 0 fork 1")
    ours = [seen(TWO, ("", "a"), blocks="t..."), seen(TWO, ("", "a"), (0, 1), "t...")]
    theirs = [seen(ONE), seen(ONE, tasks=(0, 1), places=(7, 0, 0, 0))]
    theirs[1].looks[0] = ours[1].looks[0]._replace(mappings=ONE)
    verdict = compare(program, ours, theirs)
    assert verdict.agree and verdict.skipped["places", "vma-fork"]
    theirs[1].looks[1] = seen(ONE, places=(0, 0, 7, 0)).looks[0]  # A block that has nothing to do with it.
    assert not compare(program, ours, theirs).agree


@pytest.mark.parametrize("merged", [True, False])
def test_a_vma_that_was_merged_once_has_an_anon_vma_ever_since(merged):
    program = parse("0 munlock 0 1024; 0 munlock 0 1024; 0 fork 1")
    child = seen(TWO, ("a", "a"), (0, 1), "t...", (7, 0, 0, 0))
    ours = [seen(ONE if merged else TWO, ("p",) if merged else ("p", "p")), seen(TWO, ("a", "a")), child]
    without = child._replace(looks={0: child.looks[0], 1: seen(TWO).looks[0]})
    assert compare(program, ours, [seen(TWO), seen(TWO), without]).agree == merged


def test_a_huge_page_that_only_one_vma_can_have():
    program = parse("0 munlock 0 1024; 0 store 0 1")
    ours = [seen(TWO, ("", "a"), blocks="...."), seen(TWO, ("", "a"), blocks="t...", places=(1, 0, 0, 0))]
    theirs = [seen(ONE), seen(ONE, places=(2, 0, 0, 0), huge=2048)]
    assert compare(program, ours, theirs).agree
    same = [seen(TWO), seen(TWO, places=(2, 0, 0, 0), huge=2048)]
    assert not compare(program, ours, same).agree


def test_a_new_mapping_may_merge_otherwise():
    """The block is as good as new behind the step, but for its beginning."""
    program = parse("0 mmap 0 512 r; 0 mmap 512 512 r")
    ours = [seen(((0, 512),), ("p",)), seen(((0, 512), (512, 1024)), ("p", ""))]
    verdict = compare(program, ours, [seen(((0, 512),)), seen(ONE)])
    assert verdict.agree and verdict.skipped["mappings", "unaccounted"] == 1
