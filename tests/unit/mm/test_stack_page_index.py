"""Waiting for a stack that grows: the wait ends with the growth, gives the core away, and ends with the machine."""

from collections.abc import Callable

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.arch.system import system
from concur_thp.config import PAGE_SIZE
from concur_thp.errors import KernelBug
from concur_thp.machine import Machine
from concur_thp.mm.flags import VM_GROWSDOWN
from concur_thp.mm.fork import mm_alloc
from concur_thp.mm.mm_types import Mm, Vma
from concur_thp.mm.vma_adjust import vm_area_alloc, vm_area_free
from concur_thp.mm.vma_tree import linear_page_index


@pytest.mark.parametrize("ends", ["growth", "panic"])
def test_the_wait_for_a_growing_stack_ends(monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    """It used to spin without an end: a CPU that died under page_table_lock left the others going round."""
    with Machine(memory="2M", order=3, cpus=2) as machine, interpreted():
        cpu = machine.cpu(0)
        mm = Mm(mm_alloc(cpu))
        vma = Vma(vm_area_alloc(cpu, mm))
        vma.vm_flags, vma.vm_start, vma.vm_end, vma.vm_pgoff = VM_GROWSDOWN, 8 * PAGE_SIZE, 9 * PAGE_SIZE, 8
        mm.page_table_lock.word.store(2)
        vma.vm_start = 7 * PAGE_SIZE  # CPU 1 is in the middle of expand_stack().

        def go_on(end: Callable[[], None]) -> Callable[[], None]:
            rounds = iter(range(1000))
            return lambda: end() if next(rounds) == 3 else None

        def grown() -> None:
            vma.vm_pgoff = 7
            mm.page_table_lock.word.store(0)

        monkeypatch.setattr("concur_thp.mm.vma_tree.sched_yield", go_on(grown if ends == "growth" else panic))
        if ends == "growth":
            assert linear_page_index(cpu, vma, 8 * PAGE_SIZE) == 8
        else:
            with pytest.raises(KernelBug):
                linear_page_index(cpu, vma, 8 * PAGE_SIZE)
            system.panicked.store(0)
            mm.page_table_lock.word.store(0)
        vm_area_free(cpu, vma)


def panic() -> None:
    system.panicked.store(1)
