"""Steps as data: read from text, printed, as JSON, and encoded into the words that kernel code runs.

Places and lengths are sums of pages (`3`), eighths of a block (`4e`), blocks, that is huge pages (`2h`), and of what one
PMD table maps (`1g`): `1g+2h+4e+3`. All of them begin where a PMD table begins.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from concur_thp.config import HPAGE_PMD_NR, PAGE_SIZE, PTRS_PER_UPPER, PUD_SHIFT
from concur_thp.errors import Misuse
from concur_thp.program.table import LIMITS, STEP_TABLE, WORDS, StepOp

_BY_NAME = {row.op.name: row for row in STEP_TABLE}
_UNITS = {"g": "tables", "h": "blocks", "e": "eighths", "": "pages"}
NUMBER_LIMIT = 1 << 62


class Pages(NamedTuple):
    """A number of pages, or a place: that many pages from where programs have their memory."""

    tables: int = 0
    blocks: int = 0
    eighths: int = 0
    pages: int = 0

    def __int__(self) -> int:
        """Pages, at the order now in force."""
        block = int(HPAGE_PMD_NR)
        if self.eighths and block < 8:
            raise Misuse(f"{self}: a block of {block} pages has no eighths; use --order 3 or more")
        return (self.tables * int(PTRS_PER_UPPER) + self.blocks) * block + self.eighths * (block // 8) + self.pages

    def __str__(self) -> str:
        terms = [f"{n}{unit}" for n, unit in zip(self, _UNITS, strict=True) if n]
        return "+".join(terms) or "0"

    @classmethod
    def parse(cls, text: str) -> "Pages":
        """'2h+3' -> Pages(blocks=2, pages=3)."""
        found = dict.fromkeys(_UNITS.values(), 0)
        for term in text.split("+"):
            match = re.fullmatch(r"(\d{1,9})([ghe]?)", term)
            if not match:
                raise Misuse(f"{text!r} is no number of pages: pass a sum such as 2h+4e+3 (h blocks, e eighths of one, "
                             "g PMD tables)")
            found[_UNITS[match[2]]] += int(match[1])
        return cls(**found)


Argument = Pages | int | str


class Step(NamedTuple):
    """One step. Places are Pages, words are kept as words."""

    op: StepOp
    arguments: tuple[Argument, ...] = ()
    label: str = ""

    def __str__(self) -> str:
        words = " ".join([self.op.name, *map(str, self.arguments)])
        return f"{self.label}: {words}" if self.label else words

    @property
    def json(self) -> dict[str, Any]:
        """As JSON; from_json() turns it back."""
        data: dict[str, Any] = {"op": self.op.name}
        if self.arguments:
            data["arguments"] = [a if isinstance(a, int) else str(a) for a in self.arguments]
        if self.label:
            data["label"] = self.label
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Step":
        """A step from what `json` gave."""
        label = f"{data['label']}: " if data.get("label") else ""
        return cls.parse(label + " ".join([str(data["op"]), *map(str, data.get("arguments", []))]))

    @classmethod
    def parse(cls, text: str) -> "Step":
        """'got: load 2h+3' -> Step(StepOp.load, (Pages(..),), 'got')."""
        label, colon, rest = text.strip().rpartition(":")
        if colon and not re.fullmatch(r"[a-z_][a-z0-9_]*", label.strip()):
            raise Misuse(f"step {text.strip()!r}: a label is a name in lower case, with a colon behind it")
        name, *words = rest.split() or [""]
        if name not in _BY_NAME:
            raise Misuse(f"step {text.strip()!r}: there is no step {name!r}; the steps are {', '.join(_BY_NAME)}")
        kinds = _BY_NAME[name].arguments
        if len(words) != len(kinds):
            wanted = " ".join([name, *(f"<{kind}>" for kind in kinds)])
            raise Misuse(f"step {text.strip()!r}: it has {len(words)} arguments; write {wanted}")
        arguments = tuple(_argument(text, kind, word) for kind, word in zip(kinds, words, strict=True))
        return cls(_BY_NAME[name].op, arguments, label.strip())

    def words(self) -> list[int]:
        """The arguments as kernel code wants them: bytes for places and lengths, flags for words."""
        kinds = _BY_NAME[self.op.name].arguments
        return [_encode(kind, argument) for kind, argument in zip(kinds, self.arguments, strict=True)]


def _argument(text: str, kind: str, word: str) -> Argument:
    """One word of a step's text."""
    if kind in ("page", "pages"):
        return Pages.parse(word)
    if kind in WORDS:
        if word not in WORDS[kind]:
            raise Misuse(f"step {text.strip()!r}: {word!r} is no {kind}; write one of {', '.join(WORDS[kind])}")
        return word
    try:
        number = int(word, 0)
    except ValueError:
        number = -1
    if not 0 <= number < LIMITS.get(kind, NUMBER_LIMIT):
        limit = f"0 to {LIMITS[kind] - 1}" if kind in LIMITS else "0 to 2**62-1"
        raise Misuse(f"step {text.strip()!r}: {word!r} is no {kind}; write a number from {limit}")
    return number


def base_address() -> int:
    """Where programs have their memory."""
    return 1 << int(PUD_SHIFT)


def address(place: Pages) -> int:
    """The address of a place."""
    return base_address() + int(place) * PAGE_SIZE


def _encode(kind: str, argument: Argument) -> int:
    if kind == "page":
        assert isinstance(argument, Pages)
        return address(argument)
    if kind == "pages":
        assert isinstance(argument, Pages)
        return int(argument) * PAGE_SIZE
    return WORDS[kind][str(argument)] if kind in WORDS else int(argument)


Program = tuple[Step, ...]


def parse_program(text: str) -> Program:
    """A program from its text: steps between line ends or semicolons, comments from # on."""
    lines = (line.partition("#")[0] for line in text.splitlines())
    return tuple(Step.parse(part) for line in lines for part in line.split(";") if part.strip())


def print_program(program: Iterable[Step]) -> str:
    """The text of a program, one step a line."""
    return "\n".join(map(str, program))


__all__ = ["Pages", "Program", "Step", "address", "base_address", "parse_program", "print_program"]
