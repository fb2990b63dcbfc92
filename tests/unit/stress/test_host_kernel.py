"""The running kernel's side of the bench: a row measures what it says, or explains why it cannot."""

import mmap
import os
import signal
import time

import pytest

from concur_thp.errors import EmulatorError, Misuse
from stress.bench import host_kernel, host_locks
from stress.bench.children import NotHere, in_children, measured, sampled
from stress.bench.host_kernel import measure
from stress.bench.host_memory import HPAGE, MADV_COLLAPSE, PAGE, Floor, Region


@pytest.mark.parametrize("name", host_kernel.ROWS)
def test_a_row_gives_figures_or_a_reason(name):
    got = measure(name, rounds=3)
    assert got.name == name
    if got.reason is None:
        assert len(got.samples) == 3
        assert got.spread_ns[0] <= got.median_ns <= got.spread_ns[1]
    else:
        assert got.median_ns is None and got.spread_ns is None and got.samples == ()


@pytest.mark.parametrize("module, name", [(host_kernel, "fault_pte"), (host_locks, "atomic_add")])
def test_every_process_hands_in_its_samples(module, name):
    got = module.measure(name, processes=2, rounds=3)
    assert got.reason is None
    assert len(got.samples) == 6


@pytest.mark.parametrize("name", host_locks.LOCK_ROWS)
def test_lock_rows_are_measured_with_locks_of_programs_and_not_on_the_kernel(name):
    for side in host_locks.PAIRS:
        assert len(host_locks.measure(name, rounds=2, side=side).samples) == 2
    assert "a program" in measure(name).reason


@pytest.mark.parametrize("one_lock", [True, False])
@pytest.mark.parametrize("side", host_locks.PAIRS)
def test_locks_are_shared_by_all_processes_or_by_none(side, one_lock):
    assert len(host_locks.measure("rwsem_write_pair", 2, 2, side, one_lock).samples) == 4
    with pytest.raises(Misuse, match="no such locks: 'flock'; pass one of multiprocess, pthread, fcntl"):
        host_locks.measure("atomic_add", side="flock")


@pytest.mark.parametrize("name", ["fault_pte", "zap_huge", "mprotect_whole", "munmap"])
def test_threads_of_one_mm_hand_in_their_samples_too(name):
    got = measure(name, processes=2, rounds=2, one_mm=True)
    assert got.reason is not None or len(got.samples) == 4


@pytest.mark.parametrize("threads", [True, False])
def test_whoever_is_ready_goes_on_until_all_are(threads):
    """Each gives just its own samples; one that breaks does not leave the others waiting."""
    job = sampled(lambda stack: lambda: 1.0, 3, 4, threads=threads)
    assert in_children(job, 1 if threads else 3) == [1.0] * 12

    def broken(stack):
        raise NotHere("not in this process")

    with pytest.raises(NotHere, match="not in this process"):
        in_children(sampled(broken, 2, 1, threads=threads), 1 if threads else 2, seconds=200)


def test_what_is_subtracted_is_the_least_so_far():
    floor = Floor()
    slow = floor(time.sleep, 0.05)
    # One that is taken off its processor takes longer than the sleep.
    fast = next(least for _ in range(10_000) if (least := floor(time.sleep, 0)) < slow)
    assert floor(time.sleep, 0.05) <= fast


def test_median_and_spread():
    got = measured("row", lambda: [float(n) for n in range(1, 12)], processes=1)
    assert (got.median_ns, got.spread_ns, got.reason) == (6.0, (3.5, 8.5), None)


@pytest.mark.parametrize("module", [host_kernel, host_locks])
def test_misuse_says_what_to_pass(module):
    with pytest.raises(Misuse, match="no .*row 'fault_5'; pass one of .*spin_lock_pair"):
        module.measure("fault_5")
    with pytest.raises(Misuse, match="rounds is 0; pass"):
        module.measure("spin_lock_pair", rounds=0)
    with pytest.raises(Misuse, match="processes is -1; pass"):
        module.measure("spin_lock_pair", processes=-1)


def test_a_row_that_cannot_run_here_gives_its_reason():
    def refuse() -> list[float]:
        raise NotHere("no such kernel")

    assert measured("row", refuse, processes=2).reason == "no such kernel"


def test_a_broken_row_is_our_error_and_no_reason():
    with pytest.raises(EmulatorError, match="ZeroDivisionError"):
        measured("row", lambda: [1 / 0], processes=1)


def test_a_row_that_dies_or_hangs_is_reported_and_reaped():
    def die() -> list[float]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []

    def hang() -> list[float]:
        time.sleep(600)
        return []

    with pytest.raises(NotHere, match="died .exit code -9"):
        in_children(die, 2)
    with pytest.raises(NotHere, match="no answer within 0.2 s"):
        in_children(hang, 2, seconds=0.2)


def test_region_is_aligned_writable_and_counts_no_huge_page_of_a_neighbour():
    with Region(2, huge=False) as small, Region(2, huge=True) as huge:
        assert small.base % HPAGE == huge.base % HPAGE == 0
        small.touch()
        huge.touch()
        assert small.bytes[::PAGE].all()
        assert small.huge_now() == 0
        assert huge.huge_now() in (0, 1, 2)


def test_a_refused_call_names_itself_and_the_errno():
    refusal = "refused madvise MADV_COLLAPSE: EINVAL"
    with Region(1, huge=False) as region, pytest.raises(NotHere, match=refusal):
        region.advise(MADV_COLLAPSE)  # a VMA that said MADV_NOHUGEPAGE


def test_huge_pages_that_are_not_there_are_not_measured():
    with Region(1, huge=False) as region, pytest.raises(NotHere, match="0 huge pages where 1 were expected"):
        region.touch()
        region.need_huge(1)


def test_splitting_is_seen_in_smaps():
    with Region(1, huge=True) as region:
        region.touch()
        if region.huge_now() != 1:
            pytest.skip("this machine gives no huge pages")
        region.protect(HPAGE // 2, PAGE, mmap.PROT_READ)
        assert region.huge_now() == 0
