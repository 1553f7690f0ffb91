"""Faults that a function can be given: each changes one node of its syntax tree.

The kinds are those of the minimal code-editing experiment that fit functions of a few lines.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
}
_ARITHMETIC: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add,),
    ast.Mod: (ast.FloorDiv,),
    ast.FloorDiv: (ast.Mod,),
}
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "upper": "lower", "lower": "upper"}


@dataclass(frozen=True)
class Fault:
    """`other` stands in the place of a tree's `at`-th node."""

    kind: str
    at: int
    other: ast.AST


def faults(tree: ast.Module) -> list[Fault]:
    """Every single fault that code can be given, in the order of its nodes."""
    return [
        Fault(kind, at, other)
        for at, node in enumerate(_nodes(tree))
        for kind, alternatives in KINDS.items()
        for other in alternatives(node)
    ]


def with_fault(tree: ast.Module, fault: Fault) -> str:
    """The code with the fault."""
    changed = _Put(fault.at, fault.other).visit(copy.deepcopy(tree))
    return ast.unparse(ast.fix_missing_locations(changed)) + "\n"


def _comparison(node: ast.AST) -> Iterator[ast.AST]:
    for other in _COMPARISONS.get(type(node), ()):  # type: ignore[call-overload]
        yield other()


def _arithmetic(node: ast.AST) -> Iterator[ast.AST]:
    for other in _ARITHMETIC.get(type(node), ()):  # type: ignore[call-overload]
        yield other()


def _logic(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.And | ast.Or):
        yield ast.Or() if isinstance(node, ast.And) else ast.And()


def _condition(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.If):
        yield ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)


def _number(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        yield from (ast.Constant(node.value + step) for step in (1, -1) if node.value + step >= 0)


def _truth(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Constant) and type(node.value) is bool:
        yield ast.Constant(not node.value)


def _sign(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node.operand


def _bound(node: ast.AST) -> Iterator[ast.AST]:
    """`range` that ends one earlier."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        *before, end = node.args
        yield ast.Call(node.func, [*before, ast.BinOp(end, ast.Sub(), ast.Constant(1))], [])


def _call(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Name) and node.id in _CALLS:
        yield ast.Name(_CALLS[node.id], node.ctx)
    if isinstance(node, ast.Attribute) and node.attr in _CALLS:
        yield ast.Attribute(node.value, _CALLS[node.attr], node.ctx)


KINDS: dict[str, Callable[[ast.AST], Iterator[ast.AST]]] = {
    "comparison": _comparison,
    "arithmetic": _arithmetic,
    "logic": _logic,
    "condition": _condition,
    "number": _number,
    "truth": _truth,
    "sign": _sign,
    "bound": _bound,
    "call": _call,
}


class _Put(ast.NodeTransformer):
    """Puts a node in the place of the `at`-th, counted as `_nodes` does."""

    def __init__(self, at: int, other: ast.AST) -> None:
        self._left = at
        self._other = other

    def visit(self, node: ast.AST) -> ast.AST:
        self._left -= 1
        return self._other if self._left == -1 else self.generic_visit(node)


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it, parents first."""
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _nodes(child)
