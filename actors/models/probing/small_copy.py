"""Probes a small random copy of a model, before any weight is read.

Weights are drawn so that every layer moves the logits by nats: the usual initialisation hides leaks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from actors.models.model_faults import quiet_transformers
from actors.models.probing.probe import Packing, ProbeResult, probe, tolerance
from actors.models.probing.shrink import VOCABULARY, shrunk


@dataclass(frozen=True)
class Foresight:
    """`attention`: to load the model with. `probed`: of the small copy; None if none can be built, for the reason in
    `note`: then the probe of the loaded model decides alone."""

    attention: str
    probed: ProbeResult | None
    refusal: str | None = None
    note: str = ""

    @property
    def line(self) -> str:
        said = self.probed.line if self.probed else f"no small copy can be built ({self.note}); seen when it is loaded"
        return f"attention {self.attention}; {said}"


@dataclass(frozen=True)
class _Known:
    """A configuration as text, which is the cache key, and as transformers reads it."""

    text: str
    config: Any = field(compare=False)


def foresee(directory: Path, attention: str, packing: Packing, dtype: str | None = None) -> Foresight:
    """Probe a small copy of the model in a directory, in float32 on this machine's CPU, once for each configuration.
    `attention`: a name in transformers, or `auto`: the fastest that agrees with plain attention. `dtype`: that of a
    role on a CPU, for which an architecture may have no kernels; None on a GPU."""
    text, config = _read(directory)
    if isinstance(config, Exception):
        return Foresight(attention, None, f"transformers cannot read its config.json ({_first_line(config)})")
    with quiet_transformers():
        return _foresee(_Known(text, config), attention, packing, dtype)


def classifier_attention(directory: Path) -> tuple[str, str]:
    """The attention to load a sequence classifier with, the fastest that computes what the model does, and a line that
    says so. It is plain attention where no small copy shows whether a faster one is right."""
    text, config = _read(directory)
    if isinstance(config, Exception):
        raise config
    with quiet_transformers():
        return _classifier_attention(_Known(text, config))


def _read(directory: Path) -> tuple[str, Any]:
    """The text of config.json, and the configuration that transformers reads from it, or what it raises."""
    from transformers import AutoConfig

    text = Path(directory, "config.json").read_text()
    try:
        with quiet_transformers():
            return text, AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        return text, error


@lru_cache(maxsize=64)
def _foresee(known: _Known, attention: str, packing: Packing, dtype: str | None) -> Foresight:
    parsed = known.config
    if attention != "auto":
        return _with(parsed, attention, packing, dtype)
    fast = _with(parsed, "sdpa", packing, dtype)
    if not fast.note and (fast.probed is None or not fast.probed.inexact):
        return fast
    plain = _with(parsed, "eager", packing, dtype)
    return fast if fast.note and plain.note and fast.attention != "eager" else plain


@lru_cache(maxsize=64)
def _classifier_attention(known: _Known) -> tuple[str, str]:
    """`sdpa` if it agrees with `eager` (plain torch) on the same tokens, else `eager`; and the line."""
    from transformers import AutoModelForSequenceClassification

    ids = torch.randint(5, VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(0))
    try:
        model = _drawn(known.config, "sdpa", 0, AutoModelForSequenceClassification)
        with torch.no_grad():
            fast = torch.cat([model(input_ids=row[None]).logits for row in ids])
            model.set_attn_implementation("eager")
            plain = torch.cat([model(input_ids=row[None]).logits for row in ids])
    except Exception as error:  # as in `_with`
        why = "" if _lacks(error) else f"; no small copy can be built ({_first_line(error)}) to try a faster one on"
        return "eager", f"attention eager{why}"
    attention = "sdpa" if float((fast - plain).abs().max()) <= 3.0 * tolerance(torch.float32) else "eager"
    return attention, f"attention {attention}"


def _with(config: Any, attention: str, packing: Packing, dtype: str | None) -> Foresight:
    """Probe with one attention. Flash attention needs a GPU, so the small copy uses `sdpa` for it."""
    try:
        model = small_copy(config, "sdpa" if attention.startswith("flash") else attention)
    except Exception as error:  # sizes that do not go together, a package that is missing, an attention it lacks
        if _lacks(error):
            return Foresight(attention, None, f"it has no attention: {attention}; set attention: auto", "no attention")
        return Foresight(attention, None, None, _first_line(error))
    probed = probe(model, packing)
    if probed.unseen:
        return Foresight(attention, None, None, probed.gaps.reasons["head"])
    refusal = None if attention.startswith("flash") and probed.inexact else probed.refusal
    return Foresight(attention, probed, refusal or _unrunnable(model, dtype))


def _unrunnable(model: Any, dtype: str | None) -> str | None:
    """Why the model raises in the role's dtype, where it does: what bf16 rounds is seen on the loaded model alone."""
    if dtype != "bfloat16":
        return None
    probed = probe(model.to(torch.bfloat16))
    return probed.refusal if probed.unseen else None


def _lacks(error: Exception) -> bool:
    """Whether an architecture has no such attention."""
    return "does not support an attention implementation" in str(error)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]


def small_copy(
    config: Any, attention: str, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Any:
    """A tiny causal model of the configuration's architecture, with random weights. Raises what transformers raises if
    it cannot be built."""
    from transformers import AutoModelForCausalLM

    model = _drawn(config, attention, seed, AutoModelForCausalLM)
    _spread_logits(model)
    return model.to(device=device, dtype=dtype)


def _drawn(config: Any, attention: str, seed: int, kind: Any) -> Any:
    """A model of the configuration made small, of one of transformers' kinds, in float32 and eval mode."""
    small = type(config).from_dict(shrunk(config.to_dict()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.from_config(small, attn_implementation=attention, trust_remote_code=False).to(torch.float32)
        scale_weights(model)
    return model.eval()


@torch.no_grad()
def scale_weights(model: nn.Module) -> None:
    """Draw weights: matrices keep the scale of their input, embeddings have unit scale."""
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            fan = parameter.shape[-1] if parameter.ndim == 2 else min(parameter.shape[1:])
            if parameter.ndim == 3 and parameter.shape[1] == 1:  # depthwise convolutions
                fan = parameter.shape[-1]
            parameter.normal_(0.0, 1.5 * max(fan, 1) ** -0.5)
        elif "bias" in name or "sink" in name:
            parameter.normal_(0.0, 0.2)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.normal_(0.0, 1.0)


@torch.no_grad()
def _spread_logits(model: Any) -> None:
    """Scale the LM head until logits have a standard deviation of 2 nats, after any scale or soft-cap."""
    ids = torch.randint(5, VOCABULARY, (1, 24), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        spread = float(model(input_ids=ids).logits.float().std())
        model.get_output_embeddings().weight.mul_(min(8.0, max(0.125, 2.0 / max(spread, 1e-3))))
