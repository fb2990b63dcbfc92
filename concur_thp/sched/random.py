"""A random walk: after a while each CPU that can run is as likely to go on as any other. With a depth of d it is 2**d points on
the average: long stretches reach windows that need another CPU to get far meanwhile.
"""

from concur_thp.arch.linker import kernel, quiet
from concur_thp.sched.control import NOBODY, can_run, interrupted, other_interrupted
from concur_thp.sched.draw import draw, draw_below, seed_draws
from concur_thp.sched.state import Reason, sched


@kernel
@quiet
def random_prepare(seed: int):
    """Draw anew.

    Context: before a run.
    Emulator: strategy random.
    """
    seed_draws(seed)
    sched.eager = 1


@kernel
@quiet
def random_pick(cpu: int, reason: int):
    """Anybody, for as many points as the coins say "the same again".

    Context: as pick().
    Emulator: strategy random.
    """
    if reason == Reason.YIELD and other_interrupted(cpu) != NOBODY:
        sched.grant = 0  # As in pct_pick().
        return other_interrupted(cpu)
    able = 0
    for i in range(sched.nr):
        if can_run(i):
            able += 1
    if able == 0:
        return NOBODY
    nth = draw_below(able)
    to = NOBODY
    for i in range(sched.nr):
        if can_run(i):
            if nth == 0:
                to = i
            nth -= 1
    # Alone among those who can run: until somebody is woken, but a CPU that polls shall not wait long.
    grant = 1
    if able == 1:
        grant = 16
    else:
        while (draw() >> 20) & ((1 << min(sched.depth, 16)) - 1) != 0:
            grant += 1
    sched.grant = grant
    if to != cpu and interrupted(to):
        sched.grant = 0
    return to
