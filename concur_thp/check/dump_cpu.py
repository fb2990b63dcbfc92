"""Text about the CPUs of a machine that has stopped: where each is, what it holds and waits for. See check/dump.py."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from concur_thp.arch.cpu import CpuState, cpus
from concur_thp.arch.linker import texts
from concur_thp.arch.points import Point
from concur_thp.check.clock import read_cycles
from concur_thp.check.events import event_text, ring_events
from concur_thp.check.lock_names import describe_wait, held_locks, wait_cycle
from concur_thp.check.views import view
from concur_thp.config import NR_CPUS, MachineConfig
from concur_thp.mm.mm_types import mem_map, percpu
from concur_thp.ops import OP_NAMES


def robust(function: Callable[..., str]) -> Callable[..., str]:
    """Whatever goes wrong becomes part of the text."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> str:
        try:
            return function(*args, **kwargs)
        except Exception as error:  # a dump has to come out, whatever the memory looks like
            return f"({function.__name__}: unreadable: {type(error).__name__}: {error})"

    return guarded


def enum_name(enum: Any, number: int) -> str:
    """The name of a number, or the number."""
    try:
        return str(enum(number).name)
    except ValueError:
        return str(number)


@robust
def dump_cpu(config: MachineConfig, number: int, events: int = 6) -> str:
    """A CPU: where it is, what it holds and waits for, its last events."""
    row = view(cpus, NR_CPUS)[number]
    mm = int(view(percpu, NR_CPUS)["mm"][number])
    lines = [
        f"cpu {number} (pid {row['pid']}): {enum_name(CpuState, int(row['state']))}, at "
        f"{enum_name(Point, int(row['point']))} in {function_name(int(row['func']))}, op "
        f"{OP_NAMES.get(int(row['op']), row['op'])} row {row['row']}, mm {mm}, {row['ops']} operations done"
    ]
    held = [lock.text(config) for lock in held_locks(number)]
    pages = int(row["page_locks"])
    held += [f"{pages} page locks: {_locked_pages(config, number)}"] if pages else []
    lines.append(
        "  holds "
        + (" > ".join(held) if held else "nothing")
        + (f", irqs off ({row['irq_off']})" if int(row["irq_off"]) else "")
    )
    wait = describe_wait(config, number)
    if wait:
        lines.append(f"  waits for {wait}")
    now = read_cycles()
    lines += ["  " + event_text(config, event, now) for event in ring_events(number, events)]
    return "\n".join(lines)


def function_name(number: int) -> str:
    """The kernel function a number stands for."""
    return texts().get(number, f"text {number:#x}") if number else "user code"


def _locked_pages(config: MachineConfig, cpu: int, most: int = 4) -> str:
    owners = view(mem_map, config.frames)["lock_owner"]
    found = np.flatnonzero(owners == cpu + 1)
    return ", ".join(f"pfn {pfn:#x}" for pfn in found[:most]) + (", ..." if len(found) > most else "")


@robust
def dump_locks(config: MachineConfig) -> str:
    """Who holds and waits for what, and the circle if there is one."""
    lines = []
    for number in range(config.cpus):
        held = " > ".join(lock.text(config) for lock in held_locks(number))
        wait = describe_wait(config, number)
        if held or wait:
            lines.append(f"cpu {number} holds {held or 'nothing'}" + (f"; waits for {wait}" if wait else ""))
    circle = wait_cycle(config)
    if circle:
        lines.append("deadlock: " + " -> ".join(f"cpu {n}" for n in (*circle, circle[0])))
    return "\n".join(lines) or "no lock is held"


__all__ = ["dump_cpu", "dump_locks", "enum_name", "function_name", "robust"]
