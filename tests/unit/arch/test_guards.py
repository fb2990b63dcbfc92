"""Guards verified by the checked build: what each word of the vocabulary demands, and what it must let pass."""

import pytest

from concur_thp.arch import native
from concur_thp.arch.cpu import HELD_READ, Cpu
from concur_thp.arch.guard_words import UNSHARED
from concur_thp.arch.guards import GUARDED, guard_broken
from concur_thp.arch.linker import kernel, redirect, texts
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I64, Struct, field
from concur_thp.machine import Machine
from concur_thp.sync.lock_classes import ANON_VMA_RWSEM, MMAP_SEM, PMD_PTL, ZONE_LOCK


class Guarded(Struct, size=128):
    """A field for each kind of guard."""

    spin = field(I64, "zone_lock", "by a spinlock")
    nested = field(I64, "pmd_ptl", "by a spinlock that has a nested class")
    semaphore = field(I64, "mmap_sem", "by a semaphore")
    either = field(I64, "mmap_sem+anon_vma_rwsem", "either to read, both to write")
    first = field(I64, "mmap_sem+anon_vma_rwsem?", "either to read, the first to write")
    racy = field(I64, "zone_lock|racy", "read by anybody")
    fixed = field(I64, "const", "set at boot")
    broken = field(I64, "cpu", "how often a guard was broken")
    text = field(I64, "cpu", "the last report's text")


boxes = SharedArray("test_guards_boxes", Guarded, lambda c: 4)


@kernel
def read_spin(cpu: Cpu) -> int:
    """Emulator: test."""
    return boxes[1].spin


@kernel
def write_spin(cpu: Cpu) -> None:
    """Emulator: test."""
    boxes[1].spin = 1


@kernel
def write_excused(cpu: Cpu) -> None:
    """Emulator: test."""
    boxes[1].spin = 1


@kernel
def read_nested(cpu: Cpu) -> int:
    """Emulator: test."""
    return boxes[1].nested


@kernel
def read_semaphore(cpu: Cpu) -> int:
    """Emulator: test."""
    return boxes[1].semaphore


@kernel
def write_semaphore(cpu: Cpu) -> None:
    """Emulator: test."""
    boxes[1].semaphore = 1


@kernel
def read_either(cpu: Cpu) -> int:
    """Emulator: test."""
    return boxes[1].either


@kernel
def write_either(cpu: Cpu) -> None:
    """Emulator: test."""
    boxes[1].either = 1


@kernel
def write_first(cpu: Cpu) -> None:
    """Emulator: test."""
    boxes[1].first = 1


@kernel
def read_racy(cpu: Cpu) -> int:
    """Emulator: test."""
    return boxes[1].racy


@kernel
def write_racy(cpu: Cpu) -> None:
    """Emulator: test."""
    boxes[1].racy = 1


@kernel
def write_fixed(cpu: Cpu) -> None:
    """Emulator: test."""
    boxes[1].fixed = 1


@kernel
def note_broken(cpu: Cpu, text: int, site: int, func: int):
    """Emulator: guard_broken() that counts."""
    boxes[0].broken = boxes[0].broken + 1
    boxes[0].text = text
    return 0


UNSHARED["write_excused"] = {"Guarded.spin": "test"}  # Now: whoever boots a checked machine first compiles all of these.
TOUCH = (read_spin, write_spin, write_excused, read_nested, read_semaphore, write_semaphore, read_either, write_either,
         write_first, read_racy, write_racy, write_fixed)
ZONE, PMD_1, SEM, ANON = 1 << ZONE_LOCK, 2 << PMD_PTL, 1 << MMAP_SEM, 1 << ANON_VMA_RWSEM


@pytest.fixture
def broken():
    """How often a function breaks guards while classes are held, `read` of them for reading."""
    with Machine(cpus=1, memory="1M", order=3, mms=4, vmas=64, build=native.CHECKED) as machine:
        native.link([note_broken, *TOUCH], kind=native.CHECKED)
        cpu = machine.cpu(0)
        kept = native.SLOTS[guard_broken.slot]
        redirect(guard_broken, note_broken)

        def count(touch, held=0, read=0):
            cpu.held_mask, cpu.depth = held | read, 0
            for cls in range(32):
                if (held | read) >> cls & 1:
                    cpu.held[cpu.depth] = cls | (HELD_READ if read >> cls & 1 else 0)
                    cpu.depth = cpu.depth + 1
            before = boxes[0].broken
            touch(cpu)
            cpu.held_mask = cpu.depth = 0
            return boxes[0].broken - before

        yield count
        native.SLOTS[guard_broken.slot] = kept


@pytest.mark.parametrize("touch, held, read", [
    (read_spin, 0, 0), (read_spin, PMD_1, 0), (write_spin, 0, 0), (read_nested, 0, 0),
    (read_semaphore, 0, 0), (write_semaphore, 0, 0), (write_semaphore, 0, SEM),
    (read_either, ZONE, 0), (write_either, SEM, 0), (write_either, ANON, SEM), (write_first, ANON, 0),
    (write_racy, 0, 0), (write_fixed, ZONE, 0),
], ids=lambda value: getattr(value, "name", str(value)))
def test_an_access_without_its_guard_is_caught(broken, touch, held, read):
    assert broken(touch, held, read) == 1


@pytest.mark.parametrize("touch, held, read", [
    (read_spin, ZONE, 0), (write_spin, ZONE, 0), (read_nested, PMD_1, 0), (read_semaphore, 0, SEM), (write_semaphore, SEM, 0),
    (read_either, 0, SEM), (read_either, 0, ANON), (write_either, SEM | ANON, 0), (write_first, SEM, 0),
    (read_racy, 0, 0), (write_racy, ZONE, 0), (write_excused, 0, 0),
], ids=lambda value: getattr(value, "name", str(value)))
def test_what_is_allowed_passes(broken, touch, held, read):
    assert broken(touch, held, read) == 0


def test_the_report_says_field_and_guard(broken):
    assert broken(write_either) == 2, "neither is held"
    text = texts()[boxes[0].text]
    assert text.startswith("guard broken: Guarded.either written without mmap_sem and anon_vma_rwsem")


def test_a_machine_that_boots_is_alone(broken):
    assert int(GUARDED) == 1, "set by the boot"
