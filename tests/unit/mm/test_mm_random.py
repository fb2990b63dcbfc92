"""Address spaces against a model: random system calls, loads and stores in a few forked mms, and the audit in between.

The model knows for each page its rights, what it maps and its words; vmas and huge pages are the kernel's own business.
"""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from concur_thp.arch.irq import cpu_resume
from concur_thp.arch.linker import interpreted
from concur_thp.check.audit import audit
from concur_thp.config import PAGE_SHIFT, PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm import filemap
from concur_thp.mm.errno import EFAULT, ENOMEM
from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.flags import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    VM_ACCESS,
    VM_HUGEPAGE,
    VM_NOHUGEPAGE,
    VM_SHARED,
)
from concur_thp.mm.fork import dup_mm, exec_mmap, exit_mm, switch_to_mm
from concur_thp.mm.khugepaged import khugepaged_do_scan
from concur_thp.mm.mm_types import Mm, mms, percpu
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.syscall import sys_brk, sys_madvise, sys_mmap, sys_mprotect, sys_mremap, sys_munmap
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.truncate import drop_caches
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.mm.vma_tree import vma_at
from concur_thp.mm.vmstat import vmstat

RANGES = 10
"""Huge ranges of the arena that everything happens in."""


class File:
    """Contents behind a shared or file mapping: word by (page, word)."""

    def __init__(self, number: int, id: int):
        self.number, self.id = number, id
        self.words: dict[tuple[int, int], int] = {}

    def read(self, page: int, word: int) -> int:
        return self.words.get((page, word), filemap.file_content(self.id, page, word))


@dataclass
class MappedPage:
    """One page of an address space. `own` are the words of a private page once it was written."""

    prot: int
    advice: int = 0
    file: File | None = None
    shared: bool = False
    pgoff: int = 0
    own: dict[int, int] = field(default_factory=dict)
    cowed: bool = False

    def read(self, word: int) -> int:
        if self.file is not None and not self.cowed:
            return self.file.read(self.pgoff, word)
        return self.own.get(word, 0)

    def write(self, word: int, value: int) -> None:
        if self.shared and self.file is not None:
            self.file.words[self.pgoff, word] = value
            return
        if self.file is not None and not self.cowed:
            self.own = {k: self.file.read(self.pgoff, k) for k in range(8)}
        self.cowed = True
        self.own[word] = value

    def copy(self) -> "MappedPage":
        return MappedPage(self.prot, self.advice, self.file, self.shared, self.pgoff, dict(self.own), self.cowed)

    def drop(self) -> None:
        if not self.shared:
            self.own, self.cowed = {}, False


class World:
    """The machine, its mms and the model of each: page number -> MappedPage."""

    def __init__(self, machine: Machine, seed: int):
        self.machine, self.dice = machine, random.Random(seed)
        self.cpu = machine.cpu(0)
        cpu_resume(self.cpu)
        self.nr = 1 << machine.config.order
        self.size = RANGES * self.nr
        self.first = 4 * self.nr
        self.file = File(file_alloc(self.cpu, self.size, 5), 5)
        self.models: dict[int, dict[int, MappedPage]] = {}
        self.heap: dict[int, int] = {}
        self.value = 0
        self.exec()

    @property
    def here(self) -> dict[int, MappedPage]:
        return self.models[percpu[0].mm]

    def place(self) -> tuple[int, int]:
        """A random run of pages: often whole huge ranges."""
        if self.dice.random() < 0.5:
            start = self.dice.randrange(RANGES) * self.nr
            length = self.dice.randint(1, 3) * self.nr
        else:
            start, length = self.dice.randrange(self.size), self.dice.randint(1, 2 * self.nr)
        return self.first + start, min(length, self.size - start)

    def exec(self) -> None:
        switch_to_mm(self.cpu, 0)
        # The heap begins behind the arena, with room for a guard page.
        start = (self.first + self.size + 1) << PAGE_SHIFT
        assert exec_mmap(self.cpu, start) == 0
        number = percpu[0].mm
        self.models[number] = {}
        self.heap[number] = start
        self.map_anonymous(self.first, self.size)

    def step(self) -> None:
        actions: list[tuple[int, Any]] = [
            (20, self.store), (12, self.load), (5, self.mmap), (2, self.munmap), (4, self.mprotect), (4, self.mremap),
            (4, self.madvise), (1, self.brk), (1, self.fork), (1, self.exit), (2, self.switch), (4, self.fill),
            (1, self.collapse),
        ]
        self.dice.choices([a for _, a in actions], [w for w, _ in actions])[0]()

    def store(self) -> None:
        self.store_page(self.place()[0])

    def store_page(self, page: int) -> None:
        word = self.dice.randrange(8)
        self.value += 1
        mapped = self.here.get(page)
        result = user_store(self.cpu, (page << PAGE_SHIFT) + word * 512, self.value)
        if mapped is None or mapped.prot & PROT_WRITE == 0:
            assert result == -EFAULT
        else:
            assert result == 0
            mapped.write(word, self.value)

    def fill(self) -> None:
        start, length = self.place()
        for page in range(start, start + length):
            self.store_page(page)

    def load(self) -> None:
        self.load_page(self.place()[0], self.dice.randrange(8))

    def load_page(self, page: int, word: int) -> None:
        mapped = self.here.get(page)
        result = user_load(self.cpu, (page << PAGE_SHIFT) + word * 512)
        if mapped is None or mapped.prot == 0:
            assert result == -EFAULT
        else:
            assert result == 0
            assert self.cpu.scratch[0] == mapped.read(word), (hex(page), word)

    def map_anonymous(self, start: int, length: int) -> None:
        addr = start << PAGE_SHIFT
        flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS
        assert sys_mmap(self.cpu, addr, length << PAGE_SHIFT, PROT_READ | PROT_WRITE, flags, 0, 0) == addr
        for page in range(start, start + length):
            self.here[page] = MappedPage(PROT_READ | PROT_WRITE)

    def mmap(self) -> None:
        if self.dice.random() < 0.4:
            self.map_anonymous(*self.place())
            return
        start, length = self.place()
        prot = self.dice.choice((PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ, 0))
        kind = self.dice.choice(("anon", "anon", "anon", "shared", "file", "file shared"))
        shared = "shared" in kind
        flags = MAP_FIXED | (MAP_SHARED if shared else MAP_PRIVATE)
        pgoff, behind = 0, None
        if "file" in kind:
            pgoff, behind = start - self.first, self.file
        elif shared:
            behind = File(0, 0)
        flags |= MAP_ANONYMOUS if "file" not in kind else 0
        addr = start << PAGE_SHIFT
        number = self.file.number if "file" in kind else 0
        assert sys_mmap(self.cpu, addr, length << PAGE_SHIFT, prot, flags, number, pgoff) == addr
        for k in range(length):
            self.here[start + k] = MappedPage(prot, 0, behind, shared, pgoff + k)

    def munmap(self) -> None:
        start, length = self.place()
        assert sys_munmap(self.cpu, start << PAGE_SHIFT, length << PAGE_SHIFT) == 0
        for page in range(start, start + length):
            self.here.pop(page, None)

    def mprotect(self) -> None:
        start, length = self.place()
        prot = self.dice.choice((PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ, 0))
        result = sys_mprotect(self.cpu, start << PAGE_SHIFT, length << PAGE_SHIFT, prot)
        for page in range(start, start + length):
            if page not in self.here:
                assert result == -ENOMEM
                return
            self.here[page].prot = prot
        assert result == 0

    def madvise(self) -> None:
        start, length = self.place()
        advice = self.dice.choice((MADV_DONTNEED, MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MADV_NOHUGEPAGE))
        pages = [self.here[p] for p in range(start, start + length) if p in self.here]
        if advice == MADV_FREE and any(p.file for p in pages):
            advice = MADV_DONTNEED
        result = sys_madvise(self.cpu, start << PAGE_SHIFT, length << PAGE_SHIFT, advice)
        assert result == (0 if len(pages) == length else -ENOMEM)
        for mapped in pages:
            if advice == MADV_DONTNEED:
                mapped.drop()
            elif advice != MADV_FREE:
                mapped.advice = VM_HUGEPAGE if advice == MADV_HUGEPAGE else VM_NOHUGEPAGE

    def mremap(self) -> None:
        """Only within one vma, as the kernel wants it; where the vma ends is the kernel's answer."""
        start, length = self.place()
        target, new_length = self.place()
        source = [self.here.get(p) for p in range(start, start + length)]
        if self.dice.random() < 0.6:
            new_length = min(length, self.first + self.size - target)
        if any(p is None or (p.file is not None and new_length > length) for p in source):
            return
        overlaps = start + length > target and target + new_length > start
        result = sys_mremap(self.cpu, start << PAGE_SHIFT, length << PAGE_SHIFT, new_length << PAGE_SHIFT,
                            target << PAGE_SHIFT)
        if overlaps and target != start:
            assert result == -22
            return
        if result < 0:
            # Not one vma (-EFAULT), or no room in place (-ENOMEM). What was at the target and behind is gone or not.
            self.learn(target, new_length, start + new_length, start + length)
            return
        assert result == target << PAGE_SHIFT
        moved = [self.here.pop(p) for p in range(start, start + length)]
        for page in range(target, target + new_length):
            self.here.pop(page, None)
        for k in range(new_length):
            last = moved[-1]
            self.here[target + k] = moved[k] if k < length else MappedPage(last.prot, last.advice)

    def learn(self, target: int, new_length: int, cut_start: int, cut_end: int) -> None:
        """After a failed mremap: pages of the target, and of the source behind its new length, may be unmapped."""
        mapped = {page for vma in self.vmas() for page in range(vma.vm_start >> PAGE_SHIFT, vma.vm_end >> PAGE_SHIFT)}
        for page in (*range(target, target + new_length), *range(cut_start, cut_end)):
            if page not in mapped:
                self.here.pop(page, None)

    def brk(self) -> None:
        number = percpu[0].mm
        mm = mms[number]
        want = mm.start_brk + self.dice.randrange(2 * self.nr << PAGE_SHIFT)
        assert sys_brk(self.cpu, want) == want
        first, old, new = ((a + PAGE_SIZE - 1) >> PAGE_SHIFT for a in (mm.start_brk, self.heap[number], want))
        for page in range(max(first, min(old, new)), max(old, new)):
            if new > old:
                self.here[page] = MappedPage(PROT_READ | PROT_WRITE)
            else:
                del self.here[page]
        self.heap[number] = want
        if new > first:
            self.store_page(self.dice.randrange(first, new))

    def fork(self) -> None:
        if len(self.models) >= 4:
            return
        number = percpu[0].mm
        child = Mm(dup_mm(self.cpu, mms[number]))
        assert child
        self.models[child.id] = {page: mapped.copy() for page, mapped in self.here.items()}
        self.heap[child.id] = self.heap[number]

    def exit(self) -> None:
        del self.models[percpu[0].mm]
        exit_mm(self.cpu)
        if self.models:
            self.switch()
        else:
            self.exec()

    def switch(self) -> None:
        switch_to_mm(self.cpu, self.dice.choice(list(self.models)))

    def collapse(self) -> None:
        number = percpu[0].mm
        switch_to_mm(self.cpu, 0)
        khugepaged_do_scan(self.cpu, 4 * self.nr)
        switch_to_mm(self.cpu, number)

    def vmas(self) -> list[Any]:
        mm = mms[percpu[0].mm]
        return [vma_at(mm, k) for k in range(mm.map_count)]

    def check(self) -> None:
        result = audit(self.machine.config, pins={})
        assert not result.violations, result.violations
        seen = {}
        for vma in self.vmas():
            for k, page in enumerate(range(vma.vm_start >> PAGE_SHIFT, vma.vm_end >> PAGE_SHIFT)):
                flags = vma.vm_flags & (VM_ACCESS | VM_SHARED | VM_HUGEPAGE | VM_NOHUGEPAGE)
                seen[page] = (flags, bool(vma.vm_file), vma.vm_pgoff + k if vma.vm_file else 0)
        assert seen == {page: (p.prot | p.advice | (VM_SHARED if p.shared else 0), p.file is not None,
                               p.pgoff if p.file else 0) for page, p in self.here.items()}


def run(machine: Machine, seed: int, steps: int, every: int) -> None:
    world = World(machine, seed)
    for k in range(steps):
        world.step()
        if k % every == 0:
            world.check()
    world.check()
    for number in list(world.models):
        switch_to_mm(world.cpu, number)
        for page, mapped in world.here.items():
            if mapped.prot:
                world.load_page(page, world.dice.randrange(8))
        world.check()
        exit_mm(world.cpu)
    khugepaged_do_scan(world.cpu, 100)
    drop_caches(world.cpu)
    lru_add_drain(world.cpu)
    result = audit(machine.config, expect_empty=True)
    assert not result.violations, result.violations


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("split", [0, 1], ids=["move_huge_pmd", "mremap_split"])
def test_against_the_model(seed: int, split: int) -> None:
    with Machine(memory="16M", order=3, cpus=1) as machine:
        set_switch("mremap_split", split)
        run(machine, seed, 3000, 100)
        assert vmstat()["thp_fault_alloc"] > 50


def test_against_the_model_x86() -> None:
    with Machine(memory="128M", order=9, cpus=1, mms=8) as machine:
        run(machine, 1, 60, 30)


def test_against_the_model_interpreted() -> None:
    with Machine(memory="4M", order=2, cpus=1, mms=8, native_code=False) as machine, interpreted():
        run(machine, 1, 250, 50)
