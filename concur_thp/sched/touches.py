"""What each step of a run touches, for DPOR: words of memory, and futexes, with who reads and who writes.

A step is what a CPU runs between two points. Two steps conflict when both touch a word, unless they commute: both only
read, or both only add, or set bits, or clear bits, without asking what was there before. The traced build says each
access but those to fields that never change (`const`) or belong to one CPU alone (`cpu`). Added here:

- futex_wait() and futex_wake() write a word of their own for each address: who sleeps decides whom a wake-up finds.
  A CPU that was woken reads it with its next step.
- An IPI arrives between two steps of a CPU and changes what it has in its TLB: a step that uses the TLB reads its CPU's
  ipi_bits. With more than two CPUs each step does (dpor.py says why).
"""

from concur_thp.arch.checked import FENCE, KIND, UNASKED
from concur_thp.arch.cpu import NR_LOCK_CLASSES, Cpu, cpus
from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import I64, Struct, field
from concur_thp.config import NR_CPUS
from concur_thp.sched.state import sched
from concur_thp.sched.waiting import control_wait, control_wake
from concur_thp.sync.lockdep import DepClass, dep_classes

MOST_TOUCHES = 1 << 18
FUTEX = 1 << 45
"""Bit of a key: the sleepers on this word, not the word."""
NOT_A_CONFLICT = NR_LOCK_CLASSES * DepClass.SIZE
"""Bytes of `dep_classes`. lockdep remembers there which orders of locks it has found lawful: bits are only added, and read
only to see whether to ask again or to object, never what to do next. Whichever of two orders comes second is objected to."""
READ, ADD, OR, AND, WRITE = 1, 2, 3, 4, 5
"""Ways to touch half a word. Each but WRITE commutes with itself, none with another."""
WAYS = WRITE + 1
LOW, BOTH = 1, 17
"""Where in a Touch the way of the low half stands, and of both."""
KIND_LOAD, KIND_READ, KIND_ADD, KIND_SUB, KIND_OR, KIND_AND = (KIND[k] for k in ("load", "read", "add", "sub", "or_", "and_"))


class Touch(Struct, size=8):
    """A word of 8 bytes that a step touches."""

    value = field(I64, "owner", "key << 8 | way of the high half << 4 | way of the low half")


class Touches(Struct, align=64):
    """Where the lists are."""

    top = field(I64, "owner", "first free place")
    began = field(I64, "owner", "first place of the list of the step under way")
    noting = field(I64, "owner", "1 while steps are written down; those of a path that is followed are known")
    overflow = field(I64, "owner", "1 when there was no place for a touch: nothing is proved any more")


touches = SharedOne("sched_touching", Touches)
touch_list = SharedArray("sched_touches", Touch, lambda c: MOST_TOUCHES if c.controlled else 1)
sleeps_on = SharedArray("sched_sleeps_on", Touch, lambda c: NR_CPUS)
"""By CPU: the address it sleeps on, or slept on until it was woken; 0 once it has gone on."""


@inline
def add_touch(key: int, ways: int):
    """Into the list of the step under way, once for each word."""
    at = touches.began
    while at < touches.top and touch_list[at].value >> 8 != key:
        at += 1
    if at < touches.top:
        had = touch_list[at].value & 255
        touch_list[at].value = (key << 8) | (mixed(had >> 4, ways >> 4) << 4) | mixed(had & 15, ways & 15)
    elif at < MOST_TOUCHES:
        touch_list[at].value = (key << 8) | ways
        touches.top = at + 1
    else:
        touches.overflow = 1


@inline
def mixed(had: int, way: int):
    """Touched in two ways is written, for who asks."""
    if had == 0 or had == way:
        return way
    return had if way == 0 else WRITE


@inline
def way_of(kind: int):
    """How an access of this kind touches."""
    plain = kind & 15
    if plain == KIND_LOAD or plain == KIND_READ:
        return READ
    if kind & UNASKED != 0:
        if plain == KIND_ADD or plain == KIND_SUB:
            return ADD
        return OR if plain == KIND_OR else AND
    return WRITE


@kernel
@quiet
def touch(cpu: int, address: int, width: int, kind: int, site: int):
    """access_hook() of DPOR.

    Context: before the access, one CPU at a time.
    Emulator: what DPOR knows of a step.
    """
    offset = address - int(dep_classes[0])
    if touches.noting == 0 or kind & FENCE != 0 or (offset >= 0 and offset < NOT_A_CONFLICT):
        return 0
    own = address - int(cpus[sched.current])
    if own >= TLB_BEGIN and own < TLB_END:  # Its own words; but when an IPI comes matters.
        add_touch((address - own + IPI_BITS) >> 3, READ * BOTH)
        return 0
    way = way_of(kind)
    key = address >> 3
    if width <= 4:
        add_touch(key, way << (address & 4))
    else:
        while key <= (address + width - 1) >> 3:
            add_touch(key, way * BOTH)
            key += 1
    return 0


@kernel
@quiet
def touching_wait(address: int, expected: int):
    """futex_wait() under DPOR.

    Context: as futex_wait().
    Emulator: reads the word, and changes who sleeps.
    """
    if touches.noting:
        add_touch(address >> 3, READ * BOTH)
        add_touch(FUTEX | address >> 2, WRITE * BOTH)
    sleeps_on[sched.current].value = address
    control_wait(address, expected)


@kernel
@quiet
def touching_wake(address: int, count: int):
    """futex_wake() under DPOR.

    Context: as futex_wake().
    Emulator: changes who sleeps.
    """
    if touches.noting:
        add_touch(FUTEX | address >> 2, WRITE * BOTH)
    control_wake(address, count)


@inline
def touch_first(number: int):
    """What a step touches by beginning: the requests to its CPU, and the wake-up it owes its life to."""
    if touches.noting:
        if sched.nr > 2 and cpus[number].irq_off == 0:
            add_touch((int(cpus[number]) + IPI_BITS) >> 3, READ * BOTH)
        if sleeps_on[number].value != 0:
            add_touch(FUTEX | sleeps_on[number].value >> 2, READ * BOTH)
    sleeps_on[number].value = 0


@inline
def conflict(a: int, b: int):
    """Do two ways of touching half a word not commute?"""
    return a != 0 and b != 0 and (a != b or a == WRITE)


@inline
def meet(a: int, a_end: int, b: int, b_end: int, reads: int):
    """Does a step of touches a .. a_end-1 conflict with one of b .. b_end-1? Without `reads`: by a write of the first."""
    for i in range(a, a_end):
        x = touch_list[i].value
        for k in range(b, b_end):
            y = touch_list[k].value
            if x >> 8 == y >> 8:
                if conflict(x & 15, y & 15) and (reads != 0 or x & 15 != READ):
                    return 1
                if conflict((x >> 4) & 15, (y >> 4) & 15) and (reads != 0 or (x >> 4) & 15 != READ):
                    return 1
    return 0


IPI_BITS, TLB_BEGIN, TLB_END = (Cpu.FIELDS[name].offset for name in ("ipi_bits", "context", "flushes"))
