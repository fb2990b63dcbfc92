"""What is compared: a difference is seen, one that stands in the table is not, and both are counted."""

import pytest

from stress.compare.differences import ALL_BUT_DATA, DIFFERENCES
from stress.compare.facts import KINDS, LETTERS, compare, least
from stress.compare.observed import LOOKED_AT, Look, Seen
from stress.compare.report import describe
from stress.compare.rows import ROWS
from stress.compare.steps import parse

LOOK = Look(2048, 2048, 0, 2048, 512, 1, 2)
EVENTS = {"wp_huge_copy": 0, "wp_huge_fallback_pages": 0, "empty": 0, "pins": 0, "wp_reuse": 0}


def seen(result=0, look=LOOK, blocks="H...", events=(), **moved):
    counters = tuple(moved.get(name, 0) for name in LOOKED_AT)
    return Seen(result, counters, {0: look}, EVENTS | dict(events), {0: blocks})


PROGRAM = parse("0 store 0 512; 0 store 1 1; 0 load 0 1")
SAME = [seen(512, thp_fault_alloc=1), seen(1), seen(1)]


def test_what_agrees_is_counted():
    verdict = compare(PROGRAM, SAME, SAME)
    assert verdict.agree and verdict.compared.total() == 3 * len(KINDS) and not verdict.skipped


@pytest.mark.parametrize("field, kind", [("anon_huge", "AnonHugePages"), ("rss", "Rss"), ("shared", "Shared"),
                                         ("private", "Private"), ("places", "places"), ("data", "data")])
def test_a_look_that_differs_is_found(field, kind):
    other = [*SAME[:1], seen(1, LOOK._replace(**{field: 7})), SAME[2]]
    differ = compare(PROGRAM, SAME, other).differ
    assert [(fact.step, fact.kind, fact.task, fact.kernel) for fact in differ] == [(1, kind, 0, 7)]


@pytest.mark.parametrize("name, kind", [("thp_fault_alloc", "F"), ("thp_split_pmd", "S"), ("thp_split_page", "P"),
                                        ("thp_deferred_split_page", "D"), ("thp_split_page_failed", "failed")])
def test_a_counter_that_differs_is_found(name, kind):
    other = [*SAME[:2], seen(1, **{name: 1})]
    assert [(fact.step, fact.kind) for fact in compare(PROGRAM, SAME, other).differ] == [(2, kind)]


def test_an_error_that_differs_is_found():
    assert [fact.kind for fact in compare(PROGRAM, SAME, [seen(-12, thp_fault_alloc=1), *SAME[1:]]).differ] == ["result"]


def test_somebody_who_is_there_on_one_side_only_is_found():
    extra = [SAME[0]._replace(looks={0: LOOK, 1: LOOK}), *SAME[1:]]
    assert {fact.task for fact in compare(PROGRAM, SAME, extra).differ} == {1}


def test_how_often_a_split_failed_is_not_a_difference():
    ours, theirs = ([*SAME[:2], seen(1, thp_split_page_failed=number)] for number in (1, 3))
    assert compare(PROGRAM, ours, theirs).agree


def test_what_the_table_takes_out_is_passed_over_from_there_on_and_only_there():
    ours = [SAME[0], seen(1, thp_fault_alloc=1, events={"wp_huge_copy": 1}), SAME[2]]
    theirs = [SAME[0], seen(1, LOOK._replace(anon_huge=0), thp_split_pmd=1), seen(1, LOOK._replace(anon_huge=0))]
    verdict = compare(PROGRAM, ours, theirs)
    assert verdict.agree and verdict.skipped["AnonHugePages", "cow"] == 2 and verdict.compared["data"] == 3
    early = [seen(512, LOOK._replace(anon_huge=0), thp_fault_alloc=1), *theirs[1:]]
    assert [fact.step for fact in compare(PROGRAM, ours, early).differ] == [0]
    wrong = [*theirs[:2], seen(1, LOOK._replace(data=9))]
    assert [fact.kind for fact in compare(PROGRAM, ours, wrong).differ] == ["data"]


def test_a_machine_without_huge_pages_to_give_says_nothing_of_them():
    without = LOOK._replace(anon_huge=0)
    theirs = [seen(512, without, thp_fault_fallback=1), seen(1, without), seen(1, without)]
    verdict = compare(PROGRAM, SAME, theirs)
    assert verdict.agree and verdict.skipped["AnonHugePages", "no-huge-page"] == 3 and verdict.compared["data"] == 3
    assert not compare(PROGRAM, SAME, [seen(512, without), *theirs[1:]]).agree, "it did not say that it had none"


def test_a_row_is_compared_by_its_column():
    verdict = compare(PROGRAM, SAME, [SAME[0], seen(1, thp_split_pmd=1), SAME[2]], frozenset(LETTERS["A"]))
    assert verdict.agree and set(verdict.compared) == set(LETTERS["A"])
    assert all(letter in LETTERS for row in ROWS for letter in row.cmp.split())


def test_others_can_only_add_to_counters():
    runs = [[seen(1, thp_fault_alloc=3, thp_split_pmd=1)], [seen(1, thp_fault_alloc=1, thp_split_pmd=4)]]
    assert least(runs)[0].counters[:2] == (1, 1)


def test_every_difference_says_what_and_why():
    assert len({row.id for row in DIFFERENCES}) == len(DIFFERENCES)
    for row in DIFFERENCES:
        assert len(row.what) > 20 and len(row.reason) > 40 and set(row.skips) <= set(KINDS), row.id
    assert set(ALL_BUT_DATA) == set(KINDS) - {"data", "result", "mappings"}


def test_a_difference_is_told_step_by_step():
    detail = LOOK._replace(detail=(bytes(2048), bytes(2048 * 64)))
    other = detail._replace(data=9, detail=(bytes(2048), bytes(2048 * 64 - 64) + b"\1" + bytes(63)))
    ours = [seen(512, detail, thp_fault_alloc=1)]
    theirs = [seen(512, other, thp_fault_alloc=1)]
    text = describe(compare(PROGRAM[:1], ours, theirs), ours, theirs)
    for part in ("data of task 0", "0 store 0 512", "F+1", "page 2047", "blocks H...", "--program '0 store 0 512'"):
        assert part in text


@pytest.mark.parametrize("text, tasks, moved, reason", [
    ("0 free 0 512", 1, "thp_split_page", "free-whole"), ("0 free 0 511", 1, "thp_split_page", ""),
    ("0 free 0 511", 2, "thp_split_page", "free-shared"), ("0 free 0 511", 2, "thp_split_page_failed", "free-failed"),
    ("0 free 0 512", 1, "thp_split_page_failed", ""), ("0 dontneed 0 512", 1, "thp_split_page", ""),
])
def test_what_madv_free_splits_in_v4_20_only(text, tasks, moved, reason):
    """More is not passed over than what the rows say: a whole huge page that a table maps, and shared ones."""
    looks = dict.fromkeys(range(tasks), LOOK)
    before = seen(blocks="t...")._replace(looks=looks)
    ours = seen(blocks="t...", **{moved: 1})._replace(looks=looks)
    verdict = compare(parse(f"0 store 0 1; {text}"), [before, ours], [before, before])
    kind = "P" if moved == "thp_split_page" else "failed"
    assert verdict.agree == bool(reason) and verdict.skipped[kind, reason] == bool(reason)


@pytest.mark.parametrize("last", ["0 drop_caches", "0 free 0 512"])
def test_a_split_fills_in_zero_pages_where_only_the_other_side_has_a_huge_page_mapped_in_part(last):
    """It copied one page of a shared huge page, we copied all of it: only there is something queued, and full of zeroes."""
    program = parse(f"0 store 0 512; 0 store 1 1; {last}")
    ours = [SAME[0], seen(1, events={"wp_huge_copy": 1}), seen(1, events={"empty": 511})]
    ours[1] = ours[1]._replace(events=ours[1].events | {"empty": 511})
    filled = seen(1, LOOK._replace(anon_huge=0, rss=4, private=4), thp_split_page=1)
    theirs = [SAME[0], seen(1, LOOK._replace(anon_huge=0), thp_split_pmd=1), filled]
    verdict = compare(program, ours, theirs)
    assert verdict.agree and verdict.skipped["Rss", "zero-filled-there"] == 1
    undoubted = [SAME[0], SAME[1]._replace(events=ours[1].events | {"wp_huge_copy": 0}), ours[2]]
    assert [fact.kind for fact in compare(program, undoubted, [*SAME[:2], filled]).differ][:2] == ["P", "AnonHugePages"]
    full = [*theirs[:2], seen(1, LOOK._replace(rss=4), thp_split_page=0)]
    assert [fact.kind for fact in compare(program, ours, full).differ] == ["Rss"]


@pytest.mark.parametrize("first, pins, agrees", [
    ("0 dontneed 0 512", 1, True), ("0 dontneed 0 512", 0, False), ("0 dontneed 0 1", 1, False)])
def test_a_pinned_huge_page_that_lost_all_its_mappings_is_only_ours_to_split(first, pins, agrees):
    after = "...." if first.endswith("512") else "t..."
    run = [SAME[0], seen(blocks=after, events={"pins": pins}), seen(blocks=after, events={"pins": pins})]
    ours = [*run[:2], run[2]._replace(counters=seen(thp_split_page_failed=1).counters)]
    verdict = compare(parse(f"0 store 0 512; {first}; 0 drop_caches"), ours, run)
    assert verdict.agree == agrees and verdict.skipped["failed", "K6-failed"] == agrees
    text = describe(verdict, ours, run)
    assert "failed thp_split_page_failed" in text and "failed+1" in text and "returns 0\n" in text


@pytest.mark.parametrize("doubted", [True, False])
def test_what_a_collapse_returns_counts_where_both_had_the_same_small_pages(doubted):
    look = LOOK._replace(mappings=((0, 2048),))
    before = [seen(512, look), seen(1, look, "s...", {"wp_huge_copy": int(doubted)})]
    ours, theirs = ([*before, seen(result, look, "s...")] for result in (-11, 0))
    verdict = compare(parse("0 store 0 512; 0 store 1 1; 0 collapse 0 512"), ours, theirs, frozenset({"result"}))
    assert verdict.agree == doubted and verdict.skipped["result", "collapse-error"] == doubted


@pytest.mark.parametrize("tasks, reused, agrees", [(2, 1, True), (1, 1, False), (2, 0, False)])
def test_a_page_of_ones_own_in_a_huge_page_of_two_is_copied_there(tasks, reused, agrees):
    looks = dict.fromkeys(range(tasks), LOOK)
    before = seen(blocks="t...")._replace(looks=looks)
    ours, theirs = (seen(1, LOOK, "t...", {"wp_reuse": reused}, thp_deferred_split_page=more)._replace(looks=looks)
                    for more in (0, 1))
    verdict = compare(parse("0 store 0 1; 0 store 1 1"), [before, ours], [before, theirs])
    assert verdict.agree == agrees and (verdict.skipped["D", "in-part"] == 1) == agrees
    assert not compare(parse("0 store 0 1; 0 store 1 1"), [before, theirs], [before, ours]).agree, "it is we who reuse it"
