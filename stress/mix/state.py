"""What the CPUs of a mix share: the mms they run in, and the weights."""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.random import random_below
from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import I32, I64, Struct, embed, field
from concur_thp.arch.tlbflush import switch_mm
from concur_thp.check.oracle import ORACLE_PAGES
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_SIZE, NR_CPUS, PAGE_SHIFT, PAGE_SIZE, PUD_SHIFT
from concur_thp.mm.fork import mmget, mmput
from concur_thp.mm.mm_types import Mm, mms, percpu
from concur_thp.sync.lock_classes import FIRST_USER_CLASS
from concur_thp.sync.spinlock import SpinLock, spin_lock, spin_unlock

NR_MIX_OPS = 32
MAX_SPACES = 8
SPACE_LOCK = FIRST_USER_CLASS
HALF = ORACLE_PAGES // 2
NR_FILES = 8
FILE_PAGES = 64
HEAP_START = 0x8000000


class Space(Struct, size=64):
    """An mm that CPUs may run in, shared by all who come."""

    lock = embed(SpinLock, "guards mm; taken for a moment to get a reference")
    mm = field(I32, "space_lock", "its number; the space holds a reference")


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


spaces = SharedArray("mix_spaces", Space, lambda c: MAX_SPACES)
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
def current_mm(cpu: Cpu) -> Mm:
    return mms[percpu[cpu.id].mm]


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


@kernel
def mix_attach(cpu: Cpu, number: int):
    """Run in a space's mm, as one more thread of it.

    Context: user mode, in no mm.
    Emulator: what clone(CLONE_VM) and a scheduler would do.
    """
    space = spaces[number]
    spin_lock(cpu, space.lock)
    mm = mms[space.mm]
    mmget(mm)
    spin_unlock(cpu, space.lock)
    percpu[cpu.id].mm = mm.id
    switch_mm(cpu, mm.id)


@kernel
def mix_detach(cpu: Cpu):
    """Leave the mm; the last one out tears it down.

    Context: user mode.
    Emulator: a thread's exit.
    """
    mm = current_mm(cpu)
    percpu[cpu.id].mm = 0
    switch_mm(cpu, 0)
    mmput(cpu, mm)


@kernel
def mix_replace(cpu: Cpu, number: int, mm: Mm):
    """Put another mm into a space; the space takes over the caller's reference.

    Context: user mode.
    Emulator: the old program of the space ends as soon as its threads have left.
    """
    space = spaces[number]
    spin_lock(cpu, space.lock)
    old = space.mm
    space.mm = mm.id
    spin_unlock(cpu, space.lock)
    if old != 0:
        mmput(cpu, mms[old])
