"""Whole tensors on rank 0 from parameters that ranks may share out. Every rank joins the gathering; others than rank 0
yield nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from actors.learning.adapting.adapters import Adapters
from actors.models.stored import Group, Stored

Named = Iterator[tuple[str, Tensor]]


@dataclass(frozen=True)
class Gathering:
    """Of a model that is `stored` so. `partitioned`: ZeRO-3 shares its parameters out; they are gathered group by
    group, mostly one parameter each."""

    model: Any
    stored: Stored
    rank: int
    partitioned: bool
    adapters: Adapters | None = None

    def student(self) -> Named:
        """All tensors, named and shaped as in the student's files, adapters merged."""
        return self._of(self.stored.groups)

    def moving(self) -> Named:
        """Those that training moves."""
        return self._of(self.stored.groups if self.adapters is None else self.adapters.groups)

    def published(self) -> Named:
        """What a version holds: all tensors, or the adapters by wire name."""
        return self.student() if self.adapters is None else self._pairs(self.adapters)

    def _of(self, groups: Sequence[Group]) -> Named:
        model, adapters = self.model, self.adapters
        values: Mapping[str, Any] = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
        if adapters is not None:
            values = adapters.without_names(values)
        for group in groups:
            held = {name: values[name] for name in group.parameters}
            with self._whole([*held.values(), *(adapters.beside(group) if adapters else ())]):
                if self.rank == 0:
                    tensors = group.split({name: value.detach() for name, value in held.items()})
                    yield from (adapters.merged(tensors) if adapters else tensors).items()

    def _pairs(self, adapters: Adapters) -> Named:
        for pair in adapters.pairs():
            with self._whole([parameter for _, parameter in pair]):
                if self.rank == 0:
                    yield from ((name, parameter.detach()) for name, parameter in pair)

    def _whole(self, values: Iterable[Any]) -> AbstractContextManager[Any]:
        from deepspeed.runtime.zero import GatheredParameters

        parameters = [value for value in values if isinstance(value, nn.Parameter)]
        return GatheredParameters(parameters, enabled=self.partitioned and bool(parameters))
