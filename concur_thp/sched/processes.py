"""CPUs that are processes of their own, in controlled runs: a turn is handed over by a futex, all of them on one core.

A program in Python cannot be abandoned on a stack that somebody else then uses, so each has a process. hand_over(),
finish() and let_go() of control.py have these in their slots: the first two in the CPU processes, the last in the process
that coordinates. Whoever has not the turn sleeps; the coordinator is one more sleeper. When a run ends with every program
done, each process sleeps where its next run begins. After any other end they sleep somewhere inside, and are killed.
"""

import platform

from concur_thp.arch.builtins import syscall
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.futex import FUTEX_WAIT, FUTEX_WAKE, SYS_FUTEX, timespecs
from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, Struct, atomic, field
from concur_thp.config import NR_CPUS
from concur_thp.sched.control import count_steps, decide, finish, log_stretch
from concur_thp.sched.state import Reason, Status, Verdict, sched, sched_cpus

COORDINATOR = NR_CPUS
"""Its place in sched_turns."""
SYS_WAITID = 247 if platform.machine() == "x86_64" else 95
P_ALL, WNOHANG, WEXITED, WNOWAIT = 0, 1, 4, 0x01000000
MOST_NAPS = 500
"""Naps of 20 ms until a run that has not ended is given up: the longest takes milliseconds."""
DONE = int(Status.DONE)


class Turn(Struct, size=128):
    """Who may move."""

    word = atomic(I32, "futex: 1 when it is this one's turn")
    info = field(I32, "owner", "siginfo_t of a child that has ended; its first word is 0 when there is none", count=31)


sched_turns = SharedArray("sched_turns", Turn, lambda c: NR_CPUS + 1)


@inline
def give_turn(number: int):
    """Wake whoever's turn it is now."""
    turn = sched_turns[number]
    turn.word.store(1)
    syscall(SYS_FUTEX, int(turn), FUTEX_WAKE, 1, 0, 0, 0)


@kernel
@quiet
def take_turn(number: int):
    """Sleep until it is this one's turn.

    Context: a CPU process that has handed over. It is watched by the coordinator, and dies with it.
    Emulator: how a CPU stands still.
    """
    turn = sched_turns[number]
    while turn.word.load() == 0:
        syscall(SYS_FUTEX, int(turn), FUTEX_WAIT, 0, 0, 0, 0)
    turn.word.store(0)


@kernel
@quiet
def process_hand_over(cpu: Cpu, to: int):
    """hand_over() of a CPU process.

    Context: as hand_over().
    Emulator: a change of processes.
    """
    sched.current = to
    give_turn(to)
    take_turn(cpu.id)
    return 0


@kernel
@quiet
def process_finish(cpu: Cpu, verdict: int):
    """finish() of a CPU process. It comes back in its next run, if it is not killed before.

    Context: as finish().
    Emulator: the end of a controlled run.
    """
    sched.verdict = verdict
    log_stretch(cpu, Reason.END)
    give_turn(COORDINATOR)
    take_turn(cpu.id)


@kernel
@quiet
def process_let_go(to: int):
    """let_go() of the coordinator: who runs first moves, and this process sleeps until the run is over. It looks now and then
    whether a CPU process has died, and gives up when nothing comes.

    Context: as let_go().
    Emulator: the beginning and end of a controlled run.
    """
    sched.current = to
    main = sched_turns[COORDINATOR]
    main.word.store(0)
    give_turn(to)
    naps = 0
    while main.word.load() == 0:
        syscall(SYS_FUTEX, int(main), FUTEX_WAIT, 0, int(timespecs[0]), 0, 0)
        if main.word.load() == 0:
            naps += 1
            main.info[0] = 0
            syscall(SYS_WAITID, P_ALL, 0, int(main) + INFO, WEXITED | WNOHANG | WNOWAIT, 0, 0)
            if main.info[0] != 0:
                sched.verdict = Verdict.CRASHED
                return
            if naps > MOST_NAPS:
                sched.verdict = Verdict.HUNG
                return


INFO = Turn.FIELDS["info"].offset


@kernel
@quiet
def process_done(cpu: Cpu):
    """The program of this CPU process has returned. Comes back when the next run lets it move.

    Context: user mode.
    Emulator: the end of a program, and the beginning of its next run.
    """
    sched_cpus[cpu.id].status = DONE
    decide(cpu, Reason.DONE)


@kernel
@quiet
def process_raised(cpu: Cpu):
    """The program of this CPU process has raised an exception: the run is over.

    Context: user mode. Never returns: the process is killed.
    Emulator: a failed assertion.
    """
    count_steps(cpu)  # The last stretch is part of the story.
    finish(cpu, Verdict.RAISED)


__all__ = ["COORDINATOR", "process_done", "process_finish", "process_hand_over", "process_let_go", "process_raised",
           "sched_turns", "take_turn"]
