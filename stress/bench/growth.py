"""How costs grow: the same operation in machines, mms, families of mms and queues of different sizes.

A row belongs to a dimension. For each size of it a machine is booted, the scene is set once, and every row of the
dimension takes its samples in that scene, in turns; the medians over the sizes give the kind of growth.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from concur_thp.check.audit import audit
from concur_thp.config import PAGE_SIZE, size_text
from concur_thp.errors import EmulatorError, KernelBug
from concur_thp.machine import Machine, MachineConfig
from concur_thp.mm.deferred_split_drain import deferred_split_scan
from concur_thp.mm.flags import MADV_DONTNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE, PROT_READ
from concur_thp.mm.fork import dup_mm, mmput
from concur_thp.mm.lru import LRU_INACTIVE_ANON
from concur_thp.mm.mm_types import mms
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.syscall import sys_madvise, sys_mmap, sys_mprotect, sys_mremap, sys_munmap
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.output import compile_progress
from concur_thp.program.pressure import swap_out_address
from stress.bench import kernels
from stress.bench.emulator import BASE, BLOCKS, Bed, ok, timed
from stress.bench.emulator import ROWS as ON_A_BED
from stress.bench.statistics import growth

SCENE = 1 << 36
"""Where the scene is: far from the bed's own window."""
HUGE = 2 << 20


@dataclass(frozen=True)
class Dimension:
    """What grows; how big a machine it takes; how the scene is set for a size."""

    what: str
    sizes: tuple[int, ...]
    config: Callable[[int], MachineConfig]
    scene: Callable[[Bed, int], None]
    label: Callable[[int], str] = str


def _nothing(bed: Bed, size: int) -> None:
    pass


def _vmas(bed: Bed, size: int) -> None:
    """`size` vmas that cannot merge: every second page of a range."""
    for number in range(size):
        at = SCENE + 2 * number * PAGE_SIZE
        if sys_mmap(bed.cpu, at, PAGE_SIZE, kernels.READ_WRITE, kernels.ANONYMOUS, 0, 0) != at:
            raise EmulatorError(f"growth: vma {number} of {size} could not be mapped")


def _queue(bed: Bed, size: int) -> None:
    """`size` huge pages that have lost a subpage and wait to be split."""
    bed.map(MADV_HUGEPAGE, SCENE, size * HUGE)
    ok(kernels.bench_touch(bed.cpu, SCENE, HUGE, size))
    if kernels.bench_dontneed_part(bed.cpu, SCENE, size) != size:
        raise EmulatorError("growth: the queue could not be filled")


def _lru(bed: Bed, size: int) -> None:
    """`size` small pages on the LRU lists."""
    bed.map(MADV_NOHUGEPAGE, SCENE, size * PAGE_SIZE)
    ok(kernels.bench_touch(bed.cpu, SCENE, PAGE_SIZE, size))
    lru_add_drain(bed.cpu)


def _plain(size: int) -> MachineConfig:
    return MachineConfig(cpus=2, memory=1 << 30, swap=64 << 20)


MEMORY = Dimension("memory", (64 << 20, 256 << 20, 1 << 30, 4 << 30),
                   lambda size: MachineConfig(cpus=2, memory=size, swap=64 << 20), _nothing, size_text)
VMAS = Dimension("vmas of the mm", (10, 100, 1000, 10_000),
                 lambda size: MachineConfig(cpus=2, memory=256 << 20, vmas=32_768, max_map_count=16_384), _vmas)
MMS = Dimension("mms that share the page", (1, 4, 16, 64, 256),
                lambda size: MachineConfig(cpus=2, memory=1 << 30, mms=300, vmas=32_768, swap=64 << 20), _nothing)
QUEUE = Dimension("length of the deferred split queue", (4, 16, 64, 256, 1024),
                  lambda size: MachineConfig(cpus=2, memory=4 << 30), _queue)
LRU = Dimension("pages on the LRU lists", (1 << 10, 1 << 13, 1 << 16, 1 << 19),
                lambda size: MachineConfig(cpus=2, memory=4 << 30, swap=64 << 20), _lru)

Sample = Callable[[], float]
Make = Callable[[Bed, int], Sample]


def _on_a_bed(name: str) -> Make:
    return lambda bed, size: ON_A_BED[name](bed)


def _boot(bed: Bed, size: int) -> Sample:
    raise EmulatorError("measured by whoever boots the machine")


def _audit(bed: Bed, size: int) -> Sample:
    return lambda: timed(1, lambda: int(not audit(bed.machine.config).violations), 1)


def _fork(bed: Bed, size: int) -> Sample:
    """A whole fork, and the end of the child's mm apart."""

    def one() -> float:
        start = time.perf_counter_ns()
        child = dup_mm(bed.cpu, bed.mm)
        took = time.perf_counter_ns() - start
        if not child:
            raise EmulatorError("growth: fork failed")
        mmput(bed.cpu, mms[mms.index(child)])
        return float(took)

    return one


def _protect_a_page(bed: Bed, size: int) -> Sample:
    """mprotect that splits a vma, and back again so that it merges."""
    bed.map(MADV_NOHUGEPAGE)
    middle = bed.base + bed.size // 2

    def both() -> int:
        return (ok(sys_mprotect(bed.cpu, middle, PAGE_SIZE, PROT_READ))
                or sys_mprotect(bed.cpu, middle, PAGE_SIZE, kernels.READ_WRITE))

    return lambda: timed(2, both, 0)


def _move(bed: Bed, size: int) -> Sample:
    """mremap of one touched page to the other end of the address space and back."""
    bed.map(MADV_NOHUGEPAGE, size=PAGE_SIZE)
    ok(bed.touch(PAGE_SIZE, PAGE_SIZE))
    places = [bed.base, 2 * SCENE]

    def one() -> float:
        places.reverse()
        return timed(1, lambda: sys_mremap(bed.cpu, places[1], PAGE_SIZE, PAGE_SIZE, places[0]), places[0])

    return one


def _fault_here(bed: Bed, size: int) -> Sample:
    """Faults in the vmas of the scene, each in another one."""
    times = min(size, 256)
    step = size // times * 2 * PAGE_SIZE

    def one() -> float:
        took = timed(times, lambda: kernels.bench_touch(bed.cpu, SCENE, step, times))
        for number in range(times):
            sys_madvise(bed.cpu, SCENE + number * step, PAGE_SIZE, MADV_DONTNEED)
        return took

    return one


def _family(run: Callable[[Bed], int], expected: int = 1) -> Make:
    """Something done to one huge page that `size` mms map."""

    def make(bed: Bed, size: int) -> Sample:
        def one() -> float:
            bed.map(MADV_HUGEPAGE, size=HUGE)
            ok(bed.touch(HUGE, HUGE))
            children = [dup_mm(bed.cpu, bed.mm) for _ in range(size - 1)]
            if not all(children):
                raise EmulatorError("growth: fork failed")
            took = timed(1, lambda: run(bed), expected)
            for child in children:
                mmput(bed.cpu, mms[mms.index(child)])
            return took

        return one

    return make


def _queue_one_more(bed: Bed, size: int) -> Sample:
    def one() -> float:
        bed.huge_pages()
        took = timed(BLOCKS, lambda: kernels.bench_dontneed_part(bed.cpu, bed.base, BLOCKS), BLOCKS)
        sys_munmap(bed.cpu, bed.base, bed.size)
        return took

    return one


def _free_queued(bed: Bed, size: int) -> Sample:
    def one() -> float:
        bed.huge_pages()
        kernels.bench_dontneed_part(bed.cpu, bed.base, BLOCKS)
        return timed(BLOCKS, lambda: sys_munmap(bed.cpu, bed.base, bed.size), 0)

    return one


def _drain_all(bed: Bed, size: int) -> Sample:
    """Drain the whole queue, once: it is filled again before the next sample."""

    def one() -> float:
        took = timed(size, lambda: deferred_split_scan(bed.cpu, size), size)
        sys_munmap(bed.cpu, SCENE, size * HUGE)
        _queue(bed, size)
        return took

    return one


def _isolate(bed: Bed, size: int) -> Sample:
    """Reclaim a page that was used just now, wherever it stands on the list."""

    def one() -> float:
        bed.map(MADV_NOHUGEPAGE, size=PAGE_SIZE)
        ok(bed.touch(PAGE_SIZE, PAGE_SIZE))
        lru_add_drain(bed.cpu)
        return timed(1, lambda: swap_out_address(bed.cpu, bed.base), 1)

    return one


def _inactive(bed: Bed, size: int) -> Sample:
    """One round of reclaim over a batch of 32 from the end of the lists."""
    return lambda: timed(32, lambda: kernels.bench_reclaim(bed.cpu, LRU_INACTIVE_ANON, 32))


@dataclass(frozen=True)
class GrowthRow:
    """One operation over one dimension."""

    dimension: Dimension
    per: str
    make: Make


ROWS: dict[str, GrowthRow] = {
    "boot": GrowthRow(MEMORY, "machine", _boot),
    "memory_fault_pte": GrowthRow(MEMORY, "fault", _on_a_bed("fault_pte")),
    "memory_fault_huge": GrowthRow(MEMORY, "huge fault", _on_a_bed("fault_huge")),
    "memory_split_huge_page": GrowthRow(MEMORY, "huge page", _on_a_bed("split_huge_page")),
    "memory_collapse": GrowthRow(MEMORY, "huge page", _on_a_bed("collapse")),
    "memory_migrate_huge": GrowthRow(MEMORY, "huge page", _on_a_bed("migrate_huge")),
    "memory_audit": GrowthRow(MEMORY, "audit", _audit),
    "vmas_fault": GrowthRow(VMAS, "fault", _fault_here),
    "vmas_mmap_munmap": GrowthRow(VMAS, "pair", _on_a_bed("mmap_munmap_pair")),
    "vmas_mprotect_page": GrowthRow(VMAS, "call", _protect_a_page),
    "vmas_mremap_page": GrowthRow(VMAS, "call", _move),
    "vmas_fork": GrowthRow(VMAS, "fork", _fork),
    "mms_split_huge_page": GrowthRow(MMS, "huge page", _family(lambda b: kernels.bench_split_page(b.cpu, b.mm, b.base, 1))),
    "mms_migrate_huge": GrowthRow(MMS, "huge page", _family(lambda b: kernels.bench_migrate(b.cpu, b.mm, b.base, 1))),
    "mms_swap_out_huge": GrowthRow(MMS, "huge page", _family(lambda b: kernels.bench_swap_out(b.cpu, b.base, 1))),
    "mms_wp_copy_huge": GrowthRow(MMS, "fault", _family(lambda b: b.touch(HUGE, HUGE), 0)),
    "mms_unmap": GrowthRow(MMS, "huge page", _family(lambda b: sys_munmap(b.cpu, b.base, HUGE), 0)),
    "queue_dontneed_part": GrowthRow(QUEUE, "huge page", _queue_one_more),
    "queue_free_queued": GrowthRow(QUEUE, "huge page", _free_queued),
    "queue_drain": GrowthRow(QUEUE, "huge page", _drain_all),
    "lru_fault_pte": GrowthRow(LRU, "fault", _on_a_bed("fault_pte")),
    "lru_zap_pte": GrowthRow(LRU, "page", _on_a_bed("zap_pte")),
    "lru_swap_out_page": GrowthRow(LRU, "page", _isolate),
    "lru_reclaim_batch": GrowthRow(LRU, "page looked at", _inactive),
}


@contextmanager
def scene(dimension: Dimension, size: int) -> Iterator[tuple[Bed, float]]:
    """A machine with the scene for this size; also how long it took to boot, in ns."""
    start = time.perf_counter_ns()
    with Machine(dimension.config(size)) as machine:
        booted = float(time.perf_counter_ns() - start)
        set_switch("enabled", "always")
        set_switch("defrag", "always")
        bed = Bed(machine, 0)
        dimension.scene(bed, size)
        yield bed, booted
        bed.close()
        if (found := audit(machine.config)).violations:
            raise KernelBug(f"the audit after {dimension.what} {size} found {found.violations[0]}")


def measure(names: tuple[str, ...], rounds: int, messages: Any) -> list[dict[str, Any]]:
    """All rows of the names given, dimension by dimension."""
    with compile_progress(messages) as progress, Machine(memory="64M", cpus=1, progress=progress):
        progress.finish()  # Everything is compiled and linked before a boot is timed.
    rows = []
    for dimension in dict.fromkeys(ROWS[name].dimension for name in names):
        mine = [name for name in names if ROWS[name].dimension is dimension]
        costs: dict[str, list[float]] = {name: [] for name in mine}
        for size in dimension.sizes:
            for name, samples in take(dimension, size, mine, rounds).items():
                costs[name].append(min(samples))  # What it costs when nobody interferes.
        rows += [result(name, costs[name]) for name in mine]
    return rows


def take(dimension: Dimension, size: int, names: list[str], rounds: int) -> dict[str, list[float]]:
    """Samples of all rows of one dimension, for one size."""
    found: dict[str, list[float]] = {}
    with scene(dimension, size) as (bed, booted):
        for name in names:
            if ROWS[name].make is _boot:
                found[name] = [booted]
                continue
            one = ROWS[name].make(bed, size)
            one()
            found[name] = [one() for _ in range(rounds)]
            sys_munmap(bed.cpu, BASE, 4 * bed.size)
    return found


def result(name: str, costs: list[float]) -> dict[str, Any]:
    """A row for JSON: `emulator` is the cost at the largest size."""
    row = ROWS[name]
    found = growth(row.dimension.sizes, costs)
    return {"name": name, "kind": "growth", "unit": "ns", "per": row.per, "with": row.dimension.what,
            "sizes": list(row.dimension.sizes), "labels": [row.dimension.label(size) for size in row.dimension.sizes],
            "costs": [round(cost, 2) for cost in costs], "grows": found.word, "exponent": round(found.exponent, 2),
            "emulator": round(costs[-1], 2), "kernel": None, "multiprocess": None, "ratio_kernel": None,
            "ratio_multiprocess": None}
