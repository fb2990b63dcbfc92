"""Programs as data: their text, who can run them, random ones, and short ones."""

import pytest

from stress.compare.generate import MOST_STEPS, OPENINGS, WEIGHTS, Drawn, explore, settle
from stress.compare.judge import shorten
from stress.compare.rows import ROWS
from stress.compare.steps import ARENA_PAGES, OPERATIONS, Step, parse, runnable, value_of


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.number} {row.name}")
def test_every_row_reads_back_and_can_be_run(row):
    program = row.program
    assert parse("\n".join(map(str, program))) == program == runnable(program)
    assert bool(row.why_not) != bool(row.cmp) and bool(program) == bool(row.cmp)


def test_all_39_rows_are_there():
    assert {row.number for row in ROWS} == set(range(1, 40))


@pytest.mark.parametrize("text, said", [
    ("0 explode 1 2", "one of mmap, munmap"), ("mmap", "a task's number"), ("0 mmap 1 2", "mmap takes 3 arguments"),
    ("9 exit", "tasks are 0..2"), ("0 store 2047 2", "pages 0..2047"), ("0 load -1 1", "'-1' is not a whole number"),
])
def test_text_that_is_no_program_says_what_is_wrong(text, said):
    with pytest.raises(ValueError, match=said):
        parse(text)


def test_a_comment_and_semicolons():
    assert parse("0 fork 1; 1 exit # gone\n\n0 mprotect 1 2 none") == (
        Step(0, "fork", arg=1), Step(1, "exit"), Step(0, "mprotect", 1, 2, 0))


def test_steps_of_nobody_are_left_out():
    program = parse("1 store 0 1; 0 fork 1; 0 fork 1; 1 exit; 1 load 0 1; 0 exit; 0 load 0 1")
    assert runnable(program) == parse("0 fork 1; 1 exit; 0 exit")


def test_no_two_stores_store_the_same_word():
    words = {value_of(index, page) for index in range(50) for page in range(ARENA_PAGES)}
    assert len(words) == 50 * ARENA_PAGES and 0 not in words


def drawn(number, seed, without=frozenset()):
    programs = []
    explore(number, seed, programs.append, without, shrink=False)
    return programs


def test_random_programs_are_sound_and_come_again_from_their_seed():
    programs = drawn(150, 7)
    assert programs == drawn(150, 7) != drawn(150, 8)
    for program in programs:
        assert len(program) <= MOST_STEPS and runnable(program) == program == parse("\n".join(map(str, program)))
    assert {step.op for program in programs for step in program} >= set(WEIGHTS) - {"mlock", "munlock"}
    assert sum(map(len, programs)) / len(programs) > 10


def test_random_programs_leave_out_what_this_machine_cannot():
    without = frozenset(("drop_caches", "collapse"))
    assert not without & {step.op for program in drawn(150, 7, without) for step in program}


def test_what_was_drawn_goes_to_somebody_alive_and_moves_only_what_is_mapped():
    program = settle(OPENINGS[1], [Drawn("fork", (0, 1), 0, 0, 0, 0), Drawn("exit", (0, 1), 0, 0, 0, 0),
                                   Drawn("store", (5, 1), 0, 0, 0, 0), Drawn("mremap", (500, 20), 0, 0, 1024, 0),
                                   Drawn("mremap", (0, 512), 0, 0, 1024, -12)])
    assert program[3:] == parse("0 fork 1; 0 exit; 1 store 5 1; 1 mremap 0 512 1024 500")


def test_weights_name_operations():
    assert set(WEIGHTS) <= set(OPERATIONS)


def test_shorten_leaves_only_what_is_needed():
    program = parse("0 mmap 0 1024 rw; 0 huge 0 1024; 0 store 0 1024; 0 fork 1; 1 load 0 9; 1 dontneed 3 40; 1 exit")

    def bad(candidate):
        return any(step.op == "fork" for step in candidate) and any(step.op == "dontneed" for step in candidate)

    assert shorten(program, bad) == parse("0 fork 1; 1 dontneed 3 1")
