"""The vocabulary of guards, read: from the text in a field's row to what it demands. What verifies it is arch/guards.py."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

from concur_thp.arch.struct import STRUCTS, Field

CLASS_MASKS: dict[str, int] = {}
"""Lock class -> the bits of held_mask that say it is held, nested classes with it."""
SHARED_CLASSES: set[str] = set()
"""Classes that can be held for reading, which is not enough to write."""
UNSHARED: dict[str, dict[str, str]] = {}
"""Function -> field ('Struct.field') -> why it touches the field without its lock."""


class Guard(NamedTuple):
    """A guard, read."""

    read: int
    """Bits of held_mask, one of which is enough to read."""
    masks: tuple[int, ...]
    """To write, a bit of each."""
    sleeping: tuple[int, ...]
    """Those of `masks` whose classes can be held for reading."""
    racy: bool
    const: bool


@functools.cache
def read_guard(text: str) -> Guard:
    """'mmap_sem+anon_vma_rwsem|racy' -> what it demands; words that demand nothing of held_mask are dropped."""
    names, *options = text.split("|")
    every = [CLASS_MASKS.get(name.removesuffix("?"), 0) for name in names.split("+")]
    known = [name for name in names.split("+") if name in CLASS_MASKS]
    sleeping = tuple(CLASS_MASKS[name] for name in known if name in SHARED_CLASSES)
    return Guard(functools.reduce(int.__or__, every, 0), tuple(CLASS_MASKS[name] for name in known), sleeping,
                 "racy" in options, names == "const")


def declare_classes(masks: dict[str, int], shared: Iterable[str]) -> None:
    """The lock classes there are."""
    CLASS_MASKS.update(masks)
    SHARED_CLASSES.update(shared)


def message(field: Field, writes: bool) -> str:
    """What a report says."""
    verb = "written" if writes else "read"
    names = [n.removesuffix("?") for n in field.guard.partition("|")[0].split("+") if not (writes and n.endswith("?"))]
    need = "after boot, it is const" if names == ["const"] else f"without {(' and ' if writes else ' or ').join(names)}"
    return f"guard broken: {field.owner}.{field.name} {verb} {need} (values: statement, classes held)"


def messages() -> Iterable[str]:
    """Every text a report may have."""
    for struct in STRUCTS.values():
        for field in struct.FIELDS.values():
            yield from (message(field, True), message(field, False))


def excused(field: Field, *names: str) -> bool:
    """Is one of these functions a row of UNSHARED for this field?"""
    return any(f"{field.owner}.{field.name}" in UNSHARED.get(name, ()) for name in names)


__all__ = ["UNSHARED", "Guard", "declare_classes", "excused", "message", "messages", "read_guard"]
