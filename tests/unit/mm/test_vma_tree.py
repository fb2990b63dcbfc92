"""The sorted array of an mm's vmas and the sorted list of a file's, against plain Python lists."""

import random
from contextlib import nullcontext

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import interpreted
from concur_thp.config import PAGE_SIZE
from concur_thp.errors import KernelBug
from concur_thp.machine import Machine
from concur_thp.mm.fork import mm_alloc, mmput
from concur_thp.mm.mm_types import POOL_VMA, AddressSpace, Mm, Vma, files, mem_map, pools, vmas
from concur_thp.mm.vma_adjust import vm_area_alloc, vm_area_free
from concur_thp.mm.vma_tree import (
    find_vma,
    find_vma_intersection,
    unlink_file_vma,
    vma_address,
    vma_at,
    vma_first,
    vma_interval_tree_first,
    vma_interval_tree_insert,
    vma_interval_tree_insert_after,
    vma_interval_tree_next,
    vma_interval_tree_remove,
    vma_last_pgoff,
    vma_link,
    vma_next,
    vma_prev,
    vma_unlink,
    vma_unlink_range,
)
from concur_thp.sync.lock_classes import I_MMAP_RWSEM
from concur_thp.sync.rwsem import down_write, init_rwsem, up_write

MODES = pytest.mark.parametrize(("order", "plain"), [(9, False), (3, False), (3, True)])


def machine(order: int) -> Machine:
    return Machine(memory="64M" if order == 9 else "2M", order=order, vmas=256, max_map_count=128)


def new_vma(cpu: Cpu, mm: Mm, start: int, pages: int, pgoff: int = 0, file: int = 0) -> Vma:
    vma = Vma(vm_area_alloc(cpu, mm))
    vma.vm_start = start
    vma.vm_end = start + pages * PAGE_SIZE
    vma.vm_pgoff = pgoff
    vma.vm_file = file
    return vma


def array(mm: Mm) -> list[int]:
    return [vmas.index(vma_at(mm, k)) for k in range(mm.map_count)]


@MODES
def test_the_array_is_what_a_sorted_list_is(order: int, plain: bool) -> None:
    dice = random.Random(order)
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        mm = Mm(mm_alloc(cpu))
        model: list[Vma] = []
        for _ in range(120):
            slot = dice.randrange(100)
            if all(v.vm_start != slot * 4 * PAGE_SIZE for v in model):
                vma = new_vma(cpu, mm, slot * 4 * PAGE_SIZE, dice.randrange(1, 5))
                vma_link(cpu, mm, vma)
                model.append(vma)
            elif model and dice.random() < 0.7:
                vma = model.pop(dice.randrange(len(model)))
                vma_unlink(cpu, mm, vma)
                vm_area_free(cpu, vma)
            model.sort(key=lambda v: v.vm_start)
            assert array(mm) == [vmas.index(v) for v in model]
            addr = dice.randrange(0, 420) * PAGE_SIZE + dice.randrange(PAGE_SIZE)
            above = [v for v in model if v.vm_end > addr]
            assert find_vma(mm, addr) == (above[0] if above else 0)
            hit = [v for v in above if v.vm_start < addr + 3 * PAGE_SIZE]
            assert find_vma_intersection(mm, addr, addr + 3 * PAGE_SIZE) == (hit[0] if hit else 0)
        assert vma_first(mm) == model[0]
        for below, above_it in zip(model, model[1:], strict=False):
            assert vma_next(mm, below) == above_it and vma_prev(mm, above_it) == below
        assert not vma_prev(mm, model[0]) and not vma_next(mm, model[-1])
        vma_unlink_range(cpu, mm, 2, 7)
        assert array(mm) == [vmas.index(v) for v in model[:2] + model[7:]]


@MODES
def test_a_neighbour_that_reaches_over_the_vma_does_not_hide_it_from_unlink(order: int, plain: bool) -> None:
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        mm = Mm(mm_alloc(cpu))
        a, b, c = (new_vma(cpu, mm, k * 4 * PAGE_SIZE, 4) for k in range(3))
        for vma in (c, a, b):
            vma_link(cpu, mm, vma)
        a.vm_end = b.vm_end
        vma_unlink(cpu, mm, b)
        assert array(mm) == [vmas.index(a), vmas.index(c)]


def test_unlinking_a_stranger_is_a_bug() -> None:
    with machine(3) as m, interpreted():
        cpu = m.cpu(0)
        mm = Mm(mm_alloc(cpu))
        vma_link(cpu, mm, new_vma(cpu, mm, 0, 1))
        with pytest.raises(KernelBug, match="not a vma of this mm"):
            vma_unlink(cpu, mm, new_vma(cpu, mm, 8 * PAGE_SIZE, 1))


def file_list(file: AddressSpace, first: int = 0, last: int = 1 << 40) -> list[int]:
    found = []
    vma = vma_interval_tree_first(file, first, last)
    while vma:
        found.append(vmas.index(vma))
        vma = vma_interval_tree_next(vma, first, last)
    return found


def new_file() -> AddressSpace:
    file = files[1]
    init_rwsem(file.i_mmap_rwsem, I_MMAP_RWSEM)
    file.i_mmap = 0
    return file


@MODES
def test_the_vmas_of_a_file_come_by_page_and_equal_ones_in_order_of_insertion(order: int, plain: bool) -> None:
    dice = random.Random(order)
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        mm = Mm(mm_alloc(cpu))
        file = new_file()
        down_write(cpu, file.i_mmap_rwsem)
        model: list[Vma] = []
        for _ in range(60):
            vma = new_vma(cpu, mm, 0x100000, dice.randrange(1, 6), dice.randrange(12), 1)
            vma_interval_tree_insert(cpu, vma)
            model.append(vma)
            model.sort(key=lambda v: v.vm_pgoff)  # stable: equal keys stay in order of insertion
            if dice.random() < 0.4:
                gone = model.pop(dice.randrange(len(model)))
                vma_interval_tree_remove(cpu, gone)
                assert gone.shared_next == 0 and gone.shared_prev == 0
            assert file_list(file) == [vmas.index(v) for v in model]
            first = dice.randrange(16)
            last = first + dice.randrange(4)
            hit = [v for v in model if v.vm_pgoff <= last and vma_last_pgoff(v) >= first]
            assert file_list(file, first, last) == [vmas.index(v) for v in hit]
        up_write(cpu, file.i_mmap_rwsem)


@MODES
def test_a_forked_vma_stands_right_behind_its_parents(order: int, plain: bool) -> None:
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        mm = Mm(mm_alloc(cpu))
        file = new_file()
        down_write(cpu, file.i_mmap_rwsem)
        parent, other, child = (new_vma(cpu, mm, 0x100000, 4, 5, 1) for _ in range(3))
        vma_interval_tree_insert(cpu, parent)
        vma_interval_tree_insert(cpu, other)
        vma_interval_tree_insert_after(cpu, child, parent)
        up_write(cpu, file.i_mmap_rwsem)
        assert file_list(file) == [vmas.index(v) for v in (parent, child, other)]
        unlink_file_vma(cpu, parent)
        assert file_list(file) == [vmas.index(v) for v in (child, other)]
        assert cpu.depth == 0


def test_a_page_outside_of_the_vma_has_no_address_there() -> None:
    with machine(3) as m, interpreted():
        cpu = m.cpu(0)
        mm = Mm(mm_alloc(cpu))
        vma = new_vma(cpu, mm, 0x100000, 4, 10)
        page = mem_map[40]
        page.compound_head = 0
        page.index = 12
        assert vma_address(cpu, page, vma) == 0x102000
        page.index = 14
        with pytest.raises(KernelBug, match="page not in vma"):
            vma_address(cpu, page, vma)


@MODES
def test_everything_comes_back(order: int, plain: bool) -> None:
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        mm = Mm(mm_alloc(cpu))
        for k in range(20):
            vma_link(cpu, mm, new_vma(cpu, mm, k * PAGE_SIZE, 1))
        for k in range(19, -1, -1):
            vma = vma_at(mm, k)
            vma_unlink(cpu, mm, vma)
            vm_area_free(cpu, vma)
        assert pools[POOL_VMA].in_use.read() == 0 and mm.map_count == 0
        mmput(cpu, mm)
