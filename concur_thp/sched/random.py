"""A random walk: at every point each CPU that can run is as likely to go on as any other."""

from concur_thp.arch.linker import kernel, quiet
from concur_thp.sched.control import NOBODY, can_run
from concur_thp.sched.draw import draw, draw_below, seed_draws
from concur_thp.sched.state import sched


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
    """Anybody, for as many points as the coin says "the same again".

    Context: as pick().
    Emulator: strategy random.
    """
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
        while draw() % able == 0:
            grant += 1
    sched.grant = grant
    return to
