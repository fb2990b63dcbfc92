"""From one kernel function, plain Python, to LLVM: the language that kernel functions are written in.

Integers are 64 bits wide and wrap. Names hold integers or typed pointers; a name keeps the type of its first
assignment. There are `if`, `while`, `for .. in range(..)`, calls, struct fields and atomics. There are no exceptions,
strings (but for messages, which become numbers), containers or floats; anything else is refused with the line that has
it. Division and remainder floor, as in Python. A field access is always one load or store in memory: nothing is hoisted
or torn. Expressions are in expressions.py.

Emulator: replaces Numba's front end here; DECISIONS.md says why and by how much.
"""

import ast
import inspect
import textwrap
import types
from typing import Any

from llvmlite import ir

from concur_thp.arch import builtins as intrinsics
from concur_thp.arch.expressions import (
    BOOL,
    I64,
    INT,
    VOID,
    ArrayType,
    Expressions,
    RefType,
    TranslateError,
    Value,
    calls,
    type_name,
)


class Function(Expressions):
    """Emits the body of one kernel or inline function into an LLVM function of i64 arguments and result."""

    def __init__(self, unit: "Unit", source: Any, target: ir.Function):
        super().__init__(unit, source, target)
        self.loops: list[tuple[Any, Any]] = []

    def emit(self) -> None:
        for name, value in zip(self.source.parameters, self.target.args, strict=True):
            self._bind(name, Value(value, self.source.parameters[name]))
        self._say_where()
        self._block(self.source.tree.body)
        if not self.builder.block.is_terminated:
            self.builder.ret(I64(0))

    def _say_where(self) -> None:
        """Kernel functions leave their name in `cpu.func`, so that a report can say where a CPU is."""
        kind: Any = next(iter(self.source.parameters.values()), INT)
        if not self.source.inline and not self.source.quiet and kind is not INT and "func" in kind.FIELDS:
            address = self._offset(self.target.args[0], kind.FIELDS["func"].offset)
            self._store_word(address, I64(intrinsics.text_id(self.source.name)), 8, "monotonic")

    def _block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            if self.builder.block.is_terminated:
                return  # after return, break or continue
            self._hook(statement)
            handler = getattr(self, f"_{type(statement).__name__}", None)
            if handler is None:
                raise self._fail(statement, f"no {type(statement).__name__} in kernel functions")
            handler(statement)

    def _hook(self, statement: ast.stmt) -> None:
        """For the checked build: called before each statement."""

    def _Pass(self, node: ast.Pass) -> None:
        pass

    def _Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self._value(node.value)

    def _Return(self, node: ast.Return) -> None:
        self.builder.ret(self._int(node.value) if node.value is not None else I64(0))

    def _Assign(self, node: ast.Assign) -> None:
        if len(node.targets) != 1:
            raise self._fail(node, "one target for each assignment")
        self._store(node.targets[0], self._value(node.value))

    def _AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is None:
            raise self._fail(node, "a name needs a value")
        self._store(node.target, self._value(node.value))

    def _AugAssign(self, node: ast.AugAssign) -> None:
        if calls(node.target):
            raise self._fail(node, f"{ast.unparse(node.target)} would be evaluated twice: give it a name first")
        load = ast.parse(ast.unparse(node.target), mode="eval").body
        ast.copy_location(load, node)
        left, right = self._int(load), self._int(node.value)
        self._store(node.target, Value(self._binary(node.op, left, right, node), INT))

    def _If(self, node: ast.If) -> None:
        known = self._known(node.test)
        if known is not None:
            self._block(node.body if known else node.orelse)
            return
        then, after = self._new("then"), self._new("endif")
        otherwise = self._new("else") if node.orelse else after
        self.builder.cbranch(self._truth(node.test), then, otherwise)
        for block, body in ((then, node.body), (otherwise, node.orelse)):
            if block is not after:
                self.builder.position_at_end(block)
                self._block(body)
                self._jump(after)
        self.builder.position_at_end(after)

    def _While(self, node: ast.While) -> None:
        test, body, after = self._new("while"), self._new("body"), self._new("endwhile")
        self.builder.branch(test)
        self.builder.position_at_end(test)
        self.builder.cbranch(self._truth(node.test), body, after)
        self._loop(node, body, test, after)
        self.builder.position_at_end(after)

    def _For(self, node: ast.For) -> None:
        call = node.iter
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "range"):
            raise self._fail(node, "for goes over range(..)")
        if not isinstance(node.target, ast.Name):
            raise self._fail(node, "for takes one name")
        bounds = [self._int(a) for a in call.args]
        start, stop = (I64(0), bounds[0]) if len(bounds) == 1 else bounds[:2]
        step = self._known(call.args[2]) if len(bounds) == 3 else 1
        if not step:
            raise self._fail(node, "the step of range() must be known and not 0")
        counter = self._slot()
        self.builder.store(start, counter)
        test, body, advance, after = (self._new(n) for n in ("for", "body", "next", "endfor"))
        self.builder.branch(test)
        self.builder.position_at_end(test)
        now = self.builder.load(counter)
        self.builder.cbranch(self.builder.icmp_signed("<" if step > 0 else ">", now, stop), body, after)
        self.builder.position_at_end(body)
        self._bind(node.target.id, Value(now, INT), node)
        self._loop(node, body, advance, after)
        self.builder.position_at_end(advance)
        self.builder.store(self.builder.add(self.builder.load(counter), I64(step)), counter)
        self.builder.branch(test)
        self.builder.position_at_end(after)

    def _loop(self, node: Any, body: Any, again: Any, after: Any) -> None:
        if node.orelse:
            raise self._fail(node, "no else on loops")
        self.builder.position_at_end(body)
        self.loops.append((again, after))
        self._block(node.body)
        self.loops.pop()
        self._jump(again)

    def _Break(self, node: ast.Break) -> None:
        self.builder.branch(self.loops[-1][1])

    def _Continue(self, node: ast.Continue) -> None:
        self.builder.branch(self.loops[-1][0])

    def _bind(self, name: str, value: Value, node: ast.AST | None = None) -> None:
        kind = INT if value.type is BOOL else value.type
        if kind is VOID or isinstance(kind, (RefType, ArrayType)):
            raise self._fail(node or self.source.tree, f"{name}: a name holds an int or a struct pointer")
        llvm = self._widen(value)
        if name not in self.locals:
            self.locals[name] = (self._slot(), kind)
        slot, had = self.locals[name]
        if had is not kind and not self._null(llvm):
            raise self._fail(node or self.source.tree, f"{name} was {type_name(had)}, is now {type_name(kind)}")
        self.builder.store(llvm, slot)

    def _store(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self._bind(target.id, value, target)
            return
        if isinstance(target, ast.Attribute):
            pointer = self._value(target.value)
            field = self._field(pointer, target)
            if field.count:
                raise self._fail(target, f"{field.name} is an array: assign to an element")
            address = self._offset(pointer.llvm, field.offset)
        elif isinstance(target, ast.Subscript):
            array = self._value(target.value)
            if not isinstance(array.type, ArrayType):
                raise self._fail(target, "only array fields can be indexed and assigned")
            field = array.type.field
            address = self._element(array.llvm, self._int(target.slice), field.stride)
        else:
            raise self._fail(target, "cannot assign to this")
        if field.is_atomic or field.struct:
            raise self._fail(target, f"{field.name} is {field.guard}: use its methods")
        self._access("store", address, field)
        self._store_word(address, self._widen(value), field.width, "monotonic")


class Unit:
    """One LLVM module: a kernel function, and the inline functions it uses as internal, always inlined ones."""

    function_class = Function

    def __init__(self, source: Any, symbol: str):
        self.module = ir.Module(source.name)
        self.source, self.name = source, source.name
        self.inlined: dict[Any, ir.Function] = {}
        target = ir.Function(self.module, _signature(source), symbol)
        self.function_class(self, source, target).emit()

    def call(self, caller: Function, callee: Any, args: list[Any]) -> Value:
        """A call: to an inline function directly, to a kernel function through its slot."""
        if callee.inline:
            target = self.inlined.get(callee) or self._inline(callee)
        else:
            slot = caller.builder.load(intrinsics.word(caller.builder, callee.slot_symbol))
            target = caller.builder.inttoptr(slot, _signature(callee).as_pointer())
        return Value(caller.builder.call(target, args), callee.returns)

    def _inline(self, callee: Any) -> ir.Function:
        target = ir.Function(self.module, _signature(callee), f"inline.{callee.unique}")
        target.linkage = "internal"
        target.attributes.add("alwaysinline")
        self.inlined[callee] = target
        self.function_class(self, callee, target).emit()
        return target


def _signature(source: Any) -> ir.FunctionType:
    return ir.FunctionType(I64, [I64] * len(source.parameters))


def parse(function: types.FunctionType) -> ast.FunctionDef:
    """The syntax tree of one function, positions counted from its first line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    if not isinstance(tree, ast.FunctionDef):
        raise TranslateError(f"{function.__qualname__} is not a plain function")
    return tree
