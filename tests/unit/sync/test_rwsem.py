"""A reader-writer semaphore on one CPU at a time."""

from contextlib import nullcontext

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import interpreted, kernel
from concur_thp.errors import KernelBug
from concur_thp.sync.lock_classes import MMAP_SEM
from concur_thp.sync.lockdep import HELD_READ
from concur_thp.sync.rwsem import (
    RWSEM_WRITER,
    RwSem,
    assert_held,
    assert_held_write,
    down_read,
    down_read_trylock,
    down_write,
    down_write_trylock,
    downgrade_write,
    rwsem_is_locked,
    up_read,
    up_write,
)
from tests.unit.sync.locks import boot, lock

MODES = pytest.mark.parametrize("mode", [nullcontext, interpreted], ids=["native", "interpreted"])


@kernel
def held(cpu: Cpu, sem: RwSem):
    """Context: any. Emulator: a test."""
    assert_held(cpu, sem)
    return rwsem_is_locked(sem)


@kernel
def held_write(cpu: Cpu, sem: RwSem):
    """Context: any. Emulator: a test."""
    assert_held_write(cpu, sem)


@MODES
def test_readers_share_and_a_writer_does_not(machine_factory, mode):
    machine = boot(machine_factory, cpus=3)
    sem = lock(MMAP_SEM).sem
    a, b, c = (machine.cpu(n) for n in range(3))
    with mode():
        down_read(a, sem)
        down_read(b, sem)
        assert down_write_trylock(c, sem) == 0 and sem.count.load() == 2 and held(a, sem)
        up_read(a, sem)
        assert down_write_trylock(c, sem) == 0
        up_read(b, sem)
        assert down_write_trylock(c, sem) == 1 and sem.writer == 3 and sem.count.load() == RWSEM_WRITER
        held_write(c, sem)
        assert down_read_trylock(a, sem) == 0 and down_write_trylock(a, sem) == 0 and a.depth == 0
        up_write(c, sem)
        assert sem.count.load() == 0 and sem.writer == 0 and (c.depth, c.held_mask) == (0, 0)


@MODES
def test_downgrading_lets_readers_in(machine_factory, mode):
    machine = boot(machine_factory)
    sem = lock(MMAP_SEM).sem
    a, b = machine.cpu(0), machine.cpu(1)
    with mode():
        down_write(a, sem)
        assert a.held[0] & HELD_READ == 0
        downgrade_write(a, sem)
        assert a.held[0] & HELD_READ and sem.writer == 0 and sem.count.load() == 1
        assert down_read_trylock(b, sem) == 1
        up_read(a, sem)
        assert sem.count.load() == 1


def test_asserting_what_is_not_held_is_a_bug(machine_factory):
    machine = boot(machine_factory)
    sem = lock(MMAP_SEM).sem
    down_read(machine.cpu(0), sem)
    with interpreted():
        with pytest.raises(KernelBug, match="rwsem not held for writing"):
            held_write(machine.cpu(0), sem)
        with pytest.raises(KernelBug, match="rwsem not held "):
            held(machine.cpu(1), sem)
