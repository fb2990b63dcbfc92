"""One round of a race, natively: everything is prepared, all CPUs let go at once, looked at, and cleared away.

CPU 0 prepares and clears; the others wait for it at a barrier. Between the two meetings of a round all run their programs;
after the second one all but CPU 0 stand still outside of everything, and CPU 0 may act for them.
"""

from concur_thp.arch.bug import panic_check
from concur_thp.arch.builtins import cpu_relax, set_current
from concur_thp.arch.cpu import NR_VMSTAT, Cpu, cpus
from concur_thp.arch.futex import ALL_WAITERS, futex_wait, futex_wake, sched_yield
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.random import random_below
from concur_thp.arch.shared import SharedOne
from concur_thp.arch.struct import I32, I64, Struct, atomic, field
from concur_thp.config import HPAGE_PMD_NR
from concur_thp.mm.huge_zero import shrink_huge_zero_page
from concur_thp.mm.khugepaged import khugepaged_do_scan
from concur_thp.mm.mm_slots import khugepaged_scan
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.swap_state import drop_swap_cache
from concur_thp.mm.truncate import invalidate_mapping_pages
from concur_thp.program.physical import noted_frames, unpoison_all
from concur_thp.program.pinning import unpin_all
from concur_thp.program.pressure import drain_cpu, step_files
from concur_thp.program.rows import CHECK, SETUP, run_program, run_rows
from concur_thp.program.spaces import replace_space
from concur_thp.program.table import NR_SLOTS, NR_SPACES

SPINS = 2000
"""How often a CPU looks before it sleeps at the barrier."""
JITTERS = 10
"""A CPU starts up to 2**JITTERS turns late, mostly much less: so that either may be first, and by little."""


class Arena(Struct):
    """The barrier, and the counters before and after."""

    arrived = atomic(I32, "CPUs at the barrier")
    round = atomic(I32, "futex: meetings so far")
    ready = atomic(I32, "CPUs awake and about to start")
    over = atomic(I32, "1: there will be no more rounds")
    parties = field(I32, "const", "CPUs of the race, bystanders too")
    actors = field(I32, "const", "CPUs whose counters are looked at")
    before = field(I64, "owner", "each counter, summed, before the race", count=NR_VMSTAT)
    delta = field(I64, "owner", "by how much it rose", count=NR_VMSTAT)


arena = SharedOne("arena", Arena)
ROUND = Arena.FIELDS["round"].offset


@kernel
def meet(cpu: Cpu):
    """Wait until all CPUs of the race are here.

    Context: parked, in no mm.
    Emulator: a barrier.
    """
    seen = arena.round.load()
    if arena.arrived.add(1) == arena.parties - 1:
        arena.arrived.store(0)
        arena.round.store(seen + 1)
        futex_wake(int(arena) + ROUND, ALL_WAITERS)
        return
    spins = 0
    while arena.round.load() == seen:
        if spins < SPINS:
            spins += 1
            cpu_relax()
        else:
            futex_wait(int(arena) + ROUND, seen)
        panic_check(cpu)


@inline
def start_together(cpu: Cpu):
    """Who slept at the barrier wakes late: wait for him, though not for long, and then some turns more or less."""
    arena.ready.add(1)
    spins = 0
    while spins < SPINS and arena.ready.load() < arena.parties:
        spins += 1
        if spins % 64 == 0:
            sched_yield()
        cpu_relax()
    for _ in range(random_below(cpu, 1 << random_below(cpu, JITTERS))):
        cpu_relax()


@kernel
def arena_join(cpu: Cpu):
    """One round of a CPU other than the first.

    Context: parked, in no mm; ends so.
    Return: 1, or 0 when there are no more rounds.
    Emulator: one CPU of a race.
    """
    meet(cpu)
    if arena.over.load() != 0:
        return 0
    start_together(cpu)
    run_program(cpu)
    meet(cpu)
    return 1


@kernel
def arena_run(cpu: Cpu):
    """One round of the first CPU, up to what is looked at afterwards.

    Context: parked, in no mm; ends so.
    Emulator: preparation, race and look.
    """
    run_rows(cpu, SETUP)
    for kind in range(NR_VMSTAT):
        arena.before[kind] = stat_sum(kind)
    arena.ready.store(0)
    meet(cpu)
    start_together(cpu)
    run_program(cpu)
    meet(cpu)
    for kind in range(NR_VMSTAT):
        arena.delta[kind] = stat_sum(kind) - arena.before[kind]
    run_rows(cpu, CHECK)


@inline
def stat_sum(kind: int):
    """A counter, over the CPUs of the scenario."""
    total = 0
    for number in range(arena.actors):
        total += cpus[number].vmstat[kind]
    return total


@kernel
def arena_clear(cpu: Cpu):
    """Everything that the round has made goes.

    Context: parked, in no mm; the other CPUs stand at the barrier, or have ended.
    Emulator: all programs end.
    """
    for number in range(arena.parties):
        set_current(int(cpus[number]))  # Who frees a page with it holds locks, and guards ask the current CPU.
        unpin_all(cpus[number])
    set_current(int(cpu))
    for number in range(NR_SPACES):
        replace_space(cpu, number, 0)
    for number in range(NR_SLOTS):
        noted_frames[number].value = 0
        if step_files[number].value != 0:
            invalidate_mapping_pages(cpu, step_files[number].value)
    if khugepaged_scan.head != 0:
        khugepaged_do_scan(cpu, 16 * HPAGE_PMD_NR)  # Its cursor may still hold an mm that has ended.
    shrink_huge_zero_page(cpu)
    for number in range(arena.parties):
        set_current(int(cpus[number]))
        lru_add_drain(cpus[number])
    set_current(int(cpu))
    drop_swap_cache(cpu)
    unpoison_all(cpu)


@kernel
def arena_empty(cpu: Cpu):
    """The free lists of each CPU are emptied too: then every frame is free (Q20).

    Context: as arena_clear(), and behind it.
    Emulator: before the audit of an empty machine.
    """
    for number in range(arena.parties):
        set_current(int(cpus[number]))
        drain_cpu(cpus[number])
    set_current(int(cpu))


@kernel
def arena_close(cpu: Cpu):
    """The other CPUs may go.

    Context: parked, in no mm.
    Emulator: the end of all rounds.
    """
    arena.over.store(1)
    meet(cpu)


__all__ = ["arena", "arena_clear", "arena_close", "arena_empty", "arena_join", "arena_run"]
