"""`concur-thp stress`: real processes fault, fork and unmap on one machine, by a mix or by recordings; all of it audited."""

import sys
import time
from pathlib import Path
from typing import Any

from concur_thp.arch import native
from concur_thp.arch.system import system
from concur_thp.check.audit import AuditResult, audit
from concur_thp.config import MachineConfig, Param, size_text
from concur_thp.errors import EmulatorError, Misuse
from concur_thp.machine import Machine
from concur_thp.mm.huge_zero import shrink_huge_zero_page
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.swap_state import drop_swap_cache
from concur_thp.mm.thp_sysfs import set_switch, switch_value
from concur_thp.mm.truncate import drop_caches
from concur_thp.output import compile_progress, console, write_json, write_text
from stress.clues import Clue
from stress.kept import keep, search
from stress.mix.failure import mix_unpoison_all
from stress.mix.load import load_mix, mix_body, unload_mix
from stress.mix.table import parse_mix
from stress.options import StressOptions
from stress.progress import Progress
from stress.replay import (
    Replay,
    end_pass,
    load_programs,
    load_recordings,
    needed_memory,
    replay_body,
    start_pass,
)
from stress.rundir import log_in, make_run_dir
from stress.summary import closing_table, summary
from workers.kcompactd import kcompactd
from workers.khugepaged import khugepaged, khugepaged_wakeup
from workers.kswapd import kswapd
from workers.launch import Crew, Outcome, Role
from workers.scanner import scanner

EXIT = {"done": 0, "bug": 1, "crashed": 1, "killed": 4, "hung": 1, "broken": 3, "interrupted": 4}
"""Exit status by Outcome.kind, when the audit is clean."""
MIX_SLEEP_MS = 10
"""khugepaged's sleep under a mix: it should race, not rest."""
MIX_MEMORY = 256 << 20
DAEMONS = {"khugepaged": khugepaged, "kswapd": kswapd, "kcompactd": kcompactd, "scanner": scanner}
"""Kernel threads, and the scanner of physical memory; each has a CPU of its own behind those of the programs."""
HEADROOM = 1.25
"""More memory than the plan's estimate, for zones, watermarks and per-CPU lists."""


class StressRun:
    """One run from its options to its summary."""

    def __init__(self, options: StressOptions, machine: Machine, replays: list[Replay], weights: dict[str, int]):
        self.options, self.machine, self.replays, self.weights = options, machine, replays, weights
        self.outcome = Outcome()
        self.audit = AuditResult(0, [])
        self.seconds = 0.0
        self.passes = 0
        self.out = console(options.quiet)

    def run(self) -> None:
        """Everything between boot and summary."""
        started = time.monotonic()
        with Progress(self.out, "replay" if self.replays else "mix") as progress:
            if self.replays:
                self._replay(progress, started + self.options.seconds)
            else:
                load_mix(self.machine, self.weights)
                self._crew(mix_body, self.options.seconds, progress)
        self.seconds = time.monotonic() - started
        if self.outcome.kind == "done":
            self._audit(expect_empty=False)
        if self.outcome.kind == "done" and not self.audit.violations:
            self._tear_down()

    def _crew(self, body: Any, seconds: float | None, progress: Progress) -> None:
        system.stop.store(0)
        roles = [Role(f"cpu{n}", n, body) for n in range(self.options.cpus)]
        for number, (name, daemon) in enumerate(DAEMONS.items(), self.options.cpus):
            if name != "khugepaged" or self.options.khugepaged:
                roles.append(Role(name, number, daemon, essential=False))
        with Crew(self.machine, roles) as crew:
            self.outcome = crew.watch(seconds, progress.tick)

    def _replay(self, progress: Progress, deadline: float) -> None:
        """Pass after pass until the time is up; every pass ends with all mms gone and an audit."""
        load_programs(self.machine, self.replays)
        while self.outcome.kind == "done" and not self.audit.violations:
            start_pass(self.replays)
            self._crew(replay_body, None, progress)
            if self.outcome.kind != "done":
                break
            if not end_pass(self.replays):
                raise EmulatorError("a replayed task did not finish though its CPU processes did")
            self.passes += 1
            if time.monotonic() >= deadline:
                break
            self._audit(expect_empty=False)

    def _audit(self, expect_empty: bool) -> None:
        result = audit(self.machine.config, expect_empty=expect_empty)
        self.audit = AuditResult(self.audit.checks + result.checks, [*self.audit.violations, *result.violations])

    def _tear_down(self) -> None:
        """Every program ends, caches are dropped: then nothing may be left (Q20)."""
        cpu = self.machine.cpu(0)
        if not self.replays:
            unload_mix(self.machine)
        khugepaged_wakeup(cpu)  # Its cursor may still hold an mm that has ended.
        drop_swap_cache(cpu)
        mix_unpoison_all(cpu)  # What it cannot give back the audit finds.
        drop_caches(cpu)
        shrink_huge_zero_page(cpu)
        for number in range(self.machine.config.cpus):
            lru_add_drain(self.machine.cpu(number))
            drain_pcp(self.machine.cpu(number))
        self._audit(expect_empty=True)

    @property
    def exit_status(self) -> int:
        return EXIT[self.outcome.kind] or (1 if self.audit.violations else 0)


def machine_config(options: StressOptions, replays: list[Replay]) -> MachineConfig:
    """How big the machine has to be; too small for the recording is said before anything is booted."""
    memory = options.memory
    if replays:
        needed = int(needed_memory(replays) * HEADROOM) + (32 << 20)
        needed = -(-needed >> 20) << 20
        if memory is None:
            memory = max(needed, MIX_MEMORY)
        elif memory < needed:
            raise Misuse(f"--memory {size_text(memory)} is too small for {', '.join(r.name for r in replays)}: "
                         f"pass at least {size_text(needed)}, or leave it out")
    tasks = sum(len(replay.plan.tasks) for replay in replays)
    files = sum(replay.plan.files for replay in replays)
    return MachineConfig(cpus=options.cpus + len(DAEMONS), memory=memory or MIX_MEMORY, order=options.order,
                         swap=options.swap, seed=options.seed,
                         rows=sum(replay.rows for replay in replays), tasks=tasks, files=max(1024, files + 64),
                         mms=max(64, 2 * tasks + 8))


def run_stress(options: StressOptions) -> int:
    """Run, report, return the exit status."""
    weights = parse_mix(options.mix)
    if options.recordings and options.order != 9:
        raise Misuse(f"--order {options.order}: recordings have x86-64's addresses and need --order 9")
    Param.order = options.order
    switches = [(name, value) for name, _, value in (switch.partition("=") for switch in options.switches)]
    for name, value in switches:  # Wrong ones are said before anything is compiled.
        switch_value(name, value)
    replays = load_recordings(options.recordings)
    config = machine_config(options, replays)
    out = console(options.quiet)
    build = native.CHECKED if options.checked else native.PLAIN
    with compile_progress(out) as progress, Machine(config, build=build, progress=progress) as machine:
        progress.finish()
        set_switch("enabled", options.enabled)
        if not replays:
            set_switch("khugepaged/scan_sleep_millisecs", MIX_SLEEP_MS)
            set_switch("khugepaged/alloc_sleep_millisecs", MIX_SLEEP_MS)
            set_switch("defrag", "defer+madvise")  # Both ways: kcompactd, and direct compaction.
            set_switch("k5_young_half", 0)  # Only policy (K5), and with it nearly nothing is collapsed.
        for name, value in switches:
            set_switch(name, value)
        machine.listen_checks()
        if options.chaos:
            machine.listen_chaos()
        run_dir = make_run_dir(Path(options.run_dir), replays[0].name if replays else "mix")
        with log_in(run_dir):
            run = StressRun(options, machine, replays, weights)
            run.run()
            data, clue = _finish(run, run_dir)
    if clue is not None and options.reproduce:  # On machines of its own, so not before this one is gone.
        search(clue, options, run_dir, data)
        write_json(str(run_dir / "summary.json"), data)
    write_json(options.json, data)
    return run.exit_status


def _finish(run: StressRun, run_dir: Path) -> tuple[dict[str, Any], Clue | None]:
    """Say how it went while the machine is still there; a failure leaves a clue."""
    data = summary(run, run_dir)
    write_json(str(run_dir / "summary.json"), data)
    if run.outcome.report:
        write_text(run_dir / "report.txt", run.outcome.report)
    if not run.options.quiet:
        closing_table(run.out, run, data)
    lines = failure_lines(run)
    for line in lines:
        print(line, file=sys.stderr)
    if run.exit_status != 1:
        return data, None
    symptom = data["violations"][0]["symptom"] if data["violations"] else run.outcome.what
    return data, keep(run.machine.config, run_dir, symptom, "\n".join(lines), again(run.options))


def failure_lines(run: StressRun) -> list[str]:
    """What went wrong, for standard error."""
    lines = [run.outcome.what] if run.outcome.kind not in ("done",) else []
    if run.outcome.report:
        lines.append(run.outcome.report)
    lines += [f"audit: {violation}" for violation in run.audit.violations]
    if lines:
        lines.append(f"again: {again(run.options)}")
    return lines


def again(options: StressOptions) -> str:
    """The command that repeats a run. (Free runs repeat their choices, not their timing.)"""
    words = ["concur-thp stress", *options.recordings, f"--seconds {options.seconds:g}", f"--cpus {options.cpus}",
             f"--seed {options.seed}", f"--order {options.order}", f"--enabled {options.enabled}"]
    if options.memory:
        words.append(f"--memory {size_text(options.memory)}")
    if options.swap:
        words.append(f"--swap {size_text(options.swap)}")
    if options.mix:
        words.append(f"--mix '{options.mix}'")
    words += [f"--switch {switch}" for switch in options.switches]
    words += [f"--{name}" for name in ("chaos", "checked") if getattr(options, name)]
    return " ".join(words)

