"""What one step of a program can be: the closed list, as rows of name, arguments and meaning.

A program is a text, one step a line (or several between semicolons):

    enter 0
    got: pin 0 2h+3 write       # label: step arguments
    pin_store 0 7

Numbers of pages are symbolic (step.py), so that a program means the same at any order of huge page. What a step returned
is its `status`, what it found its `value`; the columns say what they are.
"""

from enum import IntEnum, unique
from typing import NamedTuple

from concur_thp.mm.flags import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from concur_thp.ops import OP_NAMES

NR_SPACES = 8
NR_SLOTS = 8
"""Frames noted and files made by a program; pins each CPU has as many as check/pins.py says."""


@unique
class StepOp(IntEnum):
    """Steps; the order is the order of STEP_TABLE."""

    new = 0
    enter = 1
    leave = 2
    fork = 3
    drop = 4
    map = 5
    file = 6
    map_file = 7
    unmap = 8
    move = 9
    protect = 10
    advise = 11
    store = 12
    load = 13
    expect = 14
    fill = 15
    count = 16
    pin = 17
    pin_load = 18
    pin_store = 19
    unpin = 20
    split_pmd = 21
    split_page = 22
    note = 23
    get = 24
    split_frame = 25
    migrate_frame = 26
    migrate = 27
    compact = 28
    reclaim = 29
    swap_out = 30
    drain_split = 31
    shrink_zero = 32
    collapse = 33
    scan = 34
    drop_caches = 35
    drain = 36
    look = 37
    rss = 38
    queued = 39
    frame = 40
    same = 41
    lock = 42
    unlock = 43
    pin_run = 44
    poison = 45
    hint = 46
    stack = 47
    brk = 48
    clear_refs = 49
    slots = 50
    active = 51


PROTS = {"none": PROT_NONE, "ro": PROT_READ, "rw": PROT_READ | PROT_WRITE}
ADVICES = {"dontneed": MADV_DONTNEED, "free": MADV_FREE, "huge": MADV_HUGEPAGE, "nohuge": MADV_NOHUGEPAGE}
SHARINGS = {"private": MAP_PRIVATE, "shared": MAP_SHARED}
PIN_FAST_ONLY, PIN_SLOW, PIN_SPLIT, PIN_FAST = 0, 1, 2, 3
"""Ways to pin: gup-fast without its slow half; get_user_pages; the same with FOLL_SPLIT; gup-fast, then slow."""
PIN_WRITE = 4
PINNINGS = {"fast_only": PIN_FAST_ONLY, "read": PIN_SLOW, "split": PIN_SPLIT, "fast": PIN_FAST,
            "fast_only_write": PIN_FAST_ONLY | PIN_WRITE, "write": PIN_SLOW | PIN_WRITE,
            "split_write": PIN_SPLIT | PIN_WRITE, "fast_write": PIN_FAST | PIN_WRITE}
MOVE_WHOLE, MOVE_SMALL, MOVE_SPLIT = 0, 1, 2
"""Ways to migrate: a huge page whole; with small targets only, so that migrate_pages() splits it; FOLL_SPLIT (R10)."""
MOVES = {"whole": MOVE_WHOLE, "small": MOVE_SMALL, "split": MOVE_SPLIT}
WORDS = {"prot": PROTS, "advice": ADVICES, "sharing": SHARINGS, "pinning": PINNINGS, "moving": MOVES}
"""Arguments that are words, and what each stands for."""
LIMITS = {"space": NR_SPACES, "slot": NR_SLOTS, "pin": NR_SLOTS}
"""Arguments that are small numbers."""
MAX_ARGUMENTS = 6

LOOK_NONE, LOOK_PTE, LOOK_HUGE, LOOK_ZERO, LOOK_HUGE_ZERO, LOOK_SWAP, LOOK_MIGRATION, LOOK_POISON = range(8)
"""What `look` finds at an address: nothing, a small or huge page, a zero page; an entry of swap, of a migration, of a frame
that failed."""
LOOK_WRITE, LOOK_DIRTY = 1, 2
"""Bits of the value of `look`."""


class StepRow(NamedTuple):
    """One kind of step."""

    op: StepOp
    arguments: tuple[str, ...]
    meaning: str
    status: str = "0 or an error"
    value: str = ""


STEP_TABLE = (
    StepRow(StepOp.new, ("space",), "make an empty mm and put it into the space; an old one loses the space's reference"),
    StepRow(StepOp.enter, ("space",), "run in the space's mm from now on, as one more thread of it"),
    StepRow(StepOp.leave, (), "leave the mm; the last one out tears it down"),
    StepRow(StepOp.fork, ("space",), "fork the mm this CPU runs in; the space gets the child"),
    StepRow(StepOp.drop, ("space",), "the space gives up its mm, as the exit of the thread that stood for it"),
    StepRow(StepOp.map, ("page", "pages", "prot"), "mmap private anonymous memory there", "0 or an error"),
    StepRow(StepOp.file, ("slot", "pages"), "make a file with that many pages, if the slot has none"),
    StepRow(StepOp.map_file, ("page", "pages", "prot", "sharing", "slot"), "mmap the slot's file from its start"),
    StepRow(StepOp.unmap, ("page", "pages"), "munmap"),
    StepRow(StepOp.move, ("page", "pages", "page"), "mremap to that place"),
    StepRow(StepOp.protect, ("page", "pages", "prot"), "mprotect"),
    StepRow(StepOp.advise, ("page", "pages", "advice"), "madvise"),
    StepRow(StepOp.store, ("page", "number"), "store a word"),
    StepRow(StepOp.load, ("page",), "load a word", value="the word"),
    StepRow(StepOp.expect, ("page", "number"), "load a word; another one is a broken rule", value="the word"),
    StepRow(StepOp.fill, ("page", "pages", "number"), "store the number into the first page, the next into the next, .."),
    StepRow(StepOp.count, ("page", "pages", "number"), "load what `fill` has stored", "pages with their number, or an error",
            "pages with zero"),
    StepRow(StepOp.pin, ("pin", "page", "pinning"), "pin the page", "1, 0, or an error"),
    StepRow(StepOp.pin_load, ("pin",), "load the word through the pin", "0, -ESRCH: no such pin", "the word"),
    StepRow(StepOp.pin_store, ("pin", "number"), "store the word through the pin, and mark the page dirty"),
    StepRow(StepOp.unpin, ("pin",), "give the pin back"),
    StepRow(StepOp.split_pmd, ("page",), "split the huge pmd around the page, as a walker without knowledge of them (R11)"),
    StepRow(StepOp.split_page, ("page",), "split the huge page that the page is a part of, found by its address"),
    StepRow(StepOp.note, ("slot", "page"), "remember the frame of the page, for steps that start from a frame"),
    StepRow(StepOp.get, ("pin", "slot"), "take a reference of the noted frame's page as a scanner does (R34); unpin it later",
            "1 or 0"),
    StepRow(StepOp.split_frame, ("slot",), "split the huge page that the noted frame is a part of"),
    StepRow(StepOp.migrate_frame, ("slot", "moving"), "migrate what the noted frame belongs to"),
    StepRow(StepOp.migrate, ("page", "moving"), "migrate the page at the address"),
    StepRow(StepOp.compact, (), "compact every zone", "0 or -EBUSY"),
    StepRow(StepOp.reclaim, ("number",), "age that many anonymous pages and reclaim that many", "pages reclaimed"),
    StepRow(StepOp.swap_out, ("page",), "reclaim the page at the address", "pages reclaimed, or an error"),
    StepRow(StepOp.drain_split, ("number",), "split up to that many pages of the deferred split queue",
            "pages split, -1: none, and the queue is empty"),
    StepRow(StepOp.shrink_zero, (), "free the huge zero page, if no mm uses it", "pages freed"),
    StepRow(StepOp.collapse, ("space", "page"), "have khugepaged look at the block, and collapse it", "SCAN_*"),
    StepRow(StepOp.scan, ("pages",), "one round of khugepaged, going on where it was. On one CPU of a race only", "progress"),
    StepRow(StepOp.drop_caches, ("slot",), "drop the unmapped pages of the slot's file", "pages dropped"),
    StepRow(StepOp.drain, (), "drain this CPU's pagevecs and free lists"),
    StepRow(StepOp.look, ("space", "page"), "what the entry there is", "LOOK_*", "LOOK_WRITE | LOOK_DIRTY"),
    StepRow(StepOp.rss, ("space",), "how many pages the mm has", "anonymous pages", "pages swapped out"),
    StepRow(StepOp.queued, (), "the length of the deferred split queue", "huge pages"),
    StepRow(StepOp.frame, ("slot",), "the noted frame's page", "references of its head", "mappings of all of it"),
    StepRow(StepOp.same, ("slot", "page"), "is the noted frame what is mapped at the page?", "1 or 0"),
    StepRow(StepOp.lock, ("page", "pages"), "mlock"),
    StepRow(StepOp.unlock, ("page", "pages"), "munlock"),
    StepRow(StepOp.pin_run, ("pin", "page", "pages", "pinning"), "pin a run of pages at once, as pins from that number on",
            "how many, or an error"),
    StepRow(StepOp.poison, ("slot",), "memory failure of the noted frame", "0, -EBUSY, -EHWPOISON"),
    StepRow(StepOp.hint, ("page", "pages"), "take rights from the entries, as NUMA balancing does; the next access faults",
            "pages changed, or an error"),
    StepRow(StepOp.stack, ("page", "pages"), "mmap a stack there: it grows down to what is touched below it"),
    StepRow(StepOp.brk, ("pages",), "set the program break so many pages behind its start"),
    StepRow(StepOp.clear_refs, ("page", "pages"), "make the pages old, as one who knows nothing of huge pages", "pages mapped"),
    StepRow(StepOp.slots, (), "how much of the swap device is in use (SwapTotal - SwapFree)", "slots"),
    StepRow(StepOp.active, ("slot",), "is the noted frame's page on the active list? (/proc/kpageflags)", "1 or 0"),
)

assert [row.op for row in STEP_TABLE] == list(StepOp)
assert all(len(row.arguments) <= MAX_ARGUMENTS for row in STEP_TABLE)

STEP_BASE = 200
"""`cpu.op` while a step runs: STEP_BASE + StepOp."""
OP_NAMES.update({STEP_BASE + int(row.op): f"step {row.op.name}" for row in STEP_TABLE})
