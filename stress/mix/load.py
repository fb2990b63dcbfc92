"""Put a mix into a booted machine, run it on a CPU process, take it out again."""

from typing import Any

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.system import system
from concur_thp.config import NR_CPUS
from concur_thp.errors import EmulatorError
from concur_thp.machine import Machine
from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.fork import mmput
from concur_thp.mm.mm_types import mms
from concur_thp.program.spaces import init_spaces, spaces
from concur_thp.program.table import NR_SPACES
from stress.mix.run import mix_new_mm, mix_run
from stress.mix.state import FILE_PAGES, NR_FILES, NR_MIX_OPS, mix, mix_cpus
from stress.mix.table import MIX_TABLE

STEPS = 20_000
"""Operations between two looks at the world outside."""


def load_mix(machine: Machine, weights: dict[str, int]) -> None:
    """Make the mms and files that the CPUs will share, with `weights` by operation name."""
    cpu = machine.cpu(0)
    mix.nr_spaces = min(NR_SPACES, machine.config.cpus // 2 + 2)
    init_spaces()
    total = 0
    for row in MIX_TABLE:
        total += weights[row.op.name]
        mix.array[0].upto[int(row.op)] = total
    mix.weight_sum = total
    assert len(MIX_TABLE) <= NR_MIX_OPS
    for slot in range(NR_FILES):
        mix.array[0].files[slot] = file_alloc(cpu, FILE_PAGES, slot + 1)
    for number in range(mix.nr_spaces):
        mm = mix_new_mm(cpu)
        if not mm:
            raise EmulatorError("no memory for the first mms of the mix")
        spaces[number].mm = mms.index(mm)


def mix_body(machine: Machine, cpu: Cpu) -> None:
    """The body of a CPU process that runs the mix."""
    while not system.stop.load() and not system.panicked.load():
        mix_run(cpu, STEPS)


def unload_mix(machine: Machine) -> None:
    """Every program ends: the spaces give up their mms."""
    cpu = machine.cpu(0)
    for number in range(mix.nr_spaces):
        mm, spaces[number].mm = spaces[number].mm, 0
        if mm:
            mmput(cpu, mms[mm])


def mix_operations() -> dict[str, dict[str, int]]:
    """Operations done and refused, by name."""
    out: dict[str, dict[str, int]] = {}
    for row in MIX_TABLE:
        done = sum(mix_cpus[n].counts[int(row.op)] for n in range(NR_CPUS))
        refused = sum(mix_cpus[n].refused[int(row.op)] for n in range(NR_CPUS))
        out[row.op.name] = {"done": done, "refused": refused}
    return out


__all__: list[Any] = ["load_mix", "mix_body", "mix_operations", "unload_mix"]
