"""Names of addresses: `mem_map[0x110]._refcount`, `tables[0x102] entry 3`."""

from concur_thp.arch.struct import Struct
from concur_thp.check.lock_names import locate, segment_offset
from concur_thp.config import MachineConfig

HEXADECIMAL = ("mem_map", "frames", "tables")
"""Arrays that are numbered by frame."""


def place_name(config: MachineConfig, address: int) -> str:
    """What lies at an address of this process's segment, by array, number and field."""
    place = locate(config, segment_offset(address))
    if place is None:
        return f"{address:#x}"
    index = f"{place.index:#x}" if place.array.name in HEXADECIMAL else str(place.index)
    start = f"{place.array.name}[{index}]"
    rest = address - int(place.array.base) - place.index * place.array.stride
    return start + _inside(place.array.struct, rest)


def _inside(struct: type[Struct], rest: int) -> str:
    """Field by field down to the word."""
    best = None
    for row in struct.FIELDS.values():
        size = row.stride * max(row.count, 1)
        if row.offset <= rest < row.offset + size and (best is None or row.offset > best.offset):
            best = row
    if best is None:
        return ""
    element, rest = divmod(rest - best.offset, best.stride)
    text = f".{best.name}[{element}]" if best.count else f".{best.name}"
    return text + _inside(best.struct, rest) if best.struct else text


__all__ = ["place_name"]
