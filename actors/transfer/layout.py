"""What a version consists of: names, dtypes and shapes, in the order in which its tensors travel."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

ALIGNMENT = 256  # bytes; GPUs read aligned tensors fastest, and every dtype's size divides it
BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Layout:
    """Both ends know it before a byte travels; it says nothing of a version's values. dtypes are torch's names."""

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each tensor."""
        return tuple(prod(shape) * BYTES[dtype] for shape, dtype in zip(self.shapes, self.dtypes, strict=True))

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor begins in one buffer that holds all of them, bytes; the last is the buffer's length."""
        found = [0]
        for size in self.sizes:
            found.append(found[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
        return tuple(found)

    @property
    def by_name(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return dict(zip(self.names, self.shapes, strict=True))

    @property
    def plain(self) -> list[Any]:
        """The same as lists of strings and numbers, see `layout_from`."""
        return [list(self.names), list(self.dtypes), [list(shape) for shape in self.shapes]]

    @property
    def update(self) -> dict[str, Any]:
        """For vLLM's `update_weights`, of values that its message format has."""
        return dict(zip(("names", "dtype_names", "shapes"), self.plain, strict=True))


def layout_from(plain: list[Any]) -> Layout:
    """Inverse of `Layout.plain`."""
    names, dtypes, shapes = plain
    return Layout(tuple(names), tuple(dtypes), tuple(tuple(shape) for shape in shapes))


def layout_of(shapes: Mapping[str, tuple[int, ...]], dtype: str, precise: Collection[str] = ()) -> Layout:
    """The layout of tensors that travel in `dtype`, but the `precise` ones in float32."""
    dtypes = tuple("float32" if name in precise else dtype for name in shapes)
    return Layout(tuple(shapes), dtypes, tuple(tuple(shape) for shape in shapes.values()))
