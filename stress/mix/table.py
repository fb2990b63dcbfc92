"""What a mix can do, as rows: name, default weight, meaning. `--mix name=weight,...` changes the weights."""

from enum import IntEnum, unique
from typing import NamedTuple

from concur_thp.errors import Misuse, unknown
from concur_thp.ops import OP_NAMES


@unique
class MixOp(IntEnum):
    """Operations of a mix; the order is the order of MIX_TABLE."""

    read = 0
    write = 1
    fill = 2
    mmap = 3
    munmap = 4
    dontneed = 5
    free = 6
    protect_ro = 7
    protect_rw = 8
    mremap = 9
    advise_huge = 10
    advise_nohuge = 11
    brk = 12
    fork = 13
    exec = 14
    switch = 15
    file_map = 16
    file_touch = 17
    split_page = 18
    drain = 19
    pin = 20
    pin_check = 21
    unpin = 22
    migrate = 23
    compact = 24
    reclaim = 25
    mlock = 26
    munlock = 27
    memory_failure = 28
    walk = 29


class MixRow(NamedTuple):
    """One operation and how often it is drawn by default."""

    op: MixOp
    weight: int
    meaning: str


MIX_TABLE = (
    MixRow(MixOp.read, 300, "load a word of a random page and check it"),
    MixRow(MixOp.write, 400, "store a word into a random page"),
    MixRow(MixOp.fill, 12, "store into every page of a run, up to a whole huge page"),
    MixRow(MixOp.mmap, 25, "map fresh anonymous memory over a range"),
    MixRow(MixOp.munmap, 10, "unmap a range"),
    MixRow(MixOp.dontneed, 30, "MADV_DONTNEED a range"),
    MixRow(MixOp.free, 10, "MADV_FREE a range"),
    MixRow(MixOp.protect_ro, 8, "mprotect a range read-only"),
    MixRow(MixOp.protect_rw, 12, "mprotect a range read-write"),
    MixRow(MixOp.mremap, 10, "move a range, aligned or not"),
    MixRow(MixOp.advise_huge, 6, "MADV_HUGEPAGE"),
    MixRow(MixOp.advise_nohuge, 4, "MADV_NOHUGEPAGE"),
    MixRow(MixOp.brk, 8, "grow or shrink the heap and touch it"),
    MixRow(MixOp.fork, 6, "fork; the child's mm replaces one of those the CPUs share"),
    MixRow(MixOp.exec, 1, "replace a shared mm by an empty one"),
    MixRow(MixOp.switch, 30, "go on as a thread of another mm"),
    MixRow(MixOp.file_map, 4, "map a file, private or shared"),
    MixRow(MixOp.file_touch, 40, "load or store in a file mapping"),
    MixRow(MixOp.split_page, 12, "split the huge page of a random address, found by its frame as a scanner would"),
    MixRow(MixOp.drain, 3, "split a few of the huge pages on the deferred split queue"),
    MixRow(MixOp.pin, 16, "pin a page, or a few, by get_user_pages, for reading or writing"),
    MixRow(MixOp.pin_check, 40, "look at a pinned frame, and write through it where that is lawful"),
    MixRow(MixOp.unpin, 16, "give a pin back"),
    MixRow(MixOp.migrate, 12, "move the page at a random address to another frame, found by address or by frame"),
    MixRow(MixOp.compact, 1, "compact a zone, for one huge page or for all that can be done"),
    MixRow(MixOp.reclaim, 4, "age a few pages and reclaim a few, as direct reclaim would"),
    MixRow(MixOp.mlock, 4, "mlock a range, as far as the limit of an mm goes"),
    MixRow(MixOp.munlock, 6, "munlock a range"),
    MixRow(MixOp.memory_failure, 1, "take the frame of a random address out of use as broken, or give one back"),
    MixRow(MixOp.walk, 2, "make a range old, as a walker that knows nothing of huge pages and splits their pmds"),
)

assert [row.op for row in MIX_TABLE] == list(MixOp)

OP_BASE = 100
"""`cpu.op` while an operation of a mix runs: OP_BASE + MixOp."""
OP_NAMES.update({OP_BASE + int(row.op): f"mix {row.op.name}" for row in MIX_TABLE})


MOST_WEIGHT = 1_000_000


def parse_mix(text: str) -> dict[str, int]:
    """'fork=50,munmap=0' -> the weights of all operations. 'only:' in front sets what is not named to 0."""
    weights = {row.op.name: row.weight for row in MIX_TABLE}
    if text.startswith("only:"):
        text, weights = text[5:], dict.fromkeys(weights, 0)
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, number = part.partition("=")
        if name not in weights:
            raise unknown("operation", name, weights, f"pass --mix NAME=WEIGHT with a NAME of {', '.join(weights)}")
        if not number.isdigit() or int(number) > MOST_WEIGHT:
            raise Misuse(f"--mix {part!r}: pass NAME=WEIGHT with a whole number up to {MOST_WEIGHT}")
        weights[name] = int(number)
    if not sum(weights.values()):
        raise Misuse("--mix: every weight is 0; give at least one operation a weight")
    return weights
