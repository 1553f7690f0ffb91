"""The objective's part of a recipe: the axes of the algebra and what each value is called.

docs/objectives.md defines them; configs/rules/ says which combinations have no meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from configs.names.own_code import PATTERN
from configs.names.row_fields import field_of
from configs.node import Fraction, Node, Positive

DATA = "data"  # objective.target when the response's own tokens are the target
NONE = "none"  # objective.target when there is no teacher: a reward alone


def _scalar_or_mapping(value: Any) -> str:
    """The tag of a union between one value and a mapping."""
    return "mapping" if isinstance(value, Mapping | Node) else "scalar"


class Schedule(Node):
    """A number that moves from `start` at step 1 to `end` in `steps` learner steps, and stays."""

    start: float
    end: float
    steps: Positive
    shape: Literal["linear", "cosine"] = "linear"


Dial = Annotated[
    Annotated[float, Tag("scalar")] | Annotated[Schedule, Tag("mapping")], Discriminator(_scalar_or_mapping)
]


class Route(Node):
    """One teacher a prompt. The value of the row's `field` (a name or a dotted path) is a key of `models`."""

    field: str
    models: dict[str, str]

    @model_validator(mode="after")
    def _has_models(self) -> Route:
        if not self.models:
            raise ValueError("a route needs at least one model")
        return self

    def value_of(self, row: Mapping[str, Any]) -> str | None:
        """The row's value of `field` as a key of `models`, booleans as in JSON. None where the row lacks the field."""
        value = field_of(row, self.field)
        if isinstance(value, bool):
            return "true" if value else "false"
        return None if value is None else str(value)


def _kind_of_target(value: Any) -> str:
    """The tag of a target. A mapping is a route where `field` or `models` are what a route has; else weights."""
    if isinstance(value, Mapping):
        routes = isinstance(value.get("field"), str) or isinstance(value.get("models"), Mapping)
        return "route" if routes else "weights"
    return "route" if isinstance(value, Route) else "model"


Target = Annotated[
    Annotated[str, Tag("model")] | Annotated[dict[str, float], Tag("weights")] | Annotated[Route, Tag("route")],
    Discriminator(_kind_of_target),
]


class Extrapolate(Node):
    """ExOPD: the target is p^weight base^(1 - weight), normalised; weight 1 is the teacher p itself."""

    base: str
    weight: Annotated[float, Field(gt=0.0)]


Bound = Annotated[float, Field(allow_inf_nan=True)]  # nats; an infinite one does not clip


class Clip(Node):
    """`log_ratio` bounds l (nats) before the sampled signal is formed. On topk and full supports `vocab_element` caps
    each outcome's term before the sum over outcomes, `token_sum` the sum of a token."""

    log_ratio: tuple[Bound, Bound] | None = None
    vocab_element: Annotated[float, Field(gt=0.0)] | None = None
    token_sum: Annotated[float, Field(gt=0.0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, clip: Any) -> Any:
        if isinstance(clip, bool):
            raise ValueError("needs a number of nats, [low, high], or log_ratio, vocab_element, token_sum")
        if isinstance(clip, int | float):
            return {"log_ratio": (-clip, clip)}
        return {"log_ratio": clip} if isinstance(clip, list | tuple) else clip

    @field_validator("log_ratio")
    @classmethod
    def _is_an_interval(cls, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError("needs low < high, or a positive number")
        return bounds


class Value(Node):
    """A value head on the student's last hidden state; no gradient flows back. GAE with `discount` and `decay`."""

    discount: Fraction = 1.0
    decay: Fraction = 0.95
    loss_weight: Annotated[float, Field(gt=0.0)] = 0.5


class Outcome(Node):
    """Outcome reward in the objective: weight * reward, minus its group's baseline, on every response token.

    `combine` with the distillation term: `add`; `gate` keeps distillation (or, with target: data, the cross-entropy)
    on responses of positive advantage only; `sign` takes the advantage's sign and the log-ratio's size; `switch`
    distils before step `switch_step` and follows the reward from it on. `truncated` responses are trained on, masked
    from this term, or count as reward 0.
    """

    weight: float = 0.0
    baseline: Literal["none", "mean", "rloo", "value"] = "none"
    scale: Literal["none", "std"] = "none"
    combine: Literal["add", "gate", "sign", "switch"] = "add"
    switch_step: Positive | None = None
    truncated: Literal["train", "mask", "as_zero"] = "train"
    value: Value = Value()

    @model_validator(mode="after")
    def _has_a_switch_step(self) -> Outcome:
        if (self.combine == "switch") != (self.switch_step is not None):
            raise ValueError("combine: switch and switch_step need each other")
        return self


class Adaptive(Node):
    """beta <- beta (1 + clip(KL / target - 1, +-0.2) samples / horizon); `target` in nats a response."""

    initial: Annotated[float, Field(gt=0.0)]
    target: Annotated[float, Field(gt=0.0)]
    horizon: Annotated[float, Field(gt=0.0)] = 10_000.0


Beta = Annotated[
    Annotated[float, Field(ge=0.0), Tag("scalar")] | Annotated[Adaptive, Tag("mapping")],
    Discriminator(_scalar_or_mapping),
]


class Reference(Node):
    """beta * KL(student||model). `reward_sum`: one number a response, R - beta sum_t k1_t, before the group baseline;
    `reward_token`: -beta k1_t at each token and R at the last, as returns; `signal_token`: -beta k1_t on its own token;
    `loss_k2`: beta k2 in the loss; `exact`: the KL over the vocabulary in the loss."""

    model: str
    beta: Beta
    placement: Literal["reward_sum", "reward_token", "signal_token", "loss_k2", "exact"] = "reward_sum"


class Trust(Node):
    """How far one batch may move the policy. w = q/q_old, q_old the learner's at the start of the step.

    `ppo` and `dapo` clip w to [1 - low, 1 + high], `gspo` the response's geometric mean of it, `cispo` caps it as a
    weight, `probability` masks tokens that have moved by more than `delta`. `truncation` is the cap C of the mismatch
    weight min(q_old/mu, C), by `token` or `sequence`; null corrects nothing.
    """

    kind: Literal["none", "ppo", "dapo", "gspo", "cispo", "probability"] = "none"
    low: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    high: Annotated[float, Field(ge=0.0)] | None = None
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    mismatch: Literal["token", "sequence"] = "token"
    truncation: Annotated[float, Field(gt=0.0)] | None = 2.0

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high), published values where the recipe names none."""
        low, high = _TRUST_BOUNDS.get(self.kind, (0.2, 0.2))
        return (low if self.low is None else self.low, high if self.high is None else self.high)


_TRUST_BOUNDS = {"ppo": (0.2, 0.2), "dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "cispo": (1.0, 5.0)}


class EntropyGate(Node):
    """A stage passes if the student's entropy on held-out prompts, responses of up to `eval_length` tokens, is at
    least `minimum` nats (or `fraction` of the first stage's) and at most `truncation` of them are cut.

    On failure `hold` continues at the longest cap that passed, `rollback` also restores its weights, `stop`
    ends the run.
    """

    eval_length: Positive
    minimum: Annotated[float, Field(gt=0.0)] | None = None
    fraction: Annotated[float, Field(gt=0.0)] | None = None
    truncation: Fraction = 1.0
    on_fail: Literal["hold", "rollback", "stop"] = "hold"

    @model_validator(mode="after")
    def _one_bound(self) -> EntropyGate:
        if (self.minimum is None) == (self.fraction is None):
            raise ValueError("needs one of minimum (nats) and fraction (of the first entropy)")
        return self


class Length(Node):
    """Response caps in tokens, shortest first, `steps_per_stage` learner steps at each; `gate` decides whether
    the next stage begins."""

    caps: Annotated[tuple[Positive, ...], Field(min_length=1)]
    steps_per_stage: Positive
    gate: EntropyGate | None = None

    @model_validator(mode="after")
    def _climbs(self) -> Length:
        if list(self.caps) != sorted(set(self.caps)):
            raise ValueError(f"caps {list(self.caps)} need to grow from stage to stage")
        return self


Source = Literal["student", "teacher", "dataset"]
Prefix = Annotated[
    Annotated[Source, Tag("scalar")] | Annotated[dict[Source, Dial], Tag("mapping")], Discriminator(_scalar_or_mapping)
]


class Objective(Node):
    """A point of the objective algebra; docs/objectives.md defines each axis.

    `prefix`: who writes the responses; a mapping gives each source a share of the prompt groups, which may move.
    `target`: a model; several with weights; a route by a field of the prompt row; `data`, the response's own tokens;
    `none`, a reward alone. `loss`: your own function, `package.module:function`, in place of the divergence.
    `reverse_weight` (lambda) weights REVERSE KL: lambda*KL(student||teacher) + (1-lambda)*KL(teacher||student).
    `end_tokens`: `same` refuses models whose end ids differ from the student's, `class` merges the end ids of all of
    them into one outcome of the target's term. `estimator`: how a sampled token's log-ratio is used. `baseline`,
    `discount`: of the sampled signal.
    """

    prefix: Prefix = "student"
    target: Target
    extrapolate: Extrapolate | None = None
    loss: Annotated[str, Field(pattern=PATTERN)] | None = None
    support: Literal["sampled", "topk", "full"] = "sampled"
    topk: Positive = 32
    topk_of: Literal["teacher", "student", "union"] = "teacher"
    tail: Literal["bucket", "renormalise", "drop"] = "bucket"
    reverse_weight: Dial = 1.0
    family: Literal["linear", "jsd", "skew", "power"] = "linear"
    alpha: Annotated[float, Field(gt=0.0)] = 0.1
    scale: Literal["none", "unit"] = "none"
    estimator: Literal["reward", "k1_in_loss", "k2_in_loss", "k3_in_loss", "k3_in_reward"] = "reward"
    clip: Clip = Clip()
    baseline: Literal["none", "exact", "value"] = "none"
    discount: Fraction = 0.0
    end_tokens: Literal["same", "class"] = "same"
    logprob_floor: Annotated[float, Field(lt=0.0)] = -50.0
    outcome: Outcome = Outcome()
    reference: Reference | None = None
    trust: Trust = Trust()
    normalise: Literal["token", "sequence", "constant"] = "token"
    length: Length | None = None
    allow_biased: tuple[str, ...] = ()

    @field_validator("clip", mode="before")
    @classmethod
    def _no_clip(cls, clip: Any) -> Any:
        return {} if clip is None else clip

    @field_validator("prefix")
    @classmethod
    def _has_a_source(cls, prefix: Prefix) -> Prefix:
        if isinstance(prefix, str):
            return prefix
        for end in ("start", "end"):
            shares = [getattr(dial, end) if isinstance(dial, Schedule) else dial for dial in prefix.values()]
            if not shares or min(shares) < 0 or sum(shares) <= 0:
                raise ValueError(f"needs shares of 0 or more that are not all 0; found {shares} at its {end}")
        return prefix

    @field_validator("reverse_weight")
    @classmethod
    def _is_a_weight(cls, value: Dial) -> Dial:
        ends = (value.start, value.end) if isinstance(value, Schedule) else (value,)
        if not all(0.0 <= end <= 1.0 for end in ends):
            raise ValueError("weights reverse KL against forward KL; keep it in [0, 1]")
        return value

    @property
    def sources(self) -> tuple[str, ...]:
        """Sources of responses at any step of the run."""
        return (self.prefix,) if isinstance(self.prefix, str) else tuple(self.prefix)

    @property
    def teachers(self) -> dict[str, float]:
        """Target models and their weights. Those of a route have weight 1; each prompt uses one of them."""
        if isinstance(self.target, Route):
            return dict.fromkeys(sorted(set(self.target.models.values())), 1.0)
        if isinstance(self.target, dict):
            return dict(self.target)
        return {} if self.target in (DATA, NONE) else {self.target: 1.0}

    @property
    def target_models(self) -> tuple[str, ...]:
        """Models that the distillation term reads: the teachers and the base of an extrapolation."""
        return tuple(dict.fromkeys((*self.teachers, *([self.extrapolate.base] if self.extrapolate else ()))))

    def merged_ends(self, ends: Sequence[int], model: str | None = None) -> tuple[int, ...]:
        """End tokens that count as one outcome, for the student or in a model's scores. Empty where each is its own."""
        merges = self.end_tokens == "class" and self.target_models and (model is None or model in self.target_models)
        return tuple(ends) if merges else ()

    @property
    def distributional(self) -> bool:
        """The divergence is taken over outcomes, not estimated from the sampled token."""
        return bool(self.teachers) and self.support != "sampled" and self.baseline != "exact"

    @property
    def samples_signal(self) -> bool:
        """Some term is a policy gradient on sampled tokens."""
        return (bool(self.teachers) and not self.distributional) or self.rewarded

    @property
    def reward_only(self) -> bool:
        """A policy gradient on rewards alone: the only objective that is valid at any sampling temperature."""
        return self.target == NONE and self.reference is None

    @property
    def policy_gradient(self) -> bool:
        """Some term is a policy gradient, on sampled tokens or on rewards, whose ratio a trust region bounds."""
        own = self.loss is not None or self.estimator in ("k1_in_loss", "k2_in_loss", "k3_in_loss")
        return (bool(self.teachers) and not self.distributional and not own) or "outcome" in self.terms

    @property
    def rewarded(self) -> bool:
        """The reward is in the objective."""
        return self.outcome.weight != 0.0

    @property
    def needs_advantages(self) -> bool:
        """Some term reads a response's advantage, or selects by it."""
        return self.rewarded or self.outcome.combine == "gate"

    @property
    def reads_whole_responses(self) -> bool:
        """A token's weight depends on others of its response: returns, sequence ratios or weights, group outcomes."""
        sequences = self.trust.kind == "gspo" or self.trust.mismatch == "sequence" or self.normalise == "sequence"
        returns = self.discount > 0.0 or self.baseline == "value"
        summed = self.reference is not None and self.reference.placement in ("reward_sum", "reward_token")
        return sequences or returns or summed or self.needs_advantages

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms that the loss is a sum of; each has its own denominator."""
        found = {
            "distillation": bool(self.teachers) or self.target == DATA,
            "outcome": self.rewarded and self.outcome.combine != "sign",
            "reference": self.reference is not None and self.reference.placement in ("loss_k2", "exact"),
            "value": self.baseline == "value" or (self.rewarded and self.outcome.baseline == "value"),
        }
        return tuple(name for name, there in found.items() if there)

    @property
    def support_of(self) -> dict[str, str]:
        """The support that each scored model is asked for: model -> sampled | topk | full."""
        wanted = dict.fromkeys(self.teachers, self.support)
        if self.extrapolate:
            wanted[self.extrapolate.base] = self.support
        if self.reference and self.reference.placement == "exact":
            wanted[self.reference.model] = "topk" if self.support == "topk" else "full"
        elif self.reference:
            wanted.setdefault(self.reference.model, "sampled")
        return wanted


PLAIN = Objective(target=DATA, prefix="dataset")  # an evaluation reads any response by it, without a teacher
