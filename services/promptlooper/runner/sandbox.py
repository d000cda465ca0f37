"""The environment that templates run in: Jinja2's sandbox, closed further and bounded.

Templates come from whoever may create experiments and run in our process. They see JSON values only; `a.b` is a key
and never a Python attribute; nothing is looked up from outside; all that repeats or grows is paid for (see `budget`).
Some of it Jinja2 compiles into bare Python, so the syntax tree is changed first: see `_Bounds`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError, nodes
from jinja2.exceptions import SecurityError
from jinja2.filters import _GroupTuple
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, missing
from jinja2.visitor import NodeTransformer

from promptlooper.runner import work
from promptlooper.runner.budget import (
    MAX_ITEMS,
    LimitExceeded,
    StageData,
    check_size,
    json_of,
    listed,
    measured,
    spend,
    text_of,
)
from promptlooper.runner.filters import FILTERS, STRING_METHODS, TESTS, bounded, joined, settled
from promptlooper.runner.operators import OPERATORS, is_large

MAX_TOKENS = 20_000  # of a template's source

_LOOP_NAMES = frozenset(
    [
        "cycle",
        "changed",
        "depth",
        "depth0",
        "first",
        "index",
        "index0",
        "last",
        "length",
        "nextitem",
        "previtem",
        "revindex",
        "revindex0",
    ]
)


class MissingVariable(UndefinedError):
    """A value that is not there; `name` is the last part of how the template called it."""

    def __init__(self, name: object, message: str | None = None) -> None:
        super().__init__(message)
        self.name = name


class NamedUndefined(StrictUndefined):
    """Raises MissingVariable wherever it is used."""

    __slots__ = ()

    def __init__(self, hint: str | None = None, obj: Any = missing, name: Any = None, exc: Any = None) -> None:
        super().__init__(hint, obj, name, exc or functools.partial(MissingVariable, name))  # type: ignore[arg-type]


def bounded_range(*args: int) -> range:
    numbers = range(*args)
    if len(numbers) > MAX_ITEMS:
        raise LimitExceeded(f"range has more than {MAX_ITEMS:,} items")
    return numbers


def _mapping(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for pairs in args:
        for key, value in pairs.items() if isinstance(pairs, Mapping) else listed(pairs):
            if is_large(key):
                raise LimitExceeded(f"{key!r} is too large for a key")  # thousands may share one hash
            found[key] = value
    measured(found | kwargs)
    return found | kwargs


def _contained(value: Any, holder: Any) -> bool:
    work.pay_for_containing(value, holder)
    return value in holder


def _part(value: Any, start: Any, stop: Any, step: Any) -> Any:
    return value[start:stop:step]


def _paid_operand(value: Any) -> Any:
    work.pay_for_comparing(value)
    return value


def _argument(value: Any) -> Any:
    """Of a loop's methods: what can be gone through once becomes a list."""
    if isinstance(value, list | tuple | dict | range):
        spend(len(value))
    return settled(value)


class _Bounds(NodeTransformer):
    """Passes what Jinja2 would compile into bare Python through filters of ours, and refuses what reaches outside."""

    def refuse(self, node: nodes.Node, *args: Any) -> NoReturn:
        word = type(node).__name__.lower().replace("scopedevalcontextmodifier", "autoescape")
        raise TemplateSyntaxError(f"{{% {word} %}} is not available in templates", node.lineno)

    visit_Extends = visit_Include = visit_Import = visit_FromImport = visit_Block = refuse
    visit_ScopedEvalContextModifier = refuse

    def through(self, name: str, node: nodes.Expr, *args: nodes.Expr) -> nodes.Filter:
        return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For, *args: Any) -> nodes.Node:
        self.generic_visit(node)
        node.iter = self.through("(for)", node.iter)  # type: ignore[arg-type]
        return node

    def visit_Concat(self, node: nodes.Concat, *args: Any) -> nodes.Node:
        self.generic_visit(node)
        return self.through("(~)", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem, *args: Any) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        ends = [end or nodes.Const(None, lineno=node.lineno) for end in (node.arg.start, node.arg.stop, node.arg.step)]
        return self.through("(slice)", node.node, *ends)

    def visit_Compare(self, node: nodes.Compare, *args: Any) -> nodes.Node:
        self.generic_visit(node)
        if all(operand.op not in ("in", "notin") for operand in node.ops):
            node.expr = self.through("(operand)", node.expr)
            for operand in node.ops:
                operand.expr = self.through("(operand)", operand.expr)
            return node
        left, found = node.expr, []
        for operand in node.ops:  # a < b in c: both must hold
            if operand.op in ("in", "notin"):
                one: nodes.Expr = self.through("(in)", left, operand.expr)
                found.append(nodes.Not(one, lineno=node.lineno) if operand.op == "notin" else one)
            else:
                ends = self.through("(operand)", left), self.through("(operand)", operand.expr)
                found.append(nodes.Compare(ends[0], [nodes.Operand(operand.op, ends[1])], lineno=node.lineno))
            left = operand.expr
        return functools.reduce(lambda a, b: nodes.And(a, b, lineno=node.lineno), found)

    def literal(self, node: nodes.Expr, *args: Any) -> nodes.Node:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load":
            return node
        return self.through("(literal)", node)

    visit_List = visit_Tuple = visit_Dict = literal


class SandboxEnvironment(ImmutableSandboxedEnvironment):
    """Raises LimitExceeded, MissingVariable, SecurityError and whatever Python raises on values that do not fit."""

    intercepted_binops = frozenset(OPERATORS)  # also switches their folding off

    def __init__(self) -> None:
        super().__init__(undefined=NamedUndefined, finalize=text_of, keep_trailing_newline=True, cache_size=0)
        self.globals = {"range": bounded_range, "dict": _mapping, "namespace": Namespace}
        self.filters = {
            **FILTERS,
            "(for)": listed,
            "(~)": bounded(joined),
            "(slice)": bounded(_part),
            "(in)": _contained,
            "(operand)": _paid_operand,
            "(literal)": measured,
        }
        self.tests = dict(TESTS)
        self.binop_table = {name: self._paid_operator(function) for name, function in OPERATORS.items()}
        self.concat = self._concat  # type: ignore[method-assign]

    @staticmethod
    def _paid_operator(function: Any) -> Any:
        def operate(left: Any, right: Any) -> Any:
            spend(1)
            return function(left, right)

        return operate

    @staticmethod
    def _concat(parts: Iterable[str]) -> str:
        found, size = [], 0
        for part in parts:
            size += len(part)
            check_size(size)
            found.append(part)
        spend((size >> 10) + (len(found) >> 4))
        return "".join(found)

    def _tokenize(self, source: str, *args: Any, **kwargs: Any) -> Any:
        stream = super()._tokenize(source, *args, **kwargs)
        if sum(1 for _ in self.lexer.tokeniter(source, None)) > MAX_TOKENS:
            raise TemplateSyntaxError(f"the template has more than {MAX_TOKENS:,} words and signs", 1)
        return stream

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Bounds().visit(source), *args, **kwargs)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict:
            try:
                return obj[attribute]
            except KeyError:
                return NamedUndefined(obj=obj, name=attribute)
        if isinstance(obj, StageData):
            return self.getitem(obj, attribute)
        if isinstance(obj, Undefined):
            str(obj)  # raises, with the name
        if isinstance(obj, str) and attribute in STRING_METHODS:
            return functools.partial(STRING_METHODS[attribute], obj)
        if (
            (isinstance(obj, LoopContext) and attribute in _LOOP_NAMES)
            or (isinstance(obj, _GroupTuple) and attribute in ("grouper", "list"))
            or (type(obj) is Namespace and not attribute.startswith("_"))
        ):
            try:
                return getattr(obj, attribute)
            except AttributeError:
                pass
        return NamedUndefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Undefined):
            str(obj)  # raises, with the name
        if not isinstance(obj, dict | list | tuple | str | range | StageData):
            return self.getattr(obj, argument) if isinstance(argument, str) else NamedUndefined(obj=obj, name=argument)
        try:
            return obj[argument]  # type: ignore[index]
        except (LookupError, TypeError):
            if isinstance(obj, dict) and isinstance(argument, int | float):
                return self.getitem(obj, json_of(argument))  # keys of JSON are text: `input.2024`
            return NamedUndefined(obj=obj, name=argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        spend(10)
        if isinstance(__obj, LoopContext):
            args = tuple(map(_argument, args))
        elif isinstance(__obj, Undefined):
            str(__obj)  # raises, with the name
        elif not (
            isinstance(__obj, Macro | functools.partial)
            or __obj in (bounded_range, _mapping, Namespace)
            or isinstance(getattr(__obj, "__self__", None), LoopContext)
        ):
            raise SecurityError("a value cannot be called; loop over a mapping with `| items`")
        return __context.call(__obj, *args, **kwargs)
