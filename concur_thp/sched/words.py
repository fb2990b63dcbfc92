"""Any word of memory, by its address: for what reads or writes the segment without knowing what lies there."""

from concur_thp.arch.linker import inline
from concur_thp.arch.struct import I8, I16, I32, I64, Struct, field


class Long(Struct, size=8):
    """Any 64-bit word."""

    value = field(I64, "owner", "the word")


class Half(Struct, size=4, align=4):
    """Any 32-bit word."""

    value = field(I32, "owner", "the word")


class Quarter(Struct, size=2, align=2):
    """Any 16-bit word."""

    value = field(I16, "owner", "the word")


class Byte(Struct, size=1, align=1):
    """Any byte."""

    value = field(I8, "owner", "the byte")


@inline
def poke(address: int, value: int):
    """Store a 64-bit word that is not the machine's: the dirty map has no place for it, and no snapshot restores it."""
    Long(address).value = value


__all__ = ["Byte", "Half", "Long", "Quarter", "poke"]
