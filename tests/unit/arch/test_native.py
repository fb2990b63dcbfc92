"""The cache of compiled functions: stale or damaged code never runs."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from concur_thp.arch import native
from concur_thp.arch.linker import Inline, Kernel, kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, I64, Struct, field
from concur_thp.config import HPAGE_PMD_NR, Param
from tests.processes import is_running, wait_for

CONSTANT = 5


class Thing(Struct, size=64):
    a = field(I32, "owner", "a")
    b = field(I32, "owner", "b")


def helper(n: int):
    return n + CONSTANT


inlined = Inline(helper)


@kernel
def callee(t: Thing):
    return t.b


@kernel
def function(t: Thing, n: int):
    return inlined(n) + t.b + callee(t) + HPAGE_PMD_NR


@kernel
def through_a_namespace(n: int):
    return n + numbers.SEVEN


class numbers:
    SEVEN = 7


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONCUR_THP_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def compiles(monkeypatch):
    """The names of the functions that were compiled."""
    names = []
    compile_object = native.compile_object

    def count(source, symbol, build=native.PLAIN):
        names.append(source.name)
        return compile_object(source, symbol, build)

    monkeypatch.setattr(native, "compile_object", count)
    return names


def key(source=function):
    return native._key(source, native.symbol_of(source), native.PLAIN)


def replaced(source, **names):
    """The same source in a namespace where `names` mean something else."""
    source.__dict__["namespace"] = {**source.namespace, **names}


def test_the_key_depends_on_nothing_else(monkeypatch):
    before = key()
    monkeypatch.setattr(sys.modules[__name__], "__doc__", "another text")
    assert key() == before


def test_a_constant_of_an_inlined_function_is_part_of_the_key():
    before = key()
    replaced(inlined, CONSTANT=6)
    try:
        assert key() != before
    finally:
        replaced(inlined, CONSTANT=5)
    assert key() == before


def test_an_attribute_of_a_class_or_module_is_part_of_the_key(monkeypatch):
    before = key(through_a_namespace)
    monkeypatch.setattr(numbers, "SEVEN", 8)
    assert key(through_a_namespace) != before


def test_the_body_of_an_inlined_function_is_part_of_the_key(monkeypatch):
    before = key()
    monkeypatch.setitem(inlined.__dict__, "tree", ast.parse("def helper(n): return n - CONSTANT").body[0])
    assert key() != before


def test_the_body_of_a_called_kernel_function_is_not(monkeypatch):
    before = key()
    monkeypatch.setitem(callee.__dict__, "tree", ast.parse("def callee(t): return t.a").body[0])
    assert key() == before


def test_a_struct_layout_is_part_of_the_key(monkeypatch):
    before = key()
    monkeypatch.setattr(Thing.FIELDS["b"], "offset", 8)
    assert key() != before


def test_the_layout_behind_an_array_is_part_of_the_key(monkeypatch):
    class Element(Struct, size=64):
        value = field(I64, "owner", "a value")

    array = SimpleNamespace()
    array.things = SharedArray(f"test_native_{os.getpid()}", Element, lambda config: 1)
    things = array.things

    def reads(n: int):
        return things[n].value

    source = Kernel(reads)
    Kernel.all.pop()
    try:
        before = key(source)
        monkeypatch.setattr(Element.FIELDS["value"], "offset", 16)
        assert key(source) != before
    finally:
        del SharedArray.all[things.name]


def test_the_geometry_and_the_toolchain_are_part_of_the_key(monkeypatch):
    monkeypatch.setattr(Param, "order", 9)
    before = key()
    monkeypatch.setattr(Param, "order", 3)
    assert key() != before
    monkeypatch.setattr(Param, "order", 9)
    assert key() == before
    monkeypatch.setattr(native, "_toolchain", lambda: "another translator")
    assert key() != before


def test_an_object_is_compiled_once(cache, compiles):
    first, second = native.object_for(callee), native.object_for(callee)
    assert compiles == ["callee"] and first == second


DAMAGE = {"cut": lambda data: data[:-1], "empty": lambda data: b"",
          "changed": lambda data: data[:40] + b"?" + data[41:]}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_object_is_compiled_again(cache, compiles, damage):
    whole = native.object_for(callee)
    [path] = (p for p in (cache / "objects").rglob("*") if p.is_file())
    path.write_bytes(damage(path.read_bytes()))
    assert native.build([callee]) == 1
    assert native.object_for(callee) == whole and compiles == ["callee", "callee"]


def test_a_damaged_bundle_is_built_again(cache):
    from concur_thp.arch.tlb import tlb_flush_all

    objects = native._objects([tlb_flush_all], None, native.PLAIN)
    [bundle] = cache.glob("bundle-*")
    bundle.write_bytes(bundle.read_bytes()[:-7])
    assert native._objects([tlb_flush_all], None, native.PLAIN) == objects
    assert native._read(bundle) is not None


def test_a_bundle_serves_any_set_of_functions(cache, compiles):
    from concur_thp.arch.tlb import tlb_catch_up, tlb_flush_all

    native._objects([tlb_flush_all], None, native.PLAIN)
    both = native._objects([tlb_catch_up, tlb_flush_all], None, native.PLAIN)
    assert compiles == ["tlb_flush_all", "tlb_catch_up"] and len(both) == 2
    assert native._objects([tlb_flush_all], None, native.PLAIN) == {s: o for s, o in both.items() if "flush_all" in s}
    assert len(compiles) == 2


def test_a_slot_runs_what_is_written_into_it():
    """A variant is put in place by writing one word; callers follow."""
    def other(n: int):
        return -n

    def original(n: int):
        return n

    target, variant = Kernel(original), Kernel(other)

    def calls_it(n: int):
        return target(n)

    caller = Kernel(calls_it)
    native.link([target, variant, caller])
    assert caller(5) == 5
    was = native.SLOTS[target.slot]
    native.SLOTS[target.slot] = variant.address
    assert caller(5) == -5 and target(5) == -5
    native.SLOTS[target.slot] = was
    assert caller(5) == 5


BUILD = ("from concur_thp.arch import native; from concur_thp.sync import bit_lock; native.link();"
         "print(bit_lock.bit_lock.address != 0)")


BUILD_ALL = ("from concur_thp.arch import linker, native; from concur_thp.machine import Machine; Machine._import_kernel();"
             "native.build(linker.Kernel.all, processes=2)")


def test_compilers_end_with_who_started_them(cache):
    process = subprocess.Popen([sys.executable, "-c", BUILD_ALL])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        wait_for(lambda: process.poll() is not None or list(cache.rglob("objects/*")), "compilers at work")
        compilers = [int(pid) for pid in children.read_text().split()]
    finally:
        process.kill()
        process.wait()
    assert compilers
    wait_for(lambda: not any(is_running(pid) for pid in compilers), "their end")


def test_two_processes_may_build_at_once(cache):
    crew = [subprocess.Popen([sys.executable, "-c", BUILD], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=280)[0] for process in crew] == ["True\n", "True\n"]
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert files and all(native._read(path) is not None for path in files), "nothing half-written, no leftovers"
