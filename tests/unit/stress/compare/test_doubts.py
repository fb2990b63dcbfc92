"""A difference on purpose takes its block out, where its pages go too, and nothing else."""

import pytest

from stress.compare.doubts import Doubts
from stress.compare.facts import compare
from stress.compare.observed import LOOKED_AT, UNKNOWN, Block, Look, Seen
from stress.compare.pagemap import settle
from stress.compare.steps import parse

SHARED = "0 mmap 0 1024 rw; 0 fork 1; "
HERE, THERE = (0, 0), (0, 3)


def doubted(text, first=HERE, done=True):
    """Blocks in doubt behind the steps, when `first` is from behind the first two on."""
    doubts = Doubts()
    for index, step in enumerate(parse(SHARED + text)):
        doubts.follow(step, done)
        if index == 1:
            doubts.add([first], ("S",), "cow")
    return {place for place in ((task, block) for task in range(3) for block in range(4)) if "S" in doubts.of(place)}


@pytest.mark.parametrize("text, left", [
    ("", {(0, 0), (1, 0)}),
    ("1 fork 2", {(0, 0), (1, 0), (2, 0)}),
    ("0 exit", {(1, 0)}),
    ("0 dontneed 0 512", {(0, 0), (1, 0)}),  # The table may be there on one side only.
    ("0 munmap 0 511", {(0, 0), (1, 0)}),
    ("0 munmap 0 512", {(1, 0)}),
    ("0 mmap 0 1024 rw", {(1, 0)}),
    ("0 mremap 0 512 1536 512", {(0, 3), (1, 0)}),
    ("0 mremap 10 5 1000 5", {(0, 0), (0, 1), (1, 0)}),
    ("0 mremap 512 512 0 512", {(1, 0)}),
])
def test_doubts_follow_the_pages(text, left):
    assert doubted(text) == left


def test_what_was_not_done_clears_nothing():
    assert doubted("0 munmap 0 512", done=False) == {(0, 0), (1, 0)}


@pytest.mark.parametrize("text, blocks", [
    ("0 store 511 2", [(0, 0), (0, 1)]), ("0 mremap 0 1 1535 2", [(0, 0), (0, 2), (0, 3)]), ("0 unpin", []),
    ("1 exit", [(1, 0), (1, 1), (1, 2), (1, 3)]), ("0 mprotect 0 0 r", []),
])
def test_what_a_step_touches(text, blocks):
    assert Doubts().touched(parse(text)[0]) == blocks


def seen(blocks, look, **moved):
    counters = tuple(moved.get(name, 0) for name in LOOKED_AT)
    events = {"wp_huge_copy": 0, "wp_huge_fallback_pages": 0, "empty": 0, "pins": 0, "wp_reuse": 0} | {
        name: number for name, number in moved.items() if name not in LOOKED_AT}
    return Seen(0, counters, {0: look}, events, {0: blocks})


def look(*blocks):
    sums = [sum(block[figure] for block in blocks) for figure in range(4)]
    return Look(*sums, 1024, 5, 6, blocks)


BOTH, OWN, SPLIT = Block(2048, 2048, 2048, 0, 1), Block(2048, 2048, 0, 2048, 1), Block(0, 2048, 2044, 4, 1)
COPIED = "0 mmap 0 1024 rw; 0 store 0 1; 0 store 512 1; 0 store 1 1"


def runs(last_look, **last):
    before = seen("HH..", look(BOTH, BOTH))
    ours = [before, seen("HH..", look(OWN, BOTH), wp_huge_copy=1, thp_fault_alloc=1)]
    theirs = [before, seen("", look(SPLIT, BOTH), thp_split_pmd=1)]
    return ([*ours, seen("HH..", look(OWN, OWN)), seen("HH..", look(OWN, OWN))],
            [*theirs, seen("", look(SPLIT, last_look), **last), seen("", look(SPLIT, last_look), thp_split_pmd=1)])


def test_other_blocks_go_on_being_compared():
    verdict = compare(parse(COPIED), *runs(OWN))
    assert verdict.agree and verdict.skipped["AnonHugePages", "cow"] == 3 and verdict.compared["AnonHugePages"] == 4
    assert verdict.compared["S"] == 2 and verdict.skipped["S", "cow"] == 2
    assert verdict.compared["Rss"] == verdict.compared["data"] == 4
    assert not compare(parse(COPIED), *runs(OWN, thp_split_pmd=1)).agree
    differ = compare(parse(COPIED), *runs(BOTH)).differ
    assert {(fact.step, fact.kind, fact.block) for fact in differ} == {(2, "Shared", 1), (2, "Private", 1)}
    assert "of task 0 in block 1" in str(differ[0])


def test_without_figures_by_block_the_arena_is_passed_over():
    ours, theirs = runs(BOTH)
    theirs = [one._replace(looks={task: look._replace(blocks=()) for task, look in one.looks.items()}) for one in theirs]
    verdict = compare(parse(COPIED), ours, theirs)
    assert verdict.agree and verdict.skipped["Shared", "cow"] == 3


def test_whose_pages_of_huge_blocks_are_is_told_of_one_only():
    wrong = BOTH._replace(shared=0, private=2048)
    assert settle((wrong, SPLIT), 2044 + 2040, 4 + 8)[0][2:4] == (2040, 8)
    assert settle((wrong, wrong, SPLIT), 0, 0)[1][2:4] == (UNKNOWN, UNKNOWN)
    ours, theirs = runs(OWN._replace(shared=UNKNOWN, private=UNKNOWN))
    assert compare(parse(COPIED), ours, theirs).agree
