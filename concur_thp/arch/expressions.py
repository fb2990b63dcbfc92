"""Expressions of the kernel language: from a Python expression to LLVM values. See translate.py for the language."""

import ast
import types
from typing import Any

from llvmlite import ir

from concur_thp.arch import builtins as intrinsics
from concur_thp.arch.shared import SharedArray, SharedOne, Word
from concur_thp.arch.struct import Field, Struct, signed
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

    def __init__(self, field: Field):
        self.field, self.width = field, field.width


class ArrayType:
    """An array field: the value is the address of element 0."""

    def __init__(self, field: Field):
        self.field = field


class Value:
    """An LLVM value and what it means: INT, BOOL, VOID, a Struct class, RefType or ArrayType."""

    __slots__ = ("llvm", "type")

    def __init__(self, llvm: Any, type: Any):
        self.llvm, self.type = llvm, type


class Expressions:
    """What expressions need of the function they stand in, and how each kind is emitted."""

    def __init__(self, unit: Any, source: Any, target: ir.Function):
        self.unit, self.source, self.target = unit, source, target
        self.namespace = source.namespace
        self.builder = ir.IRBuilder(target.append_basic_block("entry"))
        self.locals: dict[str, tuple[Any, Any]] = {}

    def _fail(self, node: ast.AST, message: str) -> TranslateError:
        line = self.source.first_line + getattr(node, "lineno", 1) - 1
        return TranslateError(f"{self.source.filename}:{line}: {self.source.name}: {message}")

    def _new(self, name: str) -> Any:
        return self.builder.append_basic_block(name)

    def _jump(self, block: Any) -> None:
        if not self.builder.block.is_terminated:
            self.builder.branch(block)

    def _slot(self) -> Any:
        """Room for a local; 0 until it is assigned, on whatever path."""
        with self.builder.goto_entry_block():
            slot = self.builder.alloca(I64)
            self.builder.store(I64(0), slot)
            return slot

    @staticmethod
    def _null(llvm: Any) -> bool:
        return isinstance(llvm, ir.Constant) and llvm.constant == 0

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
        if isinstance(node, ast.BoolOp):
            return self._decide(node)
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
            return Value(I64(signed(int(thing))), INT)
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
        if node.id == "__func__":  # As in C: the function this code is compiled into.
            return Value(I64(intrinsics.text_id(self.unit.name)), INT)
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
            raise self._fail(node, f"{ast.unparse(node.value)} is {type_name(pointer.type)}, it has no {node.attr}")
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
            return Value(address, RefType(field))
        self._access("load", address, field)
        return Value(self._load_word(address, field.width, "monotonic"), INT)

    def _access(self, kind: str, address: Any, field: Field) -> None:
        """For the checked build: called before each access. `kind` is load, store or an atomic method's name."""

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
            return Value(I64(signed(known)), INT)
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
        if any(calls(later) for later in node.comparators[1:]):
            raise self._fail(node, "no call behind the first comparison of a chain: write `and`")
        result = None
        left = self._int(node.left)
        for op, operand in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, (ast.In, ast.NotIn)):
                one = right = self._member(left, operand, isinstance(op, ast.NotIn))
            else:
                right = self._int(operand)
                one = self.builder.icmp_signed(COMPARE[type(op)], left, right)
            result = one if result is None else self.builder.and_(result, one)
            left = right
        return Value(result, BOOL)

    def _member(self, value: Any, right: ast.expr, negate: bool) -> Any:
        if not isinstance(right, ast.Tuple):
            raise self._fail(right, "`in` takes a tuple")
        found: Any = I1(0)
        for item in right.elts:
            found = self.builder.or_(found, self.builder.icmp_signed("==", value, self._int(item)))
        return self.builder.not_(found) if negate else found

    def _xBoolOp(self, node: ast.BoolOp) -> Value:
        """As a value: the operand that decided, as in Python."""
        parts = [(self._new("operand"), part) for part in node.values]
        after = self._new("decided")
        arms = []
        self.builder.branch(parts[0][0])
        for number, (block, part) in enumerate(parts):
            self.builder.position_at_end(block)
            value = self._value(part)
            llvm = self._widen(value)
            arms.append((llvm, value.type, self.builder.block))
            if number + 1 == len(parts):
                self.builder.branch(after)
                break
            truth = value.llvm if value.type is BOOL else self.builder.icmp_signed("!=", llvm, I64(0))
            more = parts[number + 1][0]
            self.builder.cbranch(truth, *((after, more) if isinstance(node.op, ast.Or) else (more, after)))
        self.builder.position_at_end(after)
        return self._merge(arms)

    def _merge(self, arms: list[tuple[Any, Any, Any]]) -> Value:
        """The value of whichever (value, type, block) control came from."""
        phi = self.builder.phi(I64)
        for llvm, _, block in arms:
            phi.add_incoming(llvm, block)
        kinds = {INT if kind in (BOOL, VOID) else kind for llvm, kind, _ in arms if not self._null(llvm)}
        return Value(phi, kinds.pop() if len(kinds) == 1 else INT)

    def _decide(self, node: ast.BoolOp) -> Any:
        """As a condition: one bit."""
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
        return phi

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
        return self._merge(arms)

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
            args = [self._int(a) for a in node.args]
            self._bulk(callee, args)
            result = intrinsics.NATIVE[callee](self.builder, args)
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
                raise self._fail(node, f"{callee.name}: {name} must be {type_name(want)}, is {type_name(value.type)}")
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
        self._access(func.attr, ref.llvm, ref.type.field)
        return self._atomic(node, func.attr, ref.llvm, ref.type.width, args)

    def _bulk(self, callee: Any, args: list[Any]) -> None:
        """For the checked build: called before each use of a builtin, which may write memory in bulk."""

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
        if not intrinsics.FULL_RMW:
            self.builder.fence("seq_cst")
        return Value(old if width == 8 else self.builder.sext(old, I64), INT)


def calls(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Call) for part in ast.walk(node))


def type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else kind if isinstance(kind, str) else type(kind).__name__
