"""Native code: LLVM at work, the cache on disk, and the link step that fills the slots.

Each function's object is cached under a digest of everything it was made from: its syntax tree, the inline functions,
struct layouts, constants and boot parameters it uses, the translator itself, LLVM and the processor. All objects of one
geometry are also kept as one bundle, keyed by the bytes of every source file, so that a warm start parses nothing.
"""

import ctypes
import functools
import hashlib
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir

from concur_thp.arch import builtins, checked, expressions, guard_words, guards, linker, shared, struct, translate
from concur_thp.arch.linker import SLOTS, Kernel
from concur_thp.arch.parent import end_with_parent
from concur_thp.arch.shared import Word
from concur_thp.config import Param
from concur_thp.errors import Misuse

DIGEST_BYTES = 32
PLAIN, CHECKED, TRACED = "plain", "checked", "traced"
UNITS: dict[str, type[translate.Unit]] = {
    PLAIN: translate.Unit, CHECKED: checked.CheckedUnit, TRACED: checked.TracedUnit}
"""Builds of the same source: for free runs, with points (arch/checked.py), and with every access said."""
PACKAGE = Path(__file__).resolve().parent.parent

Progress = Callable[[int, int], None]
"""Called with (compiled so far, to compile)."""


def cache_dir() -> Path:
    """Where compiled objects are kept: $CONCUR_THP_CACHE, else the user's cache directory."""
    own = os.environ.get("CONCUR_THP_CACHE")
    return Path(own or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "concur_thp").expanduser()


@functools.cache
def _toolchain() -> str:
    """What every object depends on besides its source."""
    parts = [f"llvmlite {llvmlite.__version__}", f"python {sys.version_info[:2]}", llvm.get_host_cpu_name(),
             llvm.get_host_cpu_features().flatten(), llvm.get_process_triple()]
    for module in (translate, expressions, builtins, checked, guard_words, guards, linker, shared, struct,
                   sys.modules[__name__]):
        parts.append(Path(str(module.__file__)).read_text())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def _target_machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(),
                                        opt=2, reloc="static", codemodel="large")


def symbol_of(source: Kernel, label: str = "", build: str = PLAIN) -> str:
    """The name of one variant's native function in one geometry and build."""
    return ".".join(["k", source.unique, str(Param.order), *([build] if build != PLAIN else []), *([label] if label else [])])


def compile_object(source: Kernel, symbol: str, build: str = PLAIN) -> bytes:
    """Translate and compile one kernel function to a relocatable object."""
    unit = UNITS[build](source, symbol)
    machine = _target_machine()
    unit.module.triple = machine.triple
    module = llvm.parse_assembly(str(unit.module))
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = False  # accesses are atomic words: nothing to gain, time to lose
    options.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return machine.emit_object(module)


def _key(source: Kernel, symbol: str, build: str) -> str:
    seen: set[Any] = set()
    text = "\n".join([_toolchain(), build, symbol, *source.digest(seen), *(guards.digest(seen) if build != PLAIN else ())])
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _path(source: Kernel, symbol: str, build: str) -> Path:
    key = _key(source, symbol, build)
    return cache_dir() / "objects" / key[:2] / key


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, behind its digest: other processes may be reading or writing the same cache."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(hashlib.sha256(data).digest() + data)
                file.flush()
                os.fchmod(file.fileno(), 0o644)  # A cache may serve several users.
                os.replace(file.name, path)
            except OSError:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise Misuse(f"cannot keep compiled code in {cache_dir()}: {error.strerror}; let CONCUR_THP_CACHE name a "
                     "directory that can be written") from error


def check_cache() -> None:
    """Can compiled code be kept? Misuse says why not."""
    path = cache_dir() / f"probe-{os.getpid()}"
    _write(path, b"")
    path.unlink(missing_ok=True)


def _read(path: Path) -> bytes | None:
    """What _write() wrote, None when it is not there or damaged."""
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    digest, data = whole[:DIGEST_BYTES], whole[DIGEST_BYTES:]
    return data if hashlib.sha256(data).digest() == digest else None


def object_for(source: Kernel, symbol: str = "", build: str = PLAIN) -> bytes:
    """The object of one function, from the cache or compiled now."""
    symbol = symbol or symbol_of(source, build=build)
    path = _path(source, symbol, build)
    data = _read(path)
    if data is None:
        data = compile_object(source, symbol, build)
        _write(path, data)
    return data


@functools.cache
def _engine() -> Any:
    """One execution engine for the process; it lives as long as the code in it."""
    _target_machine()
    module = llvm.parse_assembly("")
    return llvm.create_mcjit_compiler(module, _target_machine())


_declared: set[str] = set()


def _declare_symbols() -> None:
    """Tell LLVM where this process's words and slots are."""
    symbols: list[tuple[str, int]] = [(w.symbol, w.address) for w in Word.by_name.values()]
    symbols += [(k.slot_symbol, k.slot_address) for k in Kernel.all]
    for name, address in symbols:
        if name not in _declared:
            llvm.add_symbol(name, address)
            _declared.add(name)


def load(objects: dict[str, bytes]) -> dict[str, int]:
    """Load objects (symbol -> bytes) into the process; returns the address of each."""
    _declare_symbols()
    engine = _engine()
    for data in objects.values():
        engine.add_object_file(llvm.ObjectFileRef.from_data(data))
    engine.finalize_object()
    return {symbol: engine.get_function_address(symbol) for symbol in objects}


def _make_atomic() -> None:
    """Give interpreted code (arch/struct.py) the processor's compare and swap, for each width of a word."""
    if struct.native_cas:
        return
    module = ir.Module("atomics")
    module.triple = _target_machine().triple
    i64 = ir.IntType(64)
    for width in struct.WIDTHS:
        word = ir.IntType(8 * width)
        function = ir.Function(module, ir.FunctionType(i64, [i64] * 3), f"cas{width}")
        build = ir.IRBuilder(function.append_basic_block())
        address, *values = function.args
        old, new = (build.trunc(v, word) for v in values) if width < struct.I64 else values
        pair = build.cmpxchg(build.inttoptr(address, word.as_pointer()), old, new, "seq_cst", "seq_cst")
        if not builtins.FULL_RMW:
            build.fence("seq_cst")
        seen = build.extract_value(pair, 0)
        build.ret(build.sext(seen, i64) if width < struct.I64 else seen)
    machine_code = _target_machine().emit_object(llvm.parse_assembly(str(module)))
    _engine().add_object_file(llvm.ObjectFileRef.from_data(machine_code))
    _engine().finalize_object()
    kind = ctypes.PYFUNCTYPE(*[ctypes.c_int64] * 4)
    struct.native_cas |= {w: kind(_engine().get_function_address(f"cas{w}")) for w in struct.WIDTHS}


_linked: dict[tuple[int, str, str], int] = {}
"""(geometry, build, function) -> address: a function is loaded once in a process, however many machines it boots."""


def link(kernels: Iterable[Kernel] | None = None, progress: Progress | None = None, kind: str = PLAIN) -> None:
    """Compile what is not cached, load it, and fill the slots of this process for the geometry in force."""
    _make_atomic()
    wanted = list(Kernel.all if kernels is None else kernels)
    fresh = [k for k in wanted if (Param.order, kind, k.unique) not in _linked]
    if fresh:
        addresses = load(_objects(fresh, progress, kind))
        for k in fresh:
            _linked[Param.order, kind, k.unique] = addresses[symbol_of(k, build=kind)]
    for k in wanted:
        SLOTS[k.slot] = _linked[Param.order, kind, k.unique]


def _objects(kernels: list[Kernel], progress: Progress | None, kind: str) -> dict[str, bytes]:
    own = [k for k in kernels if k.unique.startswith("concur_thp.")]
    bundle = cache_dir() / f"bundle-{_bundle_key(kind)}"
    stored = _read(bundle)
    objects: dict[str, bytes] = pickle.loads(stored) if stored is not None else {}
    missing = [k for k in own if symbol_of(k, build=kind) not in objects]
    if missing:
        build(missing, progress, kind=kind)
        objects |= {symbol_of(k, build=kind): object_for(k, build=kind) for k in missing}
        _write(bundle, pickle.dumps(objects))
    names = {k: symbol_of(k, build=kind) for k in kernels}
    return {name: objects.get(name) or object_for(k, name, kind) for k, name in names.items()}


def _bundle_key(kind: str) -> str:
    digest = hashlib.sha256(f"{_toolchain()} {Param.order} {kind}".encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:40]


def build(kernels: list[Kernel], progress: Progress | None = None, processes: int | None = None, kind: str = PLAIN) -> int:
    """Compile every function that is not cached, spread over processes. Returns how many were compiled."""
    todo = [k for k in kernels if not _cached(k, kind)]
    workers = min(processes or os.cpu_count() or 1, len(todo) // 16)
    if workers < 2:
        for done, k in enumerate(todo, 1):
            object_for(k, build=kind)
            if progress:
                progress(done, len(todo))
        return len(todo)
    try:
        # Killed, this process would leave its compilers behind for ever, each waiting for work in a pipe that it holds itself.
        with ProcessPoolExecutor(workers, get_context("fork"), end_with_parent, (os.getpid(),)) as pool:
            for done, _ in enumerate(pool.map(_compile_slot, [(k.slot, kind) for k in todo], chunksize=4), 1):
                if progress:
                    progress(done, len(todo))
    except BrokenProcessPool:  # Somebody killed a compiler process; what it did not finish is compiled by link().
        pass
    return len(todo)


def _compile_slot(slot_and_kind: tuple[int, str]) -> None:
    slot, kind = slot_and_kind
    object_for(Kernel.all[slot], build=kind)


def _cached(source: Kernel, kind: str) -> bool:
    return _read(_path(source, symbol_of(source, build=kind), kind)) is not None


__all__ = ["build", "cache_dir", "check_cache", "compile_object", "link", "linker", "load", "object_for", "symbol_of"]
