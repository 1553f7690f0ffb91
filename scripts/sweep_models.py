"""Every causal language model of the installed transformers, built tiny and probed: writes docs/models.md.

A model is supported where our packed or padded forward pass and our LM head agree with the model's own logits of each
sequence alone to 1e-4 nats in float32. `unbounded`: how far off the copy is without boundaries between sequences, nats;
the tests want more than 0.1 of each, since a smaller leak would not be seen.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from actors.models.probing.probe import ProbeResult, probe, unbounded_gap
from actors.models.probing.small_copy import small_copy

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
LIMIT = 1e-4  # nats
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_HYBRID = ["linear_attention", "full_attention"]

# Where a configuration's defaults build no model, or lack what the published models have.
CHANGES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 2, "topk_group": 2},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"lm_head_multiplier": 0.04},
    "gemma4_text": {"final_logit_softcapping": 30.0},
    "granitemoehybrid": {"num_hidden_layers": 4, "layer_types": _HYBRID * 2},
    "hunyuan_v1_dense": {"rope_parameters": _ROPE, "head_dim": 128},
    "hunyuan_v1_moe": {"rope_parameters": _ROPE, "head_dim": 128},
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "ministral": {"rope_parameters": _ROPE, "head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
}


@dataclass(frozen=True)
class Row:
    """The sweep's result for one architecture; `note`: why it could not be built or is refused."""

    name: str
    attention: str = ""
    probed: ProbeResult | None = None
    unbounded: float | None = None
    note: str = ""

    @property
    def supported(self) -> bool:
        return self.probed is not None and self.probed.refusal is None


def names() -> list[str]:
    """model_type of every configuration that AutoModelForCausalLM takes."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def configuration(name: str) -> Any:
    """A model type's default configuration with CHANGES; for Gemma 4 with the soft-cap of its text model."""
    config = CONFIG_MAPPING[name](**CHANGES.get(name, {}))
    if name == "gemma4":
        config.text_config.final_logit_softcapping = 30.0
    return config


def look(name: str) -> Row:
    """Build and probe one architecture, with the attention that `auto` would choose."""
    note = ""
    for attention in ("sdpa", "eager"):
        try:
            model = small_copy(configuration(name), attention)
            probed = probe(model, thorough=True)
        except Exception as error:
            note = note or f"cannot be built tiny: {type(error).__name__}: {str(error).strip()}".splitlines()[0][:140]
            continue
        if probed.unseen:
            note = note or f"cannot be run: {probed.gaps.reasons['head']}"
        elif not probed.inexact:
            return Row(name, attention, probed, unbounded_gap(model, probed), probed.refusal or "")
    return Row(name, note=note)


def table(rows: list[Row]) -> str:
    """The text of docs/models.md, without numbers that depend on rounding."""
    supported = [row for row in rows if row.supported]
    refused = [row for row in rows if not row.supported]
    lines = [_HEAD.format(version=transformers.__version__, supported=len(supported), refused=len(refused))]
    lines += ["| `model_type` | attention | sequences | segments | logits |", "|---|---|---|---|---|"]
    lines += [_line(row) for row in supported]
    lines += ["", "## Refused, or not seen", "", "| `model_type` | why |", "|---|---|"]
    lines += [f"| `{row.name}` | {_why(row)} |" for row in refused]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    assert row.probed is not None
    handling = row.probed.handling
    logits = []
    if handling.neck:
        logits.append(f"`{handling.neck}` before the head")
    if handling.scale != 1.0:
        logits.append("scaled")
    if handling.soft_cap:
        logits.append("soft-capped")
    cells = ["packed" if handling.packs else "padded", "cache" if handling.continues else "anew", ", ".join(logits)]
    return f"| `{row.name}` | {row.attention} | {' | '.join(cells)} |"


def _why(row: Row) -> str:
    gaps = row.probed.gaps if row.probed else None
    if gaps is None or gaps.head is None:
        return row.note.replace("|", "/")
    if gaps.head > LIMIT:
        return "its head transforms hidden states or logits in a way that is not expressed"
    return "neither packed nor padded rows give a sequence's own logits: later tokens reach earlier ones, or pads do"


_HEAD = """# Models

Generated by `scripts/sweep_models.py` from transformers {version}; do not edit.

Every architecture that `AutoModelForCausalLM` knows is built tiny, with random weights that make a leak between
sequences worth more than 0.1 nats, and held against its own logits of each sequence alone, in float32 on a CPU:
{supported} agree to 1e-4 nats and can be learners and torch scorers, {refused} cannot. Whenever a model is loaded, the
same probe looks at it again: see [engines](engines.md#models-are-probed). What a GPU's kernels add (cumulative
lengths in linear attention, flash attention), it finds there.

- *attention*: what `attention: auto` chooses; `eager` where `sdpa` leaves something out or is not offered.
- *sequences*: `packed` in one row without padding, or `padded` to a row each, since packed ones would leak.
- *segments*: what a torch scorer does with responses in segments: go on from the `cache`, or compute the prefix `anew`.
- *logits*: what stands between the last hidden state and the logits beside the head, and is done here too.

"""


def main() -> None:
    """Write the page. Names on the command line print their rows instead."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    if sys.argv[1:]:
        for row in map(look, sys.argv[1:]):
            print(row.name, row.attention, row.unbounded, row.note, row.probed.line if row.probed else "")
        return
    PAGE.write_text(table([look(name) for name in names()]))


if __name__ == "__main__":
    main()
