"""Programs as data: steps of a few tasks in one arena of huge-page blocks, with a text form that reads back.

    0 mmap 0 512 rw          task 0: a private anonymous mapping of pages 0..511, at its fixed place
    0 huge 0 512             MADV_HUGEPAGE
    0 store 0 512            one word into each page, all different
    0 fork 1                 task 1 is the child
    1 mremap 0 100 700 50    move pages 0..99 to page 700, 50 of them

Only the standard library: the process that runs programs on the kernel imports this and is forked for every program.
"""

from collections.abc import Iterable
from typing import NamedTuple

PAGE = 4096
BLOCK = 512
"""Pages of a huge page: x86-64's."""
BLOCKS = 4
ARENA_PAGES = BLOCK * BLOCKS
ARENA = 0x2000_0000
"""Address of page 0, on both sides. Below every other mapping, so that smaps shows the arena first."""
TASKS = 3
WORDS = 8
"""Words of a page that are compared: the emulator's frames have no more."""
PROTECTIONS = {"none": 0, "r": 1, "rw": 3}


class Operation(NamedTuple):
    """What follows an operation's name in the text form."""

    ranged: bool
    """A first page and a number of pages."""
    extra: tuple[str, ...] = ()
    """More arguments: 'prot', or the names of numbers."""


OPERATIONS = {
    "mmap": Operation(True, ("prot",)),
    "munmap": Operation(True),
    "huge": Operation(True),
    "nohuge": Operation(True),
    "store": Operation(True),
    "load": Operation(True),
    "dontneed": Operation(True),
    "free": Operation(True),
    "mprotect": Operation(True, ("prot",)),
    "mremap": Operation(True, ("to", "pages")),  # `to` equal to the first page: in place or not at all
    "mlock": Operation(True),
    "munlock": Operation(True),
    "pin": Operation(True),  # vmsplice into a pipe
    "collapse": Operation(True),
    "remote_load": Operation(True),  # process_vm_readv, process_vm_writev
    "remote_store": Operation(True),
    "unpin": Operation(False),
    "thp_disable": Operation(False),
    "drop_caches": Operation(False),
    "fork": Operation(False, ("child",)),
    "exit": Operation(False),
}


class Step(NamedTuple):
    """One step. What an operation does not take is 0."""

    task: int
    op: str
    page: int = 0
    pages: int = 0
    arg: int = 0
    """A protection, the page to move to, or the child's number."""
    arg2: int = 0
    """mremap: pages afterwards."""

    @property
    def end(self) -> int:
        return self.page + self.pages

    def __str__(self) -> str:
        operation = OPERATIONS[self.op]
        words = [str(self.task), self.op]
        if operation.ranged:
            words += [str(self.page), str(self.pages)]
        for name, value in zip(operation.extra, (self.arg, self.arg2), strict=False):
            words.append(_prot_name(value) if name == "prot" else str(value))
        return " ".join(words)


Program = tuple[Step, ...]


def _prot_name(prot: int) -> str:
    return next(name for name, value in PROTECTIONS.items() if value == prot)


def parse_step(text: str) -> Step:
    """One line of the text form; ValueError says what is wrong with it."""
    words = text.split()
    if len(words) < 2 or words[1] not in OPERATIONS:
        raise ValueError(f"{text!r}: pass a task's number and one of {', '.join(OPERATIONS)}")
    operation = OPERATIONS[words[1]]
    wanted = 2 * operation.ranged + len(operation.extra)
    if len(words) - 2 != wanted:
        raise ValueError(f"{text!r}: {words[1]} takes {wanted} arguments")
    odd = [word for word in (words[0], *words[2:]) if not word.isdecimal() and word not in PROTECTIONS]
    if odd or not words[0].isdecimal():
        raise ValueError(f"{text!r}: {(odd or words)[0]!r} is not a whole number; protections are {', '.join(PROTECTIONS)}")
    numbers = [PROTECTIONS[word] if word in PROTECTIONS else int(word) for word in words[2:]]
    page, count = numbers[:2] if operation.ranged else (0, 0)
    extra = [*numbers[2 * operation.ranged :], 0, 0]
    step = Step(int(words[0]), words[1], page, count, extra[0], extra[1])
    if not (0 <= step.task < TASKS and 0 <= page <= ARENA_PAGES and count >= 0 and page + count <= ARENA_PAGES):
        raise ValueError(f"{text!r}: tasks are 0..{TASKS - 1}, pages 0..{ARENA_PAGES - 1}")
    return step


def parse(text: str) -> Program:
    """A program, a step a line (or between semicolons); # begins a comment."""
    lines = (line.partition("#")[0].strip() for line in text.replace(";", "\n").splitlines())
    return tuple(parse_step(line) for line in lines if line)


def runnable(steps: Iterable[Step]) -> Program:
    """Without the steps that nobody is there to run: of tasks not forked yet or gone, forks of a number used before."""
    alive, used, kept = {0}, {0}, []
    for step in steps:
        if step.task not in alive or (step.op == "fork" and step.arg in used):
            continue
        if step.op == "fork":
            alive.add(step.arg)
            used.add(step.arg)
        elif step.op == "exit":
            alive.discard(step.task)
        kept.append(step)
    return tuple(kept)


def value_of(index: int, page: int) -> int:
    """The word that step `index` stores into a page: never 0, never twice the same."""
    return (index + 1) << 16 | (page + 1)


def word_of(index: int) -> int:
    """Which of a page's words step `index` stores and loads."""
    return index % WORDS
