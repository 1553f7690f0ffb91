"""How a role computes."""

from __future__ import annotations

from typing import Literal

Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]  # auto: the fastest that supports the model
Dtype = Literal["bfloat16", "float32", "auto"]  # auto: bfloat16 where the hardware computes it, else float32
