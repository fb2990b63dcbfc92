"""vma_merge: every case of its drawing, by mmap, mprotect and mremap; and what must not merge.

A layout is text, one letter for each page of the arena: "." nothing, "w" read-write, "r" read-only, "n" no access;
a bar stands between two vmas that touch.
"""

from typing import Any

import pytest

from concur_thp.arch.irq import cpu_resume
from concur_thp.arch.linker import interpreted
from concur_thp.check.audit import audit
from concur_thp.config import PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.flags import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, VM_ACCESS
from concur_thp.mm.fork import dup_mm, exec_mmap, exit_mm, mmput
from concur_thp.mm.mm_types import Mm, mms, percpu, pools
from concur_thp.mm.syscall import sys_mmap, sys_mprotect, sys_mremap, sys_munmap
from concur_thp.mm.uaccess import user_store
from concur_thp.mm.vma_tree import vma_at

BASE = 1 << 20
ANON = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS
PROT = {"n": 0, "r": 1, "w": 3}
LETTER = {value: letter for letter, value in PROT.items()}


class Arena:
    """An mm, and its vmas as text."""

    def __init__(self, machine: Machine):
        self.cpu = machine.cpu(0)
        cpu_resume(self.cpu)
        assert exec_mmap(self.cpu, 1 << 19) == 0

    @property
    def mm(self) -> Any:
        return mms[percpu[0].mm]

    @staticmethod
    def addr(page: int) -> int:
        return BASE + page * PAGE_SIZE

    def lay(self, layout: str) -> None:
        """Map each run of equal letters."""
        page = 0
        for run in layout.replace("|", " ").replace(".", " . ").split():
            if run != ".":
                self.map(page, len(run), run[0])
            page += len(run)

    def map(self, page: int, count: int, letter: str = "w", flags: int = ANON, file: int = 0, pgoff: int = 0) -> None:
        at = self.addr(page)
        assert sys_mmap(self.cpu, at, count * PAGE_SIZE, PROT[letter], flags, file, pgoff) == at

    def touch(self, *pages: int) -> None:
        for page in pages:
            assert user_store(self.cpu, self.addr(page), page + 1) == 0

    def protect(self, page: int, count: int, letter: str) -> None:
        assert sys_mprotect(self.cpu, self.addr(page), count * PAGE_SIZE, PROT[letter]) == 0

    def __str__(self) -> str:
        text, end = "", BASE
        for k in range(self.mm.map_count):
            vma = vma_at(self.mm, k)
            text += "." * ((vma.vm_start - end) // PAGE_SIZE)
            text += "|" if text and vma.vm_start == end and text[-1] not in ".|" else ""
            text += LETTER[vma.vm_flags & VM_ACCESS] * ((vma.vm_end - vma.vm_start) // PAGE_SIZE)
            end = vma.vm_end
        return text


def check(machine: Machine, arena: Arena) -> None:
    result = audit(machine.config)
    assert not result.violations, result.violations
    exit_mm(arena.cpu)
    assert [pools[k].in_use.read() for k in range(4)] == [0] * 4


MMAP_CASES = [
    ("wwww....wwww", "wwwwwwwwwwww"),  # 1: the hole is filled, both neighbours fit
    ("wwww....rrrr", "wwwwwwww|rrrr"),  # 2
    ("rrrr....wwww", "rrrr|wwwwwwww"),  # 3
    ("rrrr....rrrr", "rrrr|wwww|rrrr"),
    ("wwww", "wwwwwwww"),
    ("wwwwwwwwwwww", "wwwwwwwwwwww"),  # over what was there
]


@pytest.mark.parametrize(("before", "after"), MMAP_CASES)
@pytest.mark.parametrize("touched", [(), (0,), (8,), (0, 8)], ids=str)
def test_mmap(before: str, after: str, touched: tuple[int, ...]) -> None:
    """New anonymous memory at pages 4-7."""
    with Machine(memory="4M", order=3, cpus=1) as machine:
        arena = Arena(machine)
        arena.lay(before)
        arena.touch(*(p for p in touched if p < len(before) and before[p] == "w"))
        arena.map(4, 4)
        if touched == (0, 8) and before == "wwww....wwww":
            after = "wwwwwwww|wwww"  # each neighbour has an anon_vma of its own
        assert str(arena) == after
        check(machine, arena)


MPROTECT_CASES = [
    ("wwww|rrrr|wwww", 4, 4, "w", "wwwwwwwwwwww"),  # 6: X and N go
    ("wwww|rrrr|nnnn", 4, 4, "w", "wwwwwwww|nnnn"),  # 7: X goes
    ("wwww|rrrr|nnnn", 4, 4, "n", "wwww|nnnnnnnn"),  # 8: X goes, N grows down
    ("wwwwww|rrrrrr", 2, 4, "r", "ww|rrrrrrrrrr"),  # 4: the border moves down
    ("wwwwww|rrrrrr", 6, 4, "w", "wwwwwwwwww|rr"),  # 5: the border moves up
    ("wwwwwwwwwwww", 4, 4, "r", "wwww|rrrr|wwww"),
    ("wwwwwwwwwwww", 0, 4, "r", "rrrr|wwwwwwww"),
    ("wwwwwwwwwwww", 8, 4, "r", "wwwwwwww|rrrr"),
    ("wwww|rrrr|wwww", 2, 8, "r", "ww|rrrrrrrr|ww"),
    ("wwww|rrrr|wwww", 0, 12, "r", "rrrrrrrrrrrr"),
    ("rrrr|wwww|rrrr", 0, 12, "w", "wwwwwwwwwwww"),
]


@pytest.mark.parametrize(("before", "page", "count", "letter", "after"), MPROTECT_CASES)
@pytest.mark.parametrize("faulted", [False, True])
def test_mprotect(before: str, page: int, count: int, letter: str, after: str, faulted: bool) -> None:
    with Machine(memory="4M", order=3, cpus=1) as machine:
        arena = Arena(machine)
        arena.map(0, 12)
        if faulted:  # As a whole, and cut up afterwards: one anon_vma for all.
            arena.touch(*range(12))
        for start, run in runs(before):
            arena.protect(start, len(run), run[0])
        assert str(arena) == before
        arena.protect(page, count, letter)
        assert str(arena) == after
        check(machine, arena)


@pytest.mark.parametrize(("before", "page", "count", "letter", "after"), [
    ("wwwwww|rrrrrr", 2, 4, "r", "ww|rrrr|rrrrrr"), ("wwww|rrrr|wwww", 2, 8, "r", "ww|rr|rrrr|rr|ww"),
    ("wwww|rrrr|wwww", 0, 12, "r", "rrrr|rrrr|rrrr"), ("rrrr|wwww|rrrr", 0, 12, "w", "wwwwwwwwwwww"),
])
def test_what_never_was_writable_stays_apart(before: str, page: int, count: int, letter: str, after: str) -> None:
    """Mapped as it is: only what was mapped writable, or became so, has VM_ACCOUNT."""
    with Machine(memory="4M", order=3, cpus=1) as machine:
        arena = Arena(machine)
        arena.lay(before)
        arena.protect(page, count, letter)
        assert str(arena) == after
        check(machine, arena)


def runs(layout: str) -> list[tuple[int, str]]:
    found, page = [], 0
    for run in layout.split("|"):
        found.append((page, run))
        page += len(run)
    return found


def test_a_growing_vma_inherits_the_anon_vma() -> None:
    """Case 6 with pages in N only: the first vma must be found from them."""
    with Machine(memory="4M", order=3, cpus=1) as machine:
        arena = Arena(machine)
        arena.map(0, 12)
        arena.protect(0, 4, "r")
        arena.protect(4, 4, "n")
        arena.touch(*range(8, 12))
        arena.protect(8, 4, "r")
        assert str(arena) == "rrrr|nnnn|rrrr"
        assert [vma_at(arena.mm, k).anon_vma for k in range(2)] == [0, 0]
        arena.protect(4, 4, "r")
        assert str(arena) == "rrrrrrrrrrrr"
        assert vma_at(arena.mm, 0).anon_vma != 0
        check(machine, arena)


def test_no_growth_over_foreign_pages() -> None:
    """A vma without anon_vma does not grow over one that has one: v4.20 wants a singular chain, not an empty one."""
    with Machine(memory="4M", order=3, cpus=1) as machine:
        arena = Arena(machine)
        arena.map(0, 8)
        arena.protect(0, 4, "r")
        arena.touch(*range(4, 8))
        arena.protect(4, 4, "r")
        assert str(arena) == "rrrr|rrrr"
        check(machine, arena)


def test_forked_vmas_take_no_neighbours() -> None:
    """A vma in more than one anon_vma merges with none that has no anon_vma yet (is_mergeable_anon_vma)."""
    with Machine(memory="4M", order=3, cpus=1) as machine:
        arena = Arena(machine)
        arena.map(0, 4)
        arena.touch(0)
        child = Mm(dup_mm(arena.cpu, arena.mm))
        arena.map(4, 4)
        assert str(arena) == "wwwwwwww"  # the parent's has one chain still
        mother = percpu[0].mm
        percpu[0].mm = child.id
        arena.map(4, 4)
        assert str(arena) == "wwww|wwww"
        percpu[0].mm = mother
        mmput(arena.cpu, child)
        check(machine, arena)


def test_files_merge_where_their_pages_follow() -> None:
    with Machine(memory="4M", order=3, cpus=1) as machine:
        arena = Arena(machine)
        one, two = file_alloc(arena.cpu, 16, 1), file_alloc(arena.cpu, 16, 2)
        flags = MAP_FIXED | MAP_SHARED
        arena.map(0, 2, "w", flags, one, 0)
        arena.map(2, 2, "w", flags, one, 2)
        assert str(arena) == "wwww"
        arena.map(4, 2, "w", flags, one, 5)
        arena.map(6, 2, "w", flags, two, 7)
        assert str(arena) == "wwww|ww|ww"
        arena.map(4, 2, "w", flags, one, 4)
        assert str(arena) == "wwwwww|ww"
        arena.map(8, 2, "w", flags | MAP_ANONYMOUS, 0)
        arena.map(10, 2, "w", flags | MAP_ANONYMOUS, 0)
        assert str(arena) == "wwwwww|ww|ww|ww"
        result = audit(machine.config)
        assert not result.violations, result.violations
        assert pools[4].in_use.read() == 4
        assert sys_munmap(arena.cpu, arena.addr(9), 2 * PAGE_SIZE) == 0
        assert pools[4].in_use.read() == 4, "both still have a page mapped"
        exit_mm(arena.cpu)
        assert pools[4].in_use.read() == 2, "shared anonymous memory goes with its last mapping"


@pytest.mark.parametrize("plain", [False, True])
def test_an_untouched_vma_merges_with_itself_when_moved(plain: bool) -> None:
    with Machine(memory="4M", order=3, cpus=1, native_code=not plain) as machine, interpreted():
        arena = Arena(machine)
        arena.map(0, 4)
        assert sys_mremap(arena.cpu, arena.addr(0), 2 * PAGE_SIZE, 2 * PAGE_SIZE, arena.addr(4)) == arena.addr(4)
        assert str(arena) == "..wwww"
        assert vma_at(arena.mm, 0).vm_pgoff == arena.addr(2) // PAGE_SIZE
        arena.touch(2, 4)
        assert sys_mremap(arena.cpu, arena.addr(2), 2 * PAGE_SIZE, 2 * PAGE_SIZE, arena.addr(6)) == arena.addr(6)
        assert str(arena) == "....ww|ww", "faulted in: the offsets do not follow"
        check(machine, arena)
