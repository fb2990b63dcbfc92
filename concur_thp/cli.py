"""The command line: `concur-thp COMMAND`. Commands of the layers above are plugged in by entry points.

Exit status: 0 clean, 1 found something, 2 wrong usage, 3 our own fault, 4 inconclusive (interrupted, killed).
Whatever goes wrong is one line on standard error; a traceback goes to a log file.
"""

import errno
import os
import platform
import select
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
from loguru import logger

import concur_thp
from concur_thp import options
from concur_thp.arch import native
from concur_thp.arch.linker import Kernel
from concur_thp.config import KERNEL_TAG, Param, size_text
from concur_thp.errors import EmulatorError, KernelBug, Misuse
from concur_thp.machine import Machine, available_memory
from concur_thp.output import STDOUT, compile_progress, console, result_console, write_json
from concur_thp.rules.show import print_rule, print_rules
from concur_thp.rules.table import RULES, rule_json, rule_named, variants_named

FOUND, MISUSE, OWN_FAULT, INCONCLUSIVE = 1, 2, 3, 4
LOG_BYTES = 1 << 20
ORDER = ("stress", "races", "explore", "replay", "rules", "break", "compare", "bench", "build", "doctor")
"""Of commands in help texts; others stand behind them."""
LIMITS = {
    errno.EMFILE: "raise the limit of open files, such as `ulimit -n 1024`",
    errno.ENFILE: "the system has no more open files to give",
    errno.ENOMEM: "pass a smaller --memory, or raise the limit of memory (`ulimit -v`)",
    errno.EAGAIN: "raise the limit of processes (`ulimit -u`), or pass fewer --cpus",
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "pass places that can be written (--run-dir, --json, CONCUR_THP_CACHE)",
}
"""What this machine refuses, and what its user can do about it: nobody's fault, but wrong usage."""


class Commands(options.Group):
    """Our own commands, and those of the installed entry points `concur_thp.commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = {*super().list_commands(ctx), *(e.name for e in entry_points(group="concur_thp.commands"))}
        return [*(name for name in ORDER if name in names), *sorted(names - {*ORDER})]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        for entry in entry_points(group="concur_thp.commands", name=cmd_name):
            command: click.Command = entry.load()
            return command
        return None


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(concur_thp.__version__, prog_name="concur-thp",
                      message=f"%(prog)s %(version)s (Linux {KERNEL_TAG})")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """A multiprocess emulator of Linux's Transparent Hugepages."""
    if ctx.invoked_subcommand is None:
        raise Misuse(f"pass a command: {', '.join(ctx.command.list_commands(ctx))}; --help says more")  # type: ignore[attr-defined]


@cli.command()
@options.order_option()
@click.option("--kind", type=click.Choice(tuple(native.UNITS)), default=native.PLAIN, show_default=True,
              help="plain is for free runs, checked for controlled ones (explore, break), traced for --races and dpor.")
@options.json_option()
@options.quiet_option()
def build(order: int, kind: str, json_path: str, quiet: bool) -> int:
    """Compile every kernel function ahead of the first run."""
    started = time.monotonic()
    Param.order = order
    Machine._import_kernel()
    for entry in entry_points(group="concur_thp.kernels"):
        import_module(entry.value)
    with compile_progress(console(quiet)) as progress:
        compiled = native.build(Kernel.all, progress, kind=kind)
        native.link(kind=kind)
    seconds = round(time.monotonic() - started, 2)
    result = {"order": order, "kind": kind, "functions": len(Kernel.all), "compiled": compiled, "seconds": seconds,
              "cache": str(native.cache_dir())}
    result_console(quiet, json_path).print(f"compiled {compiled} of {len(Kernel.all)} kernel functions in {seconds} s,"
                                           " the others were there")
    write_json(json_path, result)
    return 0


@cli.group(cls=options.Group, invoke_without_command=True)
@options.json_option()
@options.quiet_option()
@click.pass_context
def rules(ctx: click.Context, json_path: str, quiet: bool) -> int:
    """The locking rules: what each says, and how it can be broken."""
    Machine._import_kernel()
    if ctx.invoked_subcommand is None:
        if not quiet and json_path != STDOUT:
            print_rules(result_console(quiet, json_path, soft_wrap=False))
        write_json(json_path, [rule_json(rule) for rule in RULES])
    return 0


@rules.command()
@click.argument("rule_id", metavar="ID")
@options.json_option()
@options.quiet_option()
def show(rule_id: str, json_path: str, quiet: bool) -> int:
    """One rule, or one of its broken variants, with diffs.

    ID is a rule, such as R18, or a variant, such as R18a.
    """
    rule = rule_named(rule_id)
    if not quiet and json_path != STDOUT:
        only = variants_named(rule_id) if rule.variants else []
        print_rule(result_console(quiet, json_path, soft_wrap=False), rule, only)
    write_json(json_path, rule_json(rule, with_diffs=True))
    return 0


@cli.command()
@options.memory_option(256 << 20, "")
@options.json_option()
@options.quiet_option()
def doctor(memory: int, json_path: str, quiet: bool) -> int:
    """Say what this machine can do."""
    facts = examine(memory)
    out = result_console(quiet, json_path)
    for name, value in facts.items():
        if name in SIZES:
            value = size_mib(value)
        if name != "problems":
            out.print(f"{name.replace('_', ' '):24} {value}")
    for problem in facts["problems"]:
        console(quiet).print(f"problem: {problem}", highlight=False)
    write_json(json_path, facts)
    return FOUND if facts["problems"] else 0


SIZES = ("memory_available", "memory_needed", "cache_bytes")


def examine(memory: int) -> dict[str, Any]:
    """What a run depends on; `problems` are what would stop or slow one with `memory` bytes of emulated memory."""
    import llvmlite

    free, needed = available_memory(), memory // 4096 * 160
    cores = len(os.sched_getaffinity(0))
    cache = native.cache_dir()
    sizes = list(_sizes(cache))
    problems = []
    if free < needed:
        problems.append(f"{size_mib(free)} of memory are available, {size_text(memory)} of emulated memory may need"
                        f" {size_mib(needed)}: pass a smaller --memory")
    try:
        native.check_cache()
    except Misuse as error:
        problems.append(str(error))
    if cores < 2:
        problems.append("one core only: CPUs take turns, so races are rare; give it two or more")
    if platform.machine() not in ("x86_64", "aarch64"):
        problems.append(f"{platform.machine()}: kernel functions call x86-64's or aarch64's system calls")
    return {
        "version": concur_thp.__version__, "kernel_emulated": KERNEL_TAG, "python": platform.python_version(),
        "llvmlite": llvmlite.__version__, "processor": platform.machine(), "cores": cores, "memory_available": free,
        "memory_needed": needed, "kernel_running": platform.release(), "kernel_thp": _running_thp(),
        "cache": str(cache), "cache_files": len(sizes), "cache_bytes": sum(sizes),
        "problems": problems,
    }


def _sizes(folder: Path) -> Iterator[int]:
    """Of each file below. Another process may be compiling: what it writes is soon gone under its first name."""
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            about = path.stat()
            if stat.S_ISREG(about.st_mode):
                yield about.st_size


def size_mib(size: int) -> str:
    return f"{size >> 20} MiB"


def _running_thp() -> str:
    """THP of the running kernel, which `bench` compares with: always, madvise, never, or absent."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "absent"
    return text.partition("[")[2].partition("]")[0]


def error_log() -> Path:
    """Where tracebacks go."""
    folder = native.cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        return Path(tempfile.gettempdir()) / f"concur-thp-{os.getuid()}.log"
    return folder / "concur-thp.log"


def _say(message: str) -> None:
    print(f"concur-thp: {' '.join(message.split())}", file=sys.stderr)


def _stdout_is_gone() -> bool:
    """Has the reader of our standard output left (`| head`)?"""
    poll = select.poll()
    try:
        poll.register(1, 0)
        return any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))
    except OSError:
        return True


def _leave_stdout() -> None:
    """Flush; when nobody reads any more, say nothing and do not try again at exit."""
    try:
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def run(arguments: list[str] | None = None) -> int:
    """Run one command line; returns its exit status."""
    logger.remove()
    try:
        logger.add(error_log(), level="DEBUG", delay=True, rotation=LOG_BYTES, retention=1, diagnose=False, catch=False)
        return int(cli.main(args=arguments, prog_name="concur-thp", standalone_mode=False) or 0)
    except click.ClickException as error:
        _say(error.format_message())
        return MISUSE
    except Misuse as error:
        _say(str(error))
        return MISUSE
    except KernelBug as error:
        _say(str(error))
        return FOUND
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted")
        return INCONCLUSIVE
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _stdout_is_gone():
            return INCONCLUSIVE
        return _failed(error, " ".join(arguments if arguments is not None else sys.argv[1:]))
    finally:
        _leave_stdout()


def _failed(error: Exception, what: str) -> int:
    """An exception that nobody expected: a limit of this machine, or our own fault, of which a traceback is kept."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if number in LIMITS:
        place = getattr(error, "filename", None)
        _say(f"{os.strerror(number)}{f' ({place})' if place else ''}: {LIMITS[number]}")
        return MISUSE
    try:
        logger.exception("{} failed", what)
        kept = f"traceback in {error_log()}"
    except OSError as reason:
        kept = f"no traceback could be kept: {reason.strerror}"
    kind = "" if isinstance(error, EmulatorError) else f"{type(error).__name__}: "
    _say(f"our own fault, not yours: {kind}{error} ({kept})")
    return OWN_FAULT


def main() -> None:
    """The console script. A second Ctrl-C, while the first is being answered, changes nothing."""
    status = INCONCLUSIVE
    try:
        try:
            status = run()
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # The interpreter's own end is not to be disturbed.
    except KeyboardInterrupt:
        pass
    sys.exit(status)
