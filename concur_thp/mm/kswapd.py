"""kswapd: reclaims in the background, so that allocations seldom have to. (Linux: mm/vmscan.c)

Woken by an allocation that finds nothing above the low watermark; sleeps when some zone is above the high one again.
"""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.futex import futex_wait
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.system import system
from concur_thp.mm.alloc_slowpath import kswapd_wait
from concur_thp.mm.buddy import WMARK_HIGH
from concur_thp.mm.mm_types import pgdat, zones
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.put_page import SWAP_CLUSTER_MAX
from concur_thp.mm.rmqueue import zone_watermark_ok
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.vmscan import do_try_to_free_pages
from concur_thp.mm.vmstat import Stat, count_vm_event

IDLE_ROUNDS = 16
"""Rounds that reclaim nothing before kswapd gives up until it is woken again (Linux: MAX_RECLAIM_RETRIES)."""


@inline
def pgdat_balanced():
    """Has some zone enough free pages?"""
    balanced = 0
    for zone in range(pgdat.nr_zones):
        if zone_watermark_ok(zones[zone], 0, zones[zone].watermark[WMARK_HIGH]):
            balanced = 1
    return balanced


@kernel
def balance_pgdat(cpu: Cpu):
    """Reclaim until some zone is above its high watermark, or nothing helps.

    Context: kernel thread, no lock. Sleeps.
    Linux: mm/vmscan.c balance_pgdat
    Differs: only for small pages: who wants a block tells kcompactd himself. Whoever woke it, one good zone is enough, and it
    looks at pages of all zones; an allocation that may use only the lower ones reclaims there itself.
    """
    count_vm_event(cpu, Stat.pageoutrun)
    idle = 0
    while idle < IDLE_ROUNDS and not pgdat_balanced() and system.stop.read() == 0 and system.panicked.read() == 0:
        idle = 0 if do_try_to_free_pages(cpu, 4 * SWAP_CLUSTER_MAX, 1) else idle + 1
        drain_pcp(cpu)  # What it has freed is for others, not for its own lists.
        cpu.ops = cpu.ops + 1


@kernel
def kswapd_run(cpu: Cpu):
    """Reclaim if woken since the last turn, then sleep until woken again, for a moment at most.

    Context: kernel thread, in no mm; begins and ends parked.
    Linux: mm/vmscan.c kswapd, kswapd_try_to_sleep
    Differs: one turn; the loop around it is the process's.
    """
    wakeups = kswapd_wait.wakeups.load()
    cpu_resume(cpu)
    if wakeups != kswapd_wait.served:
        kswapd_wait.served = wakeups
        balance_pgdat(cpu)
    lru_add_drain(cpu)
    drain_pcp(cpu)
    cpu.ops = cpu.ops + 1
    cpu_park(cpu)
    kswapd_wait.asleep.store(1)
    # `asleep` before the word is looked at, as the other side changes the word before it looks at `asleep`.
    futex_wait(kswapd_wait, wakeups)
    kswapd_wait.asleep.store(0)


__all__ = ["balance_pgdat", "kswapd_run"]
