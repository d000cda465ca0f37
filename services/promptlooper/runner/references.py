"""What a template refers to, read from its syntax tree without rendering it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, meta, nodes


@dataclass(frozen=True, slots=True)
class Reference:
    """A use of a root: `input.a[0]` is ("input", ("a", 0)). Guarded: the template says what to do without it."""

    root: str
    keys: tuple[str | int, ...]
    guarded: bool = False
    line: int = 1

    def __str__(self) -> str:
        return self.root + "".join(
            f".{k}" if isinstance(k, str) and k.isidentifier() else f"[{k!r}]" for k in self.keys
        )


@dataclass(frozen=True, slots=True)
class References:
    roots: Mapping[str, int]  # each name that the template looks up, with the line of its first use
    paths: tuple[Reference, ...]


def _chain(node: nodes.Node) -> Reference | None:
    keys: list[str | int] = []
    line = node.lineno
    while True:
        if isinstance(node, nodes.Getattr):
            keys.append(node.attr)
            node = node.node
        elif (
            isinstance(node, nodes.Getitem)
            and isinstance(node.arg, nodes.Const)
            and isinstance(node.arg.value, str | int)
        ):
            keys.append(node.arg.value)
            node = node.node
        elif (
            isinstance(node, nodes.Getitem)
            and isinstance(node.arg, nodes.Neg)
            and isinstance(node.arg.node, nodes.Const)
        ):
            keys.append(-node.arg.node.value)
            node = node.node
        elif isinstance(node, nodes.Name):
            return Reference(node.name, tuple(reversed(keys)), line=line)
        else:
            return None


def chains_of(node: nodes.Node, guarded: bool = False) -> Iterator[Reference]:
    found = _chain(node) if isinstance(node, nodes.Getattr | nodes.Getitem | nodes.Name) else None
    if found is not None:
        yield Reference(found.root, found.keys, guarded, found.line)
        return
    asked = _asked_of(node)
    for child in node.iter_child_nodes():
        yield from chains_of(child, guarded=child is asked)


def _asked_of(node: nodes.Node) -> nodes.Node | None:
    """What the node asks whether it is there; of `expected`, which is null where a row has none, also whether it is
    anything."""
    if isinstance(node, nodes.Filter | nodes.Test) and node.name in ("default", "d", "defined", "undefined"):
        return node.node
    asked: nodes.Node | None = None
    if isinstance(node, nodes.If | nodes.CondExpr):
        asked = node.test
    elif isinstance(node, nodes.And | nodes.Or):
        asked = node.left
    elif isinstance(node, nodes.Not) or (isinstance(node, nodes.Test) and node.name == "none"):
        asked = node.node
    return asked if isinstance(asked, nodes.Name) and asked.name == "expected" else None


def first_missing(reference: Reference, values: Mapping[str, object]) -> str | int | None:
    """The first part that is not there; None where all are."""
    value: Any = values
    for key in (reference.root, *reference.keys):
        try:
            value = value[key]
        except (LookupError, TypeError):
            return key
    return None


def references_in(environment: Environment, source: str) -> References:
    """Raises what parsing raises."""
    tree = environment.parse(source)
    names = meta.find_undeclared_variables(environment.parse(source))
    if any(node.name == "self" for node in tree.find_all(nodes.Name)):
        names.add("self")  # known to Jinja2, of no use here
    stored = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"}
    stored |= {macro.name for macro in tree.find_all(nodes.Macro)}
    paths = [reference for reference in chains_of(tree) if reference.root in names and reference.root not in stored]
    kept = {(reference.root, *reference.keys) for reference in paths if reference.guarded}
    roots: dict[str, int] = dict.fromkeys(sorted(names), 1)
    for node in reversed(list(tree.find_all(nodes.Name))):
        if node.name in names:
            roots[node.name] = node.lineno
    return References(
        roots,
        tuple(
            Reference(
                reference.root,
                reference.keys,
                any((reference.root, *reference.keys)[: len(path)] == path for path in kept),
                reference.line,
            )
            for reference in paths
        ),
    )
