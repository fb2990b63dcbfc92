"""Steps as system calls of this process, and what the kernel says of its arena. Runs in a process of its own.

Loads and stores are made by the kernel on our behalf (pwritev from the arena, preadv into it): the same page faults as a
program's, but one call for many pages, and -EFAULT where a program would get SIGSEGV.
"""

import array
import ctypes
import errno
import os
import re
import zlib
from collections.abc import Callable, Iterator

from stress.compare import pagemap
from stress.compare.observed import LOOKED_AT, Look
from stress.compare.steps import ARENA, ARENA_PAGES, PAGE, WORDS, Step, value_of, word_of

PRIVATE_ANON, FIXED = 0x22, 0x10
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
ADVICE = {"dontneed": 4, "free": 8, "huge": 14, "nohuge": 15, "collapse": 25}
PR_SET_THP_DISABLE = 41
IOV_MAX = 1024
DROP_SLAB = b"2"
"""Shrinkers only; page caches stay."""
ROW = 8 * WORDS

libc = ctypes.CDLL(None, use_errno=True)
_P, _N, _I = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
libc.mmap.restype, libc.mmap.argtypes = _P, (_P, _N, _I, _I, _I, ctypes.c_long)
libc.mremap.restype, libc.mremap.argtypes = _P, (_P, _N, _N, _I, _P)
for _name in ("munmap", "mlock", "munlock"):
    getattr(libc, _name).argtypes = (_P, _N)
for _name in ("madvise", "mprotect"):
    getattr(libc, _name).argtypes = (_P, _N, _I)
for _name in ("preadv", "pwritev"):
    getattr(libc, _name).restype = ctypes.c_ssize_t
    getattr(libc, _name).argtypes = (_I, _P, _I, ctypes.c_long)
for _name in ("process_vm_readv", "process_vm_writev"):
    getattr(libc, _name).restype = ctypes.c_ssize_t
    getattr(libc, _name).argtypes = (_I, _P, ctypes.c_ulong, _P, ctypes.c_ulong, ctypes.c_ulong)
libc.vmsplice.restype, libc.vmsplice.argtypes = ctypes.c_ssize_t, (_I, _P, ctypes.c_ulong, ctypes.c_uint)
libc.prctl.argtypes = (_I,) + (ctypes.c_ulong,) * 4
_FAILED = ctypes.c_void_p(-1).value


class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def _iovecs(offset: int, size: int) -> ctypes.Array[Iovec]:
    """One for each page of the arena: `size` bytes of it."""
    return (Iovec * ARENA_PAGES)(*(Iovec(ARENA + page * PAGE + offset, size) for page in range(ARENA_PAGES)))


_one_word = [_iovecs(8 * word, 8) for word in range(WORDS)]
_all_words = _iovecs(0, ROW)
_MAPPING = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) (r)?[^\n]*\n", re.M)
_FIGURE = re.compile(rb"^(Rss|Shared_Clean|Shared_Dirty|Private_Clean|Private_Dirty|AnonHugePages): +(\d+)", re.M)
_NAMES = [b"\n%s " % name.encode() for name in LOOKED_AT]


def vmstat(fd: int) -> tuple[int, ...]:
    """The counters of LOOKED_AT, of the whole system. One that this kernel does not have stays 0."""
    text = os.pread(fd, 1 << 16, 0)
    first = max(text.find(b"\nthp_"), 0)
    return tuple(_figure_behind(text, name, first) for name in _NAMES)


def _figure_behind(text: bytes, name: bytes, first: int) -> int:
    at = text.find(name, first)
    if at < 0:
        return 0
    at += len(name)
    return int(text[at : text.index(b"\n", at)])


class Calls:
    """This process as a task. `staging`: a file in memory that words come from and go to."""

    def __init__(self, staging: int, vmstat_fd: int, drop_caches: int):
        self.staging, self.vmstat_fd, self.drop_caches_fd = staging, vmstat_fd, drop_caches
        self.pipes: list[tuple[int, int]] = []
        self.begin()

    def begin(self) -> None:
        """A new process: its own files of /proc. Pins belong to whoever took them."""
        for ends in self.pipes:
            os.close(ends[0])
            os.close(ends[1])
        self.pipes = []
        self.smaps = os.open("/proc/self/smaps", os.O_RDONLY)
        self.pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)

    def perform(self, step: Step, index: int) -> int:
        """One step; 0, a number of pages or a negative error."""
        method: Callable[[int, int, Step, int], int] | None = getattr(self, f"do_{step.op}", None)
        addr, length = ARENA + step.page * PAGE, step.pages * PAGE
        if method is not None:
            return method(addr, length, step, index)
        if step.op in ADVICE:
            return _status(libc.madvise(addr, length, ADVICE[step.op]))
        return _status(getattr(libc, step.op)(addr, length))

    def do_mmap(self, addr: int, length: int, step: Step, index: int) -> int:
        return _address(libc.mmap(addr, length, step.arg, PRIVATE_ANON | FIXED, -1, 0))

    def do_mprotect(self, addr: int, length: int, step: Step, index: int) -> int:
        return _status(libc.mprotect(addr, length, step.arg))

    def do_mremap(self, addr: int, length: int, step: Step, index: int) -> int:
        to, size = ARENA + step.arg * PAGE, step.arg2 * PAGE
        if to == addr:
            return _address(libc.mremap(addr, length, size, 0, None))
        return _address(libc.mremap(addr, length, size, MREMAP_MAYMOVE | MREMAP_FIXED, to))

    def do_store(self, addr: int, length: int, step: Step, index: int) -> int:
        words = array.array("Q", [value_of(index, page) for page in range(step.page, step.end)])
        os.pwrite(self.staging, words.tobytes(), 0)
        return self._each_page(libc.preadv, step, index)

    def do_load(self, addr: int, length: int, step: Step, index: int) -> int:
        return self._each_page(libc.pwritev, step, index)

    def _each_page(self, call: Callable[..., int], step: Step, index: int) -> int:
        """One word of each page, up to the first that cannot be accessed; how many could be."""
        vectors, done = _one_word[word_of(index)], 0
        while done < step.pages:
            pages = min(step.pages - done, IOV_MAX)
            got = call(self.staging, ctypes.byref(vectors, (step.page + done) * 16), pages, 8 * done)
            if got < 0:
                return done if ctypes.get_errno() == errno.EFAULT else -ctypes.get_errno()
            done += got // 8
            if got < 8 * pages:
                break
        return done

    def do_remote_load(self, addr: int, length: int, step: Step, index: int) -> int:
        return self._remote(libc.process_vm_readv, step, index, b"")

    def do_remote_store(self, addr: int, length: int, step: Step, index: int) -> int:
        words = array.array("Q", [value_of(index, page) for page in range(step.page, step.end)])
        return self._remote(libc.process_vm_writev, step, index, words.tobytes())

    def _remote(self, call: Callable[..., int], step: Step, index: int, data: bytes) -> int:
        pages = min(step.pages, IOV_MAX)
        local = ctypes.create_string_buffer(data, 8 * pages)
        mine = Iovec(ctypes.addressof(local), 8 * pages)
        theirs = ctypes.byref(_one_word[word_of(index)], step.page * 16)
        got = call(os.getpid(), ctypes.byref(mine), 1, theirs, pages, 0)
        return 0 if got < 0 and ctypes.get_errno() == errno.EFAULT else int(got) // 8

    def do_pin(self, addr: int, length: int, step: Step, index: int) -> int:
        ends = os.pipe()
        self.pipes.append(ends)
        vector = Iovec(addr, min(length, PAGE))
        got = libc.vmsplice(ends[1], ctypes.byref(vector), 1, 0)
        return -ctypes.get_errno() if got < 0 else 0

    def do_unpin(self, addr: int, length: int, step: Step, index: int) -> int:
        for ends in self.pipes:
            os.close(ends[0])
            os.close(ends[1])
        self.pipes = []
        return 0

    def do_thp_disable(self, addr: int, length: int, step: Step, index: int) -> int:
        return _status(libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0))

    def do_drop_caches(self, addr: int, length: int, step: Step, index: int) -> int:
        os.pwrite(self.drop_caches_fd, DROP_SLAB, 0)
        return 0

    def look(self, detail: bool) -> Look:
        """The arena of this task, without touching what is not there."""
        figures, mappings, unreadable = self._smaps()
        places, blocks = pagemap.look(self.pagemap)
        readable = bytearray(places)
        for first, end in unreadable:
            readable[first:end] = bytes(end - first)
        words = bytes(self._words(bytes(readable)))
        shared = figures.get(b"Shared_Clean", 0) + figures.get(b"Shared_Dirty", 0)
        private = figures.get(b"Private_Clean", 0) + figures.get(b"Private_Dirty", 0)
        blocks = pagemap.settle(blocks, shared, private)
        return Look(figures.get(b"AnonHugePages", 0), figures.get(b"Rss", 0), shared, private, places.count(1),
                    zlib.crc32(places), zlib.crc32(words), blocks, mappings, (places, words) if detail else (b"", b""))

    def _smaps(self) -> tuple[dict[bytes, int], tuple[tuple[int, int], ...], list[tuple[int, int]]]:
        """Sums over the arena's mappings, the mappings, and those that may not be read, as page numbers."""
        sums: dict[bytes, int] = {}
        mappings, unreadable = [], []
        for start, end, readable, text in self._mappings():
            mappings.append(((start - ARENA) // PAGE, (end - ARENA) // PAGE))
            if not readable:
                unreadable.append(mappings[-1])
            for name, figure in _FIGURE.findall(text):
                sums[name] = sums.get(name, 0) + int(figure)
        return sums, tuple(mappings), unreadable

    def _mappings(self) -> Iterator[tuple[int, int, bool, bytes]]:
        """The arena's mappings, from the first few reads of smaps: they come in the order of their addresses."""
        os.lseek(self.smaps, 0, os.SEEK_SET)
        beyond = ARENA + ARENA_PAGES * PAGE
        text = b""
        while True:
            more = os.read(self.smaps, 1 << 16)
            text += more
            heads = list(_MAPPING.finditer(text))
            if not more or (heads and int(heads[-1][1], 16) >= beyond):
                break
        ends = [head.start() for head in heads[1:]] + [len(text)]
        for head, stop in zip(heads, ends, strict=True):
            start, end = int(head[1], 16), int(head[2], 16)
            if start < beyond and end > ARENA:
                yield start, end, head[3] is not None, text[head.end() : stop]

    def _words(self, readable: bytes) -> bytearray:
        """All words of every page; 0 where nothing is, or nothing may be read."""
        words = bytearray(ROW * ARENA_PAGES)
        first = readable.find(1)
        while first >= 0:
            end = readable.find(0, first)
            end = min(end if end >= 0 else ARENA_PAGES, first + IOV_MAX)
            got = libc.pwritev(self.staging, ctypes.byref(_all_words, first * 16), end - first, 0)
            if got != ROW * (end - first):
                raise OSError(ctypes.get_errno(), f"pages {first}..{end - 1} are there and cannot be read")
            words[first * ROW : end * ROW] = os.pread(self.staging, got, 0)
            first = readable.find(1, end)
        return words


def _status(result: int) -> int:
    return -ctypes.get_errno() if result else 0


def _address(result: int | None) -> int:
    return -ctypes.get_errno() if result == _FAILED else 0
