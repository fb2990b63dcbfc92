"""Shadow accounting of references: one word for each page that says what its references are for (I3, I25).

    refs    every reference taken by a helper of page_ref.py and not yet given back
    maps    entries that map the page or a part of it
    cache   slots of the page cache or swap cache that hold it
    pins    pins that programs have declared (check/pins.py)

All four are in one word, so each change is one atomic addition and what it leaves behind is a true picture of one
instant: no entry, slot or pin may be there without a reference (I3). The word changes only within the life of what it
counts: a reference is noted after it was taken and before it is given back; a mapping is noted after its reference
and forgotten before it. So, whatever the other CPUs are doing:

    in every picture              refs >= maps + cache + pins
    when _refcount has become 0   all four are 0 at the last put; after page_ref_freeze() all but the cache's

The second line is where "what the harness counted equals rc": nobody is left who could be between his two steps. It
shows references that were given back twice or by somebody who had none, and counts written past the helpers.

Nothing is counted before Machine.listen_checks(). A frozen page, whose slots are still there, is exempt from the first.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.arch.listen import LISTEN_ACCOUNT
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I64, Struct, atomic
from concur_thp.arch.system import system
from concur_thp.mm.mm_types import Page
from concur_thp.mm.page_flags import page_to_pfn

MAPS_SHIFT = 22
CACHE_SHIFT = 42
PINS_SHIFT = 53
REF = 1
MAP = 1 << MAPS_SHIFT
CACHE = 1 << CACHE_SHIFT
PIN = 1 << PINS_SHIFT
REFS_MASK = MAP - 1
MAPS_MASK = (1 << (CACHE_SHIFT - MAPS_SHIFT)) - 1
CACHE_MASK = (1 << (PINS_SHIFT - CACHE_SHIFT)) - 1


class PageAccount(Struct, size=8):
    """What the references of one page are for; only heads and small pages have any."""

    word = atomic(I64, "refs | maps << 22 | cache << 42 | pins << 53")


page_accounts = SharedArray("page_accounts", PageAccount, lambda config: config.frames)


@inline
def account_refs(word: int):
    return word & REFS_MASK


@inline
def account_maps(word: int):
    return (word >> MAPS_SHIFT) & MAPS_MASK


@inline
def account_cache(word: int):
    return (word >> CACHE_SHIFT) & CACHE_MASK


@inline
def account_pins(word: int):
    return word >> PINS_SHIFT


@inline
def page_account(page: Page):
    """The word of a head or small page."""
    return page_accounts[page_to_pfn(page)].word.load()


@inline
def accounting():
    return system.listen.read() & LISTEN_ACCOUNT


@inline
def account_set(page: Page, count: int):
    """A page is born with references, a small one out of a split perhaps with a slot: nobody else can reach it yet."""
    if accounting():
        page_accounts[page_to_pfn(page)].word.store(count)


@inline
def account_get(page: Page, count: int):
    """References have been taken. More of them can break nothing."""
    if accounting():
        page_accounts[page_to_pfn(page)].word.add(count)


@inline
def account_freeze(page: Page, count: int):
    """page_ref_freeze() has taken all `count` references; PAGE_FROZEN looks at what is left."""
    if accounting():
        page_accounts[page_to_pfn(page)].word.sub(count)


@inline
def account_gone(cpu: Cpu, page: Page):
    """The last reference has just been given back: nothing may be left."""
    if accounting():
        bug_on(cpu, page_accounts[page_to_pfn(page)].word.load() != 0,
               "I25: the last reference is gone, and something still has one (values: pfn, account)", page_to_pfn(page),
               page_accounts[page_to_pfn(page)].word.load())


@inline
def account(cpu: Cpu, head: Page, change: int):
    """Note a change of a head or small page: a multiple of REF, MAP, CACHE or PIN."""
    if accounting():
        __account(cpu, head, change)


@kernel
@quiet
def __account(cpu: Cpu, head: Page, change: int):
    """Change the word, and look at what that leaves.

    Sound: the addition returns one picture of all four, and each CPU changes them within the life of what it counts.

    Context: any; the caller has a reference that covers what it notes, or has frozen the page.
    Emulator: I3 and the instant half of I25.
    """
    word = page_accounts[page_to_pfn(head)].word.add(change) + change
    refs = account_refs(word)
    maps = account_maps(word)
    # A field that went below 0 has borrowed from the next and looks huge.
    bug_on(cpu, refs > REFS_MASK >> 1, "I25: more references given back than were taken (values: pfn, account)",
           page_to_pfn(head), word)
    bug_on(cpu, maps > MAPS_MASK >> 1 or account_cache(word) > CACHE_MASK >> 1 or word < 0,
           "I25: more mappings, slots or pins gone than there were (values: pfn, account)", page_to_pfn(head), word)
    held = maps + account_pins(word)
    if refs != 0:
        held += account_cache(word)
    bug_on(cpu, refs < held, "I3: fewer references than mappings, cache slots and pins (values: pfn, account)",
           page_to_pfn(head), word)


__all__ = ["CACHE", "MAP", "PIN", "REF", "account", "account_freeze", "account_get", "account_gone", "account_set",
           "page_account", "page_accounts"]
