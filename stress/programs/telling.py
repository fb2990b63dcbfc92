"""Telling a run of programs in Python: as stress/exploring/telling.py, and the user's own kernel functions are told too."""

from concur_thp.arch.linker import Kernel
from concur_thp.program.declared import OWN
from concur_thp.trace.places import Namer
from concur_thp.trace.story import Story, read_story
from stress.exploring.job import Schedule
from stress.exploring.telling import Teller
from stress.programs.cell import ProgramCell


class ProgramTeller(Teller):
    """Tells runs of one cell that has run nothing yet."""

    def __init__(self, cell: ProgramCell):
        self.job, self.variant, self.traced, self.cell = cell.job, None, None, cell
        self.namer = Namer(cell.machine.config)

    def tell(self, schedule: Schedule) -> Story:
        """What happens in a schedule."""
        self.namer.look()
        visited = self._visit(schedule)
        own = [k for k in Kernel.all if not k.unique.startswith(OWN)]
        with self._trace([*visited, *own]):
            self._step(schedule)
        return read_story(self.cell.machine.config, self.namer)


__all__ = ["ProgramTeller"]
