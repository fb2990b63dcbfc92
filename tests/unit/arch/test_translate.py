"""The kernel language: each statement and expression, native and as plain Python, against what it should be."""

import inspect
from enum import IntEnum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from concur_thp.arch import builtins, native
from concur_thp.arch.builtins import clear_bytes, copy_bytes, ffs64, lsr, prefetchw, smp_mb, wrap_mul
from concur_thp.arch.linker import Kernel, inline, interpreted, kernel
from concur_thp.arch.struct import I8, I16, I32, I64, Struct, atomic, embed, field, signed
from concur_thp.arch.translate import TranslateError
from concur_thp.config import HPAGE_PMD_NR, PMD_MASK
from tests.unit.arch.memory import Memory

LIMIT = 10
DEBUG = False


class Colour(IntEnum):
    RED = 3
    BLUE = 5


class Inner(Struct, size=16):
    a = field(I32, "owner", "a")
    b = atomic(I32, "b")


class Outer(Struct, size=128):
    narrow = field(I8, "owner", "one byte")
    half = field(I16, "owner", "two bytes")
    word = field(I32, "owner", "four bytes")
    wide = field(I64, "owner", "eight bytes")
    count = atomic(I64, "an atomic word")
    small = atomic(I32, "a narrow atomic word")
    items = field(I16, "owner", "an array", count=4)
    inner = embed(Inner, "structs", count=2)
    one = embed(Inner, "a struct")
    wide_again = field(I64, "owner", "the same place", overlay="wide")


@pytest.fixture
def outer():
    with Memory(Outer) as pointer:
        yield pointer


@kernel
def branches(n: int):
    if n < 0:
        return -1
    elif n == 0:
        return 0
    else:
        pass
    return 1


@kernel
def loops(n: int):
    total = 0
    for i in range(n):
        if i == 3:
            continue
        if i == LIMIT:
            break
        total += i
    for i in range(n, 0, -2):
        total += 100 * i
    for i in range(2, 5):
        i = i + 1000  # The loop variable is a copy, as in Python.
        total += i
    while total & 1 == 0 and total > 0:
        total //= 2
    return total


@kernel
def conditions(a: int, b: int):
    return ((a and b) + 10 * (a or b) + (100 if not a else 200) + 1000 * (a in (1, 2, Colour.BLUE))
            + 10_000 * (b not in (1, 2)) + 100_000 * (0 < a < b) + 1_000_000 * (a == b) + 10_000_000 * min(a, b)
            + 100_000_000 * max(a, b) + 1_000_000_000 * int(bool(a)))


@kernel
def constants(n: int):
    if DEBUG:
        undefined_when_not_debugging(n)  # noqa: F821
    return (HPAGE_PMD_NR * 2 if n else HPAGE_PMD_NR) + (PMD_MASK & 0xFFFF_FFFF) + Colour.RED


@kernel
def assigned_on_one_path(n: int):
    if n:
        x = 5
    else:
        x = 7
    y: int = x
    return y


@kernel
def fields(o: Outer, n: int):
    o.narrow = n
    o.half = n
    o.word = n
    o.wide = n
    o.items[n & 3] = n
    o.items[n & 3] += 1
    o.one.a = n
    p = o.inner[n & 1]
    p.a -= n
    return o.narrow + o.half + o.word + o.wide_again + o.items[n & 3] + o.one.a + p.a


@kernel
def atomics(o: Outer, n: int):
    was = o.count.add(n)
    was += o.count.sub(1)
    was += o.count.or_(0xF0)
    was += o.count.and_(0x7F)
    was += o.count.xchg(n)
    was += o.count.cas(n, n + 1)
    was += o.count.cas(n, n + 2)
    o.small.store(n)
    was += o.small.add(1)
    o.small.write(o.small.load() + o.small.read())
    o.inner[1].b.store(was)
    smp_mb()
    return was * 1000 + o.small.load() + o.inner[1].b.read() + o.count.load()


@inline
def twice(n: int):
    if n > 100:
        return 2 * n + 1
    return 2 * n


@inline
def second(o: Outer) -> Inner:
    return o.inner[1]


@kernel
def even(n: int):
    return 1 if n == 0 else odd(n - 1)


@kernel
def odd(n: int):
    return 0 if n == 0 else even(n - 1)


@kernel
def calls(o: Outer, n: int):
    smaller(n=n, o=o)
    p = Outer(0)
    if n > 3:
        p = o
    return twice(n) + twice(n + 100) + even(n) * 1000 + second(o).a + (7 if p else 0) + Outer(int(o)).word


@kernel
def smaller(o: Outer, n: int):
    o.word = n - 1
    second(o).a = n


@kernel
def bits(a: int, n: int):
    return ffs64(a) + lsr(a, n) + wrap_mul(a, n)


@kernel
def bulk(o: Outer, n: int):
    o.wide = n
    prefetchw(o)
    prefetchw(n)
    copy_bytes(int(o) + 8, o, 8)
    clear_bytes(o, 8)
    return o.wide


@pytest.mark.parametrize("number", [-9, -1, 0, 1, 2, 3, 11, 14])
@pytest.mark.parametrize("function", [branches, loops, constants, assigned_on_one_path], ids=lambda f: f.name)
def test_a_function_of_one_number_is_the_same_both_ways(function, number):
    assert both(function, number) == function.function(number)


@pytest.mark.parametrize("a, b", [(0, 0), (0, 5), (1, 0), (1, 2), (2, 2), (5, 9), (-3, 4), (4, -3)])
def test_conditions_give_what_python_gives(a, b):
    assert both(conditions, a, b) == conditions.function(a, b)


@pytest.mark.parametrize("number", [0, 1, 2, 5, 127, 128, -1, 70_000, 1 << 40])
@pytest.mark.parametrize("function", [fields, atomics, calls, bulk], ids=lambda f: f.name)
def test_a_function_on_a_struct_leaves_the_same_memory_both_ways(function, number, outer):
    if function is calls:
        number &= 127
    results = []
    for way in ("native", "interpreted"):
        clear_bytes(outer, Outer.SIZE)
        results.append((run(way, function, outer, number), bytes(outer_bytes(outer))))
    assert results[0] == results[1]


def test_narrow_fields_keep_their_low_bits_with_sign(outer):
    native_of(fields)(outer, 0x1_8081)
    assert (outer.narrow, outer.half, outer.word) == (-127, signed(0x8081, 2), 0x1_8081)


def outer_bytes(pointer):
    import ctypes

    return (ctypes.c_char * Outer.SIZE).from_address(int(pointer))


WORDS = st.integers(-(1 << 63), (1 << 63) - 1)
SMALL = st.integers(-50, 50)
OPERATORS = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "and": lambda a, b: a & b,
    "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b, "floordiv": lambda a, b: a // b, "mod": lambda a, b: a % b,
    "neg": lambda a, b: -a, "invert": lambda a, b: ~a, "lt": lambda a, b: a < b, "ge": lambda a, b: a >= b,
}


@kernel
def op_add(a: int, b: int):
    return a + b


@kernel
def op_sub(a: int, b: int):
    return a - b


@kernel
def op_mul(a: int, b: int):
    return a * b


@kernel
def op_and(a: int, b: int):
    return a & b


@kernel
def op_or(a: int, b: int):
    return a | b


@kernel
def op_xor(a: int, b: int):
    return a ^ b


@kernel
def op_floordiv(a: int, b: int):
    return a // b


@kernel
def op_mod(a: int, b: int):
    return a % b


@kernel
def op_neg(a: int, b: int):
    return -a


@kernel
def op_invert(a: int, b: int):
    return ~a


@kernel
def op_lt(a: int, b: int):
    return a < b


@kernel
def op_ge(a: int, b: int):
    return a >= b


@kernel
def op_shl(a: int, b: int):
    return a << b


@kernel
def op_shr(a: int, b: int):
    return a >> b


@pytest.mark.parametrize("name", OPERATORS)
@given(a=WORDS | SMALL, b=WORDS | SMALL)
@settings(max_examples=60, deadline=None)
def test_arithmetic_wraps_and_division_floors(name, a, b):
    function = globals()[f"op_{name}"]
    if name in ("floordiv", "mod") and (b == 0 or (a, b) == (-(1 << 63), -1)):
        return
    expected = signed(int(OPERATORS[name](a, b)))
    assert both(function, a, b) == expected


@given(a=WORDS | SMALL, n=st.integers(0, 63))
@settings(max_examples=100, deadline=None)
def test_shifts(a, n):
    assert both(op_shl, a, n) == signed(a << n)
    assert both(op_shr, a, n) == a >> n
    assert both(bits, a, n) == signed(ffs64(a) + ((a % (1 << 64)) >> n) + signed(a * n))


def refused(function, text):
    """Compiling `function` fails with a message that names the file and the line marked `# here`."""
    entry = Kernel(function)
    Kernel.all.pop()
    lines, first = inspect.getsourcelines(function)
    line = first + next(n for n, row in enumerate(lines) if "# here" in row)
    with pytest.raises(TranslateError, match=text) as caught:
        native.compile_object(entry, "k.refused")
    assert str(caught.value).startswith(f"{__file__}:{line}: {function.__name__}: ")


def test_what_the_language_does_not_have_is_refused_with_its_line():
    def with_try(a: int):
        a += 1
        try:  # here
            return a
        finally:
            pass

    def with_list(a: int):
        b = [a]  # here
        return b

    def with_division(a: int):
        return a / 2  # here

    def with_unknown_name(a: int):
        return a + nowhere  # here  # noqa: F821

    def with_python_function(a: int):
        return len(a)  # here

    def with_text(a: int):
        b = "text" + 1.5  # here
        return b

    def with_two_targets(a: int):
        b = c = a  # here
        return b + c

    def with_loop_over_list(a: int):
        for i in (1, 2):  # here
            a += i
        return a

    def with_loop_else(a: int):
        while a:  # here
            a -= 1
        else:
            a = 5
        return a

    for function in (with_try, with_list, with_division, with_unknown_name, with_python_function, with_text,
                     with_two_targets, with_loop_over_list, with_loop_else):
        refused(function, ".")


def test_types_are_checked():
    def changes_type(o: Outer):
        p = o
        p = 3  # here
        return p

    def no_such_field(o: Outer):
        return o.nothing  # here

    def atomic_as_plain(o: Outer):
        o.count = 3  # here

    def plain_as_atomic(o: Outer):
        return o.word.add(1)  # here

    def array_as_word(o: Outer):
        o.items = 3  # here

    def wrong_pointer(o: Outer):
        return smaller(o.one, 1)  # here

    def missing_argument(o: Outer):
        return smaller(o)  # here

    refused(changes_type, "p was Outer, is now int")
    refused(no_such_field, "Outer has no field nothing")
    refused(atomic_as_plain, "use its methods")
    refused(plain_as_atomic, "not an atomic field")
    refused(array_as_word, "assign to an element")
    refused(wrong_pointer, "o must be Outer, is Inner")
    refused(missing_argument, r"smaller takes \(o, n\)")


def test_what_would_be_evaluated_twice_is_refused():
    def increment(o: Outer):
        o.items[o.count.add(1)] += 1  # here

    def chain(o: Outer, n: int):
        return 0 < n < o.count.add(1)  # here

    refused(increment, "evaluated twice")
    refused(chain, "write `and`")


@kernel
def four_updates(o: Outer):
    return o.count.add(1) + o.count.cas(1, 2) + o.count.xchg(3) + o.count.load()


@pytest.mark.parametrize("full", [True, False])
def test_an_update_is_a_full_barrier_also_where_it_is_not_one_by_itself(full, monkeypatch):
    """aarch64 without LSE: the comments in mm/ count on it (anon_vma_free, page_lock_anon_vma_read)."""
    monkeypatch.setattr(builtins, "FULL_RMW", full)
    lines = str(native.UNITS[native.PLAIN](four_updates, "f").module).splitlines()
    updates = [n for n, line in enumerate(lines) if "atomicrmw" in line or "cmpxchg" in line]
    fences = [n for n, line in enumerate(lines) if "fence seq_cst" in line]
    assert len(updates) == 3 and len(fences) == (0 if full else 3)
    assert all(0 < fence - update <= 2 for update, fence in zip(updates, fences, strict=False))


def native_of(function):
    """The kernel function, linked."""
    native.link([function, even, odd, smaller])
    return function


def run(way, function, *args):
    if way == "native":
        return int(native_of(function)(*args))
    with interpreted():
        return int(function(*args))


def both(function, *args):
    """The result, the same native and interpreted."""
    results = {run("native", function, *args), run("interpreted", function, *args)}
    assert len(results) == 1, f"{function.name}{args}: native and interpreted differ: {results}"
    return results.pop()
