"""A bit lock on one CPU: the other bits of its word are left alone."""

from contextlib import nullcontext

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.sync.bit_lock import FlagWord, bit_lock, bit_trylock, bit_unlock
from concur_thp.sync.lock_classes import PAGE_LOCK
from tests.unit.arch.memory import Memory

LOCK, WAITERS, ELSE = 1 << 0, 1 << 7, 0x7F00_0000_0000_0002
PAGE = {"bit": 0, "waiters": 7, "cls": PAGE_LOCK}


@pytest.mark.parametrize("mode", [nullcontext, interpreted], ids=["native", "interpreted"])
def test_lock_trylock_unlock(machine_factory, mode):
    cpu = machine_factory(order=3, memory="1M").cpu(0)
    with Memory(FlagWord) as flags, mode():
        flags.bits.store(ELSE)
        bit_lock(cpu, flags, **PAGE)
        assert flags.bits.load() == ELSE | LOCK and (cpu.page_locks, cpu.held_mask) == (1, 1 << PAGE_LOCK)
        assert bit_trylock(cpu, flags, bit=0, cls=PAGE_LOCK) == 0 and cpu.page_locks == 1
        bit_unlock(cpu, flags, **PAGE)
        assert flags.bits.load() == ELSE and (cpu.page_locks, cpu.held_mask) == (0, 0)
        assert bit_trylock(cpu, flags, bit=0, cls=PAGE_LOCK) == 1
        flags.bits.or_(WAITERS)
        bit_unlock(cpu, flags, **PAGE)
        assert flags.bits.load() == ELSE, "the waiters' bit goes with the lock"


def test_several_are_counted(machine_factory):
    cpu = machine_factory(order=3, memory="1M").cpu(0)
    with Memory(FlagWord, count=300) as first:
        words = [FlagWord(int(first) + 8 * n) for n in range(300)]
        assert all(bit_trylock(cpu, word, bit=0, cls=PAGE_LOCK) for word in words) and cpu.page_locks == 300
        for word in words[:-1]:
            bit_unlock(cpu, word, **PAGE)
        assert cpu.held_mask == 1 << PAGE_LOCK
        bit_unlock(cpu, words[-1], **PAGE)
        assert cpu.held_mask == 0
