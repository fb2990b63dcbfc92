"""Programs that are Python functions: declared on a machine, one for each CPU, run freely or explored.

Who runs them lives above (processes: workers; strategies, tokens, charts: stress) and registers by name as an entry point of
the group `concur_thp.engines`, as the commands of the command line do.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol

from concur_thp.arch.builtins import set_current
from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.irq import cpu_park
from concur_thp.arch.shared import SharedArray
from concur_thp.config import PMD_SIZE
from concur_thp.errors import EmulatorError, Misuse
from concur_thp.program.call import leave_mm
from concur_thp.program.processor import Processor, bytes_of
from concur_thp.program.spaces import init_spaces
from concur_thp.program.step import base_address
from concur_thp.program.table import NR_SPACES, StepOp

Body = Callable[[Processor], Any]
ENGINES = "concur_thp.engines"
OWN = ("concur_thp.", "workers.", "stress.")
"""Modules whose arrays are there when they are needed."""


class ProgramFailure(AssertionError):
    """What check() raises: the programs did something they must not. The text has the chart and the token, if there are."""


class Result(Protocol):
    """What run() and explore() return."""

    verdict: str

    def check(self) -> Any:
        """Raise ProgramFailure unless the verdict is `pass`."""


@dataclass(frozen=True)
class Declared:
    """One program: its name, its function, and the space of the mm it starts in (-1: none)."""

    name: str
    body: Body
    space: int


class UserMm:
    """An address space of the machine, made before the programs start. Its methods act at once, on CPU 0."""

    def __init__(self, programs: "Programs", space: int):
        self._programs, self.space = programs, space
        self._next = base_address()
        with programs.acting() as cpu:
            cpu._do(StepOp.new, space)

    def __index__(self) -> int:
        return self.space

    __int__ = __index__
    """Its space: what enter() and collapse() want."""

    @contextmanager
    def inside(self) -> Iterator[Processor]:
        """A CPU that runs in this mm, to prepare what programs will find."""
        with self._programs.acting() as cpu:
            cpu.enter(self.space)
            yield cpu
            cpu.leave()

    def mmap(self, length: int | str, *, huge: bool = False, prot: str = "rw", at: int | None = None) -> int:
        """Map private anonymous memory; returns its address, which is that of a huge page. `length`: bytes, or "2M".
        `huge`: MADV_HUGEPAGE, else MADV_NOHUGEPAGE is not said either and /sys's switch decides. OSError: ENOMEM, EINVAL."""
        size = bytes_of(length)
        where = self._next if at is None else at
        with self.inside() as cpu:
            cpu.mmap(size, prot=prot, at=where, huge=huge)
        if at is None:
            block = int(PMD_SIZE)
            self._next = where + -(-size // block) * block + block  # A gap: neighbours do not merge.
        return where

    def store(self, address: int, value: int) -> None:
        """Store a word now."""
        with self.inside() as cpu:
            cpu.store(address, value)

    def load(self, address: int) -> int:
        """Load a word now."""
        with self.inside() as cpu:
            return cpu.load(address)


@dataclass
class Programs:
    """The programs of one machine, and the mms that they start in."""

    cpus: int
    every: list[Declared] = field(default_factory=list)
    spaces: int = 0

    @contextmanager
    def acting(self) -> Iterator[Processor]:
        """CPU 0, in this process, while no program runs."""
        cpu: Cpu = cpus[0]
        set_current(int(cpu))
        yield Processor(cpu)

    def mm(self) -> UserMm:
        """A new address space. Programs declared afterwards start in it."""
        if self.spaces == 0:
            init_spaces()
        if self.spaces == NR_SPACES:
            raise Misuse(f"a machine has at most {NR_SPACES} address spaces for programs: reuse them")
        self.spaces += 1
        return UserMm(self, self.spaces - 1)

    def declare(self, body: Body, mm: UserMm | int | None = None, name: str = "") -> Body:
        """The program of the next CPU."""
        if not callable(body):
            raise Misuse(f"a program is a function of one argument, the cpu, not {body!r}")
        if len(self.every) == self.cpus:
            raise Misuse(f"{len(self.every) + 1} programs on {self.cpus} CPUs: each has a CPU of its own, so boot "
                         f"Machine(cpus={self.cpus + 1})")
        if not self.every and self.spaces == 0:
            init_spaces()  # Without an mm, too: what clears a run away looks into each.
        space = self.spaces - 1 if mm is None else int(mm)
        self.every.append(Declared(name or getattr(body, "__name__", "program"), body, space))
        return body

    def ready(self) -> list[Declared]:
        """The programs; Misuse if there are none, or if they use arrays that the machine has no room for."""
        if not self.every:
            raise Misuse("there is no program: declare one with @m.program before run() or explore()")
        for name, array in SharedArray.all.items():
            if int(array.base) == 0 and not array.struct.__module__.startswith(OWN):
                raise Misuse(f"shared array {name!r} was declared after the machine was booted: declare it before Machine(..)")
        return self.every

    def start(self) -> None:
        """Every CPU into its program's mm, parked."""
        for number, program in enumerate(self.every):
            set_current(int(cpus[number]))
            if program.space >= 0:
                Processor(cpus[number]).enter(program.space)
            else:
                cpu_park(cpus[number])
        set_current(int(cpus[0]))

    def stop(self) -> None:
        """Every CPU out of its mm, also for those whose process is gone."""
        for number in range(len(self.every)):
            set_current(int(cpus[number]))
            leave_mm(cpus[number])
        set_current(int(cpus[0]))


def engine(name: str) -> Callable[..., Any]:
    """What runs programs in the way called `name`."""
    for entry in entry_points(group=ENGINES, name=name):
        found: Callable[..., Any] = entry.load()
        return found
    raise EmulatorError(f"nothing is registered as {name!r} in {ENGINES}: install the package again (pip install -e .)")


__all__ = ["ENGINES", "Declared", "ProgramFailure", "Programs", "Result", "UserMm", "engine"]
