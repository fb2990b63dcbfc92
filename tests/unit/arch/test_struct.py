"""Struct layout, overlays, and the interpreted access."""

import pytest

from concur_thp.arch import struct
from concur_thp.arch.native import link
from concur_thp.arch.struct import I8, I16, I32, I64, Struct, atomic, embed, field, signed
from tests.unit.arch.memory import Memory


class Small(Struct, size=4, align=4):
    value = atomic(I32, "a word")


class Mixed(Struct, size=64):
    a = field(I8, "owner", "first")
    b = field(I32, "owner", "aligned to 4")
    c = field(I16, "owner", "behind b")
    d = field(I64, "owner", "aligned to 8")
    e = field(I16, "owner", "an array", count=3)
    f = embed(Small, "structs", count=2)
    over_d = field(I32, "owner", "the low half of d", overlay="d")
    count = atomic(I64, "atomic")


def test_fields_are_aligned_and_overlays_share_their_place():
    offsets = {name: f.offset for name, f in Mixed.FIELDS.items()}
    assert offsets == {"a": 0, "b": 4, "c": 8, "d": 16, "e": 24, "f": 32, "over_d": 16, "count": 40}
    assert Mixed.SIZE == 64 and Small.SIZE == 4
    with Memory(Mixed) as m:
        m.d = (7 << 32) | 5
        assert m.over_d == 5
        m.over_d = -1
        assert m.d == (7 << 32) | 0xFFFFFFFF


class Apart(Struct):
    read = field(I64, "const", "what everybody reads")
    lock = embed(Small, "what its holder writes", apart=True)
    guarded = field(I64, "owner", "beside its lock")
    count = atomic(I64, "what all write", apart=True)


def test_what_is_apart_shares_no_cache_line_with_what_is_before_it():
    assert {name: f.offset for name, f in Apart.FIELDS.items()} == {"read": 0, "lock": 128, "guarded": 136, "count": 256}
    assert Apart.SIZE == 384


def test_a_struct_too_large_for_its_size_is_refused():
    with pytest.raises(TypeError, match="needs 72 bytes, declared 64"):
        type("TooBig", (Struct,), {"w": field(I64, "owner", "words", count=9)}, size=64)


def test_an_overlay_must_be_aligned():
    with pytest.raises(TypeError, match="not aligned"):
        type("Crooked", (Struct,), {"a": field(I32, "owner", "a"), "b": field(I32, "owner", "b"),
                                    "c": field(I64, "owner", "c", overlay="b")})


def test_arrays_and_embedded_structs_lie_behind_each_other():
    with Memory(Mixed) as m:
        for i in range(3):
            m.e[i] = -i
        assert [m.e[i] for i in range(3)] == [0, -1, -2]
        assert int(m.f[1]) - int(m.f[0]) == 4 and int(m.f[0]) == int(m) + 32


def test_plain_and_atomic_are_not_mixed_up():
    with Memory(Mixed) as m:
        with pytest.raises(TypeError, match="use its methods"):
            m.count = 3
        with pytest.raises(AttributeError):
            m.d.add(1)


@pytest.mark.parametrize("native", [False, True], ids=["alone", "with_native_code"])
def test_atomics_return_the_old_value(native, monkeypatch):
    link([])
    if not native:
        monkeypatch.setattr(struct, "native_cas", {})
    with Memory(Mixed) as m:
        steps = [m.count.add(5), m.count.sub(2), m.count.or_(8), m.count.and_(9), m.count.xchg(4), m.count.cas(4, 6),
                 m.count.cas(4, 7), m.count.load()]
        assert steps == [0, 5, 3, 11, 9, 4, 6, 6]
        m.f[0].value.store(0x7FFF_FFFF)
        assert m.f[0].value.add(1) == 0x7FFF_FFFF and m.f[0].value.load() == -0x8000_0000


def test_pointers_compare_by_address_and_null_is_false():
    with Memory(Mixed) as m:
        assert m == Mixed(int(m)) and m == int(m) and m != m.f[0] and hash(m) == hash(Mixed(int(m)))
        assert m and not Mixed(0)


def test_rows_and_layout_say_everything():
    assert [r.field for r in Mixed.rows()] == list(Mixed.FIELDS)
    assert Mixed.rows()[1] == ("Mixed", "b", I32, "owner", "aligned to 4")
    text = Mixed.layout()
    for f in Mixed.FIELDS.values():
        assert str((f.name, f.offset, f.width, f.count, f.stride, f.is_atomic)) in text


@pytest.mark.parametrize("value, width, result", [(0xFF, 1, -1), (0x7F, 1, 127), (1 << 63, 8, -(1 << 63)),
                                                  (-1, 8, -1), (1 << 64, 8, 0), (0x18000, 2, -0x8000)])
def test_signed_wraps_like_a_register(value, width, result):
    assert signed(value, width) == result
