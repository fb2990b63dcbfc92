"""CPUs as stacks: there and back, each with its own locals, and a stack that is left is laid out anew."""

from concur_thp.arch import native
from concur_thp.arch.linker import kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.stack import lay_out_stack, link_stacks, new_stack, switch_stack
from concur_thp.arch.struct import I64, Struct, field
from concur_thp.machine import Machine


class Place(Struct, size=64):
    """Where a stack stands."""

    pointer = field(I64, "owner", "its stack pointer")
    top = field(I64, "owner", "its high end")
    total = field(I64, "owner", "what it counted")


places = SharedArray("test_stack_places", Place, lambda c: 4)


@kernel
def counts(number: int):
    """Emulator: the body of a stack: counts in a local, and gives way after each count."""
    total = 0
    while True:
        total += number
        places[number].total = total
        switch_stack(int(places[number]), places[0].pointer)


@kernel
def prepare_stack(number: int, body: int):
    """Emulator: a stack that will call body(number)."""
    places[number].pointer = lay_out_stack(places[number].top, body, number)


@kernel
def go_on(number: int):
    """Emulator: let a stack run until it gives way."""
    switch_stack(int(places[0]), places[number].pointer)


def test_stacks_keep_their_locals_and_can_be_begun_again():
    with Machine(cpus=1, memory="1M", order=3, mms=4, vmas=64):
        native.link([counts, prepare_stack, go_on])
        link_stacks()
        for number in (1, 2):
            places[number].top = new_stack()
            prepare_stack(number, counts.address)
        for _ in range(3):
            go_on(1)
            go_on(2)
        go_on(2)
        assert (places[1].total, places[2].total) == (3, 8)
        prepare_stack(1, counts.address)
        go_on(1)
        assert (places[1].total, places[2].total) == (1, 8)
