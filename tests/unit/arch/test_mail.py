"""A flush request that is written over one that was given up: whoever reads meanwhile must not believe to be up to date.
The one that was given up may have been for another mm, whose generation happens to be the same number.

Both sides run interpreted, on mails that note the order of their accesses; then every interleaving of the two orders is tried.
"""

from itertools import combinations

import pytest

from concur_thp.arch import irq, tlbflush
from concur_thp.arch.cpu import MAIL_CONTEXT_BITS, CpuState
from concur_thp.arch.linker import interpreted

FIELDS = ("start", "end", "flush")
MINE, OTHER = 1, 2
NEW = {"start": 0x8000, "end": 0x9000, "flush": 8 << MAIL_CONTEXT_BITS | MINE}
OLD = {MINE: {"start": 0x1000, "end": 0x2000, "flush": 7 << MAIL_CONTEXT_BITS | MINE},
       OTHER: {"start": 0x1000, "end": 0x2000, "flush": 8 << MAIL_CONTEXT_BITS | OTHER}}


class Number:
    """An atomic word of one process."""

    def __init__(self, value=0):
        self.value = value

    def load(self):
        return self.value

    read = load

    def store(self, value):
        self.value = value

    def or_(self, bits):
        self.value |= bits

    def xchg(self, value):
        old, self.value = self.value, value
        return old


class Mail:
    """A mailbox that tells a listener of each access to the request's fields."""

    def __init__(self, told, old):
        self.__dict__.update(seq=Number(1), ack=Number(0), _told=told, _values=dict(old))

    def __getattr__(self, name):
        self._told(name)
        return self._values[name]

    def __setattr__(self, name, value):
        self._told(name)
        self._values[name] = value


class Processor:
    """What both sides touch of a CPU."""

    def __init__(self, mail):
        self.id, self.context, self.ipis = 0, MINE, 0
        self.state, self.ipi_bits, self.mail = Number(int(CpuState.RUNNING)), Number(1), [mail]


def written(monkeypatch):
    """The order in which a sender writes the fields."""
    order = []
    target = Processor(Mail(order.append, OLD[MINE]))
    monkeypatch.setattr(tlbflush, "cpus", [target])
    with interpreted():
        tlbflush._send.function(target, 1, MINE, NEW["start"], NEW["end"], 8)
    return order


def served(monkeypatch, old, writes, before):
    """What a receiver flushes when `before[n]` of the writes are done before its n-th read."""
    reads, flushed = [], []

    def told(name):
        for field in writes[:before[min(len(reads), len(before) - 1)]]:
            mail._values[field] = NEW[field]
        reads.append(name)

    mail = Mail(told, old)
    monkeypatch.setattr(irq, "tlb_flush_local", lambda cpu, start, end, generation: flushed.append((start, end, generation)))
    with interpreted():
        irq.ipi_serve.function(Processor(mail))
    return flushed


@pytest.mark.parametrize("context", [MINE, OTHER])
def test_the_new_generation_comes_with_the_new_range(monkeypatch, context):
    writes = written(monkeypatch)
    assert sorted(writes) == sorted(FIELDS)
    seen = set()
    for places in combinations(range(2 * len(FIELDS)), len(FIELDS)):  # Of all accesses these are reads.
        before = [place - number for number, place in enumerate(places)]
        for start, end, generation in served(monkeypatch, OLD[context], writes, before):
            seen.add(generation)
            assert generation == 7 or (start, end) == (NEW["start"], NEW["end"])
    assert seen == ({7, 8} if context == MINE else {8}), "a request for another mm is none"
