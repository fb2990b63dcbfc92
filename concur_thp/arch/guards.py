"""Guards of fields, verified: the checked build asks before each access whether this CPU holds what the field's row names.

Holding is a bit of `cpu.held_mask`, so an access that is right costs a load, a mask and a branch that is not taken. A row's
`|racy` allows readers without the lock, who look again or can live with an old value. Places that touch a guarded field
without its lock because nobody else can reach the object are rows of UNSHARED, each with its reason (mm/unshared.py).
What cannot be decided here is left to race detection (sched/races.py): `owner`, `init`, `cpu`, and whose lock it is.
"""

from collections.abc import Iterable
from typing import Any

from concur_thp.arch.bug import report_bug
from concur_thp.arch.cpu import HELD_READ, Cpu
from concur_thp.arch.guard_words import UNSHARED
from concur_thp.arch.linker import Source, kernel, quiet
from concur_thp.arch.shared import Word
from concur_thp.arch.struct import Struct

GUARDED = Word("guards.on")
"""1 in a process whose machine has been booted: until then nobody can be in the way."""
CLASS_OF_ENTRY = 0xFF


def digest(seen: set[Any]) -> Iterable[str]:
    """What the checked build of a function depends on besides its source: guards of structs, excuses of functions."""
    for struct in sorted((s for s in seen if isinstance(s, type) and issubclass(s, Struct)), key=lambda s: s.__name__):
        yield f"{struct.__name__} {[f.guard for f in struct.FIELDS.values()]}"
    for name in sorted(s.name for s in seen if isinstance(s, Source)):
        if name in UNSHARED:
            yield f"{name} {sorted(UNSHARED[name])}"


@kernel
@quiet
def guard_broken(cpu: Cpu, text: int, site: int, func: int):
    """A field is about to be touched without its guard.

    Context: before the access, anywhere.
    Emulator: the end of a run of the checked build that broke a locking rule, whether or not somebody was in the way.
    """
    if int(GUARDED) != 0:
        cpu.site = site
        report_bug(cpu, text, site, cpu.held_mask, func)


@kernel
@quiet
def guard_writer(cpu: Cpu, mask: int, text: int, site: int, func: int):
    """A field is about to be written whose lock can be held for reading: it must be held for writing.

    Context: before the access, anywhere.
    Emulator: the slow question, asked of the stack of held locks.
    """
    for i in range(cpu.depth):
        entry = cpu.held[i]
        if entry & HELD_READ == 0 and (mask >> (entry & CLASS_OF_ENTRY)) & 1 != 0:
            return 0
    guard_broken(cpu, text, site, func)
    return 0


__all__ = ["GUARDED", "digest", "guard_broken", "guard_writer"]
