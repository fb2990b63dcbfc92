"""The options that commands share, checked while the command line is read: a run never begins with bad input.

    @click.command()
    @common_options(cpus=4, cpus_most=8)
    def stress(json_path, seed, cpus, memory, order, quiet): ...

`--json` arrives as `json_path` (see output.py), `--memory` in bytes or None, `--seed` drawn at random when not given.
"""

import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from concur_thp.config import DEFAULT_ORDER, NR_CPUS, ORDERS, parse_size, size_text
from concur_thp.errors import Misuse, unknown
from concur_thp.output import check_json_path

Decorator = Callable[[Any], Any]
SEED_LIMIT = 1 << 63
RANDOM_SEED_BITS = 31
"""A drawn seed is short enough to be typed again."""


class Group(click.Group):
    """Commands, of which similar ones are said when one is not known."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            names = self.list_commands(ctx)
            within = "".join(f"{word} " for word in ctx.command_path.split()[1:])
            raise unknown(f"command {within}".strip(), args[0], names, f"pass one of {', '.join(names)}")
        return super().resolve_command(ctx, args)


class Size(click.ParamType):
    """A number of bytes, such as 256M."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(value)
        except Misuse as error:
            self.fail(str(error), param, ctx)


class Seed(click.ParamType):
    """A whole number, decimal or 0x."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = value if isinstance(value, int) else int(value, 0)
        except ValueError:
            number = -1
        if not 0 <= number < SEED_LIMIT:
            self.fail(f"{value!r}: pass a whole number from 0 to 2**63-1, decimal or 0x", param, ctx)
        return number


class Count(click.ParamType):
    """A whole number in a range that has a reason."""

    name = "number"

    def __init__(self, least: int, most: int, why: str):
        self.least, self.most, self.why = least, most, why

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            number = self.least - 1
        if not self.least <= number <= self.most:
            self.fail(f"{value!r}: pass {self.least} to {self.most} ({self.why})", param, ctx)
        return number


class Seconds(click.ParamType):
    """A positive, finite number of seconds."""

    name = "seconds"

    def __init__(self, or_none: bool = False):
        self.or_none = or_none
        """Is 0 allowed, for not at all?"""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 < number < float("inf") and not (self.or_none and number == 0):
            self.fail(f"{value!r}: pass a number of seconds above 0, such as 20{', or 0' if self.or_none else ''}", param, ctx)
        return number


def _checked_json(ctx: click.Context, param: click.Parameter, value: str) -> str:
    check_json_path(value)
    return value


def _checked_run_dir(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Could runs be kept there? Asked before a run, which may take long; nothing is made yet."""
    path = Path(value).resolve()
    if not value:
        raise Misuse("--run-dir: pass a directory, such as runs")
    try:
        with tempfile.TemporaryFile(dir=next(folder for folder in (path, *path.parents) if folder.exists())):
            pass
    except OSError as error:
        raise Misuse(f"--run-dir {value}: {error.strerror}; pass a directory that can be written") from error
    return value


def _drawn_seed(ctx: click.Context, param: click.Parameter, value: int | None) -> int:
    return secrets.randbits(RANDOM_SEED_BITS) if value is None else value


def json_option() -> Decorator:
    return click.option("--json", "json_path", metavar="PATH", default="", callback=_checked_json,
                        help="Write the result as JSON; - is standard output, and nothing else goes there.")


def quiet_option() -> Decorator:
    return click.option("--quiet", is_flag=True, help="No messages and no tables.")


def seed_option() -> Decorator:
    return click.option("--seed", type=Seed(), default=None, callback=_drawn_seed,
                        help="Seed of every random choice. [default: random, and said]")


def run_dir_option() -> Decorator:
    return click.option("--run-dir", metavar="DIR", default="runs", show_default=True, callback=_checked_run_dir,
                        help="Where runs keep what they found.")


def memory_option(default: int | None, why: str) -> Decorator:
    text = size_text(default) if default is not None else why
    return click.option("--memory", type=Size(), default=default,
                        help=f"Emulated memory, such as 256M. [default: {text}]")


def order_option(default: int = DEFAULT_ORDER) -> Decorator:
    geometry = Count(ORDERS[0], ORDERS[-1], "9 is x86-64's huge page, 3 keeps exploration small")
    return click.option("--order", type=geometry, default=default, show_default=True,
                        help="A huge page is 2**ORDER small ones.")


def cpus_option(default: int, most: int, why: str) -> Decorator:
    return click.option("--cpus", type=Count(1, most, why), default=default, show_default=True,
                        help=f"CPU processes, 1 to {most}: {why}.")


def common_options(*, cpus: int = 2, cpus_most: int = NR_CPUS, cpus_why: str = "the size of the per-CPU arrays",
                   memory: int | None = 256 << 20, memory_why: str = "what the run needs") -> Decorator:
    """--json --seed --cpus --memory --order --quiet, for a command that runs a machine."""
    options = (cpus_option(cpus, cpus_most, cpus_why), seed_option(), memory_option(memory, memory_why),
               order_option(), json_option(), quiet_option())

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
