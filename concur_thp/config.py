"""Sizes, switches, and how they relate. The kernel is pinned here: every name and step is Linux v4.20's.

A `Param` is a number that is fixed when a machine is linked (the order of a huge page and all that follows from it).
Kernel functions use it like a constant; native code has it as one.
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from concur_thp.errors import Misuse

KERNEL_TAG = "v4.20"

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
FRAME_WORDS = 8
"""Words of content that stand for the 4 KiB of a frame, so that copies are real copies."""
NR_CPUS = 32
"""Most CPUs a machine can have; sizes the per-CPU arrays."""
DEFAULT_ORDER = 9
SWAP_CLUSTERS = 4
"""Fewest clusters of a swap device; the first is never free as a whole, its slot 0 is the header."""
ORDERS = range(2, 10)
"""Huge page orders a machine can be booted with: 9 is x86-64's, 3 keeps exhaustive exploration small."""


class Param:
    """A boot parameter. Behaves as an int (of the geometry now in force) when code runs as plain Python."""

    order = DEFAULT_ORDER

    def __init__(self, name: str, value: Callable[[int], int]):
        self.name, self.value = name, value

    def __int__(self) -> int:
        return self.value(Param.order)

    __index__ = __int__

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"<{self.name}={int(self)}>"


def _number_operators(cls: type) -> None:
    """Give `cls` the arithmetic of the int it stands for."""

    def forward(function: Callable[[int, int], int]) -> Callable[[Any, Any], Any]:
        return lambda self, other: function(int(self), int(other))

    def backward(function: Callable[[int, int], int]) -> Callable[[Any, Any], Any]:
        return lambda self, other: function(int(other), int(self))

    for name in ("add", "sub", "mul", "floordiv", "mod", "and_", "or_", "xor", "lshift", "rshift"):
        plain = name.strip("_")
        setattr(cls, f"__{plain}__", forward(getattr(operator, name)))
        setattr(cls, f"__r{plain}__", backward(getattr(operator, name)))
    for name in ("lt", "le", "eq", "ne", "gt", "ge"):
        setattr(cls, f"__{name}__", forward(getattr(operator, name)))
    for name in ("neg", "invert"):
        setattr(cls, f"__{name}__", (lambda f: lambda self: f(int(self)))(getattr(operator, name)))
    cls.__bool__ = lambda self: bool(int(self))  # type: ignore[attr-defined]


_number_operators(Param)

HPAGE_PMD_ORDER: Any = Param("HPAGE_PMD_ORDER", lambda order: order)
HPAGE_PMD_NR: Any = Param("HPAGE_PMD_NR", lambda order: 1 << order)
PTRS_PER_PTE: Any = Param("PTRS_PER_PTE", lambda order: 1 << order)
PMD_SHIFT: Any = Param("PMD_SHIFT", lambda order: PAGE_SHIFT + order)
PMD_SIZE: Any = Param("PMD_SIZE", lambda order: PAGE_SIZE << order)
PMD_MASK: Any = Param("PMD_MASK", lambda order: ~((PAGE_SIZE << order) - 1))
HPAGE_PMD_SIZE: Any = Param("HPAGE_PMD_SIZE", lambda order: PAGE_SIZE << order)
HPAGE_PMD_MASK: Any = Param("HPAGE_PMD_MASK", lambda order: ~((PAGE_SIZE << order) - 1))


def upper_bits(order: int) -> int:
    """Index bits of each table above the PTE level: x86-64's nine, fewer on small geometries so snapshots are small."""
    return 9 if order == 9 else 6


PTRS_PER_UPPER: Any = Param("PTRS_PER_UPPER", lambda order: 1 << upper_bits(order))
PUD_SHIFT: Any = Param("PUD_SHIFT", lambda order: PAGE_SHIFT + order + upper_bits(order))
PGDIR_SHIFT: Any = Param("PGDIR_SHIFT", lambda order: PAGE_SHIFT + order + 2 * upper_bits(order))
TASK_SIZE: Any = Param("TASK_SIZE", lambda order: 1 << (PAGE_SHIFT + order + 3 * upper_bits(order) - 1))
TABLE_WORDS: Any = Param("TABLE_WORDS", lambda order: max(1 << order, 1 << upper_bits(order)))
"""Entries that the storage of one table page has room for."""
MAX_ORDER: Any = Param("MAX_ORDER", lambda order: order + 2)
"""Free areas of the buddy allocator: orders 0 .. MAX_ORDER-1 (11 on x86-64)."""
pageblock_order: Any = Param("pageblock_order", lambda order: order)
pageblock_nr_pages: Any = Param("pageblock_nr_pages", lambda order: 1 << order)

PAGE_MASK = ~(PAGE_SIZE - 1)

assert upper_bits(9) == 9 and PAGE_SHIFT + 9 + 27 == 48, "order 9 is x86-64: 48-bit addresses"


@dataclass(frozen=True)
class MachineConfig:
    """How big a machine is. Sizes in bytes; everything is checked here, before any memory is taken."""

    cpus: int = 2
    memory: int = 256 << 20
    order: int = DEFAULT_ORDER
    kernelcore: int = 0
    """Memory for anything; what is beyond it takes movable pages only (ZONE_MOVABLE). 0: no such zone."""
    swap: int = 0
    """Size of the swap device; 0: there is none."""
    mms: int = 64
    vmas: int = 16384
    max_map_count: int = 8192
    files: int = 1024
    file_pages: int = 65536
    rows: int = 0
    """Rows of the programs to run (recordings)."""
    tasks: int = 0
    seed: int = 1
    controlled: bool = False
    """Will it be run one CPU at a time (concur_thp/sched)? Then there is room for what the scheduler notes."""

    def __post_init__(self) -> None:
        if not 1 <= self.cpus <= NR_CPUS:
            raise Misuse(f"--cpus {self.cpus}: a machine has 1 to {NR_CPUS} CPUs")
        if self.order not in ORDERS:
            raise Misuse(f"--order {self.order}: pass {ORDERS[0]} to {ORDERS[-1]} (9 is x86-64's huge page)")
        block = PAGE_SIZE << (self.order + 1)
        least = max(6 * block, 1 << 20)
        if self.memory < least:
            raise Misuse(f"--memory {size_text(self.memory)}: with --order {self.order} pass at least {size_text(least)}")
        if self.memory > 1 << 40:
            raise Misuse(f"--memory {size_text(self.memory)}: pass at most 1T")
        if self.kernelcore and not block <= self.kernelcore <= self.memory:
            raise Misuse(f"kernelcore {size_text(self.kernelcore)}: pass {size_text(block)} to "
                         f"{size_text(self.memory)}, or nothing")
        least = SWAP_CLUSTERS * PAGE_SIZE << self.order
        if self.swap and not least <= self.swap <= 1 << 40:
            raise Misuse(f"--swap {size_text(self.swap)}: with --order {self.order} pass {size_text(least)} to 1T, "
                         "or 0 for no swap device")

    @property
    def swap_slots(self) -> int:
        """Slots of the swap device: whole clusters, each as large as a huge page."""
        return self.swap // PAGE_SIZE >> self.order << self.order

    @property
    def frames(self) -> int:
        """Frames of emulated memory: whole blocks of the buddy allocator's largest order."""
        block = 1 << (self.order + 1)
        return self.memory // PAGE_SIZE // block * block


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str | int) -> int:
    """'64M' -> 67108864. Plain numbers are bytes; K, M, G and T are powers of 1024."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if not match:
        raise Misuse(f"size {text!r}: pass a number with K, M, G or T behind it, such as 512M")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def size_text(size: int) -> str:
    """67108864 -> '64M'."""
    for unit in ("T", "G", "M", "K"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)
