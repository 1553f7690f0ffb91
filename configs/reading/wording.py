"""Words pydantic's errors as lines: the path in the recipe, the value, what is allowed.

Unions of a recipe are discriminated: pydantic reports errors under the tag of the kind that is meant, which is a part
of `loc` and no key of the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from configs.refusal import shown

Path = tuple[int | str, ...]
KEY = "[key]"  # pydantic's mark of an error in a key, not in its value


def lines(model: type[BaseModel], tree: Any, error: ValidationError) -> list[str]:
    """One line an error, in order, each once."""
    return list(dict.fromkeys(_line(model, tree, item) for item in error.errors()))


def _line(model: type[BaseModel], tree: Any, item: ErrorDetails) -> str:
    of_key = item["loc"][-1:] == (KEY,)
    loc, kind, others = _follow(model, item["loc"][:-1] if of_key else item["loc"])
    where = _written(tree, loc)
    path, value = _dotted(where), _value_at(tree, where)
    message = _message(item)
    if of_key:
        return f"{path}: {_wrong_key(where[-1], item, message)}"
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown key; {_allowed_keys(model, item['loc'][:-1])}"
    if item["type"] == "missing" and isinstance(loc[-1], str):
        return f"{_dotted(loc)}: missing; add it to the recipe"
    if item["type"] == "value_error" and (not path or isinstance(value, Mapping)):
        return f"{path}: {message}" if path else message
    return f"{path}: {shown(value)} is wrong: {_allowed(kind, others, item, message)}"


def _message(item: ErrorDetails) -> str:
    """Pydantic's words, in those of YAML."""
    message = item["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list").replace("Tuple", "list")
    return message.replace("True or False", "true or false") if item["type"] == "literal_error" else message


def _wrong_key(key: Any, item: ErrorDetails, message: str) -> str:
    if item["type"] == "string_type":
        kind = "a truth value" if isinstance(key, bool) else "a number"
        return f"YAML reads this key as {kind}; quote it: '{key}':"
    if item["type"] == "literal_error":
        return f"unknown key; allowed: {message.removeprefix('Input should be ')}"
    return f"is wrong as a key: {message[0].lower()}{message[1:]}"


def _allowed(kind: Any, others: Sequence[Any], item: ErrorDetails, message: str) -> str:
    if item["type"] == "missing":
        return "it has too few values"
    if item["type"] in ("model_type", "dict_type"):
        return f"input should be {_mapping_of(kind)}"
    if item["type"] == "string_type" and isinstance(item["input"], bool | int | float) and not others:
        message += "; quote it"
    mappings = [_mapping_of(other) for other in others if _is_model(_bare(other)) or get_origin(_bare(other)) is dict]
    return ", or ".join([f"{message[0].lower()}{message[1:]}", *mappings])


def _allowed_keys(model: type[BaseModel], loc: Path) -> str:
    _, kind, _ = _follow(model, loc)
    return "allowed: " + ", ".join(_bare(kind).model_fields)


def _mapping_of(kind: Any) -> str:
    kind = _bare(kind)
    return f"a mapping of {', '.join(kind.model_fields)}" if _is_model(kind) else "a mapping"


def _follow(kind: Any, loc: Path) -> tuple[Path, Any, list[Any]]:
    """The path that a `loc` stands for, without tags; the annotation there; and the other kinds of the union there."""
    path, others = [], []
    for part in loc:
        tagged = _tagged(kind)
        if tagged:
            kind = tagged.pop(str(part))
            others = list(tagged.values())
        else:
            kind, others = _child(kind, part), []
            path.append(part)
    return tuple(path), kind, others


def _tagged(kind: Any) -> dict[str, Any]:
    """The kinds of a discriminated union by tag; empty for anything else."""
    branches = get_args(_bare(kind)) if get_origin(_bare(kind)) in (Union, UnionType) else ()
    return {note.tag: branch for branch in branches for note in get_args(branch) if isinstance(note, Tag)}


def _child(kind: Any, part: int | str) -> Any:
    kind = _bare(kind)
    if _is_model(kind):
        return kind.model_fields[part].annotation if part in kind.model_fields else None
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        return arguments[1]
    if get_origin(kind) is tuple and isinstance(part, int):
        return arguments[0] if ... in arguments else arguments[min(part, len(arguments) - 1)]
    return None


def _bare(kind: Any) -> Any:
    """A kind without its annotations and without null."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        kinds = [branch for branch in get_args(kind) if branch is not NoneType]
        return _bare(kinds[0]) if len(kinds) == 1 else kind
    return kind


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _written(tree: Any, loc: Path) -> Path:
    """The part of a path that the recipe itself spells: a short form has no keys inside. Keys as the recipe has them;
    pydantic reports them as words or numbers."""
    found: list[Any] = []
    for part in loc:
        keys = [key for key in tree if key == part or str(key) == part] if isinstance(tree, Mapping) else [part]
        if not keys or not (isinstance(tree, Mapping) or (isinstance(part, int) and _has(tree, part))):
            break
        found.append(keys[0])
        tree = tree[keys[0]]
    return tuple(found)


def _has(tree: Any, index: int) -> bool:
    return isinstance(tree, Sequence) and not isinstance(tree, str) and index < len(tree)


def _value_at(tree: Any, loc: Path) -> Any:
    for part in loc:
        tree = tree[part]
    return tree


def _dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)
