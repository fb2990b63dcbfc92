"""From a free run to programs: what each CPU did last, read from its event ring, as steps for a small machine.

Free runs cannot be repeated, but their rings say what was under way: the calls and faults of each CPU, and where. A block is a
huge page of the run; its pages become the pages of a block of the small machine, so that what overlapped still does.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from concur_thp.arch.system import system
from concur_thp.arch.trace import RING_EVENTS, Tracepoint
from concur_thp.check.events import Record, ring_events
from concur_thp.config import PAGE_SHIFT, MachineConfig
from concur_thp.mm.flags import PROT_WRITE
from concur_thp.mm.uaccess import PF_WRITE
from concur_thp.ops import SYS_ARGUMENT_SHIFT, SYS_OP_MASK, Op
from concur_thp.program.table import ADVICES

BLOCK = 8
"""Pages of a block of the small machine (order 3)."""
BLOCKS = 2
LAST = 3
"""Steps of each CPU, the newest; races are short."""
ADVICE_WORDS = {number: word for word, number in ADVICES.items()}


@dataclass
class Clue:
    """What a failed free run leaves to go by."""

    symptom: str
    cpu: int
    """The CPU that noticed; -1 when it was an audit."""
    steps: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """By CPU, oldest first; CPUs that did nothing of interest are left out."""

    @property
    def verbs(self) -> set[str]:
        """The kinds of steps."""
        return {verb(step) for steps in self.steps.values() for step in steps}


def verb(step: str) -> str:
    """`advise dontneed`, `store`, `collapse`: what kind of step this is."""
    words = step.split(":")[-1].split()
    return " ".join(word for word in words if word in ADVICES or word == words[0])


class Scale:
    """Addresses of the run to pages of the small machine. Blocks are numbered as they come; only the first few count."""

    def __init__(self, order: int):
        self.order = order
        self.blocks: dict[int, int] = {}

    def page(self, address: int) -> int | None:
        """The page that an address becomes, None when there are blocks enough."""
        block, inside = address >> (PAGE_SHIFT + self.order), (address >> PAGE_SHIFT) & ((1 << self.order) - 1)
        if block not in self.blocks and len(self.blocks) >= BLOCKS:
            return None
        return self.blocks.setdefault(block, len(self.blocks)) * BLOCK + (inside * BLOCK >> self.order)

    def pages(self, page: int, length: int) -> int:
        """How many pages a length becomes."""
        wanted = -(-(length >> PAGE_SHIFT) * BLOCK >> self.order)
        return min(max(1, wanted), BLOCKS * BLOCK - page)


Values = tuple[int, int, int]


def _sys_enter(values: Values, scale: Scale) -> str:
    op, argument = values[0] & SYS_OP_MASK, values[0] >> SYS_ARGUMENT_SHIFT
    page = scale.page(values[1])
    if page is None:
        return ""
    there = f"{page} {scale.pages(page, values[2])}"
    if op == Op.MADVISE:
        return f"advise {there} {ADVICE_WORDS[argument]}" if argument in ADVICE_WORDS else ""
    if op == Op.MPROTECT:
        return f"protect {there} {'rw' if argument & PROT_WRITE else 'ro'}"
    if op == Op.MREMAP:
        return f"move {page // BLOCK}h 1h 1g"
    return {Op.MUNMAP: f"unmap {there}", Op.MLOCK: f"lock {there}", Op.MUNLOCK: f"unlock {there}"}.get(Op(op), "")


def _fault(values: Values, scale: Scale) -> str:
    page = scale.page(values[0])
    return "" if page is None else f"store {page} 7" if values[1] & PF_WRITE else f"load {page}"


def _block(step: str) -> Callable[[Values, Scale], str]:
    """A step on the block at the second value."""
    return lambda values, scale: "" if (page := scale.page(values[1])) is None else step.format(page // BLOCK * BLOCK)


def _always(step: str) -> Callable[[Values, Scale], str]:
    return lambda values, scale: step


STEPS: dict[int, Callable[[Values, Scale], str]] = {
    Tracepoint.sys_enter: _sys_enter, Tracepoint.page_fault_user: _fault,
    Tracepoint.mm_khugepaged_scan_pmd: _block("collapse 0 {}"), Tracepoint.mm_collapse_huge_page: _block("collapse 0 {}"),
    Tracepoint.thp_split_pmd: _block("split_pmd {}"),
    Tracepoint.split_huge_page: _always("split_page 0"), Tracepoint.migrate_page: _always("migrate 0 whole"),
    Tracepoint.mm_vmscan_writepage: _always("swap_out 0"), Tracepoint.mm_compaction_end: _always("compact"),
    Tracepoint.sched_process_fork: _always("fork 1"),
}
"""What a tracepoint says about the step that led to it."""


def read_clue(config: MachineConfig, symptom: str, cpu: int) -> Clue:
    """The last steps of each CPU of the machine that is in this process. First the CPU that noticed: its blocks count most."""
    scale = Scale(config.order)
    clue = Clue(symptom, cpu)
    order = sorted(range(config.cpus), key=lambda number: (number != cpu, number))
    for number in order:
        if steps := last_steps(ring_events(number, RING_EVENTS), scale):
            clue.steps[number] = steps
    return clue


def last_steps(events: Iterable[Record], scale: Scale, most: int = LAST) -> tuple[str, ...]:
    """The newest few different steps that events stand for, oldest first."""
    found: list[str] = []
    for event in reversed(list(events)):
        step = STEPS[event.what](event.values, scale) if event.what in STEPS else ""
        if step and step not in found:
            found.append(step)
        if len(found) == most:
            break
    return tuple(reversed(found))


def noticed_by() -> int:
    """The CPU that called bug(), -1 when none did."""
    return int(system.bug_cpu) if system.panicked.read() else -1


__all__ = ["BLOCK", "Clue", "Scale", "last_steps", "noticed_by", "read_clue", "verb"]
