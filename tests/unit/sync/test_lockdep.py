"""lockdep: each rule catches what it must, and lets suspicious but correct code pass; both native and interpreted."""

import pytest

from concur_thp.arch.cpu import HELD_DEPTH, Cpu
from concur_thp.arch.irq import local_irq_disable, local_irq_enable, preempt_disable, preempt_enable
from concur_thp.arch.linker import interpreted, kernel
from concur_thp.arch.system import system
from concur_thp.errors import KernelBug
from concur_thp.sync import lock_classes as classes
from concur_thp.sync import lockdep
from concur_thp.sync.bit_lock import FlagWord, bit_lock, bit_trylock, bit_unlock
from concur_thp.sync.lockdep import dep_classes, might_sleep
from concur_thp.sync.rwsem import (
    RwSem,
    down_read,
    down_read_trylock,
    down_write,
    down_write_nested,
    down_write_trylock,
    downgrade_write,
    up_read,
    up_write,
)
from concur_thp.sync.spinlock import (
    SpinLock,
    spin_lock,
    spin_lock_irq,
    spin_lock_nested,
    spin_trylock,
    spin_unlock,
    spin_unlock_irq,
)
from tests.processes import run_until_bug
from tests.unit.sync.locks import USER_A, USER_B, USER_C, boot, lock

FLAGS = {"bit": 0, "waiters": 1, "cls": classes.PAGE_LOCK}


@kernel
def sleep_here(cpu: Cpu):
    """Context: may sleep. Emulator: a test."""
    might_sleep(cpu)


@kernel
def irq_pair(cpu: Cpu, a: SpinLock, b: SpinLock):
    """Two irq-safe locks inside each other.

    Context: irqs on. Emulator: a test.
    """
    spin_lock_irq(cpu, a)
    spin_lock_irq(cpu, b)
    spin_unlock_irq(cpu, b)
    spin_unlock_irq(cpu, a)


@kernel
def irqs_off(cpu: Cpu):
    """Context: any. Emulator: a test."""
    local_irq_disable(cpu)


@kernel
def irqs_on(cpu: Cpu):
    """Context: any. Emulator: a test."""
    local_irq_enable(cpu)


@kernel
def stay(cpu: Cpu, on: int):
    """Context: any. Emulator: a test."""
    if on:
        preempt_enable(cpu)
    else:
        preempt_disable(cpu)


def spin(cls: int, other: bool = False) -> SpinLock:
    return lock(cls, other).spin


def sem(cls: int, other: bool = False) -> RwSem:
    return lock(cls, other).sem


def page(other: bool = False) -> FlagWord:
    return FlagWord(int(lock(classes.PAGE_LOCK, other)) + type(lock(0)).FIELDS["flags"].offset)


def against_rank(cpu):
    spin_lock(cpu, spin(classes.PTE_PTL))
    spin_lock(cpu, spin(classes.PMD_PTL))


def rwsem_against_rank(cpu):
    down_read(cpu, sem(classes.ANON_VMA_RWSEM))
    down_read(cpu, sem(classes.MMAP_SEM))


def page_lock_against_rank(cpu):
    down_write(cpu, sem(classes.I_MMAP_RWSEM))
    bit_lock(cpu, page(), **FLAGS)


def two_of_a_class(cpu):
    spin_lock(cpu, spin(classes.PTE_PTL))
    spin_lock(cpu, spin(classes.PTE_PTL, other=True))


def reading_twice(cpu):
    """A second reader would wait for a writer that waits for the first."""
    down_read(cpu, sem(classes.MMAP_SEM))
    down_read(cpu, sem(classes.MMAP_SEM))


def nested_first(cpu):
    spin_lock_nested(cpu, spin(classes.PMD_PTL))
    spin_lock(cpu, spin(classes.PMD_PTL, other=True))


def circle(cpu):
    for a, b in ((USER_A, USER_B), (USER_B, USER_C), (USER_C, USER_A)):
        spin_lock(cpu, spin(a))
        spin_lock(cpu, spin(b))
        spin_unlock(cpu, spin(b))
        spin_unlock(cpu, spin(a))


def irq_lock_with_irqs_on(cpu):
    spin_lock(cpu, spin(classes.LRU_LOCK))


def no_lock(cpu):
    """As the ptl of a frame that is no page table: nobody has made it a lock."""
    spin_lock(cpu, spin(lockdep.NO_CLASS))


def no_lock_with_irqs_off(cpu):
    irqs_off(cpu)
    spin_trylock(cpu, spin(lockdep.NO_CLASS))


def no_rwsem(cpu):
    down_read(cpu, sem(lockdep.NO_CLASS))


def sleeping_under_a_spinlock(cpu):
    spin_lock(cpu, spin(classes.PTE_PTL))
    sleep_here(cpu)


def rwsem_under_a_spinlock(cpu):
    spin_lock(cpu, spin(USER_A))
    down_read(cpu, sem(classes.MMAP_SEM))


def sleeping_with_irqs_off(cpu):
    irqs_off(cpu)
    bit_lock(cpu, page(), **FLAGS)


def sleeping_with_preemption_off(cpu):
    stay(cpu, 0)
    down_write(cpu, sem(classes.MMAP_SEM))


def releasing_what_is_not_held(cpu):
    spin_unlock(cpu, spin(classes.PTE_PTL))


def releasing_the_other(cpu):
    spin_lock(cpu, spin(classes.PTE_PTL))
    spin_unlock(cpu, spin(classes.PTE_PTL, other=True))


def releasing_twice(cpu):
    down_read(cpu, sem(classes.MMAP_SEM))
    up_read(cpu, sem(classes.MMAP_SEM))
    up_read(cpu, sem(classes.MMAP_SEM))


def unlocking_a_free_page(cpu):
    bit_unlock(cpu, page(), **FLAGS)


def downgrading_as_a_reader(cpu):
    down_read(cpu, sem(classes.MMAP_SEM))
    downgrade_write(cpu, sem(classes.MMAP_SEM))


def releasing_a_read_as_a_write(cpu):
    down_read(cpu, sem(classes.MMAP_SEM))
    up_write(cpu, sem(classes.MMAP_SEM))


def too_many(cpu):
    cpu.depth = HELD_DEPTH
    spin_lock(cpu, spin(USER_A))


CAUGHT = {
    against_rank: "lock order", rwsem_against_rank: "lock order", page_lock_against_rank: "lock order",
    two_of_a_class: "recursive locking", reading_twice: "recursive locking", nested_first: "lock order",
    circle: "circular order", irq_lock_with_irqs_on: "irq-safe lock is taken with irqs on",
    no_lock: "this is no lock", no_lock_with_irqs_off: "this is no lock", no_rwsem: "this is no lock",
    sleeping_under_a_spinlock: "sleeping while atomic", rwsem_under_a_spinlock: "sleeping while atomic",
    sleeping_with_irqs_off: "sleeping while atomic", sleeping_with_preemption_off: "sleeping while atomic",
    releasing_what_is_not_held: "does not hold", releasing_the_other: "does not hold",
    releasing_twice: "does not hold", unlocking_a_free_page: "not locked",
    downgrading_as_a_reader: "another than its writer", releasing_a_read_as_a_write: "another than its writer",
    too_many: "too many locks held",
}


@pytest.mark.parametrize("wrong", CAUGHT, ids=lambda f: f.__name__)
def test_a_broken_rule_is_caught_native(machine_factory, wrong):
    machine = boot(machine_factory)
    assert CAUGHT[wrong] in run_until_bug(machine, wrong)


@pytest.mark.parametrize("wrong", CAUGHT, ids=lambda f: f.__name__)
def test_a_broken_rule_is_caught_interpreted(machine_factory, wrong):
    machine = boot(machine_factory)
    with interpreted(), pytest.raises(KernelBug, match=CAUGHT[wrong]):
        wrong(machine.cpu(0))
    assert system.panicked.load() == 1


def in_order(cpu):
    down_write(cpu, sem(classes.MMAP_SEM))
    bit_lock(cpu, page(), **FLAGS)
    down_read(cpu, sem(classes.ANON_VMA_RWSEM))
    spin_lock(cpu, spin(classes.PMD_PTL))
    spin_lock(cpu, spin(classes.PTE_PTL))
    irq_pair(cpu, spin(classes.LRU_LOCK), spin(classes.ZONE_LOCK))
    spin_unlock(cpu, spin(classes.PMD_PTL))  # not the reverse of taking them: allowed
    spin_unlock(cpu, spin(classes.PTE_PTL))
    up_read(cpu, sem(classes.ANON_VMA_RWSEM))
    up_write(cpu, sem(classes.MMAP_SEM))
    bit_unlock(cpu, page(), **FLAGS)


def trylocks_against_the_order(cpu):
    spin_lock(cpu, spin(classes.PTE_PTL))
    assert spin_trylock(cpu, spin(classes.PMD_PTL)) == 1
    assert down_read_trylock(cpu, sem(classes.MMAP_SEM)) == 1
    assert down_write_trylock(cpu, sem(classes.ANON_VMA_RWSEM)) == 1
    assert bit_trylock(cpu, page(), bit=0, cls=classes.PAGE_LOCK) == 1
    assert down_write_trylock(cpu, sem(classes.I_MMAP_RWSEM)) == 1
    bit_unlock(cpu, page(), **FLAGS)
    up_write(cpu, sem(classes.I_MMAP_RWSEM))
    up_write(cpu, sem(classes.ANON_VMA_RWSEM))
    up_read(cpu, sem(classes.MMAP_SEM))
    spin_unlock(cpu, spin(classes.PMD_PTL))
    spin_unlock(cpu, spin(classes.PTE_PTL))


def order_after_trylock(cpu):
    """A trylock the wrong way round makes no dependency: the right way stays lawful."""
    trylocks_against_the_order(cpu)
    in_order(cpu)


def nested_second(cpu):
    spin_lock(cpu, spin(classes.PMD_PTL))
    spin_lock_nested(cpu, spin(classes.PMD_PTL, other=True))
    spin_lock(cpu, spin(classes.PTE_PTL))
    spin_lock_nested(cpu, spin(classes.PTE_PTL, other=True))
    for cls in (classes.PTE_PTL, classes.PMD_PTL):
        spin_unlock(cpu, spin(cls, other=True))
        spin_unlock(cpu, spin(cls))
    down_write(cpu, sem(classes.MMAP_SEM))
    down_write_nested(cpu, sem(classes.MMAP_SEM, other=True))
    up_write(cpu, sem(classes.MMAP_SEM, other=True))
    up_write(cpu, sem(classes.MMAP_SEM))


def user_order_kept(cpu):
    for a, b in ((USER_A, USER_B), (USER_B, USER_C), (USER_A, USER_C)):
        spin_lock(cpu, spin(a))
        spin_lock(cpu, spin(b))
        spin_unlock(cpu, spin(b))
        spin_unlock(cpu, spin(a))


def irq_lock_with_irqs_off_already(cpu):
    irqs_off(cpu)
    irq_pair(cpu, spin(classes.LRU_LOCK), spin(classes.ZONE_LOCK))
    spin_lock(cpu, spin(classes.SPLIT_QUEUE_LOCK))
    spin_unlock(cpu, spin(classes.SPLIT_QUEUE_LOCK))
    irqs_on(cpu)


def many_page_locks(cpu):
    assert bit_trylock(cpu, page(), bit=0, cls=classes.PAGE_LOCK) == 1
    assert bit_trylock(cpu, page(other=True), bit=0, cls=classes.PAGE_LOCK) == 1
    assert bit_trylock(cpu, page(), bit=0, cls=classes.PAGE_LOCK) == 0, "locked already: no harm in asking"
    bit_unlock(cpu, page(), **FLAGS)
    sleep_here(cpu)
    bit_unlock(cpu, page(other=True), **FLAGS)


def sleeping_after_release(cpu):
    spin_lock(cpu, spin(classes.PTE_PTL))
    stay(cpu, 0)
    spin_unlock(cpu, spin(classes.PTE_PTL))
    stay(cpu, 1)
    sleep_here(cpu)


def downgrade_and_read(cpu):
    down_write(cpu, sem(classes.MMAP_SEM))
    downgrade_write(cpu, sem(classes.MMAP_SEM))
    spin_lock(cpu, spin(classes.PTE_PTL))
    spin_unlock(cpu, spin(classes.PTE_PTL))
    up_read(cpu, sem(classes.MMAP_SEM))
    down_write(cpu, sem(classes.MMAP_SEM))
    up_write(cpu, sem(classes.MMAP_SEM))


SAFE = [in_order, trylocks_against_the_order, order_after_trylock, nested_second, user_order_kept,
        irq_lock_with_irqs_off_already, many_page_locks, sleeping_after_release, downgrade_and_read]


@pytest.mark.parametrize("way", ["native", "interpreted"])
@pytest.mark.parametrize("right", SAFE, ids=lambda f: f.__name__)
def test_suspicious_but_correct_code_passes_every_time(machine_factory, right, way):
    machine = boot(machine_factory)
    cpu = machine.cpu(0)
    for _ in range(70):  # past the 64th acquisition, which is timed
        if way == "native":
            right(cpu)
        else:
            with interpreted():
                right(cpu)
    assert not system.panicked.load()
    assert (cpu.depth, cpu.held_mask, cpu.irq_off, cpu.page_locks, cpu.acquiring) == (0, 0, 0, 0, 0)


def test_an_order_seen_by_one_process_binds_the_others(machine_factory):
    """CPU 0 takes A before B; CPU 1, which never met them, takes B before A: no deadlock happened, lockdep objects."""
    machine = boot(machine_factory)
    cpu = machine.cpu(0)
    spin_lock(cpu, spin(USER_A))
    spin_lock(cpu, spin(USER_B))
    spin_unlock(cpu, spin(USER_B))
    spin_unlock(cpu, spin(USER_A))
    assert dep_classes[USER_B].before.load() == 1 << USER_A

    def the_other_way(cpu):
        spin_lock(cpu, spin(USER_B))
        spin_lock(cpu, spin(USER_A))

    assert "circular order" in run_until_bug(machine, the_other_way, number=1)


def test_lock_stat_counts_every_acquisition(machine_factory):
    machine = boot(machine_factory)
    cpu = machine.cpu(1)
    for _ in range(128):
        spin_lock(cpu, spin(USER_A))
        spin_unlock(cpu, spin(USER_A))
    row = cpu.lock_stat[USER_A]
    assert (row.acquisitions, row.contentions, row.acq_bounces, row.hold_samples) == (128, 0, 1, 2)
    assert 0 < row.hold_max <= row.hold_total


def test_of_two_opposite_orders_that_are_looked_at_at_once_one_is_objected_to(machine_factory, monkeypatch):
    """CPU 1 looks at B before A while CPU 0, which has just found nothing against A before B, has not gone on yet."""
    machine = boot(machine_factory)
    first, second = machine.cpu(0), machine.cpu(1)
    looked, taken_before = [], lockdep.taken_before

    def looks(other, cls):
        found = taken_before(other, cls)
        if not looked:
            looked.append(found)
            lockdep.check_order(second, USER_A, 0)
        return found

    monkeypatch.setattr(lockdep, "taken_before", looks)
    first.held_mask, second.held_mask = 1 << USER_A, 1 << USER_B
    with interpreted(), pytest.raises(KernelBug, match="circular order"):
        lockdep.check_order(first, USER_B, 0)
    first.held_mask = second.held_mask = 0
    assert looked == [0]
