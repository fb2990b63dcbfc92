"""Race detection, access by access: what it must catch, and what looks like a race and is none."""

import pytest

from concur_thp.arch import native
from concur_thp.arch.checked import FENCE, KIND, QUIET, RACY
from concur_thp.arch.linker import kernel, redirect
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I64, Struct, field
from concur_thp.machine import Machine
from concur_thp.sched.races import (
    ATOMIC,
    MB,
    RMB,
    TEXT_LATE,
    TEXT_READ,
    TEXT_WRITE,
    WMB,
    begin_races,
    races,
    report_race,
    watch_access,
)
from concur_thp.sched.state import sched

DATA, MORE, FLAG, LOCK = 0x1000, 0x1004, 0x2000, 0x3000
"""Addresses; the first two are fields of one word."""


class Note(Struct, size=32):
    """What was reported last."""

    count = field(I64, "owner", "how many")
    text = field(I64, "owner", "the text")
    other = field(I64, "owner", "the statement that came first")


notes = SharedArray("sched_test_notes", Note, lambda c: 1)


@kernel
def note_race(me: int, text: int, address: int, site: int, other: int, other_site: int):
    """Emulator: report_race() that counts."""
    notes[0].count = notes[0].count + 1
    notes[0].text = text
    notes[0].other = other_site
    return 0


class Run:
    """Accesses by CPUs, numbered in order: the number is the statement."""

    def __init__(self):
        self.step = 0
        self.again()

    def again(self):
        notes[0].count = 0
        begin_races()

    def __call__(self, cpu, what, address, flags=0):
        self.step += 1
        sched.current = cpu
        watch_access(0, address, 4, KIND[what] | flags, self.step)
        return self

    def plain(self, cpu, what, address=DATA):
        return self(cpu, what, address)

    def atomic(self, cpu, what, address=FLAG):
        return self(cpu, what, address, ATOMIC)

    def fence(self, cpu, which):
        sched.current = cpu
        watch_access(0, 0, which, FENCE, 0)
        return self

    def locked(self, cpu, what, address=DATA):
        return self.atomic(cpu, "cas", LOCK).plain(cpu, what, address).atomic(cpu, "xchg", LOCK)

    @property
    def found(self):
        return notes[0].count


@pytest.fixture
def run():
    with Machine(cpus=3, memory="1M", order=3, mms=4, vmas=64, controlled=True):
        native.link([note_race])
        kept, races.wanted = native.SLOTS[report_race.slot], 1
        redirect(report_race, note_race)
        yield Run()
        native.SLOTS[report_race.slot] = kept


def test_two_writes_that_nothing_orders(run):
    assert run.plain(0, "store").plain(1, "store").found == 1
    assert notes[0].text == TEXT_WRITE and notes[0].other == 1


def test_a_read_of_what_another_wrote_and_a_write_of_what_another_reads(run):
    assert run.plain(0, "store").plain(1, "load").found == 1 and notes[0].text == TEXT_READ
    run.again()
    assert run.plain(0, "load").plain(1, "store").found == 1 and notes[0].text == TEXT_LATE


def test_a_store_behind_the_unlock(run):
    assert run.locked(0, "store").plain(0, "store").locked(1, "load").found == 1


def test_one_lock_each_is_no_lock(run):
    run.atomic(0, "cas", LOCK).plain(0, "store").atomic(0, "xchg", LOCK)
    run.atomic(1, "cas", LOCK + 8).plain(1, "store").atomic(1, "xchg", LOCK + 8)
    assert run.found == 1


def test_published_by_a_relaxed_write(run):
    assert run.plain(0, "store").atomic(0, "write").atomic(1, "load").plain(1, "load").found == 1


def test_published_by_a_store_that_is_read_relaxed(run):
    assert run.plain(0, "store").atomic(0, "store").atomic(1, "read").plain(1, "load").found == 1


def test_a_barrier_on_one_side_only(run):
    assert run.plain(0, "store").fence(0, WMB).atomic(0, "write").atomic(1, "read").plain(1, "load").found == 1
    run.again()
    assert run.plain(0, "store").atomic(0, "write").atomic(1, "read").fence(1, RMB).plain(1, "load").found == 1


def test_what_is_written_behind_the_barrier_is_not_published(run):
    assert run.fence(0, WMB).plain(0, "store").atomic(0, "write").atomic(1, "load").plain(1, "load").found == 1


@pytest.mark.parametrize("bulk", ["write", "read"])
def test_clearing_and_copying_publish_nothing(run, bulk):
    """Of frames and tables, whose words are atomic: it was taken for a read, whose clock the word's next reader acquired."""
    assert run.plain(0, "store").plain(0, bulk, FLAG).atomic(1, "load").plain(1, "load").found == 1


def test_the_second_of_two_readers_is_remembered_too(run):
    assert run.plain(0, "load").plain(1, "load").atomic(1, "store").atomic(2, "load").plain(2, "store").found == 1


def test_a_lock_orders(run):
    assert run.locked(0, "store").locked(1, "load").locked(2, "store").locked(0, "store").found == 0


def test_release_and_acquire_order_also_through_a_third(run):
    run.plain(0, "store").atomic(0, "store").atomic(1, "load").atomic(1, "store", FLAG + 8).atomic(2, "load", FLAG + 8)
    assert run.plain(2, "store").found == 0


def test_barriers_on_both_sides_order(run):
    assert run.plain(0, "store").fence(0, WMB).atomic(0, "write").atomic(1, "read").fence(1, RMB).plain(1, "load").found == 0
    run.again()
    assert run.plain(0, "store").fence(0, MB).atomic(0, "write").atomic(1, "read").fence(1, MB).plain(1, "load").found == 0


def test_read_modify_writes_go_on_with_a_release(run):
    assert run.plain(0, "store").atomic(0, "store").atomic(1, "add").atomic(2, "load").plain(2, "load").found == 0


def test_readers_do_not_race_nor_fields_beside_each_other_nor_runs(run):
    assert run.plain(0, "load").plain(1, "load").found == 0
    assert run.plain(0, "store", MORE).plain(1, "store", MORE + 4).found == 0
    run.again()
    assert run.plain(1, "store", MORE).found == 0


def test_racy_reads_pass_and_racy_writes_do_not(run):
    assert run(0, "store", DATA, RACY)(1, "load", DATA, RACY)(0, "store", DATA, RACY).found == 0
    assert run(1, "store", DATA, RACY).found == 1


def test_atomics_and_what_is_not_the_kernels_own_never_race(run):
    assert run.atomic(0, "write").atomic(1, "write")(0, "store", DATA, QUIET)(1, "store", DATA, QUIET).found == 0


def test_nothing_is_watched_when_nobody_asked(run):
    races.wanted = 0
    run.again()
    assert run.plain(0, "store").plain(1, "store").found == 0
