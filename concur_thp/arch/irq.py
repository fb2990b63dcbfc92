"""Interrupts: the irq flag, preemption, and serving what other CPUs ask for.

A CPU serves requests at every poll with irqs on: when it waits for a spinlock, before it sleeps, while it waits for its
own flush, and between two operations of its program. With irqs off it serves none; gup-fast relies on that.
"""

from concur_thp.arch.bug import bug_on, panic_check
from concur_thp.arch.builtins import ffs64, smp_rmb
from concur_thp.arch.cpu import MAIL_CONTEXT_BITS, MAIL_CONTEXT_MASK, Cpu, CpuState, cpus
from concur_thp.arch.futex import futex_wait
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.tlb import tlb_catch_up, tlb_flush_local

CPU_RUNNING = int(CpuState.RUNNING)
CPU_PARKED = int(CpuState.PARKED)


@inline
def local_irq_disable(cpu: Cpu):
    """Serve no request until local_irq_enable(); nests."""
    cpu.irq_off = cpu.irq_off + 1


@inline
def local_irq_enable(cpu: Cpu):
    """Undo one local_irq_disable(); serve what has come in when it was the last."""
    cpu.irq_off = cpu.irq_off - 1
    ipi_poll(cpu)


@inline
def preempt_disable(cpu: Cpu):
    """No sleeping until preempt_enable(); nests."""
    cpu.preempt_off = cpu.preempt_off + 1


@inline
def preempt_enable(cpu: Cpu):
    cpu.preempt_off = cpu.preempt_off - 1


@inline
def ipi_poll(cpu: Cpu):
    """Serve waiting requests, if irqs are on."""
    if cpu.ipi_bits.read() != 0 and cpu.irq_off == 0:
        ipi_serve(cpu)


@kernel
def ipi_serve(cpu: Cpu):
    """Serve every flush request in the mailbox and acknowledge it.

    Context: irqs on.
    Linux: arch/x86/mm/tlb.c flush_tlb_func_remote
    Differs: each sender has a mailbox of its own; an ack is a word, not the end of a function call.
    """
    bits = cpu.ipi_bits.xchg(0)
    while bits != 0:
        sender = ffs64(bits)
        bits = bits & (bits - 1)
        mail = cpu.mail[sender]
        seq = mail.seq.load()
        flush = mail.flush
        smp_rmb()  # The generation before the range: the sender may be writing its next request over one that it gave up.
        if flush & MAIL_CONTEXT_MASK == cpu.context:
            tlb_flush_local(cpu, mail.start, mail.end, flush >> MAIL_CONTEXT_BITS)
        mail.ack.store(seq)
        cpu.ipis = cpu.ipis + 1


@inline
def cpu_park(cpu: Cpu):
    """From here on nobody waits for this CPU's acks; it will not use its TLB before cpu_resume()."""
    cpu.state.store(CPU_PARKED)


@kernel
def cpu_resume(cpu: Cpu):
    """Come back from cpu_park(): drop what was flushed meanwhile.

    Context: irqs on.
    Linux: arch/x86/mm/tlb.c switch_mm_irqs_off, leaving lazy TLB mode
    Differs: also used around every sleep, so that a sleeping CPU costs a flusher nothing.
    """
    cpu.state.xchg(CPU_RUNNING)  # Full barrier: the state before the generation that tlb_catch_up() reads.
    tlb_catch_up(cpu)
    ipi_poll(cpu)


@inline
def cpu_sleep(cpu: Cpu, address: int, expected: int):
    """Sleep on a futex word as a parked CPU. The one way to wait for another CPU without spinning."""
    bug_on(cpu, cpu.irq_off != 0, "sleeping with irqs off", cpu.irq_off, address)
    cpu_park(cpu)
    futex_wait(address, expected)
    panic_check(cpu)
    cpu_resume(cpu)


__all__ = ["cpu_park", "cpu_resume", "cpu_sleep", "cpus", "ipi_poll", "ipi_serve", "local_irq_disable",
           "local_irq_enable", "preempt_disable", "preempt_enable"]
