"""Tiny models of many architectures, on disk as a scorer or a learner loads them, with weights that a leak shows in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.sweep_models import configuration, small_copy
from tests import tiny

# Must train and score, packed or not.
REQUIRED = (
    *("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "qwen3_5", "qwen3_5_text", "qwen3_next", "gemma2"),
    *("gemma3", "gemma3_text", "gemma4", "gemma4_text", "phi", "phi3", "olmo", "olmo2", "granite", "cohere", "cohere2"),
    *("glm", "glm4", "gpt_oss", "deepseek_v3", "lfm2", "mamba2", "falcon_h1"),
)


def write(folder: Path, name: str, vocabulary: int | None = None, **changes: Any) -> Path:
    """A tiny model of one model type, with a tokenizer. `vocabulary`: rows of embedding and head, if not the copy's.
    `changes`: of its configuration."""
    config = configuration(name)
    for key, value in changes.items():
        setattr(config, key, value)
    model = small_copy(config, "eager")
    if vocabulary is not None:
        model.resize_token_embeddings(vocabulary)
    model.config.eos_token_id = model.generation_config.eos_token_id = tiny.build_tokenizer().eos_token_id
    model.save_pretrained(folder)
    tiny.build_tokenizer().save_pretrained(folder)
    return folder
