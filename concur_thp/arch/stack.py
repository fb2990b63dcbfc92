"""Several CPUs in one OS process, each on a stack of its own: for controlled runs, where one CPU moves at a time anyway.

Handing over is then a change of the stack pointer, some twenty nanoseconds; a futex between two processes takes three
microseconds on one core and thirty across two. A CPU that is abandoned in the middle of a kernel function costs
nothing: its stack is laid out anew for the next run.
"""

import ctypes
import functools
import mmap
import platform
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from concur_thp.arch import builtins as intrinsics
from concur_thp.arch.linker import inline
from concur_thp.arch.shared import Word
from concur_thp.arch.struct import I64, Struct, field

STACK_BYTES = 1 << 20
"""Of each CPU, with a page at its low end that nobody may touch."""
GUARD = 4096
PROT_NONE = 0
SWITCH = Word("stack.switch")
START = Word("stack.start")

_X86 = r"""
define i64 @stack.switch(ptr %save, i64 %to) naked noinline {
  call void asm sideeffect "pushq %rbp\0Apushq %rbx\0Apushq %r12\0Apushq %r13\0Apushq %r14\0Apushq %r15\0A
movq %rsp, (%rdi)\0Amovq %rsi, %rsp\0A
popq %r15\0Apopq %r14\0Apopq %r13\0Apopq %r12\0Apopq %rbx\0Apopq %rbp\0Aretq", ""()
  unreachable
}
define void @stack.start() naked noinline {
  call void asm sideeffect "movq %r12, %rdi\0Acallq *%r13\0Aud2", ""()
  unreachable
}
"""
_AARCH64 = r"""
define i64 @stack.switch(ptr %save, i64 %to) naked noinline {
  call void asm sideeffect "sub sp, sp, #160\0A
stp x19, x20, [sp, #0]\0Astp x21, x22, [sp, #16]\0Astp x23, x24, [sp, #32]\0Astp x25, x26, [sp, #48]\0A
stp x27, x28, [sp, #64]\0Astp x29, x30, [sp, #80]\0A
stp d8, d9, [sp, #96]\0Astp d10, d11, [sp, #112]\0Astp d12, d13, [sp, #128]\0Astp d14, d15, [sp, #144]\0A
mov x9, sp\0Astr x9, [x0]\0Amov sp, x1\0A
ldp x19, x20, [sp, #0]\0Aldp x21, x22, [sp, #16]\0Aldp x23, x24, [sp, #32]\0Aldp x25, x26, [sp, #48]\0A
ldp x27, x28, [sp, #64]\0Aldp x29, x30, [sp, #80]\0A
ldp d8, d9, [sp, #96]\0Aldp d10, d11, [sp, #112]\0Aldp d12, d13, [sp, #128]\0Aldp d14, d15, [sp, #144]\0A
add sp, sp, #160\0Aret", ""()
  unreachable
}
define void @stack.start() naked noinline {
  call void asm sideeffect "mov x0, x19\0Ablr x20\0Abrk #1", ""()
  unreachable
}
"""


class Frame(Struct):
    """What stack.switch() finds on a stack that was never left: registers, as it pops them, and where to go."""

    word = field(I64, "const", "saved registers in the order of the machine", count=20)


ARGUMENT, FUNCTION, RETURN, FRAME_BYTES = (3, 2, 6, 56) if platform.machine() == "x86_64" else (0, 1, 11, 160)
"""Places in a Frame. x86-64 pops r15 r14 r13 r12 rbx rbp and returns; aarch64 loads x19 x20 .. x30."""


@functools.cache
def link_stacks() -> None:
    """Make stack.switch() and stack.start() callable in this process."""
    from concur_thp.arch import native

    llvm.initialize_native_asmparser()
    text = _X86 if platform.machine() == "x86_64" else _AARCH64
    # Assembly in a string has no line breaks of its own.
    module = llvm.parse_assembly(text.replace("\\0A\n", "\\0A"))
    data = native._target_machine().emit_object(module)
    addresses = native.load({"stack.switch": data})
    SWITCH.set(addresses["stack.switch"])
    START.set(native._engine().get_function_address("stack.start"))


def new_stack() -> int:
    """Map a stack; returns the address behind its high end. It lives as long as the process."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = libc.mmap(None, STACK_BYTES, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "no memory for a CPU's stack")
    libc.mprotect(ctypes.c_void_p(address), GUARD, PROT_NONE)
    return int(address) + STACK_BYTES


@inline
def lay_out_stack(top: int, function: int, argument: int):
    """Prepare a stack so that switching to it calls `function(argument)`, which must not return. Returns its pointer."""
    pointer = top - 64 - FRAME_BYTES
    frame = Frame(pointer)
    for i in range(FRAME_BYTES // 8):
        frame.word[i] = 0
    frame.word[ARGUMENT] = argument
    frame.word[FUNCTION] = function
    frame.word[RETURN] = int(START)
    return pointer


def switch_stack(save: int, to: int) -> None:
    """Leave this stack, keep its pointer at `save`, go on at the stack pointer `to`."""
    raise RuntimeError("stacks are switched in native code only")


def _emit_switch(b: Any, args: list[Any]) -> None:
    kind = ir.FunctionType(ir.IntType(64), [ir.IntType(64)] * 2)
    b.call(b.inttoptr(b.load(intrinsics.word(b, SWITCH.symbol)), kind.as_pointer()), args)


intrinsics.NATIVE[switch_stack] = _emit_switch

__all__ = ["lay_out_stack", "link_stacks", "new_stack", "switch_stack"]
