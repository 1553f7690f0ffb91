"""What a role sees of a model as it loads it: weights that are not finite, and the attention of a reward model."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from actors.models import causal_lm, loading
from actors.models.probing import small_copy as copies
from actors.models.probing.probe import probe
from actors.models.probing.small_copy import classifier_attention, foresee, small_copy
from scripts.sweep_models import configuration
from tests.probed import write

CPU = torch.device("cpu")
UP = "model.layers.1.mlp.up_proj.weight"


def spoilt(model: Path, folder: Path, tensor: str, row: int, value: float) -> Path:
    """A copy of a model with two values of one tensor changed."""
    file = shutil.copytree(model, folder) / "model.safetensors"
    tensors = load_file(file)
    tensors[tensor][row, :2] = value
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("tensor", "row", "value"),
    [
        (UP, 3, math.nan),
        (UP, 3, -math.inf),
        ("lm_head.weight", 7, math.inf),  # of a token that the probe leaves out as one that the model masks
        ("model.embed_tokens.weight", 1, math.nan),  # of one that it never reads
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_finite_are_refused_with_their_number(
    models: dict[str, Path], tmp_path: Path, tensor: str, row: int, value: float, dtype: str
) -> None:
    folder = spoilt(models["teacher"], tmp_path / "spoilt", tensor, row, value)
    with pytest.raises(loading.ModelRefused) as refused:
        loading.load(folder, dtype, "auto", "auto", CPU)
    said = str(refused.value)
    assert said.startswith(f"{folder}: 2 of the ") and f"values of {tensor} are not finite" in said
    assert said.endswith("copy or export it again") and "\n" not in said


def test_a_reward_model_whose_weights_are_not_finite_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    folder = spoilt(models["reward"], tmp_path / "spoilt", "model.layers.0.mlp.up_proj.weight", 3, math.nan)
    with pytest.raises(loading.ModelRefused, match=r"2 of the 8192 values of .* are not finite"):
        loading.load_classifier(folder)


def test_a_model_without_a_finite_logit_is_refused() -> None:
    """Finite weights too large for what is computed of them: nothing is left to compare."""
    model = small_copy(configuration("llama"), "eager")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1e38)
        model.model.norm.weight.mul_(1e38)
    refusal = probe(model).refusal
    assert refusal and "none of its logits is finite" in refusal


def classifier(folder: Path, name: str) -> Path:
    """A reward model with layers of an architecture that a wrong attention changes."""
    write(folder, name, num_labels=1, pad_token_id=0)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.score.weight.normal_(0.0, 1.0)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "attention"), [("gemma2", "eager"), ("gpt_oss", "eager"), ("qwen3", "sdpa")])
def test_a_reward_model_is_read_with_an_attention_that_computes_what_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, attention: str
) -> None:
    """Gemma 2 soft-caps what a token attends to, which `sdpa` leaves out; gpt-oss has no `sdpa`."""
    folder, ids = classifier(tmp_path / "reward", name), list(range(20, 60))
    assert classifier_attention(folder) == (attention, f"attention {attention}")
    model = loading.load_classifier(folder)
    assert model.config._attn_implementation == attention and f"attention {attention}" in capsys.readouterr().out
    found = causal_lm.classify(model, ids)
    model.set_attn_implementation("eager")
    assert found == pytest.approx(causal_lm.classify(model, ids), abs=1e-3)
    if name == "gemma2":
        model.set_attn_implementation("sdpa")
        assert abs(found - causal_lm.classify(model, ids)) > 0.01, "the other one would show"


def test_a_reward_model_without_a_small_copy_is_read_with_plain_attention_and_the_log_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unbuildable(*_: Any) -> Any:
        raise ValueError("sizes that do not go together\nand more")

    folder = classifier(tmp_path / "reward", "gemma2")
    monkeypatch.setattr(copies, "_drawn", unbuildable)
    copies._classifier_attention.cache_clear()
    try:
        assert loading.load_classifier(folder).config._attn_implementation == "eager"
    finally:
        copies._classifier_attention.cache_clear()
    said = capsys.readouterr().out
    assert f"{folder}: attention eager; no small copy can be built (ValueError: sizes that do not go together) " in said


@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_what_has_no_bf16_on_a_cpu_is_known_before_it_is_loaded(tmp_path: Path, attention: str) -> None:
    folder = write(tmp_path, "mamba2")
    refusal = foresee(folder, attention, "auto", "bfloat16").refusal
    assert refusal and "cannot be run here in torch.bfloat16 (RuntimeError" in refusal and "another dtype" in refusal
    assert foresee(folder, attention, "auto", "float32").refusal is None
    assert foresee(folder, attention, "auto").refusal is None, "a GPU has other kernels"
    with pytest.raises(loading.ModelRefused, match=r"cannot be run here in torch\.bfloat16"):
        loading.load(folder, "bfloat16", "auto", "auto", CPU)
