"""The calls of vLLM's transfer engines, with the pinned version's own classes. What needs a GPU is recorded."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.transfer.layout import layout_of
from actors.transfer.nccl import BUFFER_BYTES, BUFFERS, Sender, joining
from actors.transfer.patience import TransferBroken
from actors.transfer.shared import OF_STORAGE, opening

pytestmark = pytest.mark.system  # for the seconds in which vLLM is imported; only another pin can change it

ipc_engine = pytest.importorskip("vllm.distributed.weight_transfer.ipc_engine")
nccl_common = pytest.importorskip("vllm.distributed.weight_transfer.nccl_common")
nccl_engine = pytest.importorskip("vllm.distributed.weight_transfer.nccl_engine")

WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3), "router.bias": torch.ones(3)}
LAYOUT = layout_of({"w": (2, 3), "router.bias": (3,)}, "bfloat16", precise=("router.bias",))
TOKEN = base64.b64encode(bytes(128)).decode()


def engine_of(module: Any, name: str) -> Any:
    """A worker's engine of a model that keeps what it is given."""
    model = SimpleNamespace(given=[])
    model.load_weights = lambda weights: model.given.extend(weights)
    parallel = SimpleNamespace(data_parallel_index=0, world_size=2, rank=1)
    config = SimpleNamespace(parallel_config=parallel, model_config=None)
    return getattr(module, name)(None, config, SimpleNamespace(index=0, type="cuda"), model)


def test_vllms_sender_broadcasts_what_the_source_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}

    def produce(iterator: Any, group: Any, **geometry: Any) -> None:
        sent.update(tensors=[tensor for _, tensor in iterator], group=group, **geometry)

    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", produce)
    sender = Sender(0, lambda: WEIGHTS.items())
    monkeypatch.setattr(sender, "joined", lambda token, size: SimpleNamespace(size=size, destroy=lambda: None))
    sender.open(TOKEN, 5, 60.0)
    sender.send(LAYOUT, 60.0)
    assert sent["group"].size == 5 and sent["src"] == 0
    assert (sent["buffer_size_bytes"], sent["num_buffers"]) == (BUFFER_BYTES, BUFFERS)
    assert [tensor.dtype for tensor in sent["tensors"]] == [torch.bfloat16, torch.float32]
    assert all(torch.equal(t.float(), w) for t, w in zip(sent["tensors"], WEIGHTS.values(), strict=True))


def test_vllms_sender_refuses_a_student_that_is_not_as_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", lambda iterator, **_: [*iterator])
    sender = Sender(0, lambda: [*WEIGHTS.items()][:1])
    sender._group = SimpleNamespace(destroy=lambda: None)
    with pytest.raises(TransferBroken, match=r"yielded 1 parameters but metadata\(\) declared 2"):
        sender.send(LAYOUT, 60.0)


def test_a_worker_joins_by_the_id_at_its_own_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 3)
    monkeypatch.setattr(nccl_common, "uid_init_process_group", lambda *of: calls.append(of))
    engine = engine_of(nccl_engine, "NCCLWeightTransferEngine")
    engine.init_transfer_engine(engine.parse_init_info(joining(TOKEN, 3, 9)))
    assert calls == [(bytes(128), 3 + 1, 9, 3)]
    assert (engine.packed, engine.packed_buffer_size_bytes, engine.packed_num_buffers) == (True, BUFFER_BYTES, BUFFERS)


def test_a_worker_receives_by_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    def consume(iterator: Any, post_unpack_func: Any, **_: Any) -> None:
        post_unpack_func([(name, torch.empty(shape, dtype=dtype)) for name, (shape, dtype) in iterator])

    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_consumer", consume)
    engine = engine_of(nccl_engine, "NCCLWeightTransferEngine")
    engine.packed, engine.model_update_group = True, object()
    engine.receive_weights(engine.parse_update_info(LAYOUT.update))
    found = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in engine.model.given]
    assert found == [("w", torch.bfloat16, (2, 3)), ("router.bias", torch.float32, (3,))]


def test_a_worker_opens_a_tensor_of_the_copy_on_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(ipc_engine, "rebuild_cuda_tensor", lambda *of: calls.append(of) or torch.empty(of[1]))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="GPU-7"))
    engine = engine_of(ipc_engine, "IPCWeightTransferEngine")
    engine.device.index = 4
    engine.init_transfer_engine(engine.parse_init_info({"packed": False}))
    handle: dict[str, Any] = dict.fromkeys(OF_STORAGE, b"x")
    update = LAYOUT.update | {"ipc_handles": [{"GPU-7": each} for each in opening(handle, LAYOUT)]}
    engine.receive_weights(engine.parse_update_info(update))
    assert [name for name, _ in engine.model.given] == ["w", "router.bias"]
    assert [call[6] for call in calls] == [4, 4]
    sizes, offsets, dtypes = ([call[place] for call in calls] for place in (1, 3, 5))
    assert sizes == [torch.Size((2, 3)), torch.Size((3,))] and dtypes == [torch.bfloat16, torch.float32]
    assert offsets == [0, 256 // 4], "in numbers of its dtype"
