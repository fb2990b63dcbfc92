"""Steps in the emulator: one CPU that runs each task in its turn, and what is seen of them."""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.irq import cpu_resume
from concur_thp.check.pins import declare_pin, free_pin_row, unpin
from concur_thp.check.views import view
from concur_thp.config import PAGE_SIZE
from concur_thp.errors import EmulatorError
from concur_thp.machine import Machine
from concur_thp.mm.collapse_check import Scan
from concur_thp.mm.deferred_split_drain import deferred_split_scan
from concur_thp.mm.errno import EAGAIN, EINVAL, ENOMEM
from concur_thp.mm.flags import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MMF_DISABLE_THP,
)
from concur_thp.mm.fork import dup_mm, mm_alloc, mmput, switch_to_mm
from concur_thp.mm.gup_fast import get_user_pages_fast
from concur_thp.mm.huge_zero import shrink_huge_zero_page
from concur_thp.mm.mm_types import Mm
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.syscall import (
    sys_madvise,
    sys_mlock,
    sys_mmap,
    sys_mprotect,
    sys_mremap,
    sys_munlock,
    sys_munmap,
)
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.vma_prot import mmap_switches
from concur_thp.mm.vmstat import Stat
from stress.compare.access import compare_collapse, compare_load, compare_pin, compare_remote, compare_store
from stress.compare.look import (
    ANON,
    EMPTY,
    FIRST,
    HUGE,
    MAPPED,
    NO_HUGE,
    PLAIN,
    PRESENT,
    PROMISED,
    SHARED,
    TABLE,
    ZERO,
    compare_look,
    looked_at,
)
from stress.compare.observed import LOOKED_AT, Block, Look, Seen
from stress.compare.steps import ARENA, ARENA_PAGES, BLOCK, BLOCKS, PAGE, WORDS, Program, Step, value_of, word_of

ADVICE = {"dontneed": MADV_DONTNEED, "free": MADV_FREE, "huge": MADV_HUGEPAGE, "nohuge": MADV_NOHUGEPAGE}
RANGE_CALLS = {"munmap": sys_munmap, "mlock": sys_mlock, "munlock": sys_munlock}
EVENTS = ("wp_reuse", "wp_copy", "wp_huge_copy", "wp_huge_fallback_pages", "mremap_huge", "thp_fault_fallback")
WORD_BYTES = PAGE_SIZE // WORDS
ALL = 1 << 30


class Calls:
    """The tasks of one program."""

    def __init__(self, machine: Machine, look_after: Callable[[], str] = str):
        """`look_after` looks at the whole machine when a program has ended and its tasks are still there."""
        self.look_after = look_after
        self.cpu: Cpu = machine.cpu(0)
        cpu_resume(self.cpu)
        set_switch("enabled", "madvise")
        set_switch("defrag", "madvise")
        mmap_switches.memlock = ALL  # RLIMIT_MEMLOCK: root has none.
        self.rows = view(looked_at, ARENA_PAGES)
        self.vmstat = view(cpus)["vmstat"][0]
        self.tasks: dict[int, Mm] = {}
        self.pins: dict[int, list[int]] = {}

    def run(self, program: Program, detail: bool, audited: bool = True) -> tuple[list[Seen], str]:
        """What was seen after each step, and what is wrong with the machine; at the end everybody is gone."""
        self.tasks, self.pins = {0: Mm(int(mm_alloc(self.cpu)))}, {}
        seen = [self._step(step, index, detail) for index, step in enumerate(program)]
        broken = self.look_after() if audited else ""
        for task in list(self.tasks):
            self._leave(task)
        return seen, broken

    def drain(self) -> None:
        """Nothing is in any cache."""
        lru_add_drain(self.cpu)
        shrink_huge_zero_page(self.cpu)
        drain_pcp(self.cpu)

    def _step(self, step: Step, index: int, detail: bool) -> Seen:
        before = self.vmstat.copy()
        switch_to_mm(self.cpu, self.tasks[step.task].id)
        result = self.perform(step, index)
        moved = self.vmstat - before
        counters = tuple(int(moved[Stat[name]]) for name in LOOKED_AT)
        events = {name: int(moved[Stat[name]]) for name in EVENTS} | {"empty": 0, "pins": sum(map(len, self.pins.values()))}
        looks, blocks, vmas = {}, {}, {}
        for task, mm in self.tasks.items():
            looks[task], blocks[task] = self.look(mm, detail)
            events["empty"] += int(np.count_nonzero(self.rows["state"] & EMPTY))
            vmas[task] = _vma_kinds(self.rows["state"])
        return Seen(result, counters, looks, events, blocks, vmas)

    def perform(self, step: Step, index: int) -> int:
        """One step; 0, a number of pages or a negative error."""
        method: Callable[[int, int, Step, int], int] | None = getattr(self, f"do_{step.op}", None)
        addr, length = ARENA + step.page * PAGE, step.pages * PAGE
        if method is not None:
            return method(addr, length, step, index)
        if step.op in ADVICE:
            return int(sys_madvise(self.cpu, addr, length, ADVICE[step.op]))
        return int(RANGE_CALLS[step.op](self.cpu, addr, length))

    def do_mmap(self, addr: int, length: int, step: Step, index: int) -> int:
        got = int(sys_mmap(self.cpu, addr, length, step.arg, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, 0, 0))
        return min(got, 0)

    def do_mprotect(self, addr: int, length: int, step: Step, index: int) -> int:
        return int(sys_mprotect(self.cpu, addr, length, step.arg))

    def do_mremap(self, addr: int, length: int, step: Step, index: int) -> int:
        return min(int(sys_mremap(self.cpu, addr, length, step.arg2 * PAGE, ARENA + step.arg * PAGE)), 0)

    def do_store(self, addr: int, length: int, step: Step, index: int) -> int:
        at = addr + word_of(index) * WORD_BYTES
        return int(compare_store(self.cpu, at, step.pages, value_of(index, step.page)))

    def do_load(self, addr: int, length: int, step: Step, index: int) -> int:
        return int(compare_load(self.cpu, addr + word_of(index) * WORD_BYTES, step.pages))

    def do_remote_load(self, addr: int, length: int, step: Step, index: int) -> int:
        return int(compare_remote(self.cpu, self.tasks[step.task], addr, step.pages, 0))

    def do_remote_store(self, addr: int, length: int, step: Step, index: int) -> int:
        at = addr + word_of(index) * WORD_BYTES
        return int(compare_remote(self.cpu, self.tasks[step.task], at, step.pages, value_of(index, step.page)))

    def do_pin(self, addr: int, length: int, step: Step, index: int) -> int:
        row = int(free_pin_row(self.cpu))
        if row < 0:
            raise EmulatorError("compare: too many pins at once")
        got = int(get_user_pages_fast(self.cpu, addr, 1, 0, compare_pin[0]))
        if got != 1:
            return got
        declare_pin(self.cpu, row, compare_pin[0].value)
        self.pins.setdefault(step.task, []).append(row)
        return 0

    def do_unpin(self, addr: int, length: int, step: Step, index: int) -> int:
        self._unpin(step.task)
        return 0

    def _unpin(self, task: int) -> None:
        for row in self.pins.pop(task, []):
            unpin(self.cpu, row)

    def do_thp_disable(self, addr: int, length: int, step: Step, index: int) -> int:
        self.tasks[step.task].flags.or_(1 << MMF_DISABLE_THP)
        return 0

    def do_drop_caches(self, addr: int, length: int, step: Step, index: int) -> int:
        lru_add_drain(self.cpu)
        deferred_split_scan(self.cpu, ALL)
        shrink_huge_zero_page(self.cpu)
        return 0

    def do_collapse(self, addr: int, length: int, step: Step, index: int) -> int:
        result = 0
        first = -(-step.page // BLOCK)
        for block in range(first, step.end // BLOCK):
            scan = int(compare_collapse(self.cpu, self.tasks[step.task], ARENA + block * BLOCK * PAGE))
            if scan != Scan.SCAN_SUCCEED:
                result = -EAGAIN if scan == Scan.SCAN_PAGE_COUNT else -EINVAL
        return result

    def do_fork(self, addr: int, length: int, step: Step, index: int) -> int:
        child = int(dup_mm(self.cpu, self.tasks[step.task]))
        if not child:
            return -ENOMEM
        self.tasks[step.arg] = Mm(child)
        return 0

    def do_exit(self, addr: int, length: int, step: Step, index: int) -> int:
        self._leave(step.task)
        return 0

    def _leave(self, task: int) -> None:
        switch_to_mm(self.cpu, 0)
        mmput(self.cpu, self.tasks.pop(task))
        self._unpin(task)

    def look(self, mm: Mm, detail: bool) -> tuple[Look, str]:
        """One task's arena, and its blocks."""
        compare_look(self.cpu, mm, ARENA)
        state = self.rows["state"]
        there = state & PRESENT != 0
        places = there.astype(np.uint8).tobytes()
        words = np.ascontiguousarray(self.rows["word"]).tobytes()
        kinds = [state & (PRESENT | ZERO | mask) == PRESENT | mask for mask in (HUGE, 0, SHARED)]
        huge, rss, shared = (4 * kind.reshape(BLOCKS, BLOCK).sum(axis=1) for kind in kinds)
        blocks = tuple(Block(int(huge[i]), int(rss[i]), int(shared[i]), int(rss[i] - shared[i]),
                             zlib.crc32(places[i * BLOCK : (i + 1) * BLOCK])) for i in range(BLOCKS))
        look = Look(int(huge.sum()), int(rss.sum()), int(shared.sum()), int(rss.sum() - shared.sum()),
                    int(np.count_nonzero(there)), zlib.crc32(places), zlib.crc32(words), blocks,
                    _mappings(state), (places, words) if detail else (b"", b""))
        return look, "".join(self._kind(block) for block in state.reshape(BLOCKS, BLOCK))

    @staticmethod
    def _kind(states: Any) -> str:
        if states[0] & HUGE:
            if not states[0] & ZERO:
                return "H"
            return "z" if (states & NO_HUGE).any() else "Z"
        if not (states & TABLE).any():
            return "."
        if ((states & (PLAIN | SHARED | NO_HUGE)) == PLAIN).all():
            return "s"
        return "t" if (states & PRESENT).any() else "e"


def _mappings(state: Any) -> tuple[tuple[int, int], ...]:
    """First page and end of each vma."""
    mapped, first = state & MAPPED != 0, state & FIRST != 0
    last = mapped & np.append(~mapped[1:] | first[1:], True)
    return tuple(zip(np.flatnonzero(first).tolist(), (np.flatnonzero(last) + 1).tolist(), strict=True))


def _vma_kinds(state: Any) -> tuple[str, ...]:
    """Letters for each vma."""
    return tuple(("a" if one & ANON else "") + ("p" if one & PROMISED else "") for one in state[state & FIRST != 0].tolist())
