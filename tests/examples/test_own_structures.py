"""Structures of one's own under the same harness: a ring buffer and a stack without locks, between processes.

What is declared with Struct lies in the machine's shared memory. What is @kernel is compiled, and in controlled runs there is a
point before each statement of it that touches shared memory: a CPU can be stopped there and another one let go on. So an
order of statements that is wrong is found, by a schedule that shows it.

Controlled runs are sequentially consistent: one CPU moves at a time, and what it wrote everybody sees. An order that is
right in the source but is missing a barrier is not found here; free runs (`machine.run()`) meet the processor's real memory.
"""

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import I64, Struct, atomic, field

SLOTS = 2


class Ring(Struct, align=64):
    """One producer, one consumer."""

    head = atomic(I64, "items taken so far; written by the consumer")
    tail = atomic(I64, "items put so far; written by the producer")
    slot = field(I64, "owner", "the items between head and tail", count=SLOTS)


class Node(Struct, size=64):
    """An element of the stack; 0 is none."""

    next = field(I64, "owner", "the one below it")


class Stack(Struct, align=64):
    """Treiber's stack. `top` is a node, or with a count above it where ABA matters."""

    top = atomic(I64, "node | pops << 32")


ring = SharedOne("example_ring", Ring)
stack = SharedOne("example_stack", Stack)
nodes = SharedArray("example_nodes", Node, lambda config: 4)
NODE = (1 << 32) - 1


@kernel
def put(cpu: Cpu, item: int):
    """Put an item into the ring; 0 when it is full. The item stands in its slot before `tail` says so."""
    tail = ring.tail.load()
    if tail - ring.head.load() == SLOTS:
        return 0
    ring.slot[tail & (SLOTS - 1)] = item
    ring.tail.store(tail + 1)
    return 1


@kernel
def put_published_early(cpu: Cpu, item: int):
    """The same two statements the wrong way round."""
    tail = ring.tail.load()
    if tail - ring.head.load() == SLOTS:
        return 0
    ring.tail.store(tail + 1)
    ring.slot[tail & (SLOTS - 1)] = item
    return 1


@kernel
def take(cpu: Cpu):
    """Take the oldest item; -1 when there is none."""
    head = ring.head.load()
    if head == ring.tail.load():
        return -1
    item = ring.slot[head & (SLOTS - 1)]
    ring.head.store(head + 1)
    return item


@kernel
def push(cpu: Cpu, node: int):
    """Put a node on top, again and again until nobody came between."""
    while True:
        top = stack.top.load()
        nodes[node].next = top & NODE
        if stack.top.cas(top, (top & ~NODE) | node) == top:
            return


@kernel
def push_once(cpu: Cpu, node: int):
    """As if nobody could come between."""
    top = stack.top.load()
    nodes[node].next = top & NODE
    stack.top.store((top & ~NODE) | node)


@kernel
def pop(cpu: Cpu):
    """Take the top node; 0 when there is none. Counted, so that a node that was away and is back is not taken for itself."""
    while True:
        top = stack.top.load()
        node = top & NODE
        if node == 0:
            return 0
        below = nodes[node].next
        if stack.top.cas(top, ((top & ~NODE) + (1 << 32)) | below) == top:
            return node


@kernel
def pop_uncounted(cpu: Cpu):
    """The node on top is the same again, and so nothing can have happened: ABA."""
    while True:
        top = stack.top.load()
        node = top & NODE
        if node == 0:
            return 0
        below = nodes[node].next
        if stack.top.cas(top, below) == top:
            return node


def produce_and_consume(machine, put_one):
    """Three items through a ring of two; the consumer must see them whole and in order."""

    @machine.program
    def producer(cpu):
        for item in (11, 22, 33):
            put_one(cpu, item)

    @machine.program
    def consumer(cpu):
        seen = [item for _ in range(4) if (item := take(cpu)) != -1]
        assert seen == [11, 22, 33][:len(seen)], seen


def pushers(machine, push_one):
    """Two CPUs push a node each; `check` for what must be there afterwards."""
    machine.program(lambda cpu: push_one(cpu, 1), name="one")
    machine.program(lambda cpu: push_one(cpu, 2), name="two")

    def check(cpu):
        top = stack.top.load() & NODE
        assert {top, nodes[top].next} == {1, 2}

    return check


def poppers(machine, pop_one):
    """One CPU pops; another pops two and puts the first of them back. Nobody else may have what it holds."""
    for node in (2, 1):
        push(machine.cpu(0), node)

    @machine.program
    def single(cpu):
        pop_one(cpu)

    @machine.program
    def juggler(cpu):
        first, second = pop_one(cpu), pop_one(cpu)
        if second:
            push(cpu, first)  # Node 1; this CPU keeps node 2.

    def check(cpu):
        assert stack.top.load() & NODE in (0, 1), "a node that was taken is in the stack"

    return check


@pytest.mark.explore(strategy="pct", depth=3, schedules=3000)
def test_the_ring_is_right(machine):
    produce_and_consume(machine, put)


@pytest.mark.explore(strategy="dfs", depth=2, schedules=20_000)
def test_the_ring_is_right_whatever_two_preemptions_do(machine):
    produce_and_consume(machine, put)


def test_published_before_it_is_written(machine):
    produce_and_consume(machine, put_published_early)
    failure = machine.explore(strategy="pct", depth=2, schedules=3000, shrink_seconds=100).failure
    assert failure.kind == "raised" and failure.symptom.startswith("consumer: AssertionError") and failure.preemptions == 1
    # The producer was stopped before the store to the slot; the consumer took what was not there.
    assert "stopped before: ring.slot[tail" in failure.chart and "take()" in failure.chart


def test_a_push_without_retry_loses_a_node(machine):
    check = pushers(machine, push_once)
    failure = machine.explore(strategy="pct", depth=2, schedules=1000, check=check, shrink_seconds=100).failure
    assert failure.kind == "raised" and failure.preemptions == 1 and "stack.top.store" in failure.chart


def test_a_push_with_retry_loses_none(machine):
    check = pushers(machine, push)
    explored = machine.explore(strategy="dfs", depth=3, schedules=50_000, check=check).check()
    assert explored.exhausted


def test_aba(machine):
    check = poppers(machine, pop_uncounted)
    failure = machine.explore(strategy="pct", depth=3, schedules=20_000, check=check, shrink_seconds=100).failure
    assert failure.kind == "raised" and "in the stack" in failure.symptom
    assert "pop_uncounted" in failure.chart and failure.preemptions <= 2


def test_a_counted_pop_is_not_fooled(machine):
    check = poppers(machine, pop)
    machine.explore(strategy="pct", depth=3, schedules=5000, check=check).check()
