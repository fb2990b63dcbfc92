"""Works out the mappings execve made, which no line prints, from the faults and mprotects that hit them.

Neighbouring addresses that belong to no recorded mapping become one mapping: the program and the dynamic
linker private file mappings, readable or writable as they were used, the highest written ones the stack. None
covers a place where a recorded mapping ever was.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from stress.recordings.calls import PAGE_SIZE, TASK_SIZE, Action, page_down, page_up
from stress.recordings.tasks import walk
from stress.recordings.vmas import PROT_EXEC, PROT_READ, PROT_WRITE, AddressSpace, Vma

READ, WRITE, EXECUTE = 1, 2, 4
STACK_ZONE = 0x7FF0_0000_0000
"""Stacks begin above this: at most 16 GiB of randomisation below the end of user space."""
STACK_REACH = 8 << 20
"""Default RLIMIT_STACK: no touch of one stack is farther from the next one."""
STACK_AT_START = 0x21000
"""setup_arg_pages makes a stack of the arguments plus 128 KiB."""
MAPPING_REACH = 1 << 20
"""Faults around map 64 KiB at once, so a megabyte without a fault ends a mapping."""
MMAP_MIN_ADDR = 0x10000
RELRO_LIMIT = 64 << 20
"""More than this in one mprotect is no part of a program's image."""


@dataclass(frozen=True)
class Mapping:
    """A derived mapping. The stack's is as execve leaves it; touches make it grow down to `lowest`."""

    start: int
    end: int
    prot: int
    stack: bool = False
    lowest: int = 0


@dataclass
class Image:
    """What one execve mapped, for its mm and all forked from it: first the evidence, then the mappings.

    `heap_start` is what the first brk() returned, 0 if there was none. `recorded` holds every place a
    recorded call ever mapped, `used` how each page outside of them was touched.
    """

    heap_start: int = 0
    recorded: AddressSpace = field(default_factory=AddressSpace)
    used: dict[int, int] = field(default_factory=dict)
    mappings: list[Mapping] = field(default_factory=list)

    def copy(self) -> "Image":
        return self


def images(actions: Iterable[Action]) -> list[Image]:
    """The images of a recording, in the order in which `walk` asks for new mms."""
    found: list[Image] = []

    def new_image() -> Image:
        found.append(Image())
        return found[-1]

    for task, action, _ in walk(actions, new_image):
        _note(task.mm, action)
    for image in found:
        image.mappings = list(_derive(image))
    return found


def _note(image: Image, action: Action) -> None:
    args = action.args
    if action.what == "touch":
        page = page_down(args[0])
        if image.recorded.find(page) is None:
            how = EXECUTE if args[2] else WRITE if args[1] else READ
            image.used[page] = image.used.get(page, 0) | how
    elif action.what == "mmap":
        image.recorded.add(Vma(args[0], args[0] + args[1], 0, 0))
    elif action.what == "mremap":
        image.recorded.add(Vma(args[3], args[3] + args[2], 0, 0))
    elif action.what == "brk":
        image.heap_start = image.heap_start or args[1]
        if args[1] > image.heap_start:
            image.recorded.add(Vma(page_down(image.heap_start), page_up(args[1]), 0, 0))
    elif action.what == "mprotect" and args[1] <= RELRO_LIMIT:
        # The dynamic linker makes relocated data read-only again: it was written, if only by the kernel.
        how = EXECUTE if args[2] & PROT_EXEC else WRITE
        for page in range(args[0], args[0] + args[1], PAGE_SIZE):
            if image.recorded.find(page) is None:
                image.used[page] = image.used.get(page, 0) | how


def _derive(image: Image) -> Iterator[Mapping]:
    pages = sorted(p for p in image.used if MMAP_MIN_ADDR <= p < TASK_SIZE)
    stack = _stack(image, pages)
    if stack:
        start = max(stack[0], stack[-1] + PAGE_SIZE - STACK_AT_START)
        yield Mapping(start, stack[-1] + PAGE_SIZE, PROT_READ | PROT_WRITE, True, stack[0])
        low, high = stack[0], stack[-1]
        pages = [p for p in pages if not low <= p <= high]
    for cluster in _clusters(image, pages, MAPPING_REACH):
        yield from _split_by_use(image, cluster)


def _stack(image: Image, pages: list[int]) -> list[int]:
    """The highest written pages. The linker's data may be the highest, but then its text is close."""
    written = [p for p in pages if p >= STACK_ZONE and image.used[p] & WRITE]
    if not written:
        return []
    upto = [p for p in pages if STACK_ZONE <= p <= written[-1]]
    cluster = list(_clusters(image, upto, STACK_REACH))[-1]
    return [] if any(image.used[p] & EXECUTE for p in cluster) else cluster


def _clusters(image: Image, pages: list[int], reach: int) -> Iterator[list[int]]:
    """Runs of sorted pages no farther apart than `reach`, with no recorded mapping between them."""
    cluster: list[int] = []
    for page in pages:
        if cluster:
            end = cluster[-1] + PAGE_SIZE
            if page - end > reach or (page > end and image.recorded.within(end, page)):
                yield cluster
                cluster = []
        cluster.append(page)
    if cluster:
        yield cluster


def _split_by_use(image: Image, cluster: list[int]) -> Iterator[Mapping]:
    """Data from the first written page to the last with no code between; what is left is text."""
    runs: list[tuple[bool, list[int]]] = []
    unsure: list[int] = []
    for page in cluster:
        use = image.used[page]
        written = bool(use & WRITE)
        if not written and not use & EXECUTE and runs and runs[-1][0]:
            unsure.append(page)
            continue
        if runs and runs[-1][0] == written:
            runs[-1][1].extend([*unsure, page])
        else:
            runs.append((written, [*unsure, page]))
        unsure = []
    if unsure:
        runs.append((False, unsure))
    for written, pages in runs:
        executed = any(image.used[p] & EXECUTE for p in pages)
        prot = PROT_READ | (PROT_WRITE if written else 0)
        prot |= PROT_EXEC if executed or not written else 0
        yield Mapping(pages[0], pages[-1] + PAGE_SIZE, prot)
