"""From pydantic's findings to lines that a person can act on: the path in the recipe, the value, what is allowed.

Where a value may be of several kinds (a number or a schedule), pydantic reports one finding a kind, under internal
names. Here the kind that the value resembles is taken at its word and validated alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from configs.refusal import shown

Path = tuple[int | str, ...]
_FINITE = ConfigDict(allow_inf_nan=False)  # as every node of a recipe has it
KEY = "[key]"  # pydantic's mark of a finding about a key, not about its value


def lines(model: type[BaseModel], tree: Any, error: ValidationError) -> list[str]:
    """One line a finding, in order."""
    return list(dict.fromkeys(_say(model, tree, item, path) for path, item in _resolve(model, tree, error)))


def _resolve(kind: Any, tree: Any, error: ValidationError) -> Iterator[tuple[Path, ErrorDetails]]:
    """Findings and their paths; those of a union are replaced by the ones of the kind that is meant."""
    seen: set[Path] = set()
    for item in error.errors():
        loc = item["loc"]
        union = _union_above(kind, loc[:-2] if loc[-1:] == (KEY,) else loc)
        if union is None:
            yield loc, item
        elif union not in seen:
            seen.add(union)
            value = _value_at(tree, union)
            meant = _meant(_kind_at(kind, union), value)
            try:
                TypeAdapter(meant, config=None if _is_model(meant) else _FINITE).validate_python(value)
            except ValidationError as inner:
                yield from ((union + path, found) for path, found in _resolve(meant, value, inner))


def _say(model: type[BaseModel], tree: Any, item: ErrorDetails, loc: Path) -> str:
    where = _written(tree, loc)
    path, value = ".".join(str(part) for part in where), _value_at(tree, where)
    message = item["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list").replace("Tuple", "list")
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown key; {_allowed_keys(_kind_at(model, loc[:-1]))}"
    if loc[-1:] == (KEY,) and item["type"] == "string_type":
        kind = "a truth value" if isinstance(where[-1], bool) else "a number"
        return f"{path}: YAML reads this key as {kind}; quote it: '{where[-1]}':"
    if loc[-1:] == (KEY,):
        return f"{path}: unknown key; allowed: {message.removeprefix('Input should be ')}"
    if item["type"] == "missing" and isinstance(loc[-1], str):
        return f"{'.'.join(str(part) for part in loc)}: missing; add it to the recipe"
    if item["type"] == "value_error" and (not path or isinstance(value, Mapping)):
        return f"{path}: {message}" if path else message
    return f"{path}: {shown(value)} is wrong: {_allowed(_kind_at(model, where), item, message)}"


def _allowed(kind: Any, item: ErrorDetails, message: str) -> str:
    if item["type"] == "missing":
        return "it has too few values"
    if item["type"] in ("model_type", "dict_type"):
        return f"input should be {_mapping_of(kind)}"
    branches = _branches(kind)
    if item["type"] == "string_type" and isinstance(item["input"], bool | int | float) and len(branches) == 1:
        message += "; quote it"
    others = [_mapping_of(branch) for branch in branches if len(branches) > 1 and _is_mapping(branch)]
    return ", or ".join([f"{message[0].lower()}{message[1:]}", *others])


def _allowed_keys(kind: Any) -> str:
    nodes = [branch for branch in _branches(kind) if _is_model(branch)]
    return "allowed: " + ", ".join(nodes[0].model_fields) if nodes else "remove it"


def _mapping_of(kind: Any) -> str:
    fields = next((b.model_fields for b in _branches(kind) if _is_model(b)), ())
    return "a mapping" + (f" of {', '.join(fields)}" if fields else "")


def _union_above(kind: Any, loc: Path) -> Path | None:
    """The path of the first union on the way, whose findings lie one part deeper under the name of a kind."""
    for depth, part in enumerate(loc):
        if len(_branches(kind)) > 1:
            return loc[:depth]
        kind = _child(kind, part)
    return None


def _kind_at(kind: Any, loc: Path) -> Any:
    """The annotation at a path of the recipe; of unions the part that has such a child."""
    for part in loc:
        kind = next((child for b in _branches(kind) if (child := _child(b, part)) is not None), None)
    return kind


def _child(kind: Any, part: int | str) -> Any:
    (kind, *_) = _branches(kind) or (None,)
    if _is_model(kind):
        field = kind.model_fields.get(part)
        return field and field.annotation
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        return arguments[1]
    if get_origin(kind) in (tuple, list) and isinstance(part, int):
        return arguments[0] if len(arguments) == 1 or ... in arguments else arguments[min(part, len(arguments) - 1)]
    return None


def _branches(kind: Any) -> list[Any]:
    """The kinds that a value may be of, null apart; as annotated, since bounds are among the annotations."""
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if get_origin(bare) in (Union, UnionType):
        return [branch for branch in get_args(bare) if branch is not NoneType]
    return [] if kind is None else [bare]


def _meant(union: Any, value: Any) -> Any:
    """The kind of a union that a value resembles."""
    branches = _branches(union)
    if not isinstance(value, Mapping):
        return next((branch for branch in branches if not _is_mapping(branch)), branches[0])
    models = [branch for branch in branches if _is_model(branch)]
    resembling = [branch for branch in models if branch.model_fields.keys() & value.keys()]
    dicts = [branch for branch in branches if _is_mapping(branch) and not _is_model(branch)]
    return [*resembling, *dicts, *models, *branches][0]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _is_mapping(kind: Any) -> bool:
    return _is_model(kind) or get_origin(kind) is dict


def _written(tree: Any, loc: Path) -> Path:
    """The part of a path that the recipe itself spells: a short form has no keys inside. Keys are the recipe's own,
    which pydantic reports as words or numbers."""
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
