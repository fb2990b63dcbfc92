"""Batched flushes: a CPU may keep a translation until a page is written or freed, or until somebody needs it gone."""

import pytest

from concur_thp.arch.irq import cpu_resume
from concur_thp.arch.tlb import tlb_lookup
from concur_thp.config import PAGE_SIZE
from concur_thp.mm.mprotect import do_mprotect
from concur_thp.mm.tlb_batch import (
    FLUSHED_SHIFT,
    PENDING_LARGE,
    PENDING_MASK,
    UBC_MMS,
    flush_tlb_batched_pending,
    set_tlb_ubc_flush_pending,
    tlb_ubcs,
    try_to_unmap_flush,
    try_to_unmap_flush_dirty,
)

ADDR = 1 << 24


@pytest.fixture
def task(new_task):
    task = new_task()
    yield task
    try_to_unmap_flush(task.cpu)  # As reclaim does at its end (Q15).


def cached(task) -> bool:
    return tlb_lookup(task.cpu, ADDR) != 0


def pending(task) -> bool:
    word = task.mm.tlb_flush_batched.read()
    return word & PENDING_MASK != word >> FLUSHED_SHIFT


def test_only_a_writable_entry_is_flushed_before_io(task):
    task.mmap(ADDR, 1)
    task.store(ADDR, 1)
    set_tlb_ubc_flush_pending(task.cpu, task.mm, 0)
    try_to_unmap_flush_dirty(task.cpu)
    assert cached(task) and pending(task)
    set_tlb_ubc_flush_pending(task.cpu, task.mm, 1)
    try_to_unmap_flush_dirty(task.cpu)
    assert not cached(task) and tlb_ubcs[task.cpu.id].nr == 0


def test_others_flush_on_its_behalf_once(task):
    task.mmap(ADDR, 1)
    task.store(ADDR, 1)
    set_tlb_ubc_flush_pending(task.cpu, task.mm, 1)
    flush_tlb_batched_pending(task.cpu, task.mm)
    assert not cached(task) and not pending(task)
    flushes = task.cpu.flushes
    flush_tlb_batched_pending(task.cpu, task.mm)
    assert task.cpu.flushes == flushes


def test_mprotect_waits_for_what_reclaim_left(task):
    task.mmap(ADDR, 2)
    task.store(ADDR, 1)
    set_tlb_ubc_flush_pending(task.cpu, task.mm, 1)
    assert do_mprotect(task.cpu, task.mm, ADDR, PAGE_SIZE, 1) == 0
    assert not cached(task) and not pending(task)


def test_a_count_that_grows_large_begins_anew(task):
    for _ in range(PENDING_LARGE + 5):
        set_tlb_ubc_flush_pending(task.cpu, task.mm, 0)
        assert pending(task)
    assert task.mm.tlb_flush_batched.read() & PENDING_MASK < 10
    flush_tlb_batched_pending(task.cpu, task.mm)
    assert not pending(task)


def test_a_full_batch_is_flushed(task):
    mms = [task.fork() for _ in range(UBC_MMS)]
    set_tlb_ubc_flush_pending(task.cpu, task.mm, 1)
    for mm in mms[:-1]:
        set_tlb_ubc_flush_pending(task.cpu, mm, 1)
    flushes = task.cpu.flushes
    set_tlb_ubc_flush_pending(task.cpu, mms[-1], 1)
    assert task.cpu.flushes == flushes + UBC_MMS and tlb_ubcs[task.cpu.id].nr == 1
    try_to_unmap_flush(task.cpu)
    cpu_resume(task.cpu)
