"""Probes a model before it learns or scores: two sequences, about a second, no training.

It measures log-probs of sequences packed in one row, with a mask and apart (attention.py), padded to a row each, and
continued from a cache, against each sequence alone; those of our LM head against the model's own logits; the role's
attention against plain attention.
`decide` is a pure function of these numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from actors.models import causal_lm
from actors.models.attention import NAME, attending_apart
from actors.models.handling import Handling, apply_head, body_of, find_logits, finite_columns, neck_of

LENGTHS = (21, 27)  # tokens; longer than the windows and chunks of a shrunk model
COLUMNS = 4096  # of the vocabulary that are compared
Packing = Literal["auto"] | bool


@dataclass(frozen=True)
class Gaps:
    """Nats: the mean over the vocabulary of |log p - log p'| under p, at the worst position of a sequence in float32,
    over all positions in bf16. None: not measured, or the model raised the error in `reasons`. `packed_first`: of the
    first packed sequence, where only rounding differs. `apart`: of packed and of continued sequences that attend apart.
    `attention`: the role's against `eager`."""

    head: float | None = None
    packed: float | None = None
    packed_first: float | None = None
    apart: float | None = None
    padded: float | None = None
    continued: float | None = None
    attention: float | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProbeResult:
    """How to run the model, or why not: `refusal` has a number and a remedy."""

    handling: Handling
    gaps: Gaps
    dtype: torch.dtype = torch.float32
    refusal: str | None = None

    @property
    def inexact(self) -> bool:
        """Whether the attention leaves out something that the model computes."""
        return (self.gaps.attention or 0.0) > 3.0 * tolerance(self.dtype)

    @property
    def unseen(self) -> bool:
        """Whether the model raised before anything was measured."""
        return self.gaps.head is None

    @property
    def line(self) -> str:
        """The line for a member's log."""
        if self.refusal:
            return f"refused: {self.refusal}"
        handling, said = self.handling, []
        row = "packed in one row, attending apart" if handling.apart else "packed in one row"
        said.append(row if handling.packs else "padded to a row each")
        said.append("segments go on from a cache" if handling.continues else "segments are computed anew")
        if handling.scale != 1.0 or handling.soft_cap:
            said.append(f"logits scaled by {handling.scale:.6g}, soft-cap {handling.soft_cap}")
        if handling.neck:
            said.append(f"the head reads {handling.neck}")
        return f"{', '.join(said)}; nats from the model's own: {_numbers(self.gaps)}"


def tolerance(dtype: torch.dtype, noise: float | None = 0.0) -> float:
    """Nats that rounding may cause; a leak between sequences causes 0.1 to 6. bf16 is coarse (logits of 20 are rounded
    to 0.06) and may flip a router's expert; the small float32 copy (probing/small_copy.py) shows finer leaks."""
    if dtype == torch.float32:
        return 2e-3
    return max(0.15, 3.0 * (noise or 0.0))


def decide(gaps: Gaps, found: Handling, packing: Packing, dtype: torch.dtype) -> tuple[Handling, str | None]:
    """Measurements -> how to run the model, and the reason to refuse it or None."""
    limit = tolerance(dtype, gaps.packed_first)
    fits = {
        name: (gap := getattr(gaps, name)) is not None and gap <= limit
        for name in ("packed", "padded", "continued", "apart")
    }
    packs = fits["packed"] and packing is not False
    handling = replace(found, packs=packs, continues=fits["continued"], apart=packs and fits["apart"])
    if gaps.head is None:
        return handling, f"it cannot be run here in {dtype}{_why(gaps, 'head')}; set another dtype or attention"
    if gaps.head > tolerance(dtype):
        return handling, (
            f"the head's log-probs are {_nats(gaps.head)} off the model's own logits: no scale or "
            "soft-cap of its configuration is what it does to them; choose a model of docs/models.md"
        )
    if gaps.attention is not None and gaps.attention > 3.0 * tolerance(dtype):  # other kernels, other rounding
        return handling, (
            f"this attention is {_nats(gaps.attention)} off the plain one: it leaves out what the model computes (a "
            "soft-cap, say); set attention: auto or eager"
        )
    if packing is True and not fits["packed"]:
        return handling, (
            f"packed sequences are {_nats(gaps.packed)} off the same ones alone{_why(gaps, 'packed')}: they leak into "
            "one another; set packing: auto, which pads them"
        )
    if not handling.packs and not fits["padded"]:
        return handling, (
            f"padded sequences are {_nats(gaps.padded)} off the same ones alone{_why(gaps, 'padded')}, and packed ones "
            f"{_nats(gaps.packed)}{_why(gaps, 'packed')}; choose a model of docs/models.md"
        )
    return handling, None


@torch.no_grad()
def probe(model: Any, packing: Packing = "auto", thorough: bool = False) -> ProbeResult:
    """Probe a model on its device, in its dtype and attention. `thorough`: measure also what `decide` does not need."""
    training = model.training
    model.eval()
    try:
        return _probe(model, packing, thorough)
    finally:
        model.train(training)


@torch.no_grad()
def unbounded_gap(model: Any, probed: ProbeResult) -> float:
    """Nats that a full leak would cause: the second sequence after the first as if they were one, against it alone."""
    first, second = _sequences(model)
    columns = torch.arange(min(COLUMNS, model.get_output_embeddings().weight.shape[0]), device=model.device)
    read = _Reader(model, probed.handling, columns)
    alone, joined = read.batch([second])[0], read.batch([[*first, *second]])[0]
    return gap(alone, joined[-len(alone) :], probed.dtype)


def _probe(model: Any, packing: Packing, thorough: bool) -> ProbeResult:
    dtype = next(model.parameters()).dtype
    sequences = _sequences(model)
    reasons: dict[str, str] = {}

    def measured(own: Tensor, other: Tensor) -> float:
        return gap(own, other, dtype)

    def worst(alone: list[Tensor], other: list[Tensor]) -> float:
        return max(measured(*pair) for pair in zip(alone, other, strict=True))

    def tried(name: str, measure: Callable[[], Any]) -> Any:
        try:
            return measure()
        except Exception as error:  # an architecture may raise any error
            reasons[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
            return None

    found = tried("head", lambda: _find(model, sequences))
    if found is None:
        return _result(Handling(), Gaps(reasons=reasons), packing, dtype)
    handling, columns, own = found
    read = _Reader(model, handling, columns)
    alone = tried("head", lambda: [read.batch([ids])[0] for ids in sequences])
    if alone is None:
        return _result(handling, Gaps(reasons=reasons), packing, dtype)
    head = max(measured(o[: len(a)], a) for o, a in zip(own, alone, strict=True))
    packed = tried("packed", lambda: [measured(*pair) for pair in zip(alone, read.batch(sequences), strict=True)])
    first, second = packed or (None, None)
    padded = None
    if thorough or second is None or packing is False or second > tolerance(dtype, first):
        padded = tried("padded", lambda: worst(alone, read.batch(sequences, packed=False)))
    continued = tried("continued", lambda: measured(alone[1], read.continued(sequences[1])))
    apart = tried("apart", lambda: worst([*alone, alone[1]], read.apart(sequences)))
    attention = tried("attention", lambda: _against_plain(model, sequences[1], own[1], columns))
    gaps = Gaps(head, second, first, apart, padded, continued, attention, reasons)
    return _result(handling, gaps, packing, dtype)


def _result(found: Handling, gaps: Gaps, packing: Packing, dtype: torch.dtype) -> ProbeResult:
    handling, refusal = decide(gaps, found, packing, dtype)
    return ProbeResult(handling, gaps, dtype, refusal)


def gap(own: Tensor, other: Tensor, dtype: torch.dtype) -> float:
    """Log-probs [N, V] of the same positions, computed in `dtype` -> nats, as in Gaps."""
    if not torch.isfinite(other).all():
        return float("inf")
    by_position = (own.exp() * (own - other).abs()).sum(-1)
    return float(by_position.max() if dtype == torch.float32 else by_position.mean())


@dataclass(frozen=True)
class _Reader:
    """Log-probs through our forward pass and LM head, at all positions but the last, of `columns` of the vocabulary."""

    model: Any
    handling: Handling
    columns: Tensor

    def batch(self, sequences: list[list[int]], packed: bool = True) -> list[Tensor]:
        pack = causal_lm.pack([(ids[:1], ids[1:]) for ids in sequences], packed).to(self.model.device)
        hidden = causal_lm.hidden_states(self.model, pack, self.handling)
        return [self._logprobs(part) for part in hidden.split([len(ids) - 1 for ids in sequences])]

    def apart(self, sequences: list[list[int]]) -> list[Tensor]:
        """Of packed sequences that attend apart, and of the last one continued. Raises ValueError under an attention
        that the user chose otherwise."""
        if self.model.config._attn_implementation not in ("sdpa", NAME):
            raise ValueError("another attention was chosen")
        with attending_apart(self.model):
            return [*self.batch(sequences), self.continued(sequences[-1])]

    def continued(self, ids: list[int]) -> Tensor:
        """Log-probs of a sequence read in segments, one of them a single token."""
        cache, states = None, []
        for start, end in ((0, 9), (9, 10), (10, len(ids) - 1)):
            new, cache = causal_lm.continued_states(self.model, ids[start:end], self.handling, cache)
            if cache is None or cache.get_seq_length() != end:
                raise ValueError("it keeps no cache that counts its tokens")
            states.append(new)
        return self._logprobs(torch.cat(states))

    def _logprobs(self, hidden: Tensor) -> Tensor:
        logits = causal_lm.head_logits(self.model, hidden)[:, self.columns]
        return causal_lm.finish_logits(logits, self.handling.scale, self.handling.soft_cap)


def _sequences(model: Any) -> list[list[int]]:
    """Two random sequences of ids among the first COLUMNS, above the special tokens."""
    head = model.get_output_embeddings()
    generator = torch.Generator().manual_seed(0)
    high = min(COLUMNS, head.weight.shape[0])
    return [torch.randint(high // 32, high, (n,), generator=generator).tolist() for n in LENGTHS]


def _find(model: Any, sequences: list[list[int]]) -> tuple[Handling, Tensor, list[Tensor]]:
    """The handling from last hidden state to logits, the columns to compare, and the model's own log-probs [N, columns]
    of each sequence alone."""
    outputs: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    hooks = [model.get_output_embeddings().register_forward_pre_hook(lambda _, a: seen.update(head=a[0]))]
    hooks.append(body_of(model).register_forward_hook(lambda _m, _a, out: seen.update(body=out[0])))
    for name, module in model.named_modules():
        hooks.append(module.register_forward_hook(lambda _m, _a, out, name=name: _note(outputs, name, out)))
    try:
        logits = [_own_logits(model, ids) for ids in sequences]
    finally:
        for hook in hooks:
            hook.remove()
    columns = torch.nonzero(finite_columns(torch.cat(logits))).flatten()[:COLUMNS]
    if not len(columns):
        raise ValueError("none of its logits is finite")
    hidden = seen["body"] if "body" in seen else _body_states(model, sequences[-1])
    neck = neck_of(model, hidden, seen["head"], outputs)
    read = hidden if neck is None else seen["head"]
    product = apply_head(model, read.reshape(-1, read.shape[-1]))[:, columns]
    scale, cap = find_logits(product, logits[-1][:, columns], model.config)
    own = [part[:, columns].float().log_softmax(-1) for part in logits]
    return Handling(neck=neck, scale=scale, soft_cap=cap), columns, own


def _note(outputs: dict[str, Tensor], name: str, output: Any) -> None:
    if isinstance(output, Tensor):
        outputs[name] = output


def _body_states(model: Any, ids: list[int]) -> Tensor:
    """The body's last hidden state, where the model's own forward does not call it as a module."""
    return body_of(model)(input_ids=torch.tensor([ids], device=model.device)).last_hidden_state


def _own_logits(model: Any, ids: list[int]) -> Tensor:
    """[tokens, vocabulary] logits of the model's own forward pass."""
    return model(input_ids=torch.tensor([ids], device=model.device)).logits[0]


def _against_plain(model: Any, ids: list[int], own: Tensor, columns: Tensor) -> float:
    """Nats between the role's attention and `eager`, the architecture in plain torch."""
    used = model.config._attn_implementation
    if used == "eager":
        return 0.0
    model.set_attn_implementation("eager")
    try:
        plain = _own_logits(model, ids)[:, columns].float().log_softmax(-1)
    finally:
        model.set_attn_implementation(used)
    return gap(plain, own, model.dtype)


def _numbers(gaps: Gaps) -> str:
    names = ("head", "packed", "apart", "padded", "continued", "attention")
    found = {name: getattr(gaps, name) for name in names}
    return ", ".join(f"{name} {value:.2g}" for name, value in found.items() if value is not None)


def _nats(value: float | None) -> str:
    return "not to be computed" if value is None else f"{value:.2g} nats"


def _why(gaps: Gaps, name: str) -> str:
    return f" ({gaps.reasons[name]})" if name in gaps.reasons else ""
