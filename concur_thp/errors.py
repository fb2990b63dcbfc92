"""The three kinds of error that reach a Python caller. (Results such as -EBUSY are values and never raise.)"""

import difflib
from collections.abc import Iterable

NEAR = 3
"""Similar names that are said when one is not known."""
ALIKE = 0.65


class Misuse(Exception):
    """Wrong input. One line that says what was wrong and what to pass instead; the command line exits 2."""


class KernelBug(Exception):
    """The emulated kernel broke one of its own rules; the report is in the machine. The command line exits 1."""


class EmulatorError(Exception):
    """Our own machinery is broken: not the user's fault and not the emulated kernel's. The command line exits 3."""


def unknown(what: str, name: str, names: Iterable[str], otherwise: str) -> Misuse:
    """There is no such name. Says similar ones, and where there are none what to do `otherwise`."""
    near = difflib.get_close_matches(name.lower(), list(names), NEAR, ALIKE)
    hint = f"did you mean {' or '.join(near)}?" if near else otherwise
    return Misuse(f"there is no {what} {name!r}: {hint}")
