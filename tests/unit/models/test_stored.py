"""A weight version has the names, shapes and values of the model's own files, whatever transformers makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.learning.export import write_model
from actors.models.stored import Stored, read_stored
from actors.models.weights import buckets, check_names, unpack
from actors.wire.records import BadWeights
from tests import architectures
from tests.architectures import BUILD, MULTIMODAL, redraw

FUSED = {"qwen3_moe", "qwen2_moe", "mixtral", "phimoe", "olmoe", "glm4_moe", "deepseek_v3", "qwen3_next", "qwen3_5_moe"}


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def published(stored: Stored, model: Any, dtype: str) -> dict[str, torch.Tensor]:
    """What the learner's first rank sends, as a member unpacks it."""
    values = model.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    for group in stored.groups:
        tensors |= group.split({name: values[name] for name in group.parameters})
    parts = list(buckets(tensors.items(), dtype, stored.precise))
    return unpack([header for _, header in parts], [data for data, _ in parts])


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "bfloat16") for name in BUILD), ("llama", "float32"), ("qwen3_moe", "float32")]
)
def test_a_version_is_what_save_pretrained_writes_and_loads_as_what_was_published(
    name: str, dtype: str, tmp_path: Path
) -> None:
    folder = architectures.build(name, tmp_path / "model", dtype)
    files, stored, model = load_file(folder / "model.safetensors"), read_stored(folder), loaded(folder)
    assert not stored.unreadable and not stored.unwritable
    assert (name in FUSED) == any(len(group.tensors) > 1 for group in stored.groups)
    first = published(stored, model, dtype)
    assert first.keys() == files.keys() - set(stored.others)
    assert bool(stored.others) == (name in MULTIMODAL and name != "gemma3")  # gemma3 is loaded whole
    for key, tensor in first.items():
        assert tensor.shape == files[key].shape and torch.equal(tensor, files[key]), key
    check_names(first, folder)

    redraw(model, 1)
    moved = published(stored, model, dtype)
    write_model(model, moved, stored.others, folder, tmp_path / "export")
    for key, value in loaded(tmp_path / "export").state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    joined: dict[str, torch.Tensor] = {}
    for group in stored.groups:
        joined |= group.join(moved)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in joined.items())
    assert joined.keys() >= {key for key, _ in model.named_parameters()}


@pytest.mark.parametrize("name", MULTIMODAL)
def test_an_exported_part_of_a_multimodal_model_is_the_whole_model(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    folder = architectures.build(name, tmp_path / "model")
    (folder / "preprocessor_config.json").write_text("{}")
    stored, model = read_stored(folder), loaded(folder)
    redraw(model, 1)
    write_model(model, published(stored, model, "float32"), stored.others, folder, tmp_path / "export")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "export" / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in stored.others)
    found: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "export", output_loading_info=True)
    info = found[1]
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_parameters_in_place_of_the_files_tensors_are_refused(tmp_path: Path) -> None:
    folder = architectures.build("qwen3_moe", tmp_path / "model")
    tensors = dict(loaded(folder).named_parameters())
    with pytest.raises(BadWeights, match=r"weight model.layers.0.mlp.experts.gate_up_proj \(4, 64, 64\)"):
        check_names(tensors, folder)
    files = load_file(folder / "model.safetensors")
    del files["model.layers.1.mlp.experts.3.up_proj.weight"]
    with pytest.raises(BadWeights, match=r"layers.1.mlp.experts.3.up_proj.weight'\] of .* were not published"):
        check_names(files, folder)


def test_what_the_files_keep_in_float32_travels_in_float32(tmp_path: Path) -> None:
    folder = architectures.build("deepseek_v3", tmp_path / "model", "bfloat16")
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    tensors = load_file(folder / "model.safetensors")
    tensors[bias] = torch.tensor([1.0, 1.0 + 2**-20, 2.0, 3.0])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    stored = read_stored(folder)
    assert stored.precise == {bias}
    sent = published(stored, loaded(folder), "bfloat16")
    assert torch.equal(sent[bias], tensors[bias]) and sent["lm_head.weight"].dtype == torch.bfloat16


def test_files_that_do_not_make_the_model_are_seen_from_their_headers(tmp_path: Path) -> None:
    folder = architectures.build("qwen3_moe", tmp_path / "model")
    whole = load_file(folder / "model.safetensors")
    save_file({key: t for key, t in whole.items() if ".q_proj." not in key}, folder / "model.safetensors")
    assert read_stored(folder).unreadable == (
        "it lacks the weights ['model.layers.0.self_attn.q_proj.weight', 'model.layers.1.self_attn.q_proj.weight']",
    )
    save_file({key: t for key, t in whole.items() if "experts.3." not in key}, folder / "model.safetensors")
    assert any("gate_up_proj is [3, 64, 64] in its files and [4" in fault for fault in read_stored(folder).unreadable)
    save_file({key: t for key, t in whole.items() if "1.mlp.experts.3.up_" not in key}, folder / "model.safetensors")
    first, second = read_stored(folder).unreadable
    assert first.startswith("model.layers.1.mlp.experts.gate_up_proj cannot be made of the 7 weights that there are")
    assert second == "it lacks the weights ['model.layers.1.mlp.experts.gate_up_proj']"


def test_old_buffers_are_nobodys_business(tmp_path: Path) -> None:
    folder = architectures.build("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    inverse = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(16) for layer in range(2)}
    save_file(tensors | inverse, folder / "model.safetensors", {"format": "pt"})
    stored = read_stored(folder)
    assert set(stored.others) == inverse.keys() and not stored.unreadable
    check_names(published(stored, loaded(folder), "float32"), folder)


def test_files_with_fused_experts_are_published_fused(tmp_path: Path) -> None:
    folder = architectures.build("qwen3_moe", tmp_path / "model")
    model = loaded(folder)
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    stored = read_stored(tmp_path / "fused")
    assert "model.layers.0.mlp.experts.gate_up_proj" in stored.tensors
    check_names(published(stored, model, "float32"), tmp_path / "fused")
