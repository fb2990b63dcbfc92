"""Small programs on a few shared words, run one CPU at a time: what strategies are tested with."""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum, unique
from typing import Any, NamedTuple

from concur_thp.arch import native
from concur_thp.arch.bug import bug
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.futex import futex_wait, futex_wake, sched_yield
from concur_thp.arch.irq import cpu_park, cpu_resume, ipi_poll
from concur_thp.arch.linker import kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, I64, Struct, atomic, field
from concur_thp.arch.tlb import tlb_fill_small, tlb_lookup
from concur_thp.arch.tlbflush import flush_tlb_mm_range, switch_mm
from concur_thp.config import PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.sched.batch import TABLE, Number, batch, good_states, state_is_good
from concur_thp.sched.repeat import NOWHERE, repeating
from concur_thp.sched.snapshot import restore
from concur_thp.sched.state import Verdict, sched
from concur_thp.sync.lock_classes import FIRST_USER_CLASS
from concur_thp.sync.spinlock import SpinLock, spin_lock, spin_lock_init, spin_unlock
from workers.controlled import Controlled

MOST_STEPS, WORDS, CPUS = 16, 4, 3
ADDRESS = 8 * PAGE_SIZE


@unique
class Op(IntEnum):
    """What a step does; `w` is a word, `x` a number, and each CPU has one register."""

    END = 0
    LOAD = 1  # register = word
    STORE = 2  # word = x
    PUT = 3  # word = register + x
    ADD = 4  # atomic, nobody asks what was there
    FETCH_ADD = 5  # register = what was there
    CAS = 6  # register = what was there; 0 -> x
    LOCK = 7
    UNLOCK = 8
    SLEEP = 9  # on the futex of a word until it is not 0
    SLEEP_ONCE = 10  # looks, and then sleeps without looking again: a wake-up can be lost
    WAKE = 11  # word = x, wake who sleeps on it
    POLL = 12  # until the word is not 0
    BUG_IF = 13  # bug() when the register is x
    CACHE = 14  # translate through the TLB; a miss fills it from the word
    FLUSH = 15  # every CPU's translation
    SPIN = 16  # for ever
    YIELD = 17  # x times


class Do(NamedTuple):
    """One step."""

    op: Op
    w: int = 0
    x: int = 0


class SmallStep(Struct, size=32):
    op = field(I64, "const", "Op")
    w = field(I64, "const", "word")
    x = field(I64, "const", "number")


class SmallWord(Struct, size=64):
    plain = field(I64, "test_small", "its value")
    count = atomic(I32, "another value, atomic; a futex")
    lock_room = field(I64, "init", "a SpinLock")


class SmallCpu(Struct, size=64):
    register = field(I64, "cpu", "its register")


small_steps = SharedArray("test_small_steps", SmallStep, lambda c: CPUS * MOST_STEPS)
small_words = SharedArray("test_small_words", SmallWord, lambda c: WORDS)
small_cpus = SharedArray("test_small_cpus", SmallCpu, lambda c: CPUS)


@kernel
def run_small(cpu: Cpu):
    """Emulator: a CPU's program."""
    cpu_resume(cpu)
    switch_mm(cpu, 1)
    mine = small_cpus[cpu.id]
    for i in range(MOST_STEPS):
        step = small_steps[cpu.id * MOST_STEPS + i]
        if step.op == 0:
            break
        if step.op < 9:
            touch_word(cpu, mine, small_words[step.w], step.op, step.x)
        else:
            wait_or_wake(cpu, mine, small_words[step.w], step.op, step.x)
    switch_mm(cpu, 0)
    cpu_park(cpu)


@kernel
def touch_word(cpu: Cpu, mine: SmallCpu, word: SmallWord, op: int, x: int):
    """Emulator: steps that never wait, but for a lock."""
    lock = SpinLock(int(word) + LOCK_AT)
    if op == 1:
        mine.register = word.plain
    elif op == 2:
        word.plain = x
    elif op == 3:
        word.plain = mine.register + x
    elif op == 4:
        word.count.add(x)
    elif op == 5:
        mine.register = word.count.add(x)
    elif op == 6:
        mine.register = word.count.cas(0, x)
    elif op == 7:
        spin_lock(cpu, lock)
    else:
        spin_unlock(cpu, lock)


@kernel
def wait_or_wake(cpu: Cpu, mine: SmallCpu, word: SmallWord, op: int, x: int):
    """Emulator: steps that wait, wake, or need another CPU."""
    futex = int(word) + COUNT_AT
    if op == 9:
        while word.count.load() == 0:
            futex_wait(futex, 0)
    elif op == 10:
        if word.count.load() == 0:
            futex_wait(futex, word.count.load())
    elif op == 11:
        word.count.store(x)
        futex_wake(futex, 1)
    elif op == 12:
        while word.count.load() == 0:
            ipi_poll(cpu)
            sched_yield()
    elif op == 13:
        if mine.register == x:
            bug(cpu, "the register has a value that it must not have", x, 0)
    elif op == 14:
        mine.register = tlb_lookup(cpu, ADDRESS)
        if mine.register == 0:
            mine.register = word.plain + 1
            tlb_fill_small(cpu, ADDRESS, mine.register)
    elif op == 15:
        flush_tlb_mm_range(cpu, 1, ADDRESS, ADDRESS + PAGE_SIZE)
    elif op == 16:
        while word.count.load() != 77:
            mine.register = mine.register + 1
    else:
        for _ in range(x):
            sched_yield()


LOCK_AT, COUNT_AT = SmallWord.FIELDS["lock_room"].offset, SmallWord.FIELDS["count"].offset
End = tuple[str, tuple[int, ...]]


class Found(NamedTuple):
    """What an exploration of a small program saw."""

    ends: set[End]
    schedules: int
    proved: bool


class Small:
    """A machine for small programs of `nr` CPUs."""

    def __init__(self, nr: int):
        self.nr, self.repeats = nr, False
        self.controlled = Controlled(Machine.booted, nr, run_small)

    def load(self, *programs: Sequence[Do]) -> None:
        """Put the programs in place; runs start with all words 0."""
        for number, program in enumerate(programs):
            for i in range(MOST_STEPS):
                op, w, x = program[i] if i < len(program) else Do(Op.END)
                step = small_steps[number * MOST_STEPS + i]
                step.op, step.w, step.x = int(op), w, x
        for w in range(WORDS):
            small_words[w].plain = 0
            small_words[w].count.store(0)
            spin_lock_init(SpinLock(int(small_words[w]) + LOCK_AT), FIRST_USER_CLASS + w)
        for number in range(self.nr):
            small_cpus[number].register = 0
        self.controlled.keep()
        batch.done = batch.cut = 0

    def end(self) -> End:
        """How the last run ended."""
        words = [small_words[w].plain for w in range(WORDS)] + [small_words[w].count.load() for w in range(WORDS)]
        return Verdict(sched.verdict).name, (*words, *(small_cpus[n].register for n in range(self.nr)))

    def explore(self, strategy: str, depth: int = 1 << 30, most: int = 20_000) -> Found:
        """Run until the strategy is through, or `most` schedules."""
        self.controlled.choose(strategy, depth)
        if self.repeats:
            self.controlled.repeat()
        ends: set[End] = set()
        batch.done = batch.cut = batch.states = 0
        ctypes.memset(int(good_states[0]), 0, TABLE * Number.SIZE)
        at = 0
        while batch.done < most and not self.controlled.exhausted:
            at += self.controlled.run(at, most - batch.done)
            if not self.controlled.complete:
                assert not repeating.wanted or repeating.diverged == NOWHERE
                ends.add(self.end())
                at += 1
                if sched.verdict == Verdict.FINISHED:
                    state_is_good(batch.state, 0)
                restore(batch.granules)
        return Found(ends, batch.done, self.controlled.proved)


@contextmanager
def small_machine(nr: int = 2, build: str = native.CHECKED, bound: int = 2000) -> Iterator[Small]:
    """Boot a machine for small programs."""
    sizes: dict[str, Any] = {"cpus": CPUS, "memory": "1M", "order": 3, "mms": 4, "vmas": 64, "controlled": True}
    with Machine(build=build, **sizes):
        native.link([run_small, touch_word, wait_or_wake], kind=build)
        small = Small(nr)
        sched.bound = bound
        yield small
