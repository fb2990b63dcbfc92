"""Pins of a mix: pages pinned by get_user_pages, held over other operations, checked, written through, given back.

What may be asserted (3.38, K12), and when:

    always                  the frame is allocated, its huge page whole (check/pins.py); this CPU's word of the frame is
                            what it was, or something this CPU stored since: a frame that was reused or replaced by a
                            copy has another, older word
    while a pin is `sure`   the frame is what the program has mapped: a word stored by the program is in the frame, and
                            a word stored into the frame is what the program loads

A pin is sure when it was taken for writing and, from before it was taken until after the look, no discard, scramble or
fork of that mm has begun and none was under way. The entry was writable then, so nobody shared the page; without a
fork nobody comes to share it; everything else that changes entries keeps the frame or gives up because of the
reference. A store by the program right behind the pin makes the entry dirty, so that reclaim cannot drop the page for
an MADV_FREE of long ago.
"""

from concur_thp.arch.bug import bug, bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.random import random_below
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I64, Struct, atomic, field
from concur_thp.check.oracle import (
    ORACLE_PAGES,
    begun,
    ended,
    oracle_load,
    oracle_mms,
    oracle_store,
    oracle_value,
    scramble_begun,
    scramble_ended,
    value_is_of,
    word_of,
)
from concur_thp.check.pins import PINS, check_pin, declare_pin, free_pin_row, pin_page, pin_row, unpin
from concur_thp.config import NR_CPUS, PAGE_SIZE
from concur_thp.mm.errno import EBUSY
from concur_thp.mm.mm_types import Slot, frames, mem_map
from concur_thp.mm.page_flags import PageCompound
from concur_thp.program.pinning import pin_pages, set_page_dirty_lock
from concur_thp.program.spaces import current_mm
from concur_thp.program.table import PIN_FAST, PIN_SPLIT
from stress.mix.state import FILE_PAGES, NR_FILES, file_addr, mix_cpus, page_addr, word_addr

NO_PAGE = -1
SEQ = 0xFFFFFFFFFF
"""The part of a word that counts its writer's stores."""
RUN = 4
"""Most pages pinned at once."""


class MixPin(Struct, size=128):
    """What a mix knows of the pin in the same row of `pins`."""

    page = field(I64, "cpu", "page of the oracle, or NO_PAGE: a file's")
    mm = field(I64, "cpu", "the mm it was pinned in")
    birth = field(I64, "cpu", "incarnation of the mm")
    sure = field(I64, "cpu", "1 while nothing is known that could have parted frame and page")
    discards = field(I64, "cpu", "discards begun in the page when it was pinned")
    scrambles = field(I64, "cpu", "scrambles begun")
    forks = field(I64, "cpu", "forks of the mm begun")
    written = field(I64, "cpu", "1 when it was written through the frame")
    word = field(I64, "cpu", "this CPU's word of the frame, when last looked at")


class MixForks(Struct, size=16):
    """Forks of one mm number; only their change matters."""

    begun = atomic(I64, "forks that have begun")
    ended = atomic(I64, "forks that have ended")


mix_pins = SharedArray("mix_pins", MixPin, lambda c: NR_CPUS * PINS)
mix_forks = SharedArray("mix_forks", MixForks, lambda c: c.mms + 1)
mix_pages = SharedArray("mix_pages", Slot, lambda c: NR_CPUS * RUN)


@inline
def mix_pin_row(cpu: Cpu, number: int) -> MixPin:
    return mix_pins[cpu.id * PINS + number]


@inline
def frame_word(cpu: Cpu, number: int):
    """This CPU's word of a pinned frame."""
    return frames[pin_row(cpu, number).pinned - 1].word[cpu.id & 7].load()


@inline
def counted(row: MixPin):
    """Has nothing begun on the page, and no fork of its mm, since the counts were taken?"""
    return (begun(row.mm, row.page) == row.discards and scramble_begun(row.mm, row.page) == row.scrambles
            and mix_forks[row.mm].begun.load() == row.forks)


@inline
def count_now(row: MixPin):
    """Take the counts; returns 1 when nothing is under way."""
    row.discards = begun(row.mm, row.page)
    row.scrambles = scramble_begun(row.mm, row.page)
    row.forks = mix_forks[row.mm].begun.load()
    return (ended(row.mm, row.page) == row.discards and scramble_ended(row.mm, row.page) == row.scrambles
            and mix_forks[row.mm].ended.load() == row.forks)


@kernel
def mix_pin(cpu: Cpu):
    """Pin a page, or a few, for reading or writing, by gup-fast or slowly, sometimes split.

    Context: user mode.
    Return: what the call said.
    Emulator: one step of a mix.
    """
    nr = 1 + random_below(cpu, RUN) if random_below(cpu, 4) == 0 else 1
    page = random_below(cpu, ORACLE_PAGES // 2 - nr) + ORACLE_PAGES // 2 * random_below(cpu, 2)
    addr = page_addr(page)
    if random_below(cpu, 16) == 0:
        page = NO_PAGE
        addr = file_addr(random_below(cpu, NR_FILES)) + random_below(cpu, FILE_PAGES - nr) * PAGE_SIZE
    write = random_below(cpu, 2)
    kind = random_below(cpu, 8)
    first = free_pin_row(cpu)
    if first < 0:
        return -EBUSY
    mm = current_mm(cpu)
    for i in range(min(nr, PINS - first)):
        row = mix_pin_row(cpu, first + i)
        if pin_row(cpu, first + i).pinned != 0:
            break
        row.mm = mm.id
        row.birth = oracle_mms[mm.id].birth.read()
        row.written = 0
        row.page = page + i if page != NO_PAGE else NO_PAGE
        row.sure = write and page != NO_PAGE and count_now(row)
        nr = i + 1
    pages = mix_pages[cpu.id * RUN]
    got = pin_pages(cpu, addr, nr, write, min(kind, PIN_FAST), pages)
    for i in range(max(got, 0)):
        pfn = mix_pages[cpu.id * RUN + i].value
        bug_on(cpu, kind == PIN_SPLIT and PageCompound(mem_map[pfn]), "FOLL_SPLIT gave part of a huge page (value: pfn)", pfn,
               addr)
        declare_pin(cpu, first + i, pfn)
        mix_pin_row(cpu, first + i).word = frame_word(cpu, first + i)
    for i in range(max(got, 0)):
        mix_pin_begin(cpu, first + i)
    return got


@kernel
def mix_pin_begin(cpu: Cpu, number: int):
    """A page has just been pinned. If that makes it sure, the program stores, and the frame must have the word.

    Context: user mode, in the mm of the pin.
    Emulator: one step of a mix.
    """
    row = mix_pin_row(cpu, number)
    if row.sure == 0:
        return
    mine = mix_cpus[cpu.id]
    mine.seq = mine.seq + 1
    stored = oracle_store(cpu, row.mm, row.page, word_addr(cpu, row.page), mine.seq)
    word = frame_word(cpu, number)
    row.sure = stored == 0 and counted(row)
    bug_on(cpu, row.sure != 0 and word != oracle_value(cpu, row.page, mine.seq),
           "K12: a page pinned for writing is not the one that the program writes (values: pfn, page)",
           pin_row(cpu, number).pinned - 1, row.page)
    row.word = word


@kernel
def mix_pin_check(cpu: Cpu):
    """Look at one of this CPU's pins.

    Context: user mode.
    Return: the error of the access, if any.
    Emulator: one step of a mix.
    """
    number = random_below(cpu, PINS)
    if pin_row(cpu, number).pinned == 0:
        return 0
    check_pin(cpu, number)
    row = mix_pin_row(cpu, number)
    if row.page == NO_PAGE:
        return 0
    mix_pin_word(cpu, number)
    if row.sure == 0 or row.mm != current_mm(cpu).id:
        return 0
    if row.birth != oracle_mms[row.mm].birth.read() or not counted(row):
        row.sure = 0
        return 0
    if random_below(cpu, 2):
        mix_pin_write(cpu, number)
    status = oracle_load(cpu, row.mm, row.page, word_addr(cpu, row.page))
    loaded = cpu.scratch[0]
    if status == 0:
        word = frame_word(cpu, number)
        row.sure = counted(row)
        bug_on(cpu, row.sure != 0 and loaded != word,
               "K12: the program does not load what is in the frame that it pinned (values: word loaded, in frame)",
               loaded, word)
    return status


@kernel
def mix_pin_word(cpu: Cpu, number: int):
    """Is this CPU's word of the frame what it was, or something it stored since?

    Context: user mode.
    Emulator: data oracle. Nobody else stores this word in any page, and a pinned frame is nobody's copy or fresh page.
    """
    row = mix_pin_row(cpu, number)
    word = frame_word(cpu, number)
    if word != row.word and (not value_is_of(cpu, word) or word & SEQ <= row.word & SEQ):
        bug(cpu, "a pinned frame has been reused: its word is gone (values: word, word when last looked at)", word,
            row.word)
    row.word = word


@kernel
def mix_pin_write(cpu: Cpu, number: int):
    """Store through the frame, as a device would.

    Context: user mode, in the mm of the pin, which was sure a moment ago.
    Emulator: data oracle. If something begins meanwhile, the word may or may not be in the page: then it is unknown.
    """
    row = mix_pin_row(cpu, number)
    mine = mix_cpus[cpu.id]
    mine.seq = mine.seq + 1
    value = oracle_value(cpu, row.page, mine.seq)
    frames[pin_row(cpu, number).pinned - 1].word[cpu.id & 7].store(value)
    row.word = value
    row.written = 1
    word = word_of(cpu, row.mm, row.page)
    word.value = value
    word.birth = row.birth
    word.epoch = row.discards
    row.sure = counted(row)
    word.scrambled = row.scrambles if row.sure else -1


@kernel
def mix_unpin(cpu: Cpu, number: int):
    """Give a pin back; a page that may have been written through it is dirty.

    Context: user mode.
    Emulator: one step of a mix.
    """
    if pin_row(cpu, number).pinned == 0:
        return
    row = mix_pin_row(cpu, number)
    if row.page != NO_PAGE:
        mix_pin_word(cpu, number)
    if row.written != 0:
        set_page_dirty_lock(cpu, pin_page(pin_row(cpu, number)))
    unpin(cpu, number)


@kernel
def mix_unpin_all(cpu: Cpu):
    """The program ends: so do its pins.

    Context: user mode.
    Emulator: a driver's release function.
    """
    for number in range(PINS):
        mix_unpin(cpu, number)
