"""Operations of a mix that stand for memory pressure: reclaim of a few pages by a CPU that just comes along."""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.arch.random import random_below
from concur_thp.mm.lru import LRU_FILE, LRU_INACTIVE_ANON
from concur_thp.mm.put_page import SWAP_CLUSTER_MAX
from concur_thp.mm.swap_map import get_nr_swap_pages
from concur_thp.program.pressure import reclaim_some


@kernel
def mix_reclaim(cpu: Cpu):
    """Age a few pages and reclaim a few, anonymous ones only while there is room for them.

    Context: user mode.
    Return: 0.
    Emulator: one step of a mix.
    """
    number = LRU_INACTIVE_ANON
    if get_nr_swap_pages() <= 0 or random_below(cpu, 4) == 0:
        number = LRU_INACTIVE_ANON + LRU_FILE
    count = 1 + random_below(cpu, SWAP_CLUSTER_MAX)
    reclaim_some(cpu, number, count)
    return 0
