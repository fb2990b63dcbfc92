"""Calls of programs: a CPU is parked between two of them and counts each."""

from concur_thp.arch.cpu import CpuState, cpus
from concur_thp.mm.mm_types import percpu
from concur_thp.program.call import call_step, leave_mm
from concur_thp.program.table import StepOp


def test_a_cpu_is_parked_between_calls(machine_factory):
    machine = machine_factory(order=3, memory="4M")
    mm = machine.mm()
    cpu = cpus[0]
    before = cpu.ops
    assert call_step(cpu, int(StepOp.enter), int(mm), 0, 0, 0) == 0
    assert cpu.state.load() == CpuState.PARKED and cpu.ops == before + 1 and percpu[0].mm != 0
    leave_mm(cpu)
    assert cpu.state.load() == CpuState.PARKED and percpu[0].mm == 0


def test_a_step_without_a_value_leaves_none(machine_factory):
    machine = machine_factory(order=3, memory="4M")
    machine.mm()
    cpus[0].scratch[0] = 99
    assert call_step(cpus[0], int(StepOp.drain), 0, 0, 0, 0) == 0
    assert cpus[0].scratch[0] == 0
