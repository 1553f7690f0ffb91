"""Models by shape: random weights, so that nothing is downloaded; or those of a directory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from actors.models import causal_lm
from actors.models.attention import attend_apart
from actors.models.handling import Handling, body_of
from actors.models.probing.probe import probe
from configs.load import BUNDLED, model_directory

BUNDLE = "bundled"


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    inner: int
    heads: int
    key_heads: int
    tied: bool = True


SHAPES = {  # of Qwen 3
    "0.6b": Shape(28, 1024, 3072, 16, 8),
    "1.7b": Shape(28, 2048, 6144, 16, 8),
    "4b": Shape(36, 2560, 9728, 32, 8),
    "8b": Shape(36, 4096, 12288, 32, 8, tied=False),
}


@dataclass(frozen=True)
class Built:
    """A model on its device, and how to run it."""

    model: Any
    handling: Handling

    @property
    def vocabulary(self) -> int:
        return self.model.config.get_text_config().vocab_size

    @property
    def width(self) -> int:
        return self.model.get_output_embeddings().weight.shape[1]

    @property
    def matrices(self) -> int:
        """Numbers of the body's matrices, each of which a token is multiplied with."""
        body = body_of(self.model)
        embedding = id(body.get_input_embeddings().weight)
        return sum(p.numel() for p in body.parameters() if p.ndim == 2 and id(p) != embedding)

    def attention_flops(self, lengths: list[int]) -> float:
        """Of causal attention of sequences of these lengths, one forward pass."""
        config = self.model.config.get_text_config()
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        pairs = sum(n * (n + 1) / 2 for n in lengths)
        return 4.0 * pairs * config.num_attention_heads * head * config.num_hidden_layers


def build(name: str, device: torch.device) -> Built:
    """A model by its name: of SHAPES, BUNDLE, or a directory; bf16 on a GPU, else float32."""
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    if name in SHAPES:
        model = _drawn(SHAPES[name], device).to(causal_lm.DTYPES[dtype])
    else:
        path = f"{BUNDLED}SmolLM2-135M-Instruct" if name == BUNDLE else name
        model = causal_lm.load_model(model_directory(path), dtype)
    model = model.eval().to(device)
    handling = probe(model).handling
    if handling.apart:
        attend_apart(model)
    return Built(model, handling)


def _drawn(shape: Shape, device: torch.device) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    with device:
        return Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=151_936,
                hidden_size=shape.width,
                intermediate_size=shape.inner,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.key_heads,
                head_dim=128,
                tie_word_embeddings=shape.tied,
            )
        )
