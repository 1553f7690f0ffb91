"""Every key of a recipe that names files, in one list: what is made absolute, and pinned on the Hub, is found here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

Kind = Literal["model", "data", "code", "folder"]  # of `code`: FILE.py:FUNCTION


class Named(NamedTuple):
    """The text `holder[key]` names files, of some kind; `where` is the key as a person writes it."""

    kind: Kind
    where: str
    holder: Any
    key: Any

    @property
    def text(self) -> str:
        return self.holder[self.key]


def paths_in(tree: Any) -> Iterator[Named]:
    """Of a recipe's tree, also before it is checked: what is no text, or lies in something else than a recipe has
    there, names nothing."""
    tree = _mapping(tree)
    for name, model in _mapping(tree.get("models")).items():
        yield from _texts("model", f"models.{name}", model, "path")
        swaps = _mapping(_mapping(model).get("swaps"))
        yield from _texts("model", f"models.{name}.swaps", swaps, *swaps)
    yield from _rewards("reward", tree.get("reward"))
    yield from _data(tree.get("data"))
    for name, one in _mapping(_mapping(tree.get("evaluate")).get("sets")).items():
        yield from _texts("data", f"evaluate.sets.{name}", one, "prompts", "text")
        yield from _rewards(f"evaluate.sets.{name}", one)
    for name, stage in _mapping(tree.get("stages")).items():
        yield from (named._replace(where=f"stages.{name}.{named.where}") for named in paths_in(stage))


def _data(data: Any) -> Iterator[Named]:
    yield from _texts("data", "data", data, "prompts", "heldout")
    yield from _texts("folder", "data", data, "responses")
    for key in ("prompts", "heldout"):
        entries = _mapping(data).get(key)
        for number, entry in enumerate(entries if isinstance(entries, list) else ()):
            yield from _texts("data", f"data.{key}.{number}", entry, "path")


def _rewards(where: str, holder: Any) -> Iterator[Named]:
    yield from _texts("model", where, holder, "model")
    rules = _mapping(holder).get("rules")
    for number, rule in enumerate(rules if isinstance(rules, list) else ()):
        if (function := _mapping(rule).get("function")) and isinstance(function, str) and ".py:" in function:
            yield Named("code", f"{where}.rules.{number}.function", rule, "function")


def _texts(kind: Kind, where: str, holder: Any, *keys: Any) -> Iterator[Named]:
    found = _mapping(holder)
    yield from (Named(kind, f"{where}.{key}", found, key) for key in keys if isinstance(found.get(key), str))


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}
