"""A tiny Llama with a real tokenizer, built in about a second: head_dim 32, as vLLM's CPU attention asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>"]
CONTEXT = 256


def build_model(
    folder: Path,
    seed: int = 0,
    scale: float = 1.5,
    extra_token: str | None = None,
    padding: int = 5,
    tied: bool = False,
) -> Path:
    """Write model and tokenizer in Hugging Face format; `scale` is the standard deviation of the logits."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer(extra_token)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + padding,  # as real models are
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        initializer_range=0.1,  # enough for the prompt to matter and the tied head not to repeat its input
    )
    model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0.0, 1.0)
        model.lm_head.weight.normal_(0.0, scale / 8.0)  # the embeddings as well, where they are tied
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_tokenizer(extra_token: str | None = None) -> Any:
    """Byte-level tokenizer with chat markers; 256 bytes and three special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet, *([extra_token] if extra_token else [])])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_reward_model(folder: Path, seed: int = 0) -> Path:
    """A sequence classifier with one output on the same tokens; its scores differ by nats between responses."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 5,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        num_labels=1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
    )
    model = LlamaForSequenceClassification(config).float()
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0.0, 1.0)
        model.score.weight.normal_(0.0, 1.0 / 8.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_prompts(path: Path, count: int, response: bool = False) -> Path:
    """Rows with every field that a recipe of configs/ names."""
    rows = [
        {
            "prompt": f"say {i}",
            "persona": ("pirate", "poet")[i % 2],
            "answer": str(i),
            "given": "def f(x):\n    return 1\n",
            "solution": "def f(x):\n    return x\n",
            "tests": [{"call": "f(2)", "expect": 2}],
            **({"response": f"number {i}!"} if response else {}),
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
