"""The `cpu` that a program in Python gets: every method is one native call on the CPU that runs the program.

Addresses are ints, as mmap() returned them. Lengths are bytes, or texts such as "2M"; both are whole pages. What Linux refuses
raises OSError with the kernel's errno, as in Python's own os module; what the caller has written wrong raises Misuse.
"""

import difflib
import os
from collections.abc import Iterable
from typing import NoReturn

from concur_thp.arch.cpu import Cpu
from concur_thp.config import PAGE_SIZE, parse_size, size_text
from concur_thp.errors import Misuse
from concur_thp.mm.errno import ERRNO_NAMES
from concur_thp.program.call import call_mmap, call_step
from concur_thp.program.step import Step
from concur_thp.program.table import ADVICES, LIMITS, MOVES, NR_SPACES, PINNINGS, PROTS, StepOp

WORD_SPACING = PAGE_SIZE // 8
"""A page's contents are 8 words (config.FRAME_WORDS), so words stand so many bytes apart."""
NUMA_HINT = "numa_hint"
NUMBER_BITS = 63


def bytes_of(length: int | str) -> int:
    """A length in bytes; Misuse unless it is one whole page or more."""
    size = parse_size(length)
    if size <= 0 or size % PAGE_SIZE:
        raise Misuse(f"length {length!r}: pass whole pages, a multiple of {size_text(PAGE_SIZE)} such as {PAGE_SIZE} or \"2M\"")
    return size


def page_address(address: int) -> int:
    """An address where a page begins, or Misuse."""
    if not isinstance(address, int) or address < 0 or address % PAGE_SIZE:
        raise Misuse(f"address {_shown(address)}: a range begins with a page, pass a multiple of {PAGE_SIZE}")
    return address


def word_address(address: int) -> int:
    """An address where a word stands, or Misuse."""
    if not isinstance(address, int) or address < 0 or address % WORD_SPACING:
        raise Misuse(f"address {_shown(address)}: a page has 8 words, {WORD_SPACING} bytes apart; "
                     f"pass a multiple of {WORD_SPACING}")
    return address


def _shown(value: object) -> str:
    return hex(value) if isinstance(value, int) else repr(value)


def one_of(what: str, word: str, known: Iterable[str]) -> str:
    """The word, in lower case, if it is known; else Misuse that names its neighbours."""
    names = list(known)
    lower = word.lower() if isinstance(word, str) else ""
    if lower in names:
        return lower
    near = difflib.get_close_matches(lower, names, 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"pass one of {', '.join(names)}"
    raise Misuse(f"there is no {what} {word!r}: {hint}")


class Processor:
    """One CPU, as its program sees it. It runs in the mm that the program was declared for, if there is one."""

    def __init__(self, cpu: Cpu):
        self._cpu = cpu
        self.number = int(cpu.id)
        """Its number, from 0."""

    def __index__(self) -> int:
        return int(self._cpu)

    __int__ = __index__
    """Its address: it can be passed to kernel functions that want a Cpu."""

    @property
    def _as_parameter_(self) -> int:
        return int(self._cpu)

    def __repr__(self) -> str:
        return f"<cpu {self.number}>"

    def _call(self, op: StepOp, *arguments: int) -> int:
        a, b, c, d = (*arguments, 0, 0, 0, 0)[:4]
        return int(call_step(self._cpu, int(op), a, b, c, d))

    def _do(self, op: StepOp, *arguments: int) -> int:
        """A call that has either done what it should or failed."""
        status = self._call(op, *arguments)
        if status < 0:
            _failed(op.name, status)
        return status

    # Memory

    def load(self, address: int) -> int:
        """The word at `address`, a 64-bit number. OSError: EFAULT (SIGSEGV), EHWPOISON, ENOMEM; ESRCH in no mm."""
        self._do(StepOp.load, word_address(address))
        return int(self._cpu.scratch[0])

    def store(self, address: int, value: int) -> None:
        """Store a word, a 64-bit number. OSError as load()."""
        if not isinstance(value, int) or not -(1 << NUMBER_BITS) <= value < 1 << NUMBER_BITS:
            raise Misuse(f"value {value!r}: a word is a number of 64 bits")
        self._do(StepOp.store, word_address(address), value)

    # The address space

    def mmap(self, length: int | str, *, prot: str = "rw", at: int | None = None, huge: bool = False) -> int:
        """Map private anonymous memory, `at` an address (MAP_FIXED) or where the kernel finds room; returns the address.
        `huge`: madvise(MADV_HUGEPAGE) it, which is a second call. `prot`: rw, ro or none. OSError: ENOMEM, EINVAL."""
        size, rights = bytes_of(length), PROTS[one_of("protection", prot, PROTS)]
        if at is None:
            at = int(call_mmap(self._cpu, size, rights))
            if at < 0:
                _failed("mmap", at)
        else:
            self._do(StepOp.map, page_address(at), size, rights)
        if huge:
            self.madvise(at, size, "HUGE")
        return at

    def munmap(self, address: int, length: int | str) -> None:
        """OSError: EINVAL, ENOMEM."""
        self._do(StepOp.unmap, page_address(address), bytes_of(length))

    def mprotect(self, address: int, length: int | str, prot: str) -> None:
        """`prot`: rw, ro, none; or numa_hint: the entries lose their rights, the vmas keep them, and the next access gets them
        back by a fault, as when NUMA balancing scans (mmap_sem read). OSError: ENOMEM (a hole), EACCES."""
        word = one_of("protection", prot, [*PROTS, NUMA_HINT])
        if word == NUMA_HINT:
            self._do(StepOp.hint, page_address(address), bytes_of(length))
        else:
            self._do(StepOp.protect, page_address(address), bytes_of(length), PROTS[word])

    def madvise(self, address: int, length: int | str, advice: str) -> None:
        """`advice`: DONTNEED, FREE, HUGE or NOHUGE (or HUGEPAGE, NOHUGEPAGE; in any case). OSError: EINVAL, ENOMEM."""
        word = one_of("advice", advice.lower().removesuffix("page") if isinstance(advice, str) else advice, ADVICES)
        self._do(StepOp.advise, page_address(address), bytes_of(length), ADVICES[word])

    def mremap(self, address: int, length: int | str, to: int) -> None:
        """Move a range to the address `to`, over whatever is there. OSError: EFAULT, EINVAL, ENOMEM."""
        self._do(StepOp.move, page_address(address), bytes_of(length), page_address(to))

    def mlock(self, address: int, length: int | str) -> None:
        """OSError: ENOMEM (a hole, or over the limit), EAGAIN."""
        self._do(StepOp.lock, page_address(address), bytes_of(length))

    def munlock(self, address: int, length: int | str) -> None:
        """OSError: ENOMEM."""
        self._do(StepOp.unlock, page_address(address), bytes_of(length))

    # Processes

    def fork(self, into: int | None = None) -> int:
        """Fork the mm that this CPU runs in. The child stands in the space `into`, 0 to 7 (one of this CPU's own when left
        out), until somebody enters it; returns the space. OSError: ENOMEM; ESRCH in no mm."""
        space = NR_SPACES - 1 - self.number % NR_SPACES if into is None else _small("space", into)
        self._do(StepOp.fork, space)
        return space

    def enter(self, space: int) -> None:
        """Run in the mm of a space from now on, as one more thread of it. OSError: ESRCH when it has none."""
        self._do(StepOp.enter, _small("space", space))

    def leave(self) -> None:
        """Run in no mm; the last one out tears the mm down."""
        self._call(StepOp.leave)

    def drop(self, space: int) -> None:
        """A space gives up its mm, as the exit of the process that stood for it."""
        self._call(StepOp.drop, _small("space", space))

    # Pins

    def pin(self, address: int, pin: int = 0, how: str = "write") -> bool:
        """Pin the page at an address as this CPU's pin 0 to 7; True when there was one. `how`: read, write (get_user_pages),
        fast, fast_write, fast_only, fast_only_write (gup-fast), split, split_write (FOLL_SPLIT). OSError: EFAULT, EBUSY."""
        way = PINNINGS[one_of("way to pin", how, PINNINGS)]
        return self._do(StepOp.pin, _small("pin", pin), page_address(address), way) == 1

    def pin_load(self, pin: int = 0) -> int:
        """The first word of the pinned frame, as a device reads it. OSError: ESRCH, no such pin."""
        self._do(StepOp.pin_load, _small("pin", pin))
        return int(self._cpu.scratch[0])

    def pin_store(self, value: int, pin: int = 0) -> None:
        """Store into the first word of the pinned frame, as a device does, and mark the page dirty. OSError: ESRCH."""
        self._do(StepOp.pin_store, _small("pin", pin), value)

    def unpin(self, pin: int = 0) -> None:
        """Give a pin back. OSError: ESRCH, no such pin."""
        self._do(StepOp.unpin, _small("pin", pin))

    # What the kernel does by itself

    def split_pmd(self, address: int) -> None:
        """Split the huge pmd around an address. OSError: ENOMEM."""
        self._do(StepOp.split_pmd, page_address(address))

    def split_page(self, address: int) -> None:
        """Split the huge page at an address. OSError: EBUSY, EAGAIN."""
        self._do(StepOp.split_page, page_address(address))

    def migrate(self, address: int, how: str = "whole") -> None:
        """Migrate the page at an address; `how`: whole, small, split. OSError: EAGAIN, EBUSY, ENOMEM."""
        self._do(StepOp.migrate, page_address(address), MOVES[one_of("way to migrate", how, MOVES)])

    def collapse(self, space: int, address: int) -> int:
        """Have khugepaged look at the block at an address of a space's mm, and collapse it. Returns SCAN_*, 1: done."""
        return self._do(StepOp.collapse, _small("space", space), page_address(address))

    def swap_out(self, address: int) -> int:
        """Reclaim the page at an address; returns pages reclaimed."""
        return self._do(StepOp.swap_out, page_address(address))

    def step(self, text: str) -> tuple[int, int]:
        """Any step of `concur-thp races steps`, as text: (status, value). Nothing is raised for what Linux refuses."""
        step = Step.parse(text)
        words = step.words()
        if len(words) > 4:
            raise Misuse(f"step {text!r}: steps with more than four arguments run in step programs only")
        return self._call(step.op, *words), int(self._cpu.scratch[0])


def _small(kind: str, number: int) -> int:
    number = int(number)
    if not 0 <= number < LIMITS[kind]:
        raise Misuse(f"{kind} {number}: pass a number from 0 to {LIMITS[kind] - 1}")
    return number


def _failed(name: str, status: int) -> NoReturn:
    number = -status
    raise OSError(number, f"{name}: -{ERRNO_NAMES.get(number, number)}, {os.strerror(number).lower()}")


__all__ = ["Processor", "bytes_of", "one_of", "page_address", "word_address"]
