"""Memory for a struct, outside of any machine."""

import ctypes
from typing import Any

from concur_thp.arch.struct import Struct


class Memory:
    """`with Memory(Page) as page:` a pointer to zeroed memory."""

    def __init__(self, struct: type[Struct], count: int = 1):
        self.struct, self._bytes = struct, (ctypes.c_int64 * (struct.SIZE * count // 8 + 1))()

    def __enter__(self) -> Any:
        return self.struct(ctypes.addressof(self._bytes))

    def __exit__(self, *error: object) -> None:
        del self._bytes
