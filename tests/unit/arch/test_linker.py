"""Declaring and calling kernel functions."""

import pytest

from concur_thp.arch import native
from concur_thp.arch.builtins import text_id
from concur_thp.arch.linker import SLOTS, defines, interpreted, kernel, texts, weak
from concur_thp.arch.struct import I64, Struct, field
from tests.unit.arch.memory import Memory


class Box(Struct, size=16):
    value = field(I64, "owner", "a value")
    text = field(I64, "owner", "number of a text")


@kernel
def put(box: Box, value: int, text: int):
    """Context: any. Emulator: for tests."""
    box.value = value
    box.text = text
    return box.value * 2


@kernel
def say(box: Box):
    put(box, 3, "a message of the linker's test")


@kernel
def where(box: Box) -> Box:
    return box


@pytest.fixture
def box():
    native.link([put, say, where])
    with Memory(Box) as pointer:
        yield pointer


def test_arguments_go_by_position_or_name(box):
    assert put(box, 5, 6) == 10 == put(box, text=6, value=5)
    with interpreted():
        assert put(box, text=6, value=5) == 10
    assert (box.value, box.text) == (5, 6)


def test_texts_become_numbers_and_come_back(box):
    say(box)
    assert box.text == text_id("a message of the linker's test")
    assert texts()[box.text] == "a message of the linker's test"
    put(box, 1, "a message of the linker's test")
    assert box.text == text_id("a message of the linker's test")


def test_a_pointer_comes_back_as_its_address(box):
    assert int(where(box)) == int(box)
    with interpreted():
        assert where(int(box)) == box


def test_interpreted_runs_python_and_leaves_the_slots(box, monkeypatch):
    address = SLOTS[put.slot]
    calls = []
    function = put.function
    monkeypatch.setattr(put, "function", lambda *args: calls.append(args) or function(*args))
    put(box, 1, 2)
    assert not calls
    with interpreted():
        say(box)
    assert len(calls) == 1 and SLOTS[put.slot] == address == put.address


def test_a_weak_function_is_defined_by_a_higher_layer():
    @weak
    def lower(value: int):
        """Without the higher layer: nothing is done."""
        return value

    @kernel
    def caller(value: int):
        return lower(value) + 1

    native.link([lower, caller])
    assert caller(5) == 6

    @defines(lower)
    def higher(value: int):
        return value * 10

    assert higher is lower
    native.link([lower, caller])
    assert caller(5) == 51 == caller.interpret(5)


def test_a_weak_function_keeps_its_parameters_and_is_defined_once():
    @weak
    def lower(box: Box):
        return 0

    with pytest.raises(TypeError, match="other parameters"):

        @defines(lower)
        def other(box: int):
            return 0

    with pytest.raises(TypeError, match="not declared @weak"):
        defines(put)

    @weak
    def once(value: int):
        return 0

    @defines(once)
    def first(value: int):
        return 1

    with pytest.raises(TypeError, match="defined already"):

        @defines(once)
        def second(value: int):
            return 2
