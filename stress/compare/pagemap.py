"""What pagemap says of each block of this process's arena: smaps knows mappings only, and they may have several blocks.

A word of pagemap says whether a page is there and mapped by nobody else; PAGEMAP_SCAN (v6.7) whether it is mapped by a huge
entry, and whether it is a zero page, which belongs to nobody. (Linux: fs/proc/task_mmu.c pagemap_read(), do_pagemap_scan())
"""

import ctypes
import os
import zlib

from stress.compare.observed import UNKNOWN, Block
from stress.compare.steps import ARENA, ARENA_PAGES, BLOCK, BLOCKS, PAGE

PAGEMAP_SCAN = 0xC0606610
"""_IOWR('f', 16, struct pm_scan_arg)"""
PAGE_IS_PFNZERO, PAGE_IS_HUGE = 1 << 5, 1 << 6
PM_PRESENT, PM_MMAP_EXCLUSIVE = 1 << 7, 1 << 0
"""In the highest byte of a word: bits 63 and 56."""
KIB = PAGE // 1024

_PRESENT = bytes(value >> 7 for value in range(256))
_OWN = bytes(1 if value & PM_PRESENT and value & PM_MMAP_EXCLUSIVE else 0 for value in range(256))


class PmScanArg(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in (
        "size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages", "category_inverted", "category_mask",
        "category_anyof_mask", "return_mask")]


class PageRegion(ctypes.Structure):
    _fields_ = [("start", ctypes.c_uint64), ("end", ctypes.c_uint64), ("categories", ctypes.c_uint64)]


_regions = (PageRegion * ARENA_PAGES)()
_asked = PAGE_IS_PFNZERO | PAGE_IS_HUGE
_scan = PmScanArg(size=ctypes.sizeof(PmScanArg), start=ARENA, end=ARENA + ARENA_PAGES * PAGE, vec=ctypes.addressof(_regions),
                  vec_len=ARENA_PAGES, category_anyof_mask=_asked, return_mask=_asked)
_ioctl = ctypes.CDLL(None, use_errno=True).ioctl
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


def look(fd: int) -> tuple[bytes, tuple[Block, ...]]:
    """A byte for each page (1: it is there), and the blocks."""
    top = os.pread(fd, 8 * ARENA_PAGES, ARENA // PAGE * 8)[7::8]
    places = top.translate(_PRESENT)
    found = _ioctl(fd, PAGEMAP_SCAN, ctypes.addressof(_scan))
    if found < 0:
        return places, ()
    huge, counted = bytearray(ARENA_PAGES), bytearray(places)
    for at in range(found):
        region = _regions[at]
        first, end = (region.start - ARENA) // PAGE, (region.end - ARENA) // PAGE
        if region.categories & PAGE_IS_PFNZERO:
            counted[first:end] = bytes(end - first)
        else:
            huge[first:end] = b"\1" * (end - first)
    own = top.translate(_OWN)
    return places, tuple(_block(at, at + BLOCK, places, huge, counted, own) for at in range(0, BLOCKS * BLOCK, BLOCK))


def settle(blocks: tuple[Block, ...], shared: int, private: int) -> tuple[Block, ...]:
    """Of a huge entry's pages pagemap says what is true of the first: the rest of smaps' figures is that of the huge block.

    Where there are several it is not known whose.
    """
    huge = [block for block in blocks if block.anon_huge]
    plain = [block for block in blocks if not block.anon_huge]
    figures = (UNKNOWN, UNKNOWN)
    if len(huge) == 1:
        figures = (shared - sum(block.shared for block in plain), private - sum(block.private for block in plain))
    return tuple(block._replace(shared=figures[0], private=figures[1]) if block.anon_huge else block for block in blocks)


def _block(first: int, end: int, places: bytes, huge: bytearray, counted: bytearray, own: bytes) -> Block:
    rss, private = counted.count(1, first, end), own.count(1, first, end)
    return Block(KIB * huge.count(1, first, end), KIB * rss, KIB * (rss - private), KIB * private,
                 zlib.crc32(places[first:end]))
