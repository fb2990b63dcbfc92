"""The `cpu` of programs in Python: what each call does, and the one line that misuse gets."""

import pytest

from concur_thp import Machine
from concur_thp.check.audit import audit
from concur_thp.config import PAGE_SIZE
from concur_thp.errors import Misuse
from concur_thp.mm.collapse_check import Scan
from concur_thp.program.table import LOOK_HUGE, LOOK_NONE, LOOK_PTE


@pytest.fixture
def inside(machine_factory):
    """(cpu, address of a huge block), in a fresh mm; what is left is audited."""
    machine: Machine = machine_factory(order=3, memory="4M", swap="256K")
    mm = machine.mm()
    region = mm.mmap("64K", huge=True)
    with mm.inside() as cpu:
        yield cpu, region
    assert not audit(machine.config).violations


def test_words_are_loaded_and_stored(inside):
    cpu, at = inside
    cpu.store(at + 512, -5)
    assert cpu.load(at + 512) == -5 and cpu.load(at) == 0
    assert cpu.step("look 0 0")[0] == LOOK_HUGE


def test_calls_do_what_their_names_say(inside):
    cpu, at = inside
    cpu.store(at, 1)
    cpu.split_pmd(at)
    assert cpu.step("look 0 0")[0] == LOOK_PTE
    cpu.madvise(at, "4K", "dontneed")
    assert cpu.step("look 0 0")[0] == LOOK_NONE and cpu.load(at) == 0
    cpu.mremap(at, PAGE_SIZE, at + (1 << 18))
    with pytest.raises(OSError, match="EFAULT"):
        cpu.load(at)
    assert cpu.load(at + (1 << 18)) == 0
    cpu.mprotect(at + PAGE_SIZE, "4K", "ro")
    with pytest.raises(OSError, match="store: -EFAULT"):
        cpu.store(at + PAGE_SIZE, 2)
    cpu.mlock(at + PAGE_SIZE, "4K")
    cpu.munlock(at + PAGE_SIZE, "4K")
    cpu.munmap(at + PAGE_SIZE, "4K")
    with pytest.raises(OSError, match="ENOMEM"):
        cpu.mlock(at + PAGE_SIZE, "4K")


def test_a_numa_hint_costs_a_fault_and_nothing_else(inside):
    cpu, at = inside
    cpu.store(at, 7)
    cpu.mprotect(at, "64K", "NUMA_HINT")
    assert cpu.load(at) == 7
    cpu.store(at, 8)
    assert cpu.load(at) == 8


def test_memory_where_the_kernel_finds_room(inside):
    cpu, at = inside
    other = cpu.mmap("8K")
    assert other != at and other % PAGE_SIZE == 0
    cpu.store(other, 3)
    cpu.munmap(other, "8K")


def test_a_fork_is_entered_and_has_its_own_words(inside):
    cpu, at = inside
    cpu.store(at, 1)
    child = cpu.fork()
    cpu.enter(child)
    cpu.store(at, 2)
    cpu.enter(0)
    assert cpu.load(at) == 1
    cpu.drop(child)
    with pytest.raises(OSError, match="enter: -ESRCH"):
        cpu.enter(child)


def test_pins_reach_the_frame(inside):
    cpu, at = inside
    cpu.store(at, 4)
    assert cpu.pin(at)
    cpu.pin_store(5)
    assert cpu.pin_load() == 5 == cpu.load(at)
    cpu.unpin()
    with pytest.raises(OSError, match="unpin: -ESRCH"):
        cpu.unpin()


def test_the_kernels_own_work(inside):
    cpu, at = inside
    cpu.store(at, 1)
    cpu.migrate(at)
    cpu.split_page(at)
    assert cpu.swap_out(at) == 1 and cpu.load(at) == 1
    assert cpu.collapse(0, at) in set(Scan)


@pytest.mark.parametrize("wrong, said", [
    (lambda cpu, at: cpu.madvise(at, "2Q", "free"), "size '2Q': pass a number"),
    (lambda cpu, at: cpu.madvise(at, 100, "free"), "pass whole pages"),
    (lambda cpu, at: cpu.madvise(at, 0, "free"), "pass whole pages"),
    (lambda cpu, at: cpu.madvise(at, "4K", "DONTNED"), "did you mean dontneed"),
    (lambda cpu, at: cpu.madvise(at, "4K", None), "no advice None"),
    (lambda cpu, at: cpu.madvise(at + 8, "4K", "free"), "pass a multiple of 4096"),
    (lambda cpu, at: cpu.mprotect(at, "4K", "numahint"), "did you mean numa_hint"),
    (lambda cpu, at: cpu.mprotect(at, "4K", "rwx"), "did you mean rw"),
    (lambda cpu, at: cpu.load(at + 1), "512 bytes apart"),
    (lambda cpu, at: cpu.store("here", 1), "address 'here'"),
    (lambda cpu, at: cpu.store(at, 1 << 64), "64 bits"),
    (lambda cpu, at: cpu.store(at, 1.5), "64 bits"),
    (lambda cpu, at: cpu.pin(at, 9), "pin 9: pass a number from 0 to 7"),
    (lambda cpu, at: cpu.pin(at, how="reed"), "did you mean read"),
    (lambda cpu, at: cpu.enter(8), "space 8"),
    (lambda cpu, at: cpu.step("lode 0"), "there is no step 'lode'"),
    (lambda cpu, at: cpu.step("map_file 0 1 rw shared 0"), "more than four arguments"),
])
def test_misuse_gets_one_line(inside, wrong, said):
    cpu, at = inside
    with pytest.raises(Misuse) as caught:
        wrong(cpu, at)
    assert said in str(caught.value) and "\n" not in str(caught.value)
