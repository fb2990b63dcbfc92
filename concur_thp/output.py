"""Where a command's words go: messages to standard error, results to standard output, JSON whole or not at all."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from concur_thp.errors import Misuse

STDOUT = "-"
"""A JSON destination: standard output, which then carries nothing else."""


PIPE_WIDTH = 120
"""Columns when nobody says how many there are."""


def console(quiet: bool) -> Console:
    """For messages and tables; results alone go to standard output."""
    width = None if sys.stderr.isatty() else PIPE_WIDTH
    return Console(stderr=True, quiet=quiet, markup=False, highlight=False, width=width)


def result_console(quiet: bool, json_path: str, soft_wrap: bool = True) -> Console:
    """For results that people read; silent when standard output carries JSON. Tables want `soft_wrap` off."""
    width = None if soft_wrap or sys.stdout.isatty() else PIPE_WIDTH
    return Console(quiet=quiet or json_path == STDOUT, soft_wrap=soft_wrap, highlight=False, width=width)


def check_json_path(destination: str) -> None:
    """Before a run begins: can its JSON be written there?"""
    if destination in ("", STDOUT):
        return
    path = Path(destination)
    if path.is_dir():
        raise Misuse(f"--json {destination}: that is a directory; pass a file name in it, or - for standard output")
    try:
        if path.exists() and not path.is_file():
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        else:
            with tempfile.NamedTemporaryFile(dir=path.resolve().parent):
                pass
    except OSError as error:
        raise Misuse(f"--json {destination}: {error.strerror}; pass a file in an existing directory that can be"
                     " written, or - for standard output") from error


def write_json(destination: str, data: Any) -> None:
    """To a file, atomically, or to standard output. '' writes nothing."""
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    if destination == STDOUT:
        sys.stdout.write(text)
        sys.stdout.flush()
    elif destination:
        path = Path(destination).resolve()
        if path.exists() and not path.is_file():
            path.write_text(text)  # a pipe or a device: nothing there can be replaced
        else:
            write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """A file, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """A file, whole or not at all."""
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


class CompileProgress:
    """Called with (compiled, to compile); draws a bar on a terminal, from the first call on."""

    def __init__(self, out: Console):
        self._bar = RichProgress(TextColumn("compiling kernel functions"), BarColumn(), MofNCompleteColumn(),
                                 TimeElapsedColumn(), console=out, transient=True)
        self._task = self._bar.add_task("compile", total=None)
        self._draws, self._shown = out.is_terminal and not out.quiet, False
        self.compiled = 0

    def __call__(self, done: int, total: int) -> None:
        if self._draws and not self._shown:
            self._bar.start()
            self._shown = True
        self._bar.update(self._task, completed=done, total=total)
        self.compiled = done

    def finish(self) -> None:
        """Take the bar away; the terminal belongs to somebody else now."""
        if self._shown:
            self._bar.stop()
            self._shown = False


@contextmanager
def compile_progress(out: Console) -> Iterator[CompileProgress]:
    """A progress to hand to Machine() or native.build()."""
    progress = CompileProgress(out)
    try:
        yield progress
    finally:
        progress.finish()
