"""Shrinks a model's configuration: the same architecture with few narrow layers, for a probe.

Numbers that only set a size become small, by their names; the kinds of layers, soft-caps, multipliers and ties stay.
Windows and chunks become shorter than the probe's sequences, and soft-caps low, so that their effects show.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

VOCABULARY = 160
CONTEXT = 256
LAYERS = 4
_HEADS, _HEAD, _WIDTH, _WINDOW = 4, 16, 64, 6
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "decoder_layers", "encoder_layers")

# A key's name (whole) -> its value; the first that matches. Heads x head width = width, here as in most models.
_WIDTHS: tuple[tuple[str, int], ...] = (
    (r"(vocab_size|decoder_vocab_size|vocab_size_per_layer_input)", VOCABULARY),
    (r"(swa_)?(num_attention_heads|n_heads?|num_heads|attention_heads|decoder_attention_heads)", _HEADS),
    (r"(encoder_attention_heads|num_(de|en)coder_attention_heads|index_n_heads|linear_num_heads)", _HEADS),
    (r"(linear_num_value_heads|linear_num_key_heads)", _HEADS),
    (r"(mamba_n_heads|mamba_num_heads|n_mamba_heads)", 8),
    (r"(head_dim|global_head_dim|swa_head_dim|d_head|dim_head|attention_head_size|kv_channels|linear_head_dim)", _HEAD),
    (r"(linear_key_head_dim|linear_value_head_dim|v_head_dim|qk_nope_head_dim|index_head_dim)", _HEAD),
    (r"(mamba_d_head|mamba_head_dim|mamba_headdim)", _HEAD),
    (r"(qk_rope_head_dim|rotary_dim)", 8),
    (r"qk_head_dim", _HEAD + 8),
    (r"query_pre_attn_scalar", _HEAD),
    (r"(mamba_d_ssm|lru_width)", 2 * _WIDTH),
    (r"(hidden_size|d_model|n_embd|embedding_size|embedding_dim|emb_dim|word_embed_proj_dim)", _WIDTH),
    (r"(input_embedding_size|output_embedding_size|backbone_hidden_size|ple_embed_dim|hidden_dim|dim)", _WIDTH),
    (r"\w*(intermediate_size|intermediate_size_mlp|ffn_dim|ffn_hidden_size|dim_ff|dff|d_inner|feed_forward_size)", 96),
    (r"(kv_lora_rank|q_lora_rank|o_lora_rank|hc_lowrank|gated_norm_rank|laurel_rank|router_hidden_size)", 32),
    (r"(hidden_size_per_layer_input|d_rel|adapter_rank)", 16),
    (r"(mamba_d_state|state_size|ssm_state_size)", 16),
    (r"(time_step_rank|mamba_dt_rank)", 8),
)
_COUNTS: tuple[tuple[str, int], ...] = (
    (r"(num_experts|n_routed_experts|num_local_experts|moe_num_experts)", 8),
    (r"(num_experts_per_tok|num_experts_per_token|moe_topk|moe_k|top_k_experts|n_shared_experts)", 2),
    (r"(n_groups?|topk_group|num_expert_group|zero_expert_num|attn_layer_period|expert_layer_period)", 2),
    (r"(centroid_intermediate_top_k|index_topk_blocks|no_rope_layer_interval)", 2),
    (r"(first_k_dense_replace|num_dense_layers|moe_layer_start_index|attn_layer_offset|expert_layer_offset)", 1),
    (r"num_kv_shared_layers", 0),
    (r"(num_centroids)", 16),
    (
        r"(sliding_window|sliding_window_size|attention_window_size|window_size|local_attention|keep_window_size)",
        _WINDOW,
    ),
    (r"(attention_chunk_size|mamba_chunk_size|chunk_size|block_size|rel_extent|index_topk|index_block_size)", 8),
    (r"(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_target_positions|context_length)", CONTEXT),
    (r"(max_inference_chunksize|original_max_position_embeddings|model_max_length)", CONTEXT),
    (r"(ngram_vocab_size_base|encoder_hash_byte_group_vocab)", 512),
    (r"(num_encoder_layers|depth|num_nextn_predict_layers)", 1),
)
_CAP = re.compile(r"\w*cap(ping)?$")
_INDICES = re.compile(r"\w*(indices|idxs|_ids|_layers)$")


def shrunk(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as a dictionary (nested ones too) -> a small one of the same architecture."""
    layers = _kept_layers(config)
    return {key: _shrunk(key, value, config, layers) for key, value in config.items()}


def _shrunk(key: str, value: Any, config: Mapping[str, Any], layers: list[int]) -> Any:
    if isinstance(value, Mapping):
        if value and all(str(k).isdigit() for k in value) and "layer" in key:
            by_layer = {int(k): v for k, v in value.items()}
            return {new: shrunk(by_layer[old]) for new, old in enumerate(layers) if old in by_layer}
        return shrunk(value) if key.endswith("_config") or "model_type" in value else value
    if isinstance(value, list):
        return _list(key, value, config, layers)
    if key == "tie_word_embeddings":
        return False  # a tied LM head repeats its input, which hides leaks
    if isinstance(value, bool) or not isinstance(value, int | float) or not value:
        return value
    if key in _DEPTHS:
        return len(layers)
    if key.endswith("_token_id"):
        return value if value < VOCABULARY else 2
    if _CAP.fullmatch(key):
        return min(float(value), 0.5 if "att" in key else 3.0)
    if "key_value_heads" in key or key in ("num_kv_heads", "n_kv_heads", "num_query_groups"):
        return _key_value_heads(int(value), config)
    return _number(key, value, config)


def _number(key: str, value: float, config: Mapping[str, Any]) -> Any:
    if key == "head_dim" and config.get("qk_rope_head_dim"):
        return 8
    if key == "num_heads" and config.get("state_size"):
        return 8
    for name, size in _WIDTHS:
        if re.fullmatch(name, key):
            return size
    return next((min(size, int(value)) for name, size in _COUNTS if re.fullmatch(name, key)), value)


def _list(key: str, value: list[Any], config: Mapping[str, Any], layers: list[int]) -> Any:
    if key.endswith("_token_id"):
        return [i if i < VOCABULARY else 2 for i in value]
    if len(value) == _depth(config):
        return [_number(key.removesuffix("_per_layer"), value[i], config) for i in layers]
    if _is_indices(key, value, config):
        return [new for new, old in enumerate(layers) if old in value]
    return value


def _depth(config: Mapping[str, Any]) -> int:
    return next((config[key] for key in _DEPTHS if isinstance(config.get(key), int)), 0)


def _is_indices(key: str, value: Any, config: Mapping[str, Any]) -> bool:
    """Whether a list holds indices of layers."""
    named = isinstance(value, list) and bool(value) and _INDICES.fullmatch(key) is not None
    return named and all(isinstance(i, int) and 0 <= i < _depth(config) for i in value)


def _kept_layers(config: Mapping[str, Any]) -> list[int]:
    """Ascending indices of layers: the first of each kind that the per-layer lists distinguish."""
    depth = _depth(config)
    lists = [list(map(str, v)) for v in config.values() if isinstance(v, list) and len(v) == depth > 0]
    lists += [
        [str(i in v) for i in range(depth)] for k, v in config.items() if _is_indices(k, v, config) and len(v) != depth
    ]
    if not lists:
        return list(range(min(depth, LAYERS)))
    kinds = list(zip(*lists, strict=True))
    return sorted({*[kinds.index(kind) for kind in dict.fromkeys(kinds)][:LAYERS], *range(min(2, depth))})


def _key_value_heads(value: int, config: Mapping[str, Any]) -> int:
    heads = next((config[k] for k in ("num_attention_heads", "n_head", "n_heads") if config.get(k)), value)
    return _HEADS if value >= heads else 1 if value == 1 else 2
