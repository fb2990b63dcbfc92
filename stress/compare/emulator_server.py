"""The emulator's side: a machine of its own, programs in, what was seen out, every program followed by an audit."""

import signal
import socket
from collections.abc import Callable
from typing import Any

from concur_thp.check.audit import audit
from concur_thp.config import MachineConfig, parse_size
from concur_thp.machine import Machine
from concur_thp.mm.mm_types import zones
from stress.compare.emulator_calls import Calls
from stress.compare.kernel_server import plain, receive, send
from stress.compare.observed import Run
from stress.compare.steps import BLOCK, Step

SHOWN = 3
SMALL: dict[str, Any] = {"cpus": 1, "order": BLOCK.bit_length() - 1, "mms": 8, "vmas": 1024, "max_map_count": 512,
                         "files": 4, "file_pages": 64}
"""So that an audit takes 4 ms."""


def serve(channel: socket.socket, memory: str, prepare: Callable[[], None] | None = None) -> None:
    """Run what comes over the channel until it ends."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # The one who asks decides, by closing the channel.
    with Machine(MachineConfig(memory=parse_size(memory), **SMALL)) as machine:
        if prepare:
            prepare()
        calls = Calls(machine, look_after=lambda: _violations(machine))
        calls.drain()
        free = free_pages()
        try:
            while True:
                steps, detail, audited = receive(channel)
                seen, broken = calls.run(tuple(Step(*step) for step in steps), detail, audited)
                calls.drain()
                if not broken and free_pages() != free:
                    broken = f"{free - free_pages()} pages were not given back when every task had gone"
                    free = free_pages()
                send(channel, (_plain(seen), broken))
        except (EOFError, ConnectionError):
            pass


def free_pages() -> int:
    """In the buddy lists."""
    return sum(zones[number].nr_free_pages for number in range(3))


def _violations(machine: Machine) -> str:
    found = audit(machine.config).violations
    return "; ".join(" ".join(str(violation).split()) for violation in found[:SHOWN])


def _plain(seen: Run) -> list[object]:
    return [(one.result, one.counters, {task: plain(look) for task, look in one.looks.items()}, one.events, one.blocks,
             one.vmas)
            for one in seen]
