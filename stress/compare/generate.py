"""Random programs, for hypothesis: it draws them from a seed, and makes those that find something as short as it can."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from stress.compare.steps import ARENA_PAGES, BLOCK, BLOCKS, TASKS, Program, Step

LEAST_STEPS, MOST_STEPS = 5, 40
PINS = 4

OPENINGS = (
    (),
    (Step(0, "mmap", 0, BLOCK, 3), Step(0, "huge", 0, BLOCK), Step(0, "store", 0, BLOCK)),
    (Step(0, "mmap", 0, 2 * BLOCK, 3), Step(0, "huge", 0, 2 * BLOCK), Step(0, "store", 0, 2 * BLOCK)),
    (Step(0, "mmap", 0, 2 * BLOCK, 3), Step(0, "huge", 0, 2 * BLOCK), Step(0, "load", 0, 1), Step(0, "store", BLOCK, BLOCK)),
    (Step(0, "mmap", 0, 2 * BLOCK, 3), Step(0, "nohuge", 0, 2 * BLOCK), Step(0, "store", 0, 2 * BLOCK),
     Step(0, "huge", 0, 2 * BLOCK)),
    (Step(0, "mmap", 100, 1500, 3), Step(0, "huge", 100, 1500), Step(0, "store", 100, 1500)),
)
"""How a program begins; without one it has to find its first mapping by itself."""

WEIGHTS = {"store": 8, "load": 4, "dontneed": 5, "free": 3, "mprotect": 4, "munmap": 2, "mmap": 2, "mremap": 4, "huge": 2,
           "nohuge": 2, "fork": 3, "exit": 1, "pin": 1, "unpin": 1, "drop_caches": 1, "collapse": 1, "mlock": 1, "munlock": 1}


class Drawn(NamedTuple):
    """A step before it is known who is alive to take it."""

    op: str
    range: tuple[int, int]
    task: int
    prot: int
    to: int
    grow: int


FIRST_PAGES = [page for _ in range(73) for page in (0, 1, 7, 255, 256, 510, 511)] + [0] + list(range(BLOCK))
"""Where in a block a range begins: half of them near a border."""
FIRST_BLOCKS = (0, 0, 0, 1, 1, 2, 3)
SINGLE, WHOLE, PART = range(3)
PROTS = (1, 3, 3, 0)
PLACES = (2 * BLOCK, 3 * BLOCK, BLOCK, 0)
GROWS = (0, 0, 0, -1, -100, 1, 100)


def _range(kind: int, block: int, page: int, count: int) -> tuple[int, int]:
    """First page and number of pages: single pages, whole blocks, parts and what lies across."""
    if kind == WHOLE:
        return block * BLOCK, min(1 + count % 2, BLOCKS - block) * BLOCK
    first = block * BLOCK + page
    return first, 1 if kind == SINGLE else min(count + 1, ARENA_PAGES - first)


def _place(number: int) -> int:
    """Where to move to: nowhere (-1), the beginning of a block, any page."""
    return (-1, PLACES[number % len(PLACES)], number % ARENA_PAGES)[number // ARENA_PAGES]


def _steps(without: frozenset[str]) -> st.SearchStrategy[Drawn]:
    """Each from four numbers: drawing is what a run spends most of its time on."""
    ops = [op for op, weight in WEIGHTS.items() if op not in without for _ in range(weight)]
    sizes = (len(ops) * TASKS * len(PROTS), 3 * len(FIRST_BLOCKS) * len(FIRST_PAGES), 2 * BLOCK,
             3 * ARENA_PAGES * len(GROWS))

    def step(numbers: tuple[int, ...]) -> Drawn:
        who, prot = divmod(numbers[0], len(PROTS))
        op, task = divmod(who, TASKS)
        place, page = divmod(numbers[1], len(FIRST_PAGES))
        block, kind = divmod(place, 3)
        to, grow = divmod(numbers[3], len(GROWS))
        extent = _range(kind, FIRST_BLOCKS[block], FIRST_PAGES[page], numbers[2])
        return Drawn(ops[op], extent, task, PROTS[prot], _place(to), GROWS[grow])

    return st.tuples(*(st.integers(0, size - 1) for size in sizes)).map(step)


def settle(opening: Program, drawn: Iterable[Drawn]) -> Program:
    """Give each step to somebody who is alive, and leave out what nobody can do."""
    steps = list(opening)
    mapped = {0: bytearray(ARENA_PAGES)}
    for step in opening:
        _map(mapped[0], step)
    alive, children, pins = [0], 0, 0
    for one in drawn:
        task = alive[one.task % len(alive)]
        page, count = one.range
        step = Step(task, one.op, page, count)
        if one.op == "fork":
            children += 1
            if children >= TASKS:
                continue
            alive.append(children)
            mapped[children] = bytearray(mapped[task])
            step = Step(task, "fork", arg=children)
        elif one.op == "exit":
            if len(alive) == 1:
                continue
            alive.remove(task)
            step = Step(task, "exit")
        elif one.op in ("unpin", "drop_caches"):
            step = Step(task, one.op)
        elif one.op == "pin":
            pins += 1
            if pins > PINS:
                continue
            step = Step(task, "pin", page, 1)
        elif one.op in ("mmap", "mprotect"):
            step = step._replace(arg=one.prot)
        elif one.op == "mremap":
            kinds = set(mapped[task][page : page + count])
            if len(kinds) != 1 or 0 in kinds:
                continue  # No mapping or several: 4.20 refuses when it has unmapped the destination, and no more agrees.
            step = _mremap(step, one)
        _map(mapped[task], step)
        steps.append(step)
    return tuple(steps)


MAPPED, HUGE, NOHUGE, LOCKED, MOVED = 1, 2, 4, 8, 16
PROT_SHIFT = 5


def _map(mapped: bytearray, step: Step) -> None:
    """What is mapped afterwards and how, roughly: calls are taken to succeed where there is something."""
    if step.op == "mmap":
        mapped[step.page : step.end] = bytes([MAPPED | step.arg << PROT_SHIFT]) * step.pages
    elif step.op == "munmap":
        mapped[step.page : step.end] = bytes(step.pages)
    elif step.op == "mremap":
        moved = MOVED if step.arg != step.page else 0
        kind = mapped[step.page] | moved
        mapped[step.page : step.end] = bytes(step.pages)
        mapped[step.arg : step.arg + step.arg2] = bytes([kind]) * step.arg2
    elif step.op in KINDS:
        clear, add = KINDS[step.op]
        add = add | (step.arg << PROT_SHIFT if step.op == "mprotect" else 0)
        mapped[step.page : step.end] = bytes(kind and kind & ~clear | add for kind in mapped[step.page : step.end])


KINDS = {"huge": (NOHUGE, HUGE), "nohuge": (HUGE, NOHUGE), "mlock": (0, LOCKED), "munlock": (LOCKED, 0),
         "mprotect": (3 << PROT_SHIFT, 0)}
"""Operations that change how a page is mapped: what goes, what comes. Neighbours that differ are vmas of their own."""


def _mremap(step: Step, one: Drawn) -> Step:
    to = step.page if one.to < 0 else one.to
    return step._replace(arg=to, arg2=max(1, min(step.pages + one.grow, ARENA_PAGES - to)))


def programs(without: frozenset[str] = frozenset()) -> st.SearchStrategy[Program]:
    """Programs of LEAST_STEPS to MOST_STEPS steps, or a few less when nobody was there to take them."""
    most = MOST_STEPS - max(map(len, OPENINGS))
    lengths = [(LEAST_STEPS, LEAST_STEPS + 5), (10, 20), (20, most)]
    drawn = st.one_of([st.lists(_steps(without), min_size=least, max_size=upto) for least, upto in lengths])
    return st.builds(settle, st.sampled_from(OPENINGS), drawn)


def explore(number: int, chosen: int, check: Callable[[Program], None], without: frozenset[str] = frozenset(),
            shrink: bool = True) -> None:
    """Call `check` with `number` programs of seed `chosen`; what it raises comes back with the shortest that raises it.

    Programs have no operation of `without`.
    """
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)

    @seed(chosen)
    @settings(max_examples=number, database=None, deadline=None, phases=phases,
              suppress_health_check=list(HealthCheck), report_multiple_bugs=False, print_blob=False)
    @given(programs(without))
    def run(program: Program) -> None:
        check(program)

    run()
