"""Shootdown: make every CPU forget translations of an mm, and wait until they all have.

The change of the entry is visible before the generation moves, the generation before any request is sent; a CPU that
loads translations after its ack sees the new entry.
"""

from concur_thp.arch.bug import bug_on, panic_check
from concur_thp.arch.builtins import cpu_relax, ffs64, smp_wmb
from concur_thp.arch.cpu import MAIL_CONTEXT_BITS, Cpu, CpuState, cpus
from concur_thp.arch.futex import sched_yield, spins
from concur_thp.arch.irq import ipi_poll
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.arch.tlb import tlb_catch_up, tlb_contexts, tlb_flush_all, tlb_flush_local
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.config import TASK_SIZE

CPU_RUNNING = int(CpuState.RUNNING)
SPINS_BEFORE_YIELD = 200


@kernel
def flush_tlb_mm_range(cpu: Cpu, context: int, start: int, end: int):
    """Drop the translations of [start, end) on every CPU that may hold some.

    Context: irqs on; may hold locks of levels 1-7, whose waiters serve requests while they wait. Full barrier.
    Linux: arch/x86/mm/tlb.c flush_tlb_mm_range
    """
    bug_on(cpu, cpu.irq_off != 0, "TLB flush started with irqs off", context, start)
    point(cpu, Point.TLB_FLUSH)
    cpu.flushes = cpu.flushes + 1
    trace(cpu, Tracepoint.tlb_flush, context, start, end)
    generation = tlb_contexts[context].generation.add(1) + 1
    if cpu.context == context:
        tlb_flush_local(cpu, start, end, generation)
    others = tlb_contexts[context].cpumask.load() & ~(1 << cpu.id)
    waiting = _send(cpu, others, context, start, end, generation)
    while waiting != 0:
        target = ffs64(waiting)
        _wait_ack(cpu, cpus[target])
        waiting = waiting & (waiting - 1)
    point(cpu, Point.TLB_FLUSHED)


@inline
def _send(cpu: Cpu, targets: int, context: int, start: int, end: int, generation: int):
    """Write the request into each running target's mailbox; returns the set of CPUs to wait for."""
    waiting = 0
    while targets != 0:
        number = ffs64(targets)
        targets = targets & (targets - 1)
        target = cpus[number]
        # A parked CPU compares generations before it uses its TLB again (cpu_resume): ours is already raised.
        if target.state.load() == CPU_RUNNING:
            mail = target.mail[cpu.id]
            mail.start = start
            mail.end = end
            # Who parked with our last request unserved may be reading it now. A receiver that sees the new generation must
            # see the new range too, or it would count as up to date without having dropped it; and generations of two mms
            # may be the same number, so which mm it is is told with it.
            smp_wmb()
            mail.flush = generation << MAIL_CONTEXT_BITS | context
            mail.seq.store(mail.seq.read() + 1)  # Release: a receiver that sees the number sees the request.
            target.ipi_bits.or_(1 << cpu.id)
            waiting = waiting | (1 << number)
    return waiting


@kernel
def _wait_ack(cpu: Cpu, target: Cpu):
    """Wait until `target` has served our request or has parked.

    Context: irqs on; serves requests of others meanwhile, else two flushers could wait for each other.
    Emulator: the waiting half of flush_tlb_mm_range.
    """
    mail = target.mail[cpu.id]
    tries = 0
    while mail.ack.load() < mail.seq.read() and target.state.load() == CPU_RUNNING:
        ipi_poll(cpu)
        panic_check(cpu)
        tries += 1
        if tries < spins(SPINS_BEFORE_YIELD):
            cpu_relax()
        else:
            sched_yield()  # The target may want our core.


@inline
def flush_tlb_mm(cpu: Cpu, context: int):
    """Drop every translation of an mm on every CPU."""
    flush_tlb_mm_range(cpu, context, 0, TASK_SIZE)


@kernel
def switch_mm(cpu: Cpu, context: int):
    """Load another mm, 0 for none: join and leave cpumasks, drop every translation.

    Context: irqs on, no lock needed.
    Linux: arch/x86/mm/tlb.c switch_mm_irqs_off
    Differs: no address space identifiers, so every switch flushes.
    """
    if cpu.context == context:
        return 0
    if cpu.context != 0:
        tlb_contexts[cpu.context].cpumask.and_(~(1 << cpu.id))
    tlb_flush_all(cpu)
    cpu.context = context
    if context != 0:
        # Full barrier: in the mask before the generation is read, so that no flush can miss us.
        tlb_contexts[context].cpumask.or_(1 << cpu.id)
        cpu.generation = tlb_contexts[context].generation.load()
    return 0


__all__ = ["flush_tlb_mm", "flush_tlb_mm_range", "switch_mm", "tlb_catch_up"]
