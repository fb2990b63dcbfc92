"""What the CPUs of a mix share beside the spaces they run in (concur_thp/program/spaces.py): weights, and where memory lies."""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline
from concur_thp.arch.random import random_below
from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import I32, I64, Struct, field
from concur_thp.check.oracle import ORACLE_PAGES
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_SIZE, NR_CPUS, PAGE_SHIFT, PAGE_SIZE, PUD_SHIFT

NR_MIX_OPS = 32
HALF = ORACLE_PAGES // 2
NR_FILES = 8
FILE_PAGES = 64
HEAP_START = 0x8000000


class MixState(Struct):
    """The mix itself."""

    nr_spaces = field(I32, "const", "spaces in use")
    weight_sum = field(I64, "const", "sum of the weights")
    upto = field(I64, "const", "sum of the weights up to and with each operation", count=NR_MIX_OPS)
    files = field(I32, "const", "files to map", count=NR_FILES)


class MixCpu(Struct, align=64):
    """One CPU's part of the mix."""

    seq = field(I64, "cpu", "values stored so far")
    left = field(I64, "cpu", "operations left before it goes to another space")
    counts = field(I64, "cpu", "operations done", count=NR_MIX_OPS)
    refused = field(I64, "cpu", "operations that ended with an error", count=NR_MIX_OPS)


mix = SharedOne("mix_state", MixState)
mix_cpus = SharedArray("mix_cpus", MixCpu, lambda c: NR_CPUS)


@inline
def page_addr(page: int):
    """Where a page of the oracle lies: half of them under another PUD, so that moves cross PMD tables."""
    base = 16 * HPAGE_PMD_SIZE + HEAP_START * 2
    return base + ((1 << PUD_SHIFT) if page >= HALF else 0) + (page << PAGE_SHIFT)


@inline
def word_addr(cpu: Cpu, page: int):
    """This CPU's word of a page."""
    return page_addr(page) + (cpu.id & 7) * (PAGE_SIZE // 8)


@inline
def file_addr(slot: int):
    """Where file mappings lie: above everything else."""
    return page_addr(ORACLE_PAGES) + HPAGE_PMD_SIZE * 2 + slot * FILE_PAGES * PAGE_SIZE


@inline
def draw_range(cpu: Cpu):
    """A range of pages inside one half: one page, a few, part of a block, whole blocks. First page << 32 | pages."""
    kind = random_below(cpu, 10)
    if kind < 4:
        pages = 1 + random_below(cpu, 4)
        page = random_below(cpu, HALF - pages)
    elif kind < 6:
        pages = 1 + random_below(cpu, HPAGE_PMD_NR)
        page = random_below(cpu, HALF - pages)
    else:
        pages = HPAGE_PMD_NR * (1 + random_below(cpu, 2))
        page = random_below(cpu, (HALF - pages) // HPAGE_PMD_NR + 1) * HPAGE_PMD_NR
    return ((page + HALF * random_below(cpu, 2)) << 32) | pages
