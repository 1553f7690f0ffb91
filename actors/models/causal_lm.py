"""A causal language model for the learner and the torch scorer: a packed forward pass, and the LM head apart.

Packing puts several sequences in one row, without padding. Position ids that restart, and cumulative lengths where the
model takes them, mark where each begins. Not every model can be packed, see `Handling`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.models.attention import packing, with_lengths
from actors.models.handling import Handling, body_of
from actors.models.head_product import product
from objectives.devices import moved
from objectives.distributions import Distributions

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Pack:
    """Rows of packed sequences. ids, positions: [rows, length] int64; `targets` indexes, in the flattened rows, the
    position that predicts each response token, in sequence order; token_ids: [response tokens] int64. `bounds`:
    [sequences + 1] int32, where in a single row each sequence begins and the last ends; None if rows are padded.
    `lengths`: tokens of each sequence of a single row, for the host."""

    ids: Tensor
    positions: Tensor
    targets: Tensor
    token_ids: Tensor
    bounds: Tensor | None = None
    lengths: tuple[int, ...] = ()

    def to(self, device: torch.device) -> Pack:
        names = ("ids", "positions", "targets", "token_ids")
        bounds = None if self.bounds is None else moved(self.bounds, device)
        return Pack(*(moved(getattr(self, name), device) for name in names), bounds=bounds, lengths=self.lengths)

    @property
    def rows_of(self) -> Tensor:
        """[1, length] int32: the sequence that each position of a packed row belongs to."""
        assert self.bounds is not None
        lengths = self.bounds.diff()
        numbers = torch.arange(len(lengths), device=lengths.device, dtype=torch.int32)
        return numbers.repeat_interleave(lengths, output_size=self.ids.shape[1]).unsqueeze(0)


@dataclass(frozen=True)
class Projection:
    """A model's LM head, from last hidden states to logits: weight [V, width], bias [V] or None, scale, soft-cap or
    None. V is the common logit width of the run's models."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    soft_cap: float | None

    def to(self, device: torch.device) -> Projection:
        return replace(self, weight=self.weight.to(device), bias=None if self.bias is None else self.bias.to(device))

    def logprobs(self, hidden: Tensor) -> Tensor:
        """[N, width] -> [N, V] float32 log-softmax, nats, temperature 1."""
        return finish_logits(product(hidden, self.weight, self.bias), self.scale, self.soft_cap)


def pack(sequences: Sequence[tuple[Sequence[int], Sequence[int]]], packed: bool = True) -> Pack:
    """(prompt ids, response ids) pairs -> one row of all of them; `packed=False` gives a padded row each.

    An empty batch is one row of two tokens without targets: a rank with nothing to do still joins collectives.
    """
    if not sequences:
        return _rows(np.zeros((1, 2), np.int64), [], [])
    if not packed:
        width = max(len(p) + len(r) for p, r in sequences)
        rows = np.array([[*p, *r, *[0] * (width - len(p) - len(r))] for p, r in sequences], np.int64)
        return _rows(rows, sequences, [i * width for i in range(len(rows))])
    lengths = [len(p) + len(r) for p, r in sequences]
    bounds = np.cumsum([0, *lengths])
    row = np.fromiter(chain.from_iterable(part for pair in sequences for part in pair), np.int64, bounds[-1])
    return replace(
        _rows(row[None], sequences, bounds[:-1], _counted(lengths)[None]),
        bounds=torch.from_numpy(bounds.astype(np.int32)),
        lengths=tuple(lengths),
    )


def _rows(
    rows: np.ndarray,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    starts: Sequence[int] | np.ndarray,
    positions: np.ndarray | None = None,
) -> Pack:
    lengths = [len(r) for _, r in sequences]
    first = [start + len(p) - 1 for start, (p, _) in zip(starts, sequences, strict=True)]
    return Pack(
        ids=torch.from_numpy(rows),
        positions=torch.arange(rows.shape[1]).repeat(len(rows), 1)
        if positions is None
        else torch.from_numpy(positions),
        targets=torch.from_numpy(np.repeat(np.asarray(first, np.int64), lengths) + _counted(lengths)),
        token_ids=torch.from_numpy(np.fromiter(chain.from_iterable(r for _, r in sequences), np.int64, sum(lengths))),
    )


def _counted(lengths: Sequence[int]) -> np.ndarray:
    """[sum of lengths] int64: 0, 1, ... of each length, one after the other."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.arange(sum(lengths)) - np.repeat(ends - lengths, lengths) if lengths else np.zeros(0, np.int64)


def load_model(directory: Path, dtype: str, attention: str = "sdpa") -> Any:
    """A Hugging Face causal model from safetensors; no remote code, no pickles. Raises OSError if the directory is
    missing, ValueError if weights are."""
    from transformers import AutoModelForCausalLM

    return whole(AutoModelForCausalLM, directory, dtype=DTYPES[dtype], attn_implementation=attention)


def whole(kind: Any, directory: Path, **options: Any) -> Any:
    """Load a model. Raises ValueError if weights are missing, which transformers would draw at random."""
    safe = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    model, info = kind.from_pretrained(directory, output_loading_info=True, **safe, **options)
    if info["missing_keys"]:
        raise ValueError(f"{directory} lacks the weights {sorted(info['missing_keys'])[:3]}; export the model again")
    return model


@torch.inference_mode()
def classify(model: Any, ids: Sequence[int]) -> float:
    """The classifier's output for one sequence of token ids."""
    return float(model(input_ids=torch.tensor([list(ids)], device=model.device)).logits[0, 0])


def hidden_states(model: Any, batch: Pack, handling: Handling) -> Tensor:
    """[response tokens, width]: the LM head's input (after the final norm) that predicts each response token."""
    body = body_of(model)
    wanted = {"position_ids": batch.positions, "use_cache": False, **_cumulative(batch)}
    with packing(len(batch.lengths) or 1):  # a padded row holds one
        hidden = body(input_ids=batch.ids, **_taken(body, wanted)).last_hidden_state
    return _behind_neck(model, hidden.reshape(-1, hidden.shape[-1])[batch.targets], handling)


def _cumulative(batch: Pack) -> dict[str, Any]:
    """Arguments that mark the sequences of a packed row for flash attention, linear attention and convolutions."""
    if batch.bounds is None:
        return {}
    names = ("cu_seq_lens_q", "cu_seq_lens_k"), ("max_length_q", "max_length_k")
    bounds, longest = with_lengths(batch.bounds, batch.lengths), max(batch.lengths)
    return {**dict.fromkeys(names[0], bounds), **dict.fromkeys(names[1], longest), "seq_idx": batch.rows_of}


def _taken(body: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that the model's forward takes; one without positions has no parameter for them."""
    parameters = inspect.signature(body.forward).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def _behind_neck(model: Any, hidden: Tensor, handling: Handling) -> Tensor:
    return hidden if handling.neck is None else model.get_submodule(handling.neck)(hidden)


def continued_states(model: Any, ids: Sequence[int], handling: Handling, cache: Any = None) -> tuple[Tensor, Any]:
    """[tokens, width] LM head inputs of the next tokens of one sequence, and the KV cache of all its tokens so far.
    `cache` is that of the tokens before; it grows in place."""
    body = body_of(model)
    past = cache.get_seq_length() if cache is not None else 0
    output = body(
        input_ids=torch.tensor([list(ids)], device=model.device),
        position_ids=torch.arange(past, past + len(ids), device=model.device).unsqueeze(0),
        past_key_values=cache,
        use_cache=True,
    )
    return _behind_neck(model, output.last_hidden_state[0], handling), output.past_key_values


def head_logprobs(model: Any, hidden: Tensor, vocabulary: int, handling: Handling, temperature: float = 1.0) -> Tensor:
    """[N, width] -> [N, vocabulary] float32 log-probs, nats, through the model's own LM head without its padding."""
    return head_distributions(model, hidden, vocabulary, handling, temperature).rows()


def head_distributions(
    model: Any, hidden: Tensor, vocabulary: int, handling: Handling, temperature: float = 1.0
) -> Distributions:
    """The same without reading them yet."""
    logits = head_logits(model, hidden)[..., :vocabulary]
    return Distributions(shaped_logits(logits, handling.scale, handling.soft_cap, temperature))


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """The LM head's product, [N, V] float32. It does not call the module: under ZeRO-3 each call is a collective, and
    ranks with different numbers of chunks would wait for each other for ever."""
    head = model.get_output_embeddings()
    return product(hidden, head.weight, getattr(head, "bias", None))


def finish_logits(logits: Tensor, scale: float, cap: float | None) -> Tensor:
    """Shape, then log-softmax in float32. [N, V] -> [N, V], nats."""
    return shaped_logits(logits, scale, cap).log_softmax(-1)


def shaped_logits(logits: Tensor, scale: float, cap: float | None, temperature: float = 1.0) -> Tensor:
    """Scale, soft-cap (Gemma 2) and temper, in float32. [N, V] -> [N, V], nats."""
    logits = logits.float()
    if scale != 1.0:
        logits = logits * scale
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    if temperature != 1.0:
        logits = logits / temperature
    return logits


def projection_of(model: Any, vocabulary: int, handling: Handling) -> dict[str, Any]:
    """The LM head as plain values for the wire: float32 or bf16 bits as uint8 arrays, no tensors."""
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    return {
        "weight": to_bytes(head.weight[:vocabulary]),
        "dtype": dtype_name(head.weight.dtype),
        "width": head.weight.shape[1],
        "bias": None if bias is None else bias[:vocabulary].detach().float().cpu().numpy(),
        "scale": handling.scale,
        "soft_cap": handling.soft_cap,
    }


def projection_from(values: dict[str, Any], device: torch.device) -> Projection:
    """Inverse of `projection_of`, on `device`."""
    bias = values["bias"]
    return Projection(
        weight=from_bytes(values["weight"], values["dtype"]).reshape(-1, values["width"]).to(device),
        bias=None if bias is None else torch.tensor(bias, device=device),
        scale=values["scale"],
        soft_cap=values["soft_cap"],
    )


def to_bytes(tensor: Tensor) -> np.ndarray:
    """A tensor of any dtype -> its bits as a flat uint8 array on the CPU."""
    return tensor.detach().contiguous().cpu().view(torch.uint8).reshape(-1).numpy()


def from_bytes(data: np.ndarray | bytes | memoryview, dtype: str) -> Tensor:
    """Inverse of `to_bytes`: a flat tensor, copied."""
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()).view(DTYPES[dtype])


def viewed(data: np.ndarray | bytes | memoryview, dtype: str) -> Tensor:
    """The bytes themselves as a flat tensor that must only be read: fresh memory costs several times a copy. They must
    be aligned, as values of the object store are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(np.frombuffer(data, dtype=np.uint8)).view(DTYPES[dtype])


def dtype_name(dtype: torch.dtype) -> str:
    return {value: name for name, value in DTYPES.items()}[dtype]
