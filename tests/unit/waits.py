"""Notes what would make the host wait for a GPU, were the tensors there. The tests have none: operators that read a
value, or whose output's size is one, and copies that are made one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
READ = (
    aten._local_scalar_dense.default,  # item, float, int, bool, an if
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.unique_consecutive.default,
    aten._unique2.default,
)
HOST = {torch.Tensor.tolist: "tolist", torch.Tensor.numpy: "numpy", torch.Tensor.cpu: "cpu"}
MADE = {torch.tensor: "tensor", torch.as_tensor: "as_tensor"}
BY_INDEX = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)
INDEXED = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)


class Waits(TorchFunctionMode):
    """`seen`: names of what was called inside, in order; `to_host` of copies that were waited for together."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.to_host = 0
        self._below = _Below(self.seen)

    def __enter__(self) -> Any:
        self._below.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._below.__exit__(*exception)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in HOST:
            self.seen.append(HOST[func])
        if func in MADE and kwargs.get("device") is not None:
            self.seen.append(MADE[func])
        if func in INDEXED and any(isinstance(part, list) for part in _parts(args[1])):
            self.seen.append("a list as an index")
        if func is torch.Tensor.to and "cpu" in args[1:]:
            self.to_host += 1
        return func(*args, **kwargs)


class _Below(TorchDispatchMode):
    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in READ:
            self._seen.append(func.name())
        if func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            self._seen.append("repeat_interleave without its size")
        if func in BY_INDEX and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self._seen.append("a mask as an index")
        return func(*args, **kwargs)


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)
