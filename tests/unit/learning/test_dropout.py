"""A learner drops nothing unless its recipe asks for it: training mode computes what evaluation does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
)

from actors.learning.learner import Learner
from actors.wire.jobs import LearnerSpec
from configs.objective import Objective
from configs.roles.learner import Learner as LearnerConfig

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
LAYERS = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
HALF = 0.5
KINDS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SMALL, attention_dropout=HALF),
    "gpt2": lambda: GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=2, resid_pdrop=HALF, embd_pdrop=HALF, attn_pdrop=HALF
    ),
    "opt": lambda: OPTConfig(
        **LAYERS, ffn_dim=64, word_embed_proj_dim=32, dropout=HALF, attention_dropout=HALF, layerdrop=HALF
    ),
    "falcon": lambda: FalconConfig(**LAYERS, hidden_dropout=HALF, attention_dropout=HALF),
    "neox": lambda: GPTNeoXConfig(**SMALL, hidden_dropout=HALF, attention_dropout=HALF),
    "phi": lambda: PhiConfig(**SMALL, resid_pdrop=HALF, embd_pdrop=HALF, attention_dropout=HALF),
    "mixtral": lambda: MixtralConfig(
        **SMALL, num_key_value_heads=2, num_local_experts=2, router_jitter_noise=HALF, attention_dropout=HALF
    ),
}


def loaded(folder: Path, **settings: Any) -> Any:
    config = LearnerConfig.model_validate({"optimizer": {"lr": 1.0}, "dtype": "float32", **settings})
    spec = LearnerSpec(config, Objective(target="data"), str(folder), 64, 1, 0, "float32")
    return Learner(0, 1)._load_model(spec)


def logits(model: Any) -> torch.Tensor:
    return model(input_ids=torch.arange(20)[None] * 3 % 64, use_cache=False).logits.detach()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("recompute", [False, True])
def test_training_drops_nothing_and_the_configuration_stays(tmp_path: Path, name: str, recompute: bool) -> None:
    config = KINDS[name]()
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = loaded(tmp_path, gradient_checkpointing=recompute)
    expected = logits(model.eval())
    torch.testing.assert_close(logits(model.train()), expected)
    changed = {key for key, value in config.to_dict().items() if value == HALF and model.config.to_dict()[key] != HALF}
    assert not changed
    assert model.is_gradient_checkpointing == recompute


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "mixtral"])
def test_a_recipe_may_ask_for_dropout(tmp_path: Path, name: str) -> None:
    AutoModelForCausalLM.from_config(KINDS[name]()).save_pretrained(tmp_path)
    model = loaded(tmp_path, dropout=True)
    assert not torch.allclose(logits(model.train()), logits(model.eval()))
