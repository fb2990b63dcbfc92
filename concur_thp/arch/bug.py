"""bug(): a rule of the emulated kernel was broken. Report, set `panicked`, stop for good.

Nothing unwinds through kernel functions: a native CPU that calls bug() never returns from it. Everybody else sees
`panicked` in their spins and waits and parks too; the launcher reads the report and ends the processes. As plain
Python, bug() raises KernelBug instead.
"""

import ctypes
import os
from typing import Any

from llvmlite import ir

from concur_thp.arch.builtins import NATIVE, word
from concur_thp.arch.cpu import Cpu, CpuState
from concur_thp.arch.futex import nap
from concur_thp.arch.linker import Kernel, inline, kernel, quiet
from concur_thp.arch.shared import Word
from concur_thp.arch.system import system
from concur_thp.errors import KernelBug

__func__ = 0
"""In native code the number of the name of the function that this is compiled into."""
CPU_PARKED = int(CpuState.PARKED)


def unwind() -> None:
    """Leave kernel code, if it runs as plain Python; native code has no such way out and parks."""
    if Kernel.interpreting or not report_bug.address:
        raise KernelBug(describe_bug())


PARK_HOOK = Word("park.hook")
"""Address of a function without arguments that a process calls before it parks for good; 0 in CPU processes, which have
a launcher that ends them. The process that booted the machine has none: it says what happened and aborts."""


def _unwind_native(builder: Any, args: list[Any]) -> None:
    hook = builder.load(word(builder, PARK_HOOK.symbol))
    with builder.if_then(builder.icmp_unsigned("!=", hook, hook.type(0))):
        builder.call(builder.inttoptr(hook, ir.FunctionType(ir.VoidType(), []).as_pointer()), [])


NATIVE[unwind] = _unwind_native


@ctypes.CFUNCTYPE(None)
def _say_and_abort() -> None:
    os.write(2, f"\n{describe_bug()}\nnative kernel code cannot be left: aborting (run it as a CPU process)\n".encode())
    os.abort()


def abort_when_parked(yes: bool) -> None:
    """Does this process abort when it parks for good (the one that booted), or wait to be ended (a CPU process)?"""
    PARK_HOOK.set(ctypes.cast(_say_and_abort, ctypes.c_void_p).value or 0 if yes else 0)


def describe_bug() -> str:
    """The report in the segment, as one line."""
    from concur_thp.arch.linker import texts

    def name(number: int) -> str:
        return texts().get(number, f"text {number:#x}")

    where = name(system.bug_func) if system.bug_func else "user code"
    return f"{name(system.bug_text)} (values {system.bug_a:#x}, {system.bug_b:#x}) in {where} on cpu {system.bug_cpu}"


@inline
def bug(cpu: Cpu, text: int, a: int, b: int):
    """BUG(): a rule is broken. Inline, so that `__func__` is the function that found it."""
    report_bug(cpu, text, a, b, __func__)


@kernel
@quiet
def report_bug(cpu: Cpu, text: int, a: int, b: int, func: int):
    """Report a broken rule and stop the machine; the first report wins.

    Context: anywhere. Never returns in native code.
    Linux: BUG(), panic()
    Differs: other CPUs notice by themselves, there is no stop IPI.
    """
    if system.panicked.cas(0, 1) == 0:
        system.bug_cpu = cpu.id
        system.bug_text = text
        system.bug_func = func
        system.bug_a = a
        system.bug_b = b
        system.bug_done.store(1)
    park_for_good(cpu)


@kernel
@quiet
def park_for_good(cpu: Cpu):
    """Stay out of everybody's way until the launcher ends this process.

    Context: anywhere. Never returns in native code.
    Emulator: the end of every CPU once `panicked` is set.
    """
    cpu.state.store(CPU_PARKED)
    unwind()
    while True:
        nap()


@inline
def panic_check(cpu: Cpu):
    """In every spin and wait: stop here when the machine has panicked."""
    if system.panicked.read() != 0:
        park_for_good(cpu)


@inline
def bug_on(cpu: Cpu, condition: int, text: int, a: int, b: int):
    """VM_BUG_ON: stop the machine when `condition` holds."""
    if condition:
        bug(cpu, text, a, b)


__all__: list[Any] = ["abort_when_parked", "bug", "bug_on", "report_bug", "describe_bug", "panic_check", "park_for_good"]
