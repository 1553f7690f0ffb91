"""YAML to a tree of plain values, stricter than PyYAML.

PyYAML keeps the last of two equal keys, reads `no:` as false and `1:` as a number, and expands aliases without a limit.
Here a key occurs once, keys are words or whole numbers, and depth and size are limited.
"""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

import yaml

from configs.refusal import RecipeError, reason, shown

DEEPEST, LARGEST = 32, 100_000  # levels and values of a tree, aliases expanded
_PREFIX = "tag:yaml.org,2002:"
_MERGE = f"{_PREFIX}merge"
_PLAIN = {f"{_PREFIX}{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge")}
_NO_WORDS = {f"{_PREFIX}bool": "a truth value", f"{_PREFIX}null": "null", f"{_PREFIX}float": "a fraction"}


class NoYaml(RecipeError):
    """The text is not valid YAML."""


class _Loader(yaml.SafeLoader):
    """Reads dates and `=` as words."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _PLAIN]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def parse(text: str, where: str) -> Any:
    """The value of a YAML text; `where` names it. Raises RecipeError."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _Reader(loader, where).visit(node, 0)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise NoYaml(f"{where}: is no YAML ({' '.join(str(error).split())})") from None
    except RecursionError:
        raise RecipeError(f"{where}: is nested more than {DEEPEST} levels deep; no recipe is") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Reader:
    """Checks every node once, before values are constructed."""

    def __init__(self, loader: _Loader, where: str) -> None:
        self._loader = loader
        self._where = where
        self._sizes: dict[int, tuple[int, int]] = {}  # node -> values and levels below it, aliases expanded
        self._above: set[int] = set()

    def visit(self, node: yaml.Node, depth: int) -> tuple[int, int]:
        if id(node) in self._above:
            self._refuse(node, "an alias contains itself; write the values out")
        if id(node) not in self._sizes:
            if node.tag not in _PLAIN:
                self._refuse(node, f"the tag {node.tag.replace(_PREFIX, '!!')} has no place in a recipe; remove it")
            self._above.add(id(node))
            below = [self.visit(child, depth + 1) for child in self._children(node)]
            self._above.remove(id(node))
            self._sizes[id(node)] = 1 + sum(size for size, _ in below), 1 + max((deep for _, deep in below), default=0)
        size, levels = self._sizes[id(node)]
        if depth + levels > DEEPEST:
            self._refuse(node, f"is nested more than {DEEPEST} levels deep; no recipe is")
        if size > LARGEST:
            self._refuse(node, f"its aliases stand for more than {LARGEST} values; write out what is meant")
        return size, levels

    def _children(self, node: yaml.Node) -> list[yaml.Node]:
        if isinstance(node, yaml.ScalarNode):
            self._value(node)
            return []
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        first: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            name = self._name(key)
            if name in first:
                lines = _line(first[name]), _line(key)
                where = f"in line {lines[0]}" if lines[0] == lines[1] else f"in lines {lines[0]} and {lines[1]}"
                self._refuse(None, f"the key {shown(name)} stands twice, {where}; remove one of them")
            first[name] = key
        return [value for _, value in node.value]

    def _name(self, key: yaml.Node) -> str:
        """A key as a word; a whole number is allowed too, for the steps of swaps."""
        if not isinstance(key, yaml.ScalarNode):
            self._refuse(key, "a mapping or a list is no key; is a brace or a bracket unquoted?")
        if key.tag in _NO_WORDS:
            quoted = "'" + key.value + "'"
            self._refuse(key, f"YAML reads the key {key.value} as {_NO_WORDS[key.tag]}; quote it: {quoted}:")
        if key.tag not in _PLAIN:
            self._refuse(key, f"the tag {key.tag.replace(_PREFIX, '!!')} has no place in a recipe; remove it")
        return str(self._value(key))

    def _value(self, node: yaml.ScalarNode) -> Any:
        if node.tag == _MERGE:
            return node.value
        try:
            value = self._loader.construct_object(node)
        except (ValueError, ArithmeticError, LookupError) as error:
            kind = node.tag.removeprefix(_PREFIX)
            self._refuse(node, f"{shown(node.value)} is no {kind} ({reason(error)}); quote it if it is a word")
        try:
            str(value).encode()
        except ValueError:  # half a surrogate pair, or more digits than Python writes
            self._refuse(node, f"{shown(node.value)} cannot be written as text; correct it")
        return value

    def _refuse(self, node: yaml.Node | None, finding: str) -> NoReturn:
        raise RecipeError(f"{self._where} line {_line(node)}: {finding}" if node else f"{self._where}: {finding}")


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
