"""One step at a time: how a program that is a Python function moves its CPU. Each call is one native call.

Between two calls the CPU is in Python and therefore parked: nobody waits for its acks, and it looks at what it missed
when it comes back (arch/cpu.py).
"""

from concur_thp.arch.bug import panic_check
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.futex import sched_yield
from concur_thp.arch.irq import cpu_park, cpu_resume, ipi_poll
from concur_thp.arch.linker import kernel
from concur_thp.arch.listen import check_point, point
from concur_thp.arch.points import Point
from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import I32, Struct, atomic
from concur_thp.config import NR_CPUS
from concur_thp.mm.errno import ESRCH
from concur_thp.mm.flags import MAP_ANONYMOUS, MAP_PRIVATE
from concur_thp.mm.syscall import sys_mmap
from concur_thp.program.rows import StepSlot, returns_value, run_step
from concur_thp.program.spaces import in_mm, leave_space
from concur_thp.program.table import STEP_BASE, StepOp


class Gate(Struct, size=64):
    """Where the CPUs of a free run wait until all of them are there."""

    arrived = atomic(I32, "CPUs at the gate")


call_rows = SharedArray("call_rows", StepSlot, lambda c: NR_CPUS)
"""The step that each CPU is at."""
gate = SharedOne("program_gate", Gate)


@kernel
def call_step(cpu: Cpu, op: int, a: int, b: int, c: int, d: int):
    """Do one step.

    Context: user mode, parked; ends so.
    Return: its status; its value, if it has one, in cpu.scratch[0].
    Emulator: from a call in a program's Python to the step.
    """
    cpu_resume(cpu)
    row = call_rows[cpu.id]
    row.op = op
    row.arg[0] = a
    row.arg[1] = b
    row.arg[2] = c
    row.arg[3] = d
    cpu.row = cpu.row + 1
    cpu.op = STEP_BASE + op
    cpu.scratch[0] = 0
    status = run_step(cpu, row)
    if returns_value(op) == 0:
        cpu.scratch[0] = 0
    back_to_program(cpu)
    return status


@kernel
def call_mmap(cpu: Cpu, length: int, prot: int):
    """mmap private anonymous memory where the kernel finds room.

    Context: user mode, parked; ends so.
    Return: the address, or an error; -ESRCH in no mm.
    Emulator: as call_step(), for the one call whose result is an address.
    """
    cpu_resume(cpu)
    cpu.row = cpu.row + 1
    cpu.op = STEP_BASE + StepOp.map
    status = -ESRCH
    if in_mm(cpu):
        status = sys_mmap(cpu, 0, length, prot, MAP_PRIVATE | MAP_ANONYMOUS, 0, 0)
    back_to_program(cpu)
    return status


@kernel
def back_to_program(cpu: Cpu):
    """The end of a call.

    Context: user mode, running; ends parked.
    Emulator: the return to a program.
    """
    cpu.ops = cpu.ops + 1
    ipi_poll(cpu)
    check_point(cpu, Point.USER, 0)
    point(cpu, Point.USER)
    cpu_park(cpu)


@kernel
def leave_mm(cpu: Cpu):
    """Leave the mm, if this CPU runs in one.

    Context: user mode, parked; ends so.
    Emulator: the end of a program.
    """
    cpu_resume(cpu)
    if in_mm(cpu):
        leave_space(cpu)
    cpu_park(cpu)


@kernel
def pass_gate(cpu: Cpu, parties: int):
    """Wait until all CPUs of a free run are here: forking them takes longer than what most programs do.

    Context: parked.
    Emulator: the start of a free run.
    """
    gate.arrived.add(1)
    while gate.arrived.load() < parties:
        sched_yield()
        panic_check(cpu)


__all__ = ["call_mmap", "call_rows", "call_step", "gate", "leave_mm", "pass_gate"]
