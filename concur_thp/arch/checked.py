"""The checked build: the same source, with a point before each statement that touches shared memory.

    site = this statement; budget -= 1; when nothing is left: sched_point()

A scheduler writes into `cpu.budget` how many points a CPU may pass before it asks again, so that a point that decides
nothing costs a subtraction. Every write also marks its place in the dirty map, from which a snapshot is restored
(sched/snapshot.py). The traced build says each access to `access_hook()` as well.

Points stand in the kernel's own code (mm) and in what users write. Locks, CPUs and checks have none inside: there a CPU
stops at the named points only, which say `point()`. The scheduler itself is never instrumented.
"""

import ast
import ctypes
import functools
import mmap
from typing import Any, NamedTuple

from llvmlite import ir

from concur_thp.arch import builtins as intrinsics
from concur_thp.arch.expressions import I64
from concur_thp.arch.guard_words import excused, message, read_guard
from concur_thp.arch.guards import guard_broken, guard_writer
from concur_thp.arch.linker import Kernel, Source, kernel, quiet
from concur_thp.arch.shared import Word
from concur_thp.arch.struct import Field
from concur_thp.arch.translate import Function, Unit

GRANULE_SHIFT = 8
"""A byte of the dirty map stands for 256 bytes of the segment."""
DIRTY = Word("dirty.map")
"""Address of the dirty map, less the segment's address >> GRANULE_SHIFT."""
MAP = Word("dirty.start")
"""Address of the dirty map: a byte for each granule, 1 when it was written."""
NONE, WRITES, POINTS = 0, 1, 2
"""How much of a function is instrumented."""
_UNTOUCHED = ("concur_thp.sched.", "stress.bench.")
"""No points and no marks: who runs the machine, and who also writes to memory of the computer's own, which no map covers."""
_WRITES_ONLY = ("concur_thp.arch.", "concur_thp.sync.", "concur_thp.check.", "concur_thp.program.", "workers.", "stress.")
_READS = ("load", "read")
RACY, QUIET, FENCE = 32, 64, 128
"""Added to the kind of an access: its guard lets readers race; it is not the kernel's own; it is a fence, width says which."""
FENCES = {intrinsics.smp_mb: 1, intrinsics.smp_wmb: 2, intrinsics.smp_rmb: 3}
KIND = {"load": 0, "read": 1, "store": 2, "write": 3, "cas": 4, "xchg": 5, "add": 6, "sub": 7, "or_": 8, "and_": 9}
"""How access_hook() is told the kind of an access; + 16 when the field is atomic."""
UNASKED, FOR_DPOR = 256, 512
"""Added too: nobody asks what was there before; not an access of the kind that others than DPOR want to hear of."""
TRANSLATIONS = ("tag", "entry", "context", "generation")
"""Fields of a CPU's own that the traced build says too: an IPI changes them, at another's wish."""
COMMUTING = ("add", "sub", "or_", "and_")


@kernel
@quiet
def access_hook(cpu: int, address: int, width: int, kind: int, site: int):
    """Nothing, until somebody listens to each access of the traced build.

    Context: before the access, anywhere.
    Emulator: where race detection and DPOR hear of accesses.
    """


@kernel
@quiet
def statement_hook(cpu: int, site: int, func: int):
    """Nothing, until somebody listens to each statement of the traced build.

    Context: before the statement, and before its point.
    Emulator: where charts hear of what a CPU goes through on its way.
    """


def level(source: Source) -> int:
    """How much of this function is instrumented."""
    if source.unique.startswith(_UNTOUCHED) or source in (access_hook, statement_hook):
        return NONE
    return WRITES if source.unique.startswith(_WRITES_ONLY) else POINTS


def site_id(source: Source, statement: ast.stmt) -> int:
    """The number of a statement, the same in every process."""
    return intrinsics.text_id(f"{source.unique}:{statement.lineno}:{statement.col_offset}")


class CheckedFunction(Function):
    """A function with its points and dirty marks."""

    traced = False

    def __init__(self, unit: Unit, source: Any, target: ir.Function):
        super().__init__(unit, source, target)
        self.level = min(level(source), level(unit.source))
        self.statement: ast.stmt | None = None
        self.pending = False

    def _hook(self, statement: ast.stmt) -> None:
        self.statement, self.pending = statement, self.level == POINTS
        if self._is_point(statement) and level(self.unit.source) != NONE:
            self._point()

    @staticmethod
    def _is_point(statement: ast.stmt) -> bool:
        call = statement.value if isinstance(statement, ast.Expr) else None
        return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "point"

    def _access(self, kind: str, address: Any, field: Field) -> None:
        if self.level == POINTS and self._shared(kind, field) and (self.pending or kind not in _READS):
            self._point()
        if self.level == POINTS:
            self._guard(kind, field)
        if self.level != NONE and kind not in _READS:
            self._mark(address)
        translation = field.guard == "cpu" and field.name in TRANSLATIONS
        if self.traced and self.level != NONE and (translation or field.guard not in ("const", "cpu")):
            code = KIND[kind] + (16 if field.is_atomic else 0) + (0 if self.level == POINTS else QUIET)
            code += (UNASKED if self._result_unused(kind) else 0) + (FOR_DPOR if translation else 0)
            self._say(address, field.width, code + (RACY if read_guard(field.guard).racy else 0))

    def _say(self, address: Any, width: int, code: int) -> None:
        """Tell access_hook()."""
        self._call(access_hook, [self._cpu(), address, I64(width), I64(code), I64(self._site())])

    def _guard(self, kind: str, field: Field) -> None:
        """Emit the question whether this CPU holds what the field's guard names; see arch/guards.py."""
        guard, writes = read_guard(field.guard), kind not in _READS
        if field.is_atomic or (guard.racy and not writes) or excused(field, self.source.name, self.unit.source.name):
            return
        where = [I64(intrinsics.text_id(message(field, writes))), I64(self._site()), I64(intrinsics.text_id(self.source.name))]
        if guard.const and writes:
            self._call(guard_broken, [self._cpu(), *where])
        for mask in guard.masks if writes else (guard.read,) * bool(guard.read):
            if writes and mask in guard.sleeping:
                self._call(guard_writer, [self._cpu(), I64(mask), *where])
            else:
                self._guard_mask(mask, where)

    def _guard_mask(self, mask: int, where: list[Any]) -> None:
        from concur_thp.arch.cpu import Cpu

        cpu = self._cpu()
        held = self._load_word(self._offset(cpu, Cpu.FIELDS["held_mask"].offset), 8, "monotonic")
        broken, after = self._new("broken"), self._new("guarded")
        missing = self.builder.icmp_signed("==", self.builder.and_(held, I64(mask)), I64(0))
        self.builder.cbranch(missing, broken, after).set_weights([1, 2000])
        self.builder.position_at_end(broken)
        self._call(guard_broken, [cpu, *where])
        self.builder.branch(after)
        self.builder.position_at_end(after)

    def _result_unused(self, kind: str) -> bool:
        """Is this access a statement of its own, such as `mm.nr_ptes.sub(1)`?"""
        call = self.statement.value if isinstance(self.statement, ast.Expr) else None
        if kind not in COMMUTING or not isinstance(call, ast.Call):
            return False
        calls = [node.func for node in ast.walk(call) if isinstance(node, ast.Call)]
        names = [callee.attr if isinstance(callee, ast.Attribute) else "" for callee in calls]
        return names.count(kind) == 1 and names[0] == kind

    @staticmethod
    def _shared(kind: str, field: Field) -> bool:
        """Could another CPU notice when this access happens? A field that is set before publication is only read then."""
        return field.guard not in ("const", "cpu") and not (field.guard.startswith("init") and kind == "load")

    def _bulk(self, callee: Any, args: list[Any]) -> None:
        if self.traced and callee in FENCES:
            self._say(I64(0), FENCES[callee], FENCE)
        if self.level != NONE and callee in (intrinsics.clear_bytes, intrinsics.copy_bytes):
            if self.level == POINTS:
                self._point()
            size = args[1] if callee is intrinsics.clear_bytes else args[2]
            self._call(mark_range, [args[0], size])
            if self.traced:
                site = I64(self._site())
                if callee is intrinsics.copy_bytes:
                    self._call(access_hook, [self._cpu(), args[1], size, I64(KIND["load"] + FOR_DPOR), site])
                self._call(access_hook, [self._cpu(), args[0], size, I64(KIND["store"] + FOR_DPOR), site])

    def _call(self, callee: Kernel, args: list[Any]) -> None:
        self.unit.call(self, callee, args)

    def _site(self) -> int:
        return site_id(self.source, self.statement) if self.statement else 0

    def _cpu(self) -> Any:
        kind: Any = next(iter(self.source.parameters.values()), None)
        if hasattr(kind, "FIELDS") and "budget" in kind.FIELDS:
            return self.target.args[0]
        return self.builder.load(intrinsics.word(self.builder, intrinsics.CURRENT.symbol))

    def _point(self) -> None:
        """Emit one point; see the module's text."""
        from concur_thp.arch.cpu import Cpu
        from concur_thp.arch.listen import sched_point

        self.pending = False
        cpu = self._cpu()
        self._store_word(self._offset(cpu, Cpu.FIELDS["site"].offset), I64(self._site()), 8, "monotonic")
        budget = self._offset(cpu, Cpu.FIELDS["budget"].offset)
        left = self.builder.sub(self._load_word(budget, 8, "monotonic"), I64(1))
        self._store_word(budget, left, 8, "monotonic")
        ask, after = self._new("ask"), self._new("go")
        branch = self.builder.cbranch(self.builder.icmp_signed("<=", left, I64(0)), ask, after)
        branch.set_weights([1, 2000])
        self.builder.position_at_end(ask)
        self._call(sched_point, [cpu])
        self.builder.branch(after)
        self.builder.position_at_end(after)

    def _mark(self, address: Any) -> None:
        base = self.builder.load(intrinsics.word(self.builder, DIRTY.symbol))
        base.set_metadata("invariant.load", self.builder.module.add_metadata([]))
        place = self.builder.add(base, self.builder.lshr(address, I64(GRANULE_SHIFT)))
        self.builder.store(ir.Constant(ir.IntType(8), 1), self.builder.inttoptr(place, ir.IntType(8).as_pointer()))


class CheckedUnit(Unit):
    """The checked build of one kernel function."""

    function_class = CheckedFunction


class TracedFunction(CheckedFunction):
    """Checked, and says every statement of kernel code and every access."""

    traced = True

    def _hook(self, statement: ast.stmt) -> None:
        docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if level(self.unit.source) != NONE and level(self.source) == POINTS and not docstring:
            function = I64(intrinsics.text_id(self.unit.source.name))
            self._call(statement_hook, [self._cpu(), I64(site_id(self.source, statement)), function])
        super()._hook(statement)

    def _bulk(self, callee: Any, args: list[Any]) -> None:
        super()._bulk(callee, args)
        if self.level != NONE and callee in (intrinsics.clear_bytes, intrinsics.copy_bytes):
            size = args[1] if callee is intrinsics.clear_bytes else args[2]
            self._call(access_hook, [self._cpu(), args[0], size, I64(KIND["write"]), I64(self._site())])
            if callee is intrinsics.copy_bytes:
                self._call(access_hook, [self._cpu(), args[1], size, I64(KIND["read"]), I64(self._site())])


class TracedUnit(Unit):
    """The traced build of one kernel function."""

    function_class = TracedFunction


@kernel
@quiet
def mark_range(address: int, size: int):
    """Mark what a bulk write touches in the dirty map.

    Context: any.
    Emulator: the dirty map's half of clear_bytes() and copy_bytes().
    """
    granule = address >> GRANULE_SHIFT
    while granule <= (address + size - 1) >> GRANULE_SHIFT:
        mark_granule(granule)
        granule += 1


def mark_granule(granule: int) -> None:
    """Mark one granule, counted from address 0. (Nobody restores what plain Python wrote.)"""


@functools.partial(intrinsics.NATIVE.__setitem__, mark_granule)
def _mark_granule(b: Any, args: list[Any]) -> None:
    place = b.add(b.load(intrinsics.word(b, DIRTY.symbol)), args[0])
    b.store(ir.Constant(ir.IntType(8), 1), b.inttoptr(place, ir.IntType(8).as_pointer()))


def map_dirty(base: int, size: int) -> None:
    """A dirty map for a segment, this process's own, until the next one: the code that is linked may be checked, whatever build
    the machine is of (a machine without native code links nothing), and a mark where no map is hits what lies there."""
    memory = mmap.mmap(-1, (size >> GRANULE_SHIFT) + 8)
    MAP.set(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    DIRTY.set(int(MAP) - (base >> GRANULE_SHIFT))
    _map[:] = [memory]


_map: list[mmap.mmap] = []
"""The newest: it outlives its machine."""


class Site(NamedTuple):
    """A statement where a CPU may stand."""

    function: str
    file: str
    line: int
    text: str


@functools.cache
def _sites_of(count: int) -> dict[int, Site]:
    found = {}
    for source in Source.every[:count]:
        if level(source) == NONE:
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.stmt):
                text = ast.unparse(node).partition("\n")[0]
                found[site_id(source, node)] = Site(source.name, source.filename, source.first_line + node.lineno - 1, text)
    return found


def sites() -> dict[int, Site]:
    """Number of each statement of kernel code -> where it is."""
    return _sites_of(len(Source.every))


__all__ = ["DIRTY", "GRANULE_SHIFT", "MAP", "CheckedUnit", "Site", "TracedUnit", "access_hook", "level", "map_dirty", "sites",
           "statement_hook"]
