"""From a lock's place in the segment to its name, and from there to who has it.

`locate()` turns an offset into array, index and field; the rest are words. Nothing here follows a number it has not
checked, so it works on a machine that is broken.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from concur_thp.arch.cpu import HELD_DEPTH, HELD_READ, cpus
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import Struct
from concur_thp.arch.system import layout, system
from concur_thp.check.lock_stat import class_name
from concur_thp.check.views import view
from concur_thp.config import NR_CPUS, MachineConfig
from concur_thp.mm.mm_types import mem_map
from concur_thp.sync.lockdep import CLASS_MASK
from concur_thp.sync.rwsem_queue import RWSEM_READERS, RWSEM_WRITER, RwSem
from concur_thp.sync.spinlock import WAITERS, SpinLock

ZONE_NAMES = ("DMA32", "Normal", "Movable")
PT_LEVELS = {1: "pte_ptl", 2: "pmd_ptl"}


@dataclass(frozen=True)
class Place:
    """Where an offset leads: element `index` of an array, and the field it is in."""

    array: SharedArray
    index: int
    field: str
    kind: type[Struct] | None
    """SpinLock or RwSem when the field is one."""

    @property
    def pointer(self) -> Any:
        """The element."""
        return self.array[self.index]


def locate(config: MachineConfig, offset: int) -> Place | None:
    """The struct and field at an offset (counted from `system`); None for what is outside every array."""
    places = layout(config)
    offset += places["system"][0]
    for name, (start, size) in places.items():
        if name and start <= offset < start + size:
            array = SharedArray.all[name]
            index, rest = divmod(offset - start, array.stride)
            fields = getattr(array.struct, "FIELDS", {})
            best = ""
            for field_name, row in fields.items():
                size = row.stride * max(row.count, 1)
                if row.offset <= rest < row.offset + size and (not best or _prefer(rest, row, fields[best])):
                    best = field_name
            kind = fields[best].struct if best else None
            return Place(array, index, best, kind if kind in (SpinLock, RwSem) else None)
    return None


def _prefer(rest: int, row: Any, other: Any) -> bool:
    """Of overlaid fields the one that begins here and is a lock."""
    return row.offset == rest and row.struct in (SpinLock, RwSem) and other.struct not in (SpinLock, RwSem)


_NAMES: dict[tuple[str, str], Callable[[int], str]] = {
    ("mms", "mmap_sem"): lambda n: f"mmap_sem of mm {n}",
    ("mms", "page_table_lock"): lambda n: f"page_table_lock of mm {n}",
    ("anon_vmas", "rwsem"): lambda n: f"anon_vma_rwsem {n}",
    ("files", "i_pages"): lambda n: f"i_pages of file {n}",
    ("files", "i_mmap_rwsem"): lambda n: f"i_mmap_rwsem of file {n}",
    ("zones", "lock"): lambda n: f"zone_lock {ZONE_NAMES[n] if n < len(ZONE_NAMES) else n}",
    ("pgdat", "lru_lock"): lambda n: "lru_lock",
    ("pgdat", "split_queue_lock"): lambda n: "split_queue_lock",
    ("khugepaged_scan", "lock"): lambda n: "khugepaged_mm_lock",
    ("mem_map", "flags"): lambda n: f"page lock of pfn {n:#x}",
    ("mem_map", "ptl"): lambda n: _ptl_name(n),
}


def _ptl_name(pfn: int) -> str:
    return f"{PT_LEVELS.get(int(mem_map[pfn].pt_level), 'ptl')} of table pfn {pfn:#x}"


def lock_name(config: MachineConfig, offset: int) -> str:
    """'mmap_sem of mm 3', 'pte_ptl of table pfn 0x41', 'zone_lock Normal', ..."""
    place = locate(config, offset)
    if place is None:
        return f"something at offset {offset:#x}, outside the segment"
    name = _NAMES.get((place.array.name, place.field))
    return name(place.index) if name else f"{place.array.name}[{place.index}].{place.field}"


class Held(NamedTuple):
    """One entry of a CPU's stack of held locks, or what it is acquiring."""

    offset: int
    cls: int
    read: bool

    def text(self, config: MachineConfig) -> str:
        mode = ", read" if self.read else ""
        nested = f" as {class_name(self.cls)}" if class_name(self.cls).endswith("/1") else ""
        return f"{lock_name(config, self.offset)}{nested}{mode}"


def held_of(word: int) -> Held:
    """Decode a word of cpu.held or cpu.acquiring."""
    plain = word & ~HELD_READ
    return Held(plain >> 8, plain & CLASS_MASK, bool(word & HELD_READ))


def held_locks(number: int) -> list[Held]:
    """The locks a CPU holds, oldest first."""
    cpu = view(cpus, NR_CPUS)[number]
    depth = max(0, min(int(cpu["depth"]), HELD_DEPTH))
    return [held_of(int(word)) for word in cpu["held"][:depth]]


def acquiring(number: int) -> Held | None:
    """The lock a CPU is taking or waiting for."""
    word = int(view(cpus, NR_CPUS)["acquiring"][number])
    return held_of(word) if word else None


def readers(config: MachineConfig, offset: int) -> list[int]:
    """CPUs whose stack of held locks has this one."""
    return [n for n in range(config.cpus) if any(held.offset == offset for held in held_locks(n))]


def holders(config: MachineConfig, offset: int) -> list[int]:
    """The CPUs that hold a lock, by the lock's own words where it has them."""
    place = locate(config, offset)
    if place is None:
        return []
    if place.kind is SpinLock:
        owner = (getattr(place.pointer, place.field).word.read() & ~WAITERS) - 1
        return [owner] if owner >= 0 else []
    if place.kind is RwSem:
        sem = getattr(place.pointer, place.field)
        writer = int(sem.writer) - 1
        if sem.count.read() & RWSEM_WRITER and writer >= 0:
            return [writer]
        return readers(config, offset) if sem.count.read() & RWSEM_READERS else []
    if place.array.name == "mem_map" and place.field == "flags":
        owner = int(place.pointer.lock_owner) - 1
        return [owner] if place.pointer.flags.read() & 1 and owner >= 0 else []
    return readers(config, offset)


def describe_wait(config: MachineConfig, number: int) -> str:
    """'mmap_sem of mm 3, held by cpu 1'; '' when the CPU is after no lock."""
    wanted = acquiring(number)
    if wanted is None:
        return ""
    having = [n for n in holders(config, wanted.offset) if n != number]
    who = "held by " + ", ".join(f"cpu {n}" for n in having) if having else "held by nobody"
    return f"{wanted.text(config)}, {who}"


def wait_cycle(config: MachineConfig) -> list[int]:
    """CPUs that wait for each other in a circle, in order; empty when there is none."""
    for first in range(config.cpus):
        path = [first]
        while True:
            wanted = acquiring(path[-1])
            having = holders(config, wanted.offset) if wanted else []
            after = [n for n in having if 0 <= n < config.cpus and n != path[-1]]
            if not after:
                break
            if after[0] in path:
                return path[path.index(after[0]) :]
            path.append(after[0])
    return []


def segment_offset(address: int) -> int:
    """An address of this process as an offset of the segment."""
    return address - int(system)
