"""Loads a causal language model for a role, probes it (`probing/`), and refuses one that would compute wrongly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from actors.models import causal_lm
from actors.models.attention import attend_apart
from actors.models.handling import Handling
from actors.models.probing.probe import Packing, ProbeResult, probe
from actors.models.probing.small_copy import classifier_attention, foresee


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode on the requested device, and how to run it."""

    model: Any
    handling: Handling


class ModelRefused(ValueError):
    """The probe found that this role cannot compute with the model. One line with a number and a remedy."""


def load(directory: Path, dtype: str, attention: str, packing: Packing, device: torch.device) -> Loaded:
    """Load and probe; the member's log says what was found. Raises ModelRefused, and what `load_model` does."""
    ahead = foresee(directory, attention, packing)
    if ahead.refusal:
        raise ModelRefused(f"{directory}: {ahead.refusal}")
    model = causal_lm.load_model(directory, dtype, ahead.attention).eval().to(device)
    _refuse_unfinite(directory, model)
    probed = _probed(model, packing)
    if probed.refusal:
        raise ModelRefused(f"{directory}: {probed.refusal}")
    handling = _both(probed.handling, ahead.probed)
    if handling.apart:
        attend_apart(model)
    print(f"{directory}: attention {ahead.attention}, {replace(probed, handling=handling).line}", flush=True)
    return Loaded(model, handling)


def load_classifier(directory: Path) -> Any:
    """A sequence classifier with one output, for reading, in float32. Raises ModelRefused, and ValueError where weights
    are missing."""
    from transformers import AutoModelForSequenceClassification

    attention, said = classifier_attention(directory)
    options = {"dtype": torch.float32, "attn_implementation": attention}
    model = causal_lm.whole(AutoModelForSequenceClassification, directory, **options).eval()
    if model.config.num_labels != 1:
        raise ModelRefused(f"{directory}: a reward model has one output, this one has {model.config.num_labels}")
    _refuse_unfinite(directory, model)
    print(f"{directory}: {said}", flush=True)
    return model.to("cuda") if torch.cuda.is_available() else model


def _refuse_unfinite(directory: Path, model: Any) -> None:
    """One value that is not finite spreads to whatever is computed of it, though a look at other tokens may miss it."""
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        looked_at = values.numel() and values.dtype in (torch.float32, torch.bfloat16, torch.float16)
        if looked_at and not torch.stack(values.aminmax()).isfinite().all():
            bad = int((~values.isfinite()).sum())
            raise ModelRefused(
                f"{directory}: {bad} of the {values.numel()} values of {name} are not finite; copy or export it again"
            )


def _probed(model: Any, packing: Packing) -> ProbeResult:
    """Probe the loaded model. On the host, as before ZeRO-3 partitions it, `sdpa` stands in for flash attention."""
    used = model.config._attn_implementation
    if not used.startswith("flash") or model.device.type != "cpu":
        return probe(model, packing)
    model.set_attn_implementation("sdpa")
    try:
        return probe(model, packing)
    finally:
        model.set_attn_implementation(used)


def _both(loaded: Handling, ahead: ProbeResult | None) -> Handling:
    """The loaded model's handling, without what the small copy could not do: real weights or bf16 may hide a leak."""
    if ahead is None:
        return loaded
    own = ahead.handling
    return replace(
        loaded,
        packs=loaded.packs and own.packs,
        continues=loaded.continues and own.continues,
        apart=loaded.apart and own.apart,
    )
