"""Play one scenario for a while: CPU processes that race round after round; every round is classified."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.system import system
from concur_thp.check.audit import audit
from concur_thp.check.views import Column, view
from concur_thp.config import MachineConfig, parse_size
from concur_thp.machine import Machine
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.vmstat import Stat
from concur_thp.program.rows import SETUP, load_programs, results
from concur_thp.program.spaces import init_spaces
from concur_thp.program.step import Program, parse_program
from stress.scenarios.arena import arena, arena_clear, arena_close, arena_empty, arena_join, arena_run
from stress.scenarios.scenario import Result, Scenario, Seen
from workers.launch import Crew, Role
from workers.launch import Outcome as CrewOutcome

MEMORY = {3: "4M", 9: "64M"}
SWAP = {3: "256K", 9: "8M"}
"""By order of the huge page."""
SWITCHES = {"k5_young_half": "0"}
"""For every scenario: half of the ptes need not be young for a collapse, which is only policy (K5)."""
AUDIT_SECONDS = 0.25
"""How often the machine is audited: with everything there, and again when everything is gone."""
BYSTANDER = ("enter 7; map {0}h 1h rw; advise {0}h 1h nohuge; store {0}h 1; store {0}h+1 2; protect {0}h 1 ro; load {0}h+1; "
             "unmap {0}h 1h")
"""What CPUs beyond the scenario's do, in an mm of their own, each in a block that is two from the next: in the way at
the machine's locks, of no outcome's concern."""
BYSTANDER_SETUP = "new 7"
CHAOS = (4, 6)
"""A delay at one point in 2**4, the rest of a time slice at one in 2**6: races are short, and want many."""


@dataclass
class Played:
    """What came of playing one scenario in one way (free or chaos)."""

    rounds: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    unlisted: list[str] = field(default_factory=list)
    """Results that no outcome allows, as text."""
    violations: list[str] = field(default_factory=list)
    crew: CrewOutcome = field(default_factory=CrewOutcome)

    @property
    def failed(self) -> bool:
        return bool(self.unlisted or self.violations) or self.crew.kind in ("bug", "crashed", "hung")


class Rounds:
    """The rows of a loaded scenario, read back after each round and classified."""

    def __init__(self, scenario: Scenario, programs: dict[int, Program]):
        self.scenario = scenario
        places = load_programs(programs)
        self.rows = max(place.stop for place in places.values())
        self.texts = {row: str(step) for number, program in programs.items()
                      for row, step in enumerate(program, places[number].start)}
        """What each row is, for reports."""
        self.labels: list[tuple[str, int]] = []
        self.silent: list[tuple[str, int]] = []
        for number, program in programs.items():
            for row, step in enumerate(program, places[number].start):
                if step.label:
                    self.labels.append((step.label, row))
                else:
                    self.silent.append((str(step), row))
        self.table: Column = results(self.rows)
        self.stats = [int(Stat[name]) for name in scenario.stats]
        self.delta: Column = view(arena)["delta"][0]
        self._known: dict[bytes, str | None] = {}

    def seen(self) -> Seen:
        """What came of the round that has just ended."""
        status, value = self.table["status"], self.table["value"]
        return Seen({label: Result(int(status[row]), int(value[row])) for label, row in self.labels},
                    tuple((text, int(status[row])) for text, row in self.silent if status[row]),
                    {name: int(self.delta[kind]) for name, kind in zip(self.scenario.stats, self.stats, strict=True)})

    def outcome(self) -> str | None:
        """Its name; None: no row allows it. Equal rounds are looked up."""
        key = self.table["status"].tobytes() + self.table["value"].tobytes() + self.delta[self.stats].tobytes()
        if key not in self._known:
            self._known[key] = self.scenario.classify(self.seen())
        return self._known[key]


def machine_config(scenario: Scenario, order: int, cpus: int, seed: int, *, controlled: bool = False) -> MachineConfig:
    """The smallest machine that does it: fast to audit, fast to restore."""
    memory = parse_size(MEMORY[order])
    return MachineConfig(cpus=cpus, memory=memory, kernelcore=memory // 2 if scenario.kernelcore else 0, order=order,
                         seed=seed, mms=16, vmas=256, files=8, file_pages=2048,
                         swap=parse_size(SWAP[order]) if scenario.swap else 0, controlled=controlled)


def prepare(scenario: Scenario, cpus: int, instead: Mapping[int, Program] | None = None) -> Rounds:
    """Load a scenario into the booted machine; CPUs beyond its own are bystanders. `instead`: programs in place of its own."""
    init_spaces()
    for name, value in {**SWITCHES, **scenario.switches}.items():
        set_switch(name, value)
    programs = {**scenario.programs, **(instead or {})}
    if cpus > len(scenario.cpus):
        programs[SETUP] = parse_program(BYSTANDER_SETUP) + programs[SETUP]
        for number in range(len(scenario.cpus), cpus):
            programs[number] = parse_program(BYSTANDER.format(2 * number))
    arena.parties, arena.actors = cpus, len(scenario.cpus)
    return Rounds(scenario, programs)


def play(machine: Machine, scenario: Scenario, seconds: float, cpus: int,
         tick: Callable[[], None] | None = None) -> Played:
    """Race for `seconds`, or until something is found. The machine is empty again afterwards, unless it panicked."""
    rounds = prepare(scenario, cpus)
    for word in (arena.arrived, arena.round, arena.over, system.stop):
        word.store(0)

    def first(machine: Machine, cpu: Cpu) -> dict[str, Any]:
        return _rounds(machine, cpu, rounds, seconds)

    def other(machine: Machine, cpu: Cpu) -> None:
        while arena_join(cpu):
            pass

    with Crew(machine, [Role(f"cpu{number}", number, other if number else first) for number in range(cpus)]) as crew:
        outcome = crew.watch(None, tick)
    played = Played(**outcome.results.get("cpu0") or {})
    played.crew = outcome
    return played


def _rounds(machine: Machine, cpu: Cpu, rounds: Rounds, seconds: float) -> dict[str, Any]:
    """The life of the first CPU."""
    began = time.monotonic()
    next_audit = began
    outcomes: Counter[str] = Counter()
    unlisted: list[str] = []
    violations: list[str] = []
    done = 0
    while not unlisted and not violations:
        now = time.monotonic()
        last = now >= began + seconds or bool(system.stop.load())
        arena_run(cpu)
        done += 1
        outcome = rounds.outcome()
        if outcome is None:
            unlisted.append(str(rounds.seen()))
        else:
            outcomes[outcome] += 1
        if audited := now >= next_audit or last or outcome is None:
            violations += map(str, audit(machine.config).violations)
        arena_clear(cpu)
        if audited:
            arena_empty(cpu)
            violations += map(str, audit(machine.config, expect_empty=True).violations)
            next_audit = time.monotonic() + AUDIT_SECONDS
        if last:
            break
    arena_close(cpu)
    return {"rounds": done, "seconds": time.monotonic() - began, "outcomes": outcomes, "unlisted": unlisted,
            "violations": violations}


__all__ = ["CHAOS", "Played", "Rounds", "machine_config", "play", "prepare"]
