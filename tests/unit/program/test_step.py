"""Steps as text, as JSON and as words; what is wrong is said in one line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concur_thp.config import PAGE_SIZE, Param
from concur_thp.errors import Misuse
from concur_thp.program.step import Pages, Step, address, base_address, parse_program, print_program
from concur_thp.program.table import LIMITS, STEP_TABLE, WORDS, StepOp

SMALL = st.integers(0, 1000)
PAGES = st.builds(Pages, SMALL, SMALL, SMALL, SMALL)


@st.composite
def steps(draw):
    row = draw(st.sampled_from(STEP_TABLE))
    arguments = []
    for kind in row.arguments:
        if kind in ("page", "pages"):
            arguments.append(draw(PAGES))
        elif kind in WORDS:
            arguments.append(draw(st.sampled_from(sorted(WORDS[kind]))))
        else:
            arguments.append(draw(st.integers(0, LIMITS.get(kind, 1 << 62) - 1)))
    return Step(row.op, tuple(arguments), draw(st.sampled_from(["", "got", "a_1"])))


@pytest.fixture(params=[3, 9])
def order(request, monkeypatch):
    monkeypatch.setattr(Param, "order", request.param)
    return request.param


@given(st.lists(steps(), max_size=5))
def test_a_program_survives_printing_and_json(program):
    assert list(parse_program(print_program(program))) == program
    assert [Step.from_json(step.json) for step in program] == program


def test_places_follow_the_order(order):
    block = 1 << order
    assert int(Pages.parse("2h+4e+1")) == 2 * block + block // 2 + 1
    assert int(Pages.parse("1g")) * PAGE_SIZE == base_address()  # programs begin where the second PMD table does
    assert address(Pages.parse("0")) == base_address()
    assert Step.parse("map 1h 3 rw").words() == [base_address() + block * PAGE_SIZE, 3 * PAGE_SIZE, 3]


def test_a_block_of_four_pages_has_no_eighths(monkeypatch):
    monkeypatch.setattr(Param, "order", 2)
    assert int(Pages.parse("1h+1")) == 5
    with pytest.raises(Misuse, match="no eighths"):
        int(Pages.parse("1e"))


def test_lines_semicolons_and_comments():
    program = parse_program("enter 0; store 1h 0x10   # first\n\n  got: load 1h\n# nothing\n")
    assert [step.op for step in program] == [StepOp.enter, StepOp.store, StepOp.load]
    assert program[1].arguments[1] == 16 and program[2].label == "got"


@pytest.mark.parametrize("text, said", [
    ("jump 3", "there is no step 'jump'"), ("load", "write load <page>"), ("load 1 2", "write load <page>"),
    ("load x", "no number of pages"), ("load 1h+", "no number of pages"), ("load -1", "no number of pages"),
    ("map 0 1h wr", "'wr' is no prot; write one of none, ro, rw"), ("enter 8", "a number from 0 to 7"),
    ("store 0 -1", "is no number"), ("store 0 x", "is no number"), ("Got it: load 0", "a label is a name"),
    (": load 0", "a label is a name"),
])
def test_bad_steps_say_what_to_write(text, said):
    with pytest.raises(Misuse, match=said):
        parse_program(text)
