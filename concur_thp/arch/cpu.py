"""A CPU: what one OS process owns in the segment. Only its own process writes it, but for the IPI mailbox.

The life of a CPU's translations depends on `state`. A RUNNING CPU serves flush requests itself, at every poll. A PARKED one
(asleep on a lock, idle, or in Python between two operations) serves nothing: it promises to compare the generation of
its mm before it uses its TLB again, so nobody has to wait for it. The two meet like Dekker's processes:

    flusher                               the CPU
      generation += 1   (full barrier)      state = RUNNING   (full barrier)
      state == PARKED?  then skip it        generation moved?  then flush everything
"""

from enum import IntEnum

from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, I64, Struct, atomic, embed, field
from concur_thp.config import NR_CPUS

NR_LOCK_CLASSES = 32
HELD_DEPTH = 24
HELD_READ = 1 << 62
"""Bit of an entry of `held`: taken for reading."""
TLB_SMALL = 128
TLB_HUGE = 32
NR_VMSTAT = 104
MAIL_CONTEXT_BITS = 24
"""Room for the number of an mm beside a generation."""
MAIL_CONTEXT_MASK = (1 << MAIL_CONTEXT_BITS) - 1


class CpuState(IntEnum):
    """What a CPU promises about its TLB."""

    OFFLINE = 0
    RUNNING = 1
    PARKED = 2


class Mail(Struct, size=64):
    """A flush request from one CPU to another. One slot for each pair: a sender waits for its ack."""

    seq = atomic(I64, "request number, written last by the sender")
    ack = atomic(I64, "last request served, written by the receiver")
    start = field(I64, "init", "first byte of the range")
    end = field(I64, "init", "first byte behind the range")
    flush = field(I64, "init", "generation that this flush made << MAIL_CONTEXT_BITS | the mm whose translations go")


class TlbEntry(Struct, size=16):
    """A cached translation. `tag` 0 is empty."""

    tag = field(I64, "cpu", "virtual page number (of a huge page: of its first page) + 1")
    entry = field(I64, "cpu", "the page table entry that was loaded, with the bits this CPU knows to be set")


class LockStat(Struct, size=80):
    """One CPU's share of one lock class's lock_stat row. Times in cycles()."""

    acquisitions = field(I64, "cpu", "times taken")
    acq_bounces = field(I64, "cpu", "taken from another CPU's cache")
    contentions = field(I64, "cpu", "times it had to be waited for")
    con_bounces = field(I64, "cpu", "waited for while another CPU had it last")
    wait_total = field(I64, "cpu", "time waited")
    wait_max = field(I64, "cpu", "longest wait")
    wait_min = field(I64, "cpu", "shortest wait, 0 when none")
    hold_total = field(I64, "cpu", "time held, of the sampled acquisitions")
    hold_max = field(I64, "cpu", "longest sampled hold")
    hold_samples = field(I64, "cpu", "acquisitions sampled")


class Event(Struct, size=48):
    """One record of a CPU's event ring."""

    when = field(I64, "cpu", "cycles()")
    what = field(I64, "cpu", "trace.Tracepoint")
    a = field(I64, "cpu", "first argument, see the tracepoint's row")
    b = field(I64, "cpu", "second argument")
    c = field(I64, "cpu", "third argument")
    number = field(I64, "cpu", "position in the ring's history, written last")


class Cpu(Struct, align=64):
    """One CPU."""

    id = field(I32, "const", "its number")
    state = atomic(I32, "CpuState")
    pid = field(I32, "init", "the OS process that is this CPU")
    irq_off = field(I32, "cpu", "irqs disabled: nesting depth")
    preempt_off = field(I32, "cpu", "preemption disabled: nesting depth")
    point = field(I32, "cpu", "last Point passed")
    func = field(I64, "cpu", "number of the name of the last kernel function entered")
    site = field(I64, "cpu", "checked build: number of the statement it is about to run, see checked.sites()")
    budget = field(I64, "cpu", "checked build: points left before sched_point() is called")
    op = field(I32, "cpu", "Op being run, of the program")
    row = field(I64, "cpu", "row of the program being run")
    ops = field(I64, "cpu", "operations done: the watcher's sign of life")
    beat = field(I64, "cpu", "counts up with every lock operation: the watcher's second sign of life")
    rng = field(I64, "cpu", "state of this CPU's random numbers")
    ipi_bits = atomic(I64, "a bit for each CPU whose mail waits")
    mail = embed(Mail, "requests from each CPU", count=NR_CPUS)
    context = field(I64, "cpu", "the mm whose translations it may hold, 0 for none")
    generation = field(I64, "cpu", "generation of the context up to which its TLB is clean")
    tlb_small = embed(TlbEntry, "translations of small pages", count=TLB_SMALL)
    tlb_huge = embed(TlbEntry, "translations of huge pages", count=TLB_HUGE)
    flushes = field(I64, "cpu", "flushes it asked for")
    ipis = field(I64, "cpu", "requests it served")
    depth = field(I32, "cpu", "locks held")
    page_locks = field(I32, "cpu", "page locks held; not on the stack, khugepaged holds hundreds")
    held_mask = field(I64, "cpu", "a bit for each class held")
    held = field(I64, "cpu", "the locks held: offset << 8 | class", count=HELD_DEPTH)
    held_since = field(I64, "cpu", "cycles() when taken, 0 when not sampled", count=HELD_DEPTH)
    acquiring = field(I64, "cpu", "offset << 8 | class of the lock it is taking or waiting for, else 0")
    wait_next = field(I32, "cpu", "next waiter of the rwsem, cpu + 1")
    wait_kind = field(I32, "cpu", "what it waits for: 1 read, 2 write")
    wait_granted = atomic(I32, "futex: 1 when the rwsem was handed to it")
    lock_stat = embed(LockStat, "by lock class", count=NR_LOCK_CLASSES)
    vmstat = field(I64, "cpu", "this CPU's share of each counter", count=NR_VMSTAT)
    ring_next = field(I64, "cpu", "number of the next event")
    check_with = field(I64, "cpu", "what goes with the subject of a check_point_with()")
    scratch = field(I64, "cpu", "room for results that do not fit a register", count=8)


cpus = SharedArray("cpus", Cpu, lambda config: NR_CPUS)
