"""A machine: one shared segment, booted here, inherited by the CPU processes that are forked from this one.

The segment never has a name (memfd), so nothing can be left behind, whatever dies at whatever instruction.
"""

import ctypes
import mmap
import os
from importlib import import_module
from types import TracebackType
from typing import Any, Self

from concur_thp.arch import native
from concur_thp.arch.bug import abort_when_parked
from concur_thp.arch.builtins import set_current
from concur_thp.arch.checked import map_dirty
from concur_thp.arch.cpu import Cpu, CpuState, cpus
from concur_thp.arch.futex import init_timespecs
from concur_thp.arch.guards import GUARDED
from concur_thp.arch.linker import Kernel, redirect
from concur_thp.arch.listen import LISTEN_ACCOUNT, LISTEN_CHAOS, LISTEN_CHECK, check_hook
from concur_thp.arch.system import bind, layout, system
from concur_thp.check import instant
from concur_thp.check.accounts import open_accounts
from concur_thp.config import MachineConfig, Param, parse_size
from concur_thp.errors import Misuse
from concur_thp.mm.huge_zero import init_huge_zero
from concur_thp.mm.lru import init_lru
from concur_thp.mm.memblock import init_memory
from concur_thp.mm.mm_slots import init_khugepaged
from concur_thp.mm.slab import init_pools
from concur_thp.mm.swap_io import init_swap_device
from concur_thp.mm.swap_map import init_swap_map
from concur_thp.mm.swap_state import init_swap_cache
from concur_thp.mm.thp_sysfs import init_thp
from concur_thp.mm.vma_prot import init_mmap
from concur_thp.program.declared import Body, Programs, Result, UserMm, engine
from concur_thp.sync.lockdep import init_lockdep

_BOOT = (init_mmap, init_pools, init_memory, init_lru, init_thp, init_khugepaged, init_huge_zero, init_swap_map,
         init_swap_cache, init_swap_device)
"""What mm needs at boot, in order; each takes the configuration."""


def available_memory() -> int:
    """Bytes of memory that programs on this computer can still have."""
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def needed_memory(config: MachineConfig) -> int:
    """Bytes that a machine may come to need when all of its memory is used."""
    return config.frames * 160 + config.swap_slots * 72


class Machine:
    """Boot with `Machine(cpus=2, memory="64M", order=3)`; use as a context manager or close() it."""

    booted: "Machine | None" = None

    def __init__(self, config: MachineConfig | None = None, *, native_code: bool = True, build: str = native.PLAIN,
                 progress: native.Progress | None = None, **sizes: Any):
        for name in ("memory", "kernelcore", "swap"):
            if name in sizes:
                sizes[name] = parse_size(sizes[name])
        # Who boots by sizes may explore later: what the scheduler notes is only there once it is written.
        self.config = config or MachineConfig(**{"controlled": True, **sizes})
        if Machine.booted is not None:
            raise Misuse("a machine is already booted in this process: close() it first")
        Param.order = self.config.order
        self.build = build
        self.programs = Programs(self.config.cpus)
        self._import_kernel()
        if native_code:
            native.link(progress=progress, kind=build)
        self.places = layout(self.config)
        self.size = self.places[""][0]
        self._segment = self._create()
        Machine.booted = self
        try:
            self._boot()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _import_kernel() -> None:
        """Every module with kernel functions, so that the slots are complete before anything is linked."""
        root = os.path.dirname(__file__)
        for folder in ("arch", "sync", "mm", "sched", "program"):
            for name in sorted(os.listdir(os.path.join(root, folder))):
                if name.endswith(".py") and name != "__init__.py":
                    import_module(f"concur_thp.{folder}.{name[:-3]}")

    def _create(self) -> Any:
        free, needed = available_memory(), needed_memory(self.config)
        if free < needed:
            raise Misuse(f"this computer has {free >> 20} MiB of memory available and the machine may need {needed >> 20}: "
                         "pass a smaller --memory")
        number = os.memfd_create("concur_thp")
        try:
            os.ftruncate(number, self.size)
            segment = mmap.mmap(number, self.size)
        finally:
            os.close(number)
        self._view = ctypes.c_char.from_buffer(segment)
        self.base = ctypes.addressof(self._view)
        return segment

    def _boot(self) -> None:
        bind(self.base, self.places)
        map_dirty(self.base, self.size)
        abort_when_parked(True)
        system.nr_cpus = self.config.cpus
        system.seed = self.config.seed
        system.nr_frames = self.config.frames
        system.segment_bytes = self.size
        init_timespecs()
        init_lockdep()
        for number in range(self.config.cpus):
            self._boot_cpu(cpus[number], number)
        set_current(int(cpus[0]))
        GUARDED.set(0)
        for boot in _BOOT:
            boot(self.config)
        GUARDED.set(1)

    def _boot_cpu(self, cpu: Cpu, number: int) -> None:
        cpu.id = number
        cpu.rng = ((self.config.seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03) & 0x7FFFFFFFFFFFFFFF) | 1
        cpu.state.store(int(CpuState.PARKED))

    def listen_chaos(self, short: int = 6, long: int = 11) -> None:
        """Delay at one point in 2**short for a moment, at one in 2**long for a time slice."""
        system.chaos_short, system.chaos_long = short, long
        system.listen.or_(LISTEN_CHAOS)

    def listen_checks(self, every: int = instant.CHECK_EVERY) -> None:
        """Check instant invariants from now on, at one in `every` of the frequent points (1: at all) and at all others,
        and account for every reference. Before the CPU processes are forked, all CPUs at rest."""
        instant.checking.every = every
        open_accounts(self.config)
        redirect(check_hook, instant.check_sampled)
        system.listen.or_(LISTEN_CHECK | LISTEN_ACCOUNT)

    def cpu(self, number: int = 0) -> Cpu:
        """CPU `number`, to be run by this process."""
        cpu: Cpu = cpus[number]
        cpu.pid = os.getpid()
        set_current(int(cpu))
        return cpu

    def mm(self) -> UserMm:
        """A new address space, to map memory in; programs that are declared afterwards run in it."""
        return self.programs.mm()

    def program(self, body: Body | None = None, *, mm: UserMm | int | None = None, name: str = "") -> Any:
        """Declare the program of the next CPU, a function of one argument (program/processor.py):

            @m.program
            def writer(cpu): cpu.store(region, 7)

            m.program(lambda cpu: cpu.madvise(region, "2M", "DONTNEED"), name="zapper")

        `mm`: where it runs, when that is not the newest mm. Misuse when every CPU has a program.
        """
        if body is None:
            return lambda function: self.programs.declare(function, mm, name)
        return self.programs.declare(body, mm, name)

    def run(self, seconds: float = 60.0) -> Result:
        """Run the programs freely, each in a process of its own, all at once; workers/programs.py says what comes back."""
        result: Result = engine("run")(self, self.programs, seconds)
        return result

    def explore(self, **options: Any) -> Result:
        """Run the programs again and again, one CPU at a time, in schedules of a strategy. The machine stays as it is.

        strategy="pct", depth=3, schedules=1000, seconds=0 (no limit), seed=1, checks=0, bound=100_000, shrink_seconds=5.0,
        cells=0 (one on each core), token=None (replay this instead), check=None, check_determinism=False (each schedule twice).
        stress/programs/engine.py says what comes back.
        """
        result: Result = engine("explore")(self, self.programs, **options)
        return result

    def move(self, build: str) -> None:
        """Go on in memory of this process's own, which those it forks share, as a machine of another build whose code is linked
        already. What the segment holds, and who else uses it, is left alone. References are numbers, so a copy is as good."""
        before, old = self.places, self.base
        self.places = layout(self.config)  # There may be more arrays by now.
        self.size = self.places[""][0]
        self._moved = mmap.mmap(-1, self.size)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self._moved))
        for name, (offset, size) in before.items():
            if name and not name.startswith("sched"):
                ctypes.memmove(self.base + self.places[name][0], old + offset, size)
        bind(self.base, self.places)
        system.segment_bytes = self.size
        self.build = build
        map_dirty(self.base, self.size)

    def close(self) -> None:
        """Unmap the segment; harmless to repeat."""
        if self._segment is not None:
            del self._view
            self._segment.close()
            self._segment = None
            Machine.booted = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


__all__ = ["Kernel", "Machine", "MachineConfig", "available_memory", "needed_memory"]
