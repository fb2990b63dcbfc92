"""The three kinds of error that reach a Python caller. (Results such as -EBUSY are values and never raise.)"""


class Misuse(Exception):
    """Wrong input. One line that says what was wrong and what to pass instead; the command line exits 2."""


class KernelBug(Exception):
    """The emulated kernel broke one of its own rules; the report is in the machine. The command line exits 1."""


class EmulatorError(Exception):
    """Our own machinery is broken: not the user's fault and not the emulated kernel's. The command line exits 3."""
