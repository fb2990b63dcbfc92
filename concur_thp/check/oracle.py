"""The data oracle: every word a program wrote is the word it reads back (Q19, semantics 3.38).

Each page's eight words belong to eight CPUs (number modulo 8), so a word has one writer however many CPUs run in an
mm. The oracle keeps, for each mm, page and word, what was written last, and counts what other operations may have done
to it meanwhile:

    discards    munmap, mmap over it, DONTNEED: afterwards the word is zero. Counted when they begin and when they end.
    scrambles   mremap, MADV_FREE: afterwards it is any word this CPU wrote, or zero.

A read must return the value if no discard began since the write, zero if one that began after the write has ended
before the read, and one of the two otherwise. Counters stand per page and per huge block, so that emptying a block
costs one count. After fork the forking CPU's words are known exactly in the child; of the other words any value is
taken that its CPU wrote to that page before, and known from then on. Values carry their page and their writer: a
translation into a foreign frame is seen at once. A word that was only read, not written, may turn to zero later: reclaim
may have found its page lazily freed.
"""

from concur_thp.arch.bug import bug
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I64, Struct, atomic, field
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from concur_thp.mm.uaccess import user_load, user_store

ORACLE_PAGES = 4096
"""Pages of each mm that the oracle knows."""
WRITERS = 8
VALUE_MARK = 1 << 62
LEARNED = 1 << 62
"""In a word's birth: it was read, not written. After an MADV_FREE long ago, here or in the mm this one was forked from, the
page may still be lazily freed, and reclaim may make it zero at any time until it is written."""
DISCARD_BEGIN, DISCARD_END, SCRAMBLE_BEGIN, SCRAMBLE_END = 0, 1, 2, 3


class OracleMm(Struct, size=16):
    """What is known of a whole mm."""

    birth = atomic(I64, "number of this incarnation; 0 when the mm has no model")
    fresh = field(I64, "init", "1 when every word was zero at birth, 0 when it is a fork's child")


class OraclePage(Struct, size=32):
    """What may have happened to a page (or to a whole block, in block_counts)."""

    begun = atomic(I64, "discards that have begun")
    ended = atomic(I64, "discards that have ended")
    scramble_begun = atomic(I64, "scrambles that have begun")
    scramble_ended = atomic(I64, "scrambles that have ended")


class OracleWord(Struct, size=32):
    """The model of one word. Only its writer touches it."""

    value = field(I64, "cpu", "what it last wrote, or read and could not know before")
    birth = field(I64, "cpu", "incarnation of the mm that this belongs to, and LEARNED; anything else is unknown")
    epoch = field(I64, "cpu", "discards begun before the write, page + block; -1 - that when one was under way")
    scrambled = field(I64, "cpu", "scrambles begun before the write, page + block; -1 when one was under way")


class OracleGlobals(Struct, size=64):
    """Counters of the oracle itself."""

    births = atomic(I64, "incarnations so far")


oracle_mms = SharedArray("oracle_mms", OracleMm, lambda c: c.mms + 1)
page_counts = SharedArray("page_counts", OraclePage, lambda c: (c.mms + 1) * ORACLE_PAGES)
block_counts = SharedArray("block_counts", OraclePage, lambda c: (c.mms + 1) * (ORACLE_PAGES >> c.order))
oracle_words = SharedArray("oracle_words", OracleWord, lambda c: (c.mms + 1) * WRITERS * ORACLE_PAGES)
oracle_globals = SharedArray("oracle_globals", OracleGlobals, lambda c: 1)


@inline
def page_count_of(mm: int, page: int) -> OraclePage:
    return page_counts[mm * ORACLE_PAGES + page]


@inline
def block_count_of(mm: int, page: int) -> OraclePage:
    return block_counts[mm * (ORACLE_PAGES >> HPAGE_PMD_ORDER) + (page >> HPAGE_PMD_ORDER)]


@inline
def word_of(cpu: Cpu, mm: int, page: int) -> OracleWord:
    return oracle_words[(mm * WRITERS + (cpu.id & (WRITERS - 1))) * ORACLE_PAGES + page]


@inline
def begun(mm: int, page: int):
    return page_count_of(mm, page).begun.load() + block_count_of(mm, page).begun.load()


@inline
def ended(mm: int, page: int):
    return page_count_of(mm, page).ended.load() + block_count_of(mm, page).ended.load()


@inline
def scramble_begun(mm: int, page: int):
    return page_count_of(mm, page).scramble_begun.load() + block_count_of(mm, page).scramble_begun.load()


@inline
def scramble_ended(mm: int, page: int):
    return page_count_of(mm, page).scramble_ended.load() + block_count_of(mm, page).scramble_ended.load()


@inline
def oracle_value(cpu: Cpu, page: int, seq: int):
    """A value that tells its writer and its page."""
    return VALUE_MARK | ((cpu.id & (WRITERS - 1)) << 56) | (page << 40) | (seq & 0xFFFFFFFFFF)


@inline
def value_is_of(cpu: Cpu, value: int):
    """Did this CPU's writer number write it?"""
    return (value >> 56) == (VALUE_MARK >> 56 | (cpu.id & (WRITERS - 1)))


@kernel
def oracle_birth(cpu: Cpu, mm: int, fresh: int):
    """A new mm: everything unknown, or zero when `fresh`.

    Context: nobody runs in the mm yet.
    Emulator: starts the model of an mm.
    """
    oracle_mms[mm].fresh = fresh
    oracle_mms[mm].birth.store(oracle_globals[0].births.add(1) + 1)


@kernel
def oracle_fork(cpu: Cpu, parent: int, child: int):
    """The child's model of this CPU's own words is the parent's, as far as that is certain.

    Context: this CPU has just forked `parent` and has written nothing since; nobody runs in the child yet.
    Emulator: data oracle.
    """
    oracle_birth(cpu, child, 0)
    birth = oracle_mms[child].birth.load()
    for page in range(ORACLE_PAGES):
        had = word_of(cpu, parent, page)
        gets = word_of(cpu, child, page)
        # What began in the parent since the write may or may not have reached the child's copy.
        certain = had.epoch == begun(parent, page) and had.scrambled == scramble_begun(parent, page)
        if had.birth & ~LEARNED == oracle_mms[parent].birth.read() and certain:
            gets.value = had.value
            gets.epoch = begun(child, page)
            gets.scrambled = scramble_begun(child, page)
            gets.birth = birth | had.birth & LEARNED
        else:
            gets.birth = 0


@kernel
def oracle_count(mm: int, page: int, pages: int, what: int):
    """Count on a range: DISCARD_BEGIN, DISCARD_END, SCRAMBLE_BEGIN or SCRAMBLE_END.

    Context: any.
    Emulator: whole blocks are counted once, the rest page by page.
    """
    end = page + pages
    while page < end:
        whole = page & (HPAGE_PMD_NR - 1) == 0 and page + HPAGE_PMD_NR <= end
        row = block_count_of(mm, page) if whole else page_count_of(mm, page)
        if what == DISCARD_BEGIN:
            row.begun.add(1)
        elif what == DISCARD_END:
            row.ended.add(1)
        elif what == SCRAMBLE_BEGIN:
            row.scramble_begun.add(1)
        else:
            row.scramble_ended.add(1)
        page += HPAGE_PMD_NR if whole else 1


@kernel
def oracle_store(cpu: Cpu, mm: int, page: int, addr: int, seq: int):
    """Store this CPU's next value to its word of a page, and remember it.

    Context: user mode, running in `mm`; `addr` is the word's address.
    Return: 0, or what user_store() said.
    Emulator: data oracle.
    """
    value = oracle_value(cpu, page, seq)
    discards = begun(mm, page)
    quiet = ended(mm, page) == discards
    scrambles = scramble_begun(mm, page)
    if scramble_ended(mm, page) != scrambles:
        scrambles = -1
    status = user_store(cpu, addr, value)
    if status == 0:
        word = word_of(cpu, mm, page)
        word.value = value
        word.birth = oracle_mms[mm].birth.read()
        word.scrambled = scrambles
        word.epoch = discards if quiet and begun(mm, page) == discards else -1 - discards
    return status


@kernel
def oracle_load(cpu: Cpu, mm: int, page: int, addr: int):
    """Load this CPU's word of a page and judge what comes back; unlawful is a bug.

    Context: user mode, running in `mm`; `addr` is the word's address.
    Return: 0, or what user_load() said.
    Emulator: data oracle.
    """
    ended_before = ended(mm, page)
    settled_before = scramble_ended(mm, page)
    status = user_load(cpu, addr)
    if status == 0:
        value = cpu.scratch[0]
        discards = begun(mm, page)
        scrambles = scramble_begun(mm, page)
        if value != 0 and not value_is_of(cpu, value):
            bug(cpu, "Q19: a word that this CPU never wrote (values: word, page)", value, page)
        word = word_of(cpu, mm, page)
        birth = oracle_mms[mm].birth.read()
        learned = LEARNED
        if word.birth & ~LEARNED != birth:
            oracle_unknown(cpu, mm, page, value, scrambles)
        elif word.scrambled == scrambles:
            oracle_known(cpu, word, page, value, discards, ended_before)
            learned = word.birth & LEARNED
        if ended_before == discards and settled_before == scrambles:  # Nothing was under way: this is what it is.
            word.value = value
            word.birth = birth | learned
            word.epoch = discards
            word.scrambled = scrambles
    return status


@inline
def oracle_unknown(cpu: Cpu, mm: int, page: int, value: int, scrambles: int):
    """A word this CPU has not touched in this mm. In a fresh one that was never scrambled it is zero."""
    if oracle_mms[mm].fresh != 0 and scrambles == 0 and value != 0:
        bug(cpu, "Q19: a word that nobody wrote is not zero (values: word, page)", value, page)


@inline
def oracle_known(cpu: Cpu, word: OracleWord, page: int, value: int, discards: int, ended_before: int):
    """A word this CPU knows, not scrambled since."""
    if value != word.value and value != 0:
        bug(cpu, "Q19: a lost or stale write (values: word read, word written)", value, word.value)
    if value != word.value and word.epoch == discards and word.birth & LEARNED == 0:
        bug(cpu, "Q19: a written word reads zero (values: page, word written)", page, word.value)
    if value != 0 and word.epoch >= 0 and ended_before > word.epoch:
        bug(cpu, "Q19: a word survived DONTNEED or munmap (values: word, page)", value, page)
