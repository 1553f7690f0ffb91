"""Sequences of a packed row that attend apart: the numbers of each alone, and no mask where none is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import masking_utils

from actors.models import attention, causal_lm
from actors.models.attention import attend_apart
from actors.models.handling import Handling
from actors.models.probing.probe import probe
from actors.models.probing.small_copy import small_copy
from scripts.sweep_models import configuration

PAIRS = [(list(range(20, 23)), list(range(23, 41))), ([70], list(range(71, 97))), ([40, 90], [33, 120, 45])]


def gradients(model: Any, handling: Handling, batches: list[causal_lm.Pack]) -> tuple[Tensor, Tensor]:
    """Log-probs of all response tokens, and the gradient of their sum."""
    model.zero_grad()
    found = []
    for batch in batches:
        hidden = causal_lm.hidden_states(model, batch, handling)
        logprobs = causal_lm.head_logprobs(model, hidden, 150, handling)
        found.append(logprobs.gather(-1, batch.token_ids.unsqueeze(-1)).squeeze(-1))
        found[-1].sum().backward()
    grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return torch.cat(found).detach(), grads


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe", "gemma3_text", "mistral", "cohere2", "deepseek_v3"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_log_probs_and_gradients_are_those_of_the_sequences_alone(name: str, checkpointed: bool) -> None:
    """Gemma 3, Mistral and Cohere 2 have windows that are shorter than these sequences."""
    model = small_copy(configuration(name), "sdpa")
    handling = probe(model).handling
    assert handling.apart
    alone = gradients(model, handling, [causal_lm.pack([pair]) for pair in PAIRS])
    attend_apart(model)
    if checkpointed:
        model.train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    packed = gradients(model, handling, [causal_lm.pack(PAIRS)])
    torch.testing.assert_close(packed[0], alone[0], atol=1e-4, rtol=1e-4)
    assert float((packed[1] - alone[1]).norm() / alone[1].norm()) < 1e-4


def test_no_mask_of_the_row_is_built_where_attention_is_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("a mask was built")

    model = small_copy(configuration("llama"), "sdpa")
    attend_apart(model)
    monkeypatch.setattr(masking_utils, "sdpa_mask", built)
    causal_lm.hidden_states(model, causal_lm.pack(PAIRS), Handling())
    with pytest.raises(AssertionError, match="a mask was built"):
        windowed = small_copy(configuration("mistral"), "sdpa")
        attend_apart(windowed)
        causal_lm.hidden_states(windowed, causal_lm.pack(PAIRS), Handling())


def test_a_model_whose_layers_do_not_hear_of_the_bounds_keeps_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_copy(configuration("llama"), "sdpa")
    assert probe(model).handling.apart
    monkeypatch.setattr(causal_lm, "_cumulative", lambda batch: {})
    deaf = probe(model)
    assert deaf.handling.packs and not deaf.handling.apart
    assert deaf.gaps.apart is not None and deaf.gaps.apart > 0.1, "the leak shows"
    assert model.config._attn_implementation == "sdpa", "the probe leaves the model as it was"


class Told(nn.Module):
    """A body whose layers take every kind of bounds; it notes them."""

    def forward(
        self,
        input_ids: Tensor,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int = 0,
        max_length_k: int = 0,
        seq_idx: Tensor | None = None,
    ) -> Any:
        self.bounds = [cu_seq_lens_q, cu_seq_lens_k, seq_idx]
        self.longest = [max_length_q, max_length_k]
        return SimpleNamespace(last_hidden_state=torch.zeros(*input_ids.shape, 4))


class Untold(nn.Module):
    """A body that takes tokens alone."""

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=torch.zeros(*input_ids.shape, 4))


def test_bodies_get_the_bounds_that_they_take() -> None:
    """On a CPU no kernel reads those of linear attention and of convolutions."""
    told = Told()
    batch = causal_lm.pack(PAIRS)
    model, deaf = (SimpleNamespace(base_model_prefix="body", body=body) for body in (told, Untold()))
    causal_lm.hidden_states(deaf, batch, Handling())
    causal_lm.hidden_states(model, batch, Handling())
    bounds, rows = [0, 21, 48, 53], [[0] * 21 + [1] * 27 + [2] * 5]
    assert [found.tolist() for found in told.bounds if found is not None] == [bounds, bounds, rows]
    assert told.longest == [27, 27]
    causal_lm.hidden_states(model, causal_lm.pack(PAIRS, False), Handling())
    assert told.bounds == [None] * 3, "padded rows have one sequence each"


@pytest.mark.parametrize(("name", "why"), [("gpt_oss", "no sdpa"), ("falcon_h1", "convolutions leak")])
def test_a_model_that_cannot_is_left_alone(name: str, why: str) -> None:
    assert not probe(small_copy(configuration(name), "eager")).handling.apart, why


def reference(q: Tensor, k: Tensor, v: Tensor, of_q: Tensor, of_k: Tensor, *longest: int, **asked: Any) -> Tensor:
    """What torch documents of `varlen_attn`, on [tokens, heads, width]."""
    assert of_q is of_k and longest == (27, 27) and asked["window_size"] == (-1, 0) and asked["enable_gqa"]
    assert q.is_contiguous() and k.is_contiguous() and v.is_contiguous() and of_q.dtype == torch.int32
    parts = []
    for start, end in zip(of_q.tolist()[:-1], of_q.tolist()[1:], strict=True):
        own: Any = [t[start:end].transpose(0, 1).unsqueeze(0) for t in (q, k, v)]
        part = nn.functional.scaled_dot_product_attention(*own, is_causal=True, scale=asked["scale"], enable_gqa=True)
        parts.append(part[0].transpose(0, 1))
    return torch.cat(parts)


def test_the_kernel_is_called_with_all_sequences_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded: this machine has no GPU. The same output, in the layout that transformers expects."""
    pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", reference)
    bounds = causal_lm.pack(PAIRS).bounds
    assert bounds is not None
    query, key, value = (torch.randn(1, heads, 53, 8) for heads in (4, 2, 2))
    together = attention._together(query, key, value, bounds, 27, 0.3)
    one_by_one = attention._one_by_one(query, key, value, bounds, 0.0, 0.3)
    assert together.shape == one_by_one.shape == (1, 53, 4, 8)
    torch.testing.assert_close(together, one_by_one)


@pytest.mark.parametrize(
    ("dtype", "width", "dropout", "fits"),
    [(torch.bfloat16, 128, 0.0, True), (torch.float32, 128, 0.0, False), (torch.bfloat16, 512, 0.0, False)],
)
def test_the_kernel_takes_what_it_can(dtype: torch.dtype, width: int, dropout: float, fits: bool) -> None:
    class OnGpu:
        is_cuda, shape = True, (1, 4, 9, width)

        def __init__(self) -> None:
            self.dtype = dtype

    assert attention._in_kernel(OnGpu(), OnGpu(), dropout) == fits  # type: ignore[arg-type]
