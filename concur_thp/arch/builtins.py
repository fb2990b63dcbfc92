"""What kernel functions may call that no kernel function provides: fences, pause, bulk copies, the clock, system calls.

Each is a plain Python function (the interpreted meaning) with its native code beside it in `NATIVE`.
"""

import ctypes
import platform
import time
import zlib
from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir

from concur_thp.arch.shared import Word
from concur_thp.arch.struct import signed

I64 = ir.IntType(64)
LIBC = ctypes.CDLL(None, use_errno=True)
SYSCALL = Word("libc.syscall")
SYSCALL.set(ctypes.cast(LIBC.syscall, ctypes.c_void_p).value or 0)
X86 = platform.machine() == "x86_64"
FULL_RMW = X86 or bool(binding.get_host_cpu_features().get("lse"))
"""Is an atomic read-modify-write a full barrier by itself? Not aarch64's pairs of exclusives, before LSE: what is read behind
one may be read before its store is seen."""

NATIVE: dict[Callable[..., Any], Callable[[Any, list[Any]], Any]] = {}
"""Interpreted function -> native code: takes the IR builder and i64 arguments, returns an i64 value or None."""


def text_id(text: str) -> int:
    """The number that stands for a message in kernel code; `linker.texts()` turns it back."""
    return zlib.crc32(text.encode()) & 0x7FFFFFFF


def _native(function: Callable[..., Any]) -> Callable[[Any], Any]:
    def register(emit: Any) -> Any:
        NATIVE[function] = emit
        return emit

    return register


def smp_mb() -> None:
    """Full barrier."""


def smp_wmb() -> None:
    """Earlier stores before later stores."""


def smp_rmb() -> None:
    """Earlier loads before later loads."""


NATIVE[smp_mb] = lambda b, args: b.fence("seq_cst") and None
NATIVE[smp_wmb] = lambda b, args: b.fence("release") and None
NATIVE[smp_rmb] = lambda b, args: b.fence("acquire") and None


def cpu_relax() -> None:
    """Tell the core that this is a spin."""


@_native(cpu_relax)
def _cpu_relax(b: Any, args: list[Any]) -> None:
    name, arguments = ("llvm.x86.sse2.pause", []) if X86 else ("llvm.aarch64.hint", [ir.Constant(ir.IntType(32), 1)])
    b.call(_declare(b, name, ir.VoidType(), [a.type for a in arguments]), arguments)


def cycles() -> int:
    """A cheap clock that all cores share: ticks of the time stamp counter (x86-64) or the generic timer (aarch64)."""
    return time.perf_counter_ns()


@_native(cycles)
def _cycles(b: Any, args: list[Any]) -> Any:
    return b.call(_declare(b, "llvm.readcyclecounter" if X86 else "llvm.readsteadycounter", I64, []), [])


def clear_bytes(addr: int, size: int) -> None:
    """Zero memory nobody else can reach yet."""
    ctypes.memset(int(addr), 0, int(size))


def copy_bytes(to: int, source: int, size: int) -> None:
    """Copy memory; word-wise atomic, not atomic as a whole, as on hardware."""
    ctypes.memmove(int(to), int(source), int(size))


@_native(clear_bytes)
def _clear_bytes(b: Any, args: list[Any]) -> None:
    byte, flag = ir.IntType(8), ir.IntType(1)
    callee = _declare(b, "llvm.memset.p0.i64", ir.VoidType(), [byte.as_pointer(), byte, I64, flag])
    b.call(callee, [b.inttoptr(args[0], byte.as_pointer()), byte(0), args[1], flag(0)])


@_native(copy_bytes)
def _copy_bytes(b: Any, args: list[Any]) -> None:
    pointer, flag = ir.IntType(8).as_pointer(), ir.IntType(1)
    callee = _declare(b, "llvm.memcpy.p0.p0.i64", ir.VoidType(), [pointer, pointer, I64, flag])
    b.call(callee, [b.inttoptr(args[0], pointer), b.inttoptr(args[1], pointer), args[2], flag(0)])


def prefetchw(addr: Any) -> None:
    """Fetch a cache line that will be written soon. A hint: it may name any address and changes nothing. (Linux: prefetchw)

    What is read first and then written costs two transfers between processors, with this one.
    """


@_native(prefetchw)
def _prefetchw(b: Any, args: list[Any]) -> None:
    pointer, word32 = ir.IntType(8).as_pointer(), ir.IntType(32)
    callee = _declare(b, "llvm.prefetch.p0", ir.VoidType(), [pointer, word32, word32, word32])
    b.call(callee, [b.inttoptr(args[0], pointer), word32(1), word32(3), word32(1)])


def ffs64(value: int) -> int:
    """Index of the lowest set bit; 64 for zero."""
    return (int(value) & -int(value)).bit_length() - 1 if value else 64


@_native(ffs64)
def _ffs64(b: Any, args: list[Any]) -> Any:
    callee = _declare(b, "llvm.cttz.i64", I64, [I64, ir.IntType(1)])
    return b.call(callee, [args[0], ir.IntType(1)(0)])


def lsr(value: int, shift: int) -> int:
    """Shift right without sign."""
    return (int(value) & ((1 << 64) - 1)) >> int(shift)


NATIVE[lsr] = lambda b, args: b.lshr(args[0], args[1])


def wrap_mul(a: int, b: int) -> int:
    """Multiply modulo 2**64."""
    return signed(int(a) * int(b))


NATIVE[wrap_mul] = lambda b, args: b.mul(args[0], args[1])


def syscall(number: int, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int) -> int:
    """A system call of the machine underneath; -1 on error."""
    return LIBC.syscall(*(ctypes.c_long(int(a)) for a in (number, a0, a1, a2, a3, a4, a5)))


@_native(syscall)
def _syscall(b: Any, args: list[Any]) -> Any:
    # syscall() is variadic in C; integer arguments go in the same registers either way.
    kind = ir.FunctionType(I64, [I64] * 7)
    return b.call(b.inttoptr(b.load(word(b, SYSCALL.symbol)), kind.as_pointer()), args)


CURRENT = Word("cpu.current")
"""The CPU that this process runs just now, for code that has no `cpu` at hand."""


def set_current(cpu: int) -> None:
    """From now on this process runs that CPU."""
    CURRENT.set(int(cpu))


NATIVE[set_current] = lambda b, args: b.store(args[0], word(b, CURRENT.symbol)) and None


def word(b: Any, symbol: str) -> Any:
    """The global that a process word or slot is in native code."""
    found = b.module.globals.get(symbol)
    if found is None:
        found = ir.GlobalVariable(b.module, I64, symbol)
    return found


def _declare(b: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    found = b.module.globals.get(name)
    return found or ir.Function(b.module, ir.FunctionType(result, arguments), name)
