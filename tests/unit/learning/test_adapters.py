"""Adapters against plain mathematics: float64 autograd of W + scale B A, merging, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import functional_call

from actors.learning.adapting.adapters import Adapters
from actors.learning.ranks.gathering import Gathering
from actors.lora.files import base_fingerprint, check_base, record_base
from actors.lora.sites import Unfit, check_reach, read_sites
from actors.lora.wire import adapter, moved_tensors, names, whole
from actors.models import causal_lm, weights
from actors.models.stored import read_stored
from actors.wire.records import BadWeights
from configs.roles.lora import Lora
from tests import tiny

TARGETS = ("q_proj", "v_proj", "down_proj")
LORA = Lora(rank=4, alpha=6.0, targets=TARGETS)
IDS = torch.tensor([[5, 6, 7, 8, 30, 40, 50, 60, 70]])


def adapted(model: Path, dtype: torch.dtype = torch.float32, drawn: bool = True) -> tuple[Any, Adapters]:
    """The model with adapters; `drawn`: B is not 0."""
    plain = causal_lm.load_model(model, "float32").to(dtype)
    adapters = Adapters(plain, LORA, model, read_stored(model), seed=0)
    for parameter in adapters.trained() if drawn else ():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    return plain, adapters


def gathering(model: Any, adapters: Adapters, directory: Path) -> Gathering:
    return Gathering(model, read_stored(directory), 0, False, adapters)


def version(model: Any, adapters: Adapters, directory: Path) -> tuple[list[Any], list[Any]]:
    """Headers and buckets."""
    parts = list(weights.buckets(gathering(model, adapters, directory).published(), "float32"))
    return [header for _, header in parts], [data for data, _ in parts]


def test_untrained_adapters_leave_every_logit_as_it_is(models: dict[str, Path]) -> None:
    model, adapters = adapted(models["student"], drawn=False)
    plain = causal_lm.load_model(models["student"], "float32")
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, plain(IDS).logits)
    assert all(p.requires_grad == (".lora_" in name) for name, p in model.named_parameters())
    assert {len(pair) for pair in adapters.pairs()} == {2}


def test_gradients_are_those_of_the_sum_written_out(models: dict[str, Path]) -> None:
    model, adapters = adapted(models["student"], torch.float64)
    loss = -model(IDS).logits[0, :-1].log_softmax(-1).gather(1, IDS[0, 1:, None]).sum()
    loss.backward()
    plain = causal_lm.load_model(models["student"], "float32").double()
    pairs = {site.tensor: names(site.tensor) for site in read_sites(models["student"], LORA.targets)}
    parts = {name: p.detach().clone().requires_grad_() for pair in adapters.pairs() for name, p in pair}
    base = dict(plain.named_parameters())
    moved = {w: base[w].detach() + LORA.scale * parts[b] @ parts[a] for w, (a, b) in pairs.items()}
    logits = functional_call(plain, moved, (IDS,)).logits
    written = -logits[0, :-1].log_softmax(-1).gather(1, IDS[0, 1:, None]).sum()
    written.backward()
    torch.testing.assert_close(loss, written, rtol=1e-12, atol=0.0)
    for pair in adapters.pairs():
        for name, parameter in pair:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0
            torch.testing.assert_close(parameter.grad, parts[name].grad, rtol=1e-9, atol=1e-12, msg=name)


def test_merged_weights_and_a_version_give_the_adapters_logits(models: dict[str, Path]) -> None:
    directory = models["student"]
    model, adapters = adapted(directory)
    headers, data = version(model, adapters, directory)
    exported = dict(gathering(model, adapters, directory).student())
    arrived = whole(adapter(headers, data, directory, LORA.rank), directory, LORA)
    assert exported.keys() == arrived.keys() == read_stored(directory).tensors.keys()
    assert all(torch.equal(exported[name], arrived[name]) for name in exported), "whoever merges, it is the same"
    merged = causal_lm.load_model(directory, "float32")
    merged.load_state_dict(exported, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)
        with adapters.off():
            base = causal_lm.load_model(directory, "float32")(IDS).logits
            assert torch.equal(model(IDS).logits, base)
        assert not torch.allclose(model(IDS).logits, base)


def test_an_average_travels_as_the_weights_that_are_adapted(models: dict[str, Path]) -> None:
    directory = models["student"]
    model, adapters = adapted(directory)
    average = dict(gathering(model, adapters, directory).moving())
    parts = list(weights.buckets(average.items(), "float32"))
    found = moved_tensors([header for _, header in parts], [data for data, _ in parts], directory, LORA)
    own = moved_tensors(*version(model, adapters, directory), directory, LORA)
    assert found.keys() == own.keys() == {site.tensor for site in read_sites(directory, LORA.targets)}
    assert all(torch.equal(found[name], own[name]) for name in own)


@pytest.mark.parametrize("spoiled", ["rank", "half", "alien"])
def test_a_version_that_does_not_fit_is_refused(models: dict[str, Path], spoiled: str) -> None:
    directory = models["student"]
    tensors = dict(gathering(*adapted(directory), directory).published())
    first = next(iter(tensors))
    if spoiled == "rank":
        tensors[first] = tensors[first][:3]
    elif spoiled == "half":
        del tensors[first]
    else:
        tensors[first.replace("layers.0", "layers.9")] = tensors.pop(first)
    parts = list(weights.buckets(tensors.items(), "float32"))
    with pytest.raises(BadWeights, match="adapter"):
        adapter([header for _, header in parts], [data for data, _ in parts], directory, LORA.rank)


def test_a_in_every_rank_is_drawn_alike_and_by_the_seed(models: dict[str, Path]) -> None:
    def first(seed: int) -> torch.Tensor:
        torch.rand(3)  # whatever the process has drawn before
        plain = causal_lm.load_model(models["student"], "float32")
        return Adapters(plain, LORA, models["student"], read_stored(models["student"]), seed).trained()[0]

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (("q_proj", "c_attn"), r"'c_attn' matches no linear layer; allowed: \['down_proj', 'gate_proj', 'k_proj'"),
        (("lm_head",), r"\['lm_head'\] match no linear layer"),
        (("embed_tokens",), "match no linear layer"),
    ],
)
def test_targets_that_name_no_layer_are_refused(models: dict[str, Path], targets: tuple[str, ...], said: str) -> None:
    with pytest.raises(Unfit, match=said):
        read_sites(models["teacher"], targets)


def test_experts_that_transformers_fuses_are_refused_and_named(tmp_path: Path) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2, head_dim=16,
        num_attention_heads=2, num_key_value_heads=1, num_experts=4, num_experts_per_tok=2, mlp_only_layers=[0],
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(Unfit, match=r"'up_proj' also names 4 tensors that are no linear layers.*fused experts"):
        read_sites(tmp_path, ("q_proj", "up_proj"))
    assert len(read_sites(tmp_path, ("q_proj",))) == 2
    check_reach(tmp_path, Lora(targets=("q_proj", "v_proj")))


def test_layers_whose_weight_is_read_without_a_call_are_refused(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama import modeling_llama

    def bypassing(self: Any, x: torch.Tensor) -> torch.Tensor:
        gated = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return torch.nn.functional.linear(gated, self.down_proj.weight)

    check_reach(models["student"], LORA)
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", bypassing)
    with pytest.raises(Unfit, match="down_proj: the model does not call this layer"):
        check_reach(models["student"], LORA)


def test_a_checkpoint_knows_its_base_by_its_bytes(tmp_path: Path) -> None:
    base, moved = tiny.build_model(tmp_path / "base"), tiny.build_model(tmp_path / "moved")
    saved = tmp_path / "saved"
    saved.mkdir()
    record_base(base, LORA, base_fingerprint(base), saved)
    check_base(moved, LORA, base_fingerprint(moved), saved)  # the same bytes elsewhere
    with pytest.raises(RuntimeError, match="asks for"):
        check_base(base, Lora(rank=8, targets=TARGETS), base_fingerprint(base), saved)
    file = base / "model.safetensors"
    spoiled = bytearray(file.read_bytes())
    spoiled[-1] ^= 1
    file.write_bytes(spoiled)
    with pytest.raises(RuntimeError, match=f"of the weights of {base} as they were"):
        check_base(base, LORA, base_fingerprint(base), saved)
    with pytest.raises(RuntimeError, match="holds no adapters"):
        check_base(base, LORA, base_fingerprint(base), tmp_path)
