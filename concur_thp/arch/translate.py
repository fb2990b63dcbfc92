"""From one kernel function, plain Python, to LLVM: the language that kernel functions are written in.

Integers are 64 bits wide and wrap. Names hold integers or typed pointers; a name keeps the type of its first assignment.
There are `if`, `while`, `for .. in range(..)`, calls, struct fields and atomics. There are no exceptions, strings (but for
messages, which become numbers), containers or floats; anything else is refused with the line that has it. Division
and remainder floor, as in Python. A field access is always one load or store in memory: nothing is hoisted or torn.

Emulator: replaces Numba's front end here; DECISIONS.md says why and by how much.
"""

import ast
import inspect
import types
from typing import Any

from llvmlite import ir

from concur_thp.arch import builtins as intrinsics
from concur_thp.arch.shared import SharedArray, SharedOne, Word
from concur_thp.arch.struct import Field, Struct
from concur_thp.config import Param
from concur_thp.errors import EmulatorError

I64, I1 = ir.IntType(64), ir.IntType(1)
INT, BOOL, VOID = "int", "bool", "void"
ORDER = {"load": "acquire", "read": "monotonic", "store": "release", "write": "monotonic"}
RMW = {"add": "add", "sub": "sub", "or_": "or", "and_": "and", "xchg": "xchg"}
PYTHON = {"int": int, "bool": bool, "min": min, "max": max}
COMPARE = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Is: "==",
           ast.IsNot: "!="}


class TranslateError(EmulatorError):
    """A kernel function uses something that kernel functions do not have."""


class RefType:
    """An atomic field: the value is its address."""

    def __init__(self, width: int):
        self.width = width


class ArrayType:
    """An array field: the value is the address of element 0."""

    def __init__(self, field: Field):
        self.field = field


class Value:
    """An LLVM value and what it means: INT, BOOL, VOID, a Struct class, RefType or ArrayType."""

    __slots__ = ("llvm", "type")

    def __init__(self, llvm: Any, type: Any):
        self.llvm, self.type = llvm, type


class Function:
    """Emits the body of one kernel or inline function into an LLVM function of i64 arguments and result."""

    def __init__(self, unit: "Unit", source: Any, target: ir.Function):
        self.unit, self.source, self.target = unit, source, target
        self.namespace = source.namespace
        self.builder = ir.IRBuilder(target.append_basic_block("entry"))
        self.locals: dict[str, tuple[Any, Any]] = {}
        self.loops: list[tuple[Any, Any]] = []

    # -- statements ---------------------------------------------------------------------------------------------

    def emit(self) -> None:
        for name, value in zip(self.source.parameters, self.target.args, strict=True):
            self._bind(name, Value(value, self.source.parameters[name]))
        self._say_where()
        self._block(self.source.tree.body)
        if not self.builder.block.is_terminated:
            self.builder.ret(I64(0))

    def _say_where(self) -> None:
        """Kernel functions leave their name in `cpu.func`, so that a report can say where a CPU is."""
        kind = next(iter(self.source.parameters.values()), INT)
        if not self.source.inline and kind is not INT and "func" in kind.FIELDS:
            address = self._offset(self.target.args[0], kind.FIELDS["func"].offset)
            self._store_word(address, I64(intrinsics.text_id(self.source.name)), 8, "monotonic")

    def _fail(self, node: ast.AST, message: str) -> TranslateError:
        line = self.source.first_line + getattr(node, "lineno", 1) - 1
        return TranslateError(f"{self.source.filename}:{line}: {self.source.name}: {message}")

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

    def _new(self, name: str) -> Any:
        return self.builder.append_basic_block(name)

    def _jump(self, block: Any) -> None:
        if not self.builder.block.is_terminated:
            self.builder.branch(block)

    def _slot(self) -> Any:
        with self.builder.goto_entry_block():
            return self.builder.alloca(I64)

    def _bind(self, name: str, value: Value, node: ast.AST | None = None) -> None:
        kind = INT if value.type is BOOL else value.type
        if kind is VOID or isinstance(kind, (RefType, ArrayType)):
            raise self._fail(node or self.source.tree, f"{name}: a name holds an int or a struct pointer")
        llvm = self._widen(value)
        if name not in self.locals:
            self.locals[name] = (self._slot(), kind)
        slot, had = self.locals[name]
        if had is not kind and not self._null(llvm):
            raise self._fail(node or self.source.tree, f"{name} was {_name(had)}, is now {_name(kind)}")
        self.builder.store(llvm, slot)

    @staticmethod
    def _null(llvm: Any) -> bool:
        return isinstance(llvm, ir.Constant) and llvm.constant == 0

    def _store(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self._bind(target.id, value, target)
            return
        if isinstance(target, ast.Attribute):
            pointer = self._value(target.value)
            field = self._field(pointer, target)
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
        self._store_word(address, self._widen(value), field.width, "monotonic")

    # -- expressions --------------------------------------------------------------------------------------------

    def _value(self, node: ast.expr) -> Value:
        handler = getattr(self, f"_x{type(node).__name__}", None)
        if handler is None:
            raise self._fail(node, f"no {type(node).__name__} in kernel functions")
        return handler(node)

    def _int(self, node: ast.expr) -> Any:
        return self._widen(self._value(node))

    def _widen(self, value: Value) -> Any:
        if value.type is VOID:
            return I64(0)
        return self.builder.zext(value.llvm, I64) if value.type is BOOL else value.llvm

    def _truth(self, node: ast.expr) -> Any:
        value = self._value(node)
        return value.llvm if value.type is BOOL else self.builder.icmp_signed("!=", self._widen(value), I64(0))

    def _known(self, node: ast.expr) -> int | None:
        """The value of an expression of constants and boot parameters alone, else None."""
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                if part.id in self.locals or not isinstance(self._global(part, None), (int, Param)):
                    return None
            elif isinstance(part, ast.Constant):
                if not isinstance(part.value, int):
                    return None
            elif not isinstance(part, (ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop,
                                       ast.expr_context)):
                return None
        return int(eval(compile(ast.Expression(node), "<constant>", "eval"), dict(self.namespace)))

    def _global(self, node: ast.Name, default: Any = ...) -> Any:
        if node.id in self.namespace:
            return self.namespace[node.id]
        if node.id in PYTHON:
            return PYTHON[node.id]
        if default is ...:
            raise self._fail(node, f"unknown name {node.id}")
        return default

    def _constant(self, node: ast.expr, thing: Any) -> Value:
        if isinstance(thing, (bool, int, Param)):
            return Value(I64(int(thing)), INT)
        if isinstance(thing, Word):
            return Value(self._value_of(thing), INT)
        if isinstance(thing, SharedOne):
            return Value(self._value_of(thing.array.base), thing.struct)
        raise self._fail(node, f"{ast.unparse(node)} is a {type(thing).__name__}, which kernel functions cannot use")

    def _value_of(self, word: Word) -> Any:
        load = self.builder.load(intrinsics.word(self.builder, word.symbol))
        # A process sets its words before it runs any kernel function.
        load.set_metadata("invariant.load", self.builder.module.add_metadata([]))
        return load

    def _xConstant(self, node: ast.Constant) -> Value:
        if node.value is None:
            return Value(I64(0), INT)
        if isinstance(node.value, str):
            return Value(I64(intrinsics.text_id(node.value)), INT)
        return self._constant(node, node.value)

    def _xName(self, node: ast.Name) -> Value:
        if node.id in self.locals:
            slot, kind = self.locals[node.id]
            return Value(self.builder.load(slot), kind)
        return self._constant(node, self._global(node))

    def _static(self, node: ast.expr) -> Any:
        """The Python object that a global name or a dotted path through modules and enums stands for, or None."""
        if isinstance(node, ast.Name):
            return None if node.id in self.locals else self._global(node, None)
        if isinstance(node, ast.Attribute):
            owner = self._static(node.value)
            if isinstance(owner, (types.ModuleType, type)) and not isinstance(owner, Struct):
                return getattr(owner, node.attr, None)
        return None

    def _field(self, pointer: Value, node: ast.Attribute) -> Field:
        if not (isinstance(pointer.type, type) and issubclass(pointer.type, Struct)):
            raise self._fail(node, f"{ast.unparse(node.value)} is {_name(pointer.type)}, it has no {node.attr}")
        field = pointer.type.FIELDS.get(node.attr)
        if field is None:
            raise self._fail(node, f"{pointer.type.__name__} has no field {node.attr}")
        return field

    def _offset(self, base: Any, offset: int) -> Any:
        return self.builder.add(base, I64(offset)) if offset else base

    def _element(self, base: Any, index: Any, stride: int) -> Any:
        return self.builder.add(base, self.builder.mul(index, I64(stride)))

    def _xAttribute(self, node: ast.Attribute) -> Value:
        static = self._static(node)
        if static is not None and not isinstance(static, Field):
            return self._constant(node, static)
        pointer = self._value(node.value)
        field = self._field(pointer, node)
        address = self._offset(pointer.llvm, field.offset)
        if field.count:
            return Value(address, ArrayType(field))
        return self._read(address, field)

    def _read(self, address: Any, field: Field) -> Value:
        if field.struct:
            return Value(address, field.struct)
        if field.is_atomic:
            return Value(address, RefType(field.width))
        return Value(self._load_word(address, field.width, "monotonic"), INT)

    def _xSubscript(self, node: ast.Subscript) -> Value:
        static = self._static(node.value)
        index = self._int(node.slice)
        if isinstance(static, SharedArray):
            return Value(self._element(self._value_of(static.base), index, static.stride), static.struct)
        array = self._value(node.value)
        if not isinstance(array.type, ArrayType):
            raise self._fail(node, f"{ast.unparse(node.value)} cannot be indexed")
        field = array.type.field
        return self._read(self._element(array.llvm, index, field.stride), field)

    def _word_pointer(self, address: Any, width: int) -> Any:
        return self.builder.inttoptr(address, ir.IntType(8 * width).as_pointer())

    def _load_word(self, address: Any, width: int, ordering: str) -> Any:
        value = self.builder.load_atomic(self._word_pointer(address, width), ordering, width)
        return value if width == 8 else self.builder.sext(value, I64)

    def _store_word(self, address: Any, value: Any, width: int, ordering: str) -> None:
        value = value if width == 8 else self.builder.trunc(value, ir.IntType(8 * width))
        self.builder.store_atomic(value, self._word_pointer(address, width), ordering, width)

    def _xUnaryOp(self, node: ast.UnaryOp) -> Value:
        if isinstance(node.op, ast.Not):
            return Value(self.builder.not_(self._truth(node.operand)), BOOL)
        value = self._int(node.operand)
        if isinstance(node.op, ast.USub):
            return Value(self.builder.neg(value), INT)
        if isinstance(node.op, ast.Invert):
            return Value(self.builder.not_(value), INT)
        return Value(value, INT)

    def _xBinOp(self, node: ast.BinOp) -> Value:
        known = self._known(node)
        if known is not None:
            return Value(I64(known), INT)
        return Value(self._binary(node.op, self._int(node.left), self._int(node.right), node), INT)

    def _binary(self, op: ast.operator, a: Any, b: Any, node: ast.AST) -> Any:
        build = self.builder
        simple = {ast.Add: build.add, ast.Sub: build.sub, ast.Mult: build.mul, ast.BitAnd: build.and_,
                  ast.BitOr: build.or_, ast.BitXor: build.xor, ast.LShift: build.shl, ast.RShift: build.ashr}
        if type(op) in simple:
            return simple[type(op)](a, b)
        if not isinstance(op, (ast.FloorDiv, ast.Mod)):
            raise self._fail(node, f"no {type(op).__name__} in kernel functions")
        # C truncates, Python floors: correct when the remainder is not zero and has not the divisor's sign.
        rest = build.srem(a, b)
        wrong = build.and_(build.icmp_signed("!=", rest, I64(0)), build.icmp_signed("<", build.xor(rest, b), I64(0)))
        if isinstance(op, ast.Mod):
            return build.add(rest, build.select(wrong, b, I64(0)))
        return build.sub(build.sdiv(a, b), build.zext(wrong, I64))

    def _xCompare(self, node: ast.Compare) -> Value:
        result = None
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, (ast.In, ast.NotIn)):
                one = self._member(left, right, isinstance(op, ast.NotIn))
            else:
                one = self.builder.icmp_signed(COMPARE[type(op)], self._int(left), self._int(right))
            result = one if result is None else self.builder.and_(result, one)
            left = right
        return Value(result, BOOL)

    def _member(self, left: ast.expr, right: ast.expr, negate: bool) -> Any:
        if not isinstance(right, ast.Tuple):
            raise self._fail(right, "`in` takes a tuple")
        value = self._int(left)
        found: Any = I1(0)
        for item in right.elts:
            found = self.builder.or_(found, self.builder.icmp_signed("==", value, self._int(item)))
        return self.builder.not_(found) if negate else found

    def _xBoolOp(self, node: ast.BoolOp) -> Value:
        stop_at = isinstance(node.op, ast.Or)
        after = self._new("decided")
        arms = []
        for part in node.values[:-1]:
            truth = self._truth(part)
            arms.append((self.builder.block, I1(int(stop_at))))
            more = self._new("more")
            self.builder.cbranch(truth, *((after, more) if stop_at else (more, after)))
            self.builder.position_at_end(more)
        last = self._truth(node.values[-1])
        arms.append((self.builder.block, last))
        self.builder.branch(after)
        self.builder.position_at_end(after)
        phi = self.builder.phi(I1)
        for block, value in arms:
            phi.add_incoming(value, block)
        return Value(phi, BOOL)

    def _xIfExp(self, node: ast.IfExp) -> Value:
        known = self._known(node.test)
        if known is not None:
            return self._value(node.body if known else node.orelse)
        then, otherwise, after = self._new("then"), self._new("else"), self._new("endif")
        self.builder.cbranch(self._truth(node.test), then, otherwise)
        arms = []
        for block, part in ((then, node.body), (otherwise, node.orelse)):
            self.builder.position_at_end(block)
            value = self._value(part)
            arms.append((self._widen(value), value.type, self.builder.block))
            self.builder.branch(after)
        self.builder.position_at_end(after)
        phi = self.builder.phi(I64)
        for llvm, _, block in arms:
            phi.add_incoming(llvm, block)
        kinds = [INT if kind is BOOL else kind for _, kind, _ in arms]
        return Value(phi, next((k for k in kinds if k is not INT), INT))

    # -- calls --------------------------------------------------------------------------------------------------

    def _xCall(self, node: ast.Call) -> Value:
        if node.keywords and not all(k.arg for k in node.keywords):
            raise self._fail(node, "no ** in kernel functions")
        callee = self._static(node.func)
        if callee is None and isinstance(node.func, ast.Attribute):
            return self._method(node, node.func)
        if callee in (int, bool):
            value = self._int(node.args[0])
            return Value(value, INT) if callee is int else Value(self.builder.icmp_signed("!=", value, I64(0)), BOOL)
        if callee in (min, max):
            a, b = (self._int(arg) for arg in node.args)
            sign = "<" if callee is min else ">"
            return Value(self.builder.select(self.builder.icmp_signed(sign, a, b), a, b), INT)
        if isinstance(callee, type) and issubclass(callee, Struct):
            return Value(self._int(node.args[0]), callee)
        if isinstance(callee, types.FunctionType) and callee in intrinsics.NATIVE:
            result = intrinsics.NATIVE[callee](self.builder, [self._int(a) for a in node.args])
            return Value(result, VOID if result is None else INT)
        if hasattr(callee, "parameters"):
            return self.unit.call(self, callee, self._arguments(node, callee))
        raise self._fail(node, f"{ast.unparse(node.func)} is not a kernel function")

    def _arguments(self, node: ast.Call, callee: Any) -> list[Any]:
        names = list(callee.parameters)
        given = dict(zip(names, node.args, strict=False))
        given |= {str(k.arg): k.value for k in node.keywords}
        if len(node.args) > len(names) or set(given) != set(names):
            raise self._fail(node, f"{callee.name} takes ({', '.join(names)})")
        values = []
        for name in names:
            value = self._value(given[name])
            want = callee.parameters[name]
            if want is not INT and value.type is not want and not self._null(value.llvm):
                raise self._fail(node, f"{callee.name}: {name} must be {_name(want)}, is {_name(value.type)}")
            values.append(self._widen(value))
        return values

    def _method(self, node: ast.Call, func: ast.Attribute) -> Value:
        array = self._static(func.value)
        if isinstance(array, SharedArray) and func.attr == "index":
            distance = self.builder.sub(self._int(node.args[0]), self._value_of(array.base))
            return Value(self.builder.sdiv(distance, I64(array.stride), flags=("exact",)), INT)
        ref = self._value(func.value)
        if not isinstance(ref.type, RefType):
            raise self._fail(node, f"{ast.unparse(func.value)} is not an atomic field")
        args = [self._int(a) for a in node.args]
        return self._atomic(node, func.attr, ref.llvm, ref.type.width, args)

    def _atomic(self, node: ast.AST, method: str, address: Any, width: int, args: list[Any]) -> Value:
        if method in ("load", "read"):
            return Value(self._load_word(address, width, ORDER[method]), INT)
        if method in ("store", "write"):
            self._store_word(address, args[0], width, ORDER[method])
            return Value(None, VOID)
        pointer = self._word_pointer(address, width)
        narrow = [a if width == 8 else self.builder.trunc(a, ir.IntType(8 * width)) for a in args]
        if method == "cas":
            pair = self.builder.cmpxchg(pointer, narrow[0], narrow[1], "seq_cst", "seq_cst")
            old = self.builder.extract_value(pair, 0)
        elif method in RMW:
            old = self.builder.atomic_rmw(RMW[method], pointer, narrow[0], "seq_cst")
        else:
            raise self._fail(node, f"an atomic field has no {method}()")
        return Value(old if width == 8 else self.builder.sext(old, I64), INT)


class Unit:
    """One LLVM module: a kernel function, and the inline functions it uses as internal, always inlined ones."""

    function_class = Function

    def __init__(self, source: Any, symbol: str):
        self.module = ir.Module(source.name)
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


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else kind if isinstance(kind, str) else type(kind).__name__


def parse(function: types.FunctionType) -> ast.FunctionDef:
    """The syntax tree of one function, positions counted from its first line."""
    import textwrap

    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    if not isinstance(tree, ast.FunctionDef):
        raise TranslateError(f"{function.__qualname__} is not a plain function")
    return tree
