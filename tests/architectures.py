"""Tiny models of many architectures, above all of those whose files name other tensors than they have parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.tiny import build_tokenizer

TEXT: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
MIXED = {  # linear attention and full attention by turns
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SHARED = EXPERTS | {"shared_expert_intermediate_size": 32}
LATENT = {  # multi-head latent attention
    "num_key_value_heads": 2,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
}
ROUTED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
QWEN_VISION = {"hidden_size": 32, "intermediate_size": 32, "depth": 1, "num_heads": 2, "out_hidden_size": 64}

DENSE = {"llama": "Llama", "qwen3": "Qwen3", "phi3": "Phi3", "olmo2": "Olmo2", "gpt_neox": "GPTNeoX"}

Build = Callable[[Any], Any]

BUILD: dict[str, Build] = {
    **{name: lambda t, kind=kind: _of(t, kind, TEXT) for name, kind in DENSE.items()},
    "gemma3_text": lambda t: _of(t, "Gemma3", TEXT | {"tie_word_embeddings": True}, config="Gemma3TextConfig"),
    "qwen3_moe": lambda t: _of(t, "Qwen3Moe", TEXT | EXPERTS | {"norm_topk_prob": True}),
    "qwen2_moe": lambda t: _of(t, "Qwen2Moe", TEXT | SHARED),
    "mixtral": lambda t: _of(t, "Mixtral", TEXT | {"num_local_experts": 4}),
    "phimoe": lambda t: _of(t, "Phimoe", TEXT | {"num_local_experts": 4}),
    "olmoe": lambda t: _of(t, "Olmoe", TEXT | {"num_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe": lambda t: _of(t, "GraniteMoe", TEXT | {"num_local_experts": 4}),
    "glm4_moe": lambda t: _of(t, "Glm4Moe", TEXT | EXPERTS | ROUTED),
    "deepseek_v3": lambda t: _of(t, "DeepseekV3", TEXT | LATENT | ROUTED | EXPERTS),
    "gpt_oss": lambda t: _of(t, "GptOss", TEXT | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_next": lambda t: _of(t, "Qwen3Next", TEXT | SHARED | MIXED),
    "qwen3_5_text": lambda t: _of(t, "Qwen3_5", TEXT | MIXED, config="Qwen3_5TextConfig"),
    "qwen3_5": lambda t: t.Qwen3_5ForConditionalGeneration(
        t.Qwen3_5Config(text_config=TEXT | MIXED, vision_config=QWEN_VISION)
    ),
    "qwen3_5_moe": lambda t: t.Qwen3_5MoeForConditionalGeneration(
        t.Qwen3_5MoeConfig(text_config=TEXT | SHARED | MIXED, vision_config=QWEN_VISION)
    ),
    "gemma3": lambda t: t.Gemma3ForConditionalGeneration(
        t.Gemma3Config(
            text_config=TEXT | {"tie_word_embeddings": True},
            vision_config=VISION | {"num_hidden_layers": 1},
            mm_tokens_per_image=4,
        )
    ),
    "llama4": lambda t: t.Llama4ForConditionalGeneration(
        t.Llama4Config(
            text_config=TEXT | {"intermediate_size_mlp": 96, "num_local_experts": 4, "attention_chunk_size": 64},
            vision_config=VISION
            | {"num_hidden_layers": 1, "intermediate_size": 128}
            | dict.fromkeys(("vision_output_dim", "projector_input_dim", "projector_output_dim"), 32),
        )
    ),
}
MULTIMODAL = ("qwen3_5", "qwen3_5_moe", "gemma3", "llama4")


def build(name: str, folder: Path, dtype: str = "float32", seed: int = 0) -> Path:
    """Write a model of the architecture as transformers writes it, with every weight drawn anew: large enough that one
    that is missing shows in log-probs."""
    import torch
    import transformers

    torch.manual_seed(seed)
    model = BUILD[name](transformers)
    redraw(model, seed)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def redraw(model: Any, seed: int) -> None:
    """Weights of its own to every parameter, by seed."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            if parameter.dim() == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_((0.3 if "embed" in name or "head" in name else 0.15) * noise)


def _of(transformers: Any, kind: str, keys: dict[str, Any], config: str | None = None) -> Any:
    settings = getattr(transformers, config or f"{kind}Config")(**keys)
    return getattr(transformers, f"{kind}ForCausalLM")(settings)
