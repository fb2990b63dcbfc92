"""After a run under DPOR: which steps race, and what has to be tried at the earlier one so that the later comes first.

Step j races with an earlier step i of another CPU when they conflict and nothing between them has to be between them.
Turned round, the run goes: all before i, then all between that does not depend on i, then j. Whoever can begin that must
be, or have been, an answer at i; one of them is enough (a source set).
"""

from concur_thp.arch.builtins import lsr, wrap_mul
from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import I32, I64, Struct, field
from concur_thp.sched.dfs import lowest
from concur_thp.sched.dpor import MOST_CPUS, dpor, nodes
from concur_thp.sched.snapshot import MULTIPLY
from concur_thp.sched.state import sched
from concur_thp.sched.touches import WAYS, WRITE, touch_list

PLACES = 1 << 16
MOST_PLACES = PLACES // 4 * 3


class Place(Struct, align=64):
    """The last steps that touched a word; step numbers are + 1, 0 is none."""

    key = field(I64, "owner", "of the word, see Touch")
    run = field(I64, "owner", "run in which this row was written")
    last = field(I32, "owner", "by half, way (touches.WAYS) and CPU: its last step", count=2 * WAYS * MOST_CPUS)


class Racing(Struct, align=64):
    """While a run is looked at."""

    used = field(I64, "owner", "places used")
    step = field(I64, "owner", "by CPU: its last step so far", count=MOST_CPUS)
    rival = field(I64, "owner", "by CPU: its last step that conflicts with the one looked at", count=MOST_CPUS)
    begins = field(I64, "owner", "by CPU: its first step of those that are to come first", count=MOST_CPUS)


racing = SharedOne("sched_reversals", Racing)
places = SharedArray("sched_places", Place, lambda c: PLACES if c.controlled else 1)


@kernel
@quiet
def find_reversals(start: int, end: int):
    """find_races(): clocks of all steps, races of the new ones.

    Context: after a run.
    Emulator: strategy dpor.
    """
    racing.used = 0
    for i in range(dpor.threads):
        racing.step[i] = 0
    for j in range(end):
        find_rivals(j)
        mine = nodes[j].cpu
        before = racing.step[mine]
        for c in range(dpor.threads):
            if j >= start and racing.rival[c] != 0 and nothing_between(c, before):
                earlier = racing.rival[c] - 1
                if c == mine + sched.nr:  # j's own interrupt: j can come before it when it comes before the request.
                    earlier = nodes[earlier].sent - 1
                turn_round(earlier, j)
        set_clock(j, before)
        racing.step[mine] = j + 1
    return 0


@inline
def place_at(key: int):
    """The place of a word in this run."""
    at = lsr(wrap_mul(key, MULTIPLY), 40) & (PLACES - 1)
    while places[at].run == dpor.run and places[at].key != key:
        at = (at + 1) & (PLACES - 1)
    place = places[at]
    if place.run != dpor.run:
        place.run = dpor.run
        place.key = key
        for i in range(2 * WAYS * MOST_CPUS):
            place.last[i] = 0
        racing.used = racing.used + 1
    return at


@kernel
@quiet
def find_rivals(j: int):
    """The last conflicting step of each other CPU before step j, into racing.rival; the step's touches are entered.

    Context: after a run.
    Emulator: strategy dpor.
    """
    node = nodes[j]
    for c in range(dpor.threads):
        racing.rival[c] = 0
    for t in range(node.began, node.ended):
        if racing.used >= MOST_PLACES:
            dpor.given_up = 1
            return 0
        value = touch_list[t].value
        place = places[place_at(value >> 8)]
        for half in range(2):
            way = (value >> (4 * half)) & 15
            if way != 0:
                enter(place, half, way, node.cpu, j + 1)
    return 0


@inline
def enter(place: Place, half: int, way: int, mine: int, step: int):
    """Note the rivals in this half of a word, and the step itself."""
    for other in range(1, WAYS):
        if other != way or way == WRITE:
            for c in range(dpor.threads):
                last = place.last[(half * WAYS + other) * MOST_CPUS + c]
                if c != mine and racing.rival[c] < last:
                    racing.rival[c] = last
    place.last[(half * WAYS + way) * MOST_CPUS + mine] = step


@inline
def nothing_between(c: int, before: int):
    """Is there no way from CPU c's rival to the step but the conflict itself?"""
    step = racing.rival[c]
    if before != 0 and nodes[before - 1].clock[c] >= step:
        return 0
    for other in range(dpor.threads):
        if other != c and racing.rival[other] != 0 and nodes[racing.rival[other] - 1].clock[c] >= step:
            return 0
    return 1


@inline
def set_clock(j: int, before: int):
    """All that happens before the end of step j."""
    node = nodes[j]
    for c in range(dpor.threads):
        node.clock[c] = nodes[before - 1].clock[c] if before != 0 else 0
    for c in range(dpor.threads):
        if racing.rival[c] != 0:
            other = nodes[racing.rival[c] - 1]
            for d in range(dpor.threads):
                if other.clock[d] > node.clock[d]:
                    node.clock[d] = other.clock[d]
    node.clock[node.cpu] = j + 1


@kernel
@quiet
def turn_round(i: int, j: int):
    """Step j is to come before step i: ask at i for a CPU that can begin this.

    Context: after a run; steps before j have their clocks.
    Emulator: strategy dpor.
    """
    node = nodes[i]
    last = nodes[j].cpu
    begin = beginners(i, j)
    if begin & (1 << last) & ~node.able != 0:
        if last >= sched.nr or node.able & (1 << (last + sched.nr)) == 0:
            return 0  # It is step i that lets j's CPU go on.
        last = last + sched.nr  # An interrupt is to be served first.
        begin = begin | (1 << last)
    can = begin & node.able
    if can == 0 or can & (node.wanted | node.asleep) != 0:
        return 0
    node.wanted = node.wanted | (1 << last if can & (1 << last) != 0 else 1 << lowest(can))
    return 0


@inline
def beginners(i: int, j: int):
    """The CPUs that can begin what lies between steps i and j without what depends on i, and then j."""
    for c in range(dpor.threads):
        racing.begins[c] = 0
    found = 0
    for k in range(i + 1, j + 1):
        step = nodes[k]
        if racing.begins[step.cpu] == 0 and (k == j or step.clock[nodes[i].cpu] < i + 1):
            free = 1
            for c in range(dpor.threads):
                if c != step.cpu and racing.begins[c] != 0 and happens_before(c, racing.begins[c], k, j):
                    free = 0
            racing.begins[step.cpu] = k + 1
            if free:
                found = found | (1 << step.cpu)
    return found


@inline
def happens_before(c: int, step: int, k: int, j: int):
    """Does CPU c's step (+ 1) happen before step k? Step j has no clock yet: its rivals and its CPU's step before say it."""
    if k != j:
        return nodes[k].clock[c] >= step
    before = racing.step[nodes[j].cpu]
    if before != 0 and nodes[before - 1].clock[c] >= step:
        return 1
    for other in range(dpor.threads):
        if racing.rival[other] != 0 and nodes[racing.rival[other] - 1].clock[c] >= step:
            return 1
    return 0
