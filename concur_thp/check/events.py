"""The last events of each CPU as text: the tracepoint's name, its arguments by name, and how long ago.

-  1.204 us  page_fault_user       address=0x7f0000400000 error=0x2 result=0x0
"""

from typing import Any, NamedTuple

import numpy as np

from concur_thp.arch.trace import RING_EVENTS, Tracepoint, rings
from concur_thp.check.clock import ns_per_cycle
from concur_thp.check.lock_names import lock_name, segment_offset
from concur_thp.check.lock_stat import class_name
from concur_thp.check.views import view
from concur_thp.config import NR_CPUS, MachineConfig
from concur_thp.ops import SYS_ARGUMENT_SHIFT, SYS_OP_MASK, Op

ARGUMENTS: dict[int, tuple[str, ...]] = {
    Tracepoint.page_fault_user: ("address", "error", "result"),
    Tracepoint.mm_page_alloc: ("pfn", "order", "migratetype"),
    Tracepoint.mm_page_free: ("pfn", "order"),
    Tracepoint.mm_khugepaged_scan_pmd: ("mm", "address", "result"),
    Tracepoint.mm_collapse_huge_page: ("mm", "address", "result"),
    Tracepoint.mm_collapse_huge_page_isolate: ("pfn", "none_or_zero", "result"),
    Tracepoint.tlb_flush: ("mm", "start", "end"),
    Tracepoint.contention_begin: ("lock", "class", "mode"),
    Tracepoint.contention_end: ("lock", "class"),
    Tracepoint.sched_process_fork: ("parent", "child"),
    Tracepoint.sched_process_exit: ("mm",),
    Tracepoint.sys_enter: ("op", "first", "second"),
    Tracepoint.thp_split_pmd: ("pfn", "address", "mm"),
    Tracepoint.thp_deferred_split: ("pfn",),
    Tracepoint.page_remove_rmap: ("pfn", "compound", "mapcount"),
    Tracepoint.zap_huge_pmd: ("pfn", "address", "mm"),
    Tracepoint.mm_vmscan_writepage: ("pfn", "slot", "flags"),
    Tracepoint.mm_vmscan_lru_shrink_inactive: ("list", "taken", "reclaimed"),
    Tracepoint.split_huge_page: ("pfn", "page", "result"),
    Tracepoint.migrate_page: ("pfn", "to", "result"),
    Tracepoint.mm_compaction_end: ("zone", "order", "result"),
}
"""What the three values of an event are called. What has no row is shown as a, b, c."""
PAGE_ARGUMENTS = ("pfn",)
DECIMAL = ("mm", "parent", "child", "order", "migratetype", "mapcount", "compound", "op")


class Record(NamedTuple):
    """One event of a ring."""

    cpu: int
    number: int
    when: int
    what: int
    values: tuple[int, int, int]

    @property
    def name(self) -> str:
        return Tracepoint(self.what).name if self.what in ARGUMENTS else f"event {self.what}"


def ring_events(cpu: int, last: int = 16) -> list[Record]:
    """The newest `last` events of a CPU that are still in its ring, oldest first."""
    rows = view(rings, NR_CPUS * RING_EVENTS)[cpu * RING_EVENTS : (cpu + 1) * RING_EVENTS]
    used = np.flatnonzero(rows["when"])
    newest = used[np.argsort(rows["number"][used], kind="stable")][-last:]
    columns = [rows[name][newest].tolist() for name in ("number", "when", "what", "a", "b", "c")]
    return [Record(cpu, number, when, what, (a, b, c)) for number, when, what, a, b, c in zip(*columns, strict=True)]


def page_events(config: MachineConfig, pfn: int, last: int = 6, huge: int = 1) -> list[Record]:
    """The newest events of all CPUs that name a page (or one of the `huge` frames from it), oldest first."""
    found = [
        event
        for cpu in range(config.cpus)
        for event in ring_events(cpu, RING_EVENTS)
        for name, value in zip(ARGUMENTS.get(event.what, ()), event.values, strict=False)
        if name in PAGE_ARGUMENTS and pfn <= value < pfn + huge
    ]
    return sorted(found, key=lambda event: event.when)[-last:]


def event_text(config: MachineConfig, event: Record, now: int, with_cpu: bool = False) -> str:
    """One line; `now` is the cycle that times are counted back from."""
    values = event_values(config, event)
    ago = (now - event.when) * ns_per_cycle() / 1000
    who = f"cpu {event.cpu}  " if with_cpu else ""
    return f"-{ago:12.3f} us  {who}{event.name:<24} {values}"


def event_values(config: MachineConfig, event: Record) -> str:
    """The arguments of an event, by name."""
    names = ARGUMENTS.get(event.what, ("a", "b", "c"))
    return " ".join(f"{name}={_value(config, name, value)}" for name, value in zip(names, event.values, strict=False))


def _value(config: MachineConfig, name: str, value: int) -> Any:
    if name == "lock":
        offset = segment_offset(value)
        return f"[{lock_name(config, offset if offset >= 0 else value)}]"
    if name == "class":
        return class_name(value)
    if name == "mode":
        return {1: "read", 2: "write"}.get(value, value)
    if name == "op" and value & SYS_OP_MASK in Op.__members__.values():
        argument = value >> SYS_ARGUMENT_SHIFT
        return Op(value & SYS_OP_MASK).name + (f" {argument}" if argument else "")
    return value if name in DECIMAL else f"{value:#x}"


__all__ = ["ARGUMENTS", "Record", "event_text", "event_values", "page_events", "ring_events"]
