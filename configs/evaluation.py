"""The keys of evaluations: held-out sets, what is measured on each, and which checkpoint counts as the best."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.node import Node, NonNegative, Positive
from configs.refusal import shown
from configs.reward_rules import AnyRule, component_names

HELDOUT = "heldout"  # the name of the set in data.heldout
MOST_SETS, MOST_PROMPTS = 90, 100_000  # each set has so many numbers of prompt groups
SET_NAME = r"^[a-z0-9][a-z0-9_-]{0,39}$"


class HeldOutSet(Node):
    """Held-out `prompts`, a file as in data.prompts, which the student answers; or `text`, a file of rows with a
    "prompt" and a "response", whose loss under the student is measured.

    `rules`: its rewards, in place of reward.rules and the reward model; null: the run's own. A response passes with a
    reward of at least `pass_at`; `k`: the k of Pass@k. `format` names the component of the reward (its weight may be 0)
    whose share of responses above 0 is the format rate. `temperature` (0: greedy), `top_p`, `max_response_tokens`:
    null: those of `sampling`. `teachers`: whether the run's scored models score its responses; false: only `start`.
    `every`: null: evaluate.every.
    """

    prompts: str | None = None
    text: str | None = None
    rules: tuple[AnyRule, ...] | None = None
    format: str | None = None
    pass_at: float = 1.0
    k: tuple[Positive, ...] = (1,)
    samples_per_prompt: Positive = 1
    temperature: Annotated[float, Field(ge=0.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    max_response_tokens: Positive | None = None
    teachers: bool = True
    every: NonNegative | None = None

    @model_validator(mode="after")
    def _is_prompts_or_text(self) -> HeldOutSet:
        if (self.prompts is None) == (self.text is None):
            raise ValueError("needs either prompts, which the student answers, or text, whose loss is measured")
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        more = [name for name, default in defaults.items() if getattr(self, name) != default]
        if self.text is not None and (idle := sorted({*more} - {"text", "every"})):
            raise ValueError(f"text is not answered, so {', '.join(idle)} would do nothing; remove it")
        return self

    @model_validator(mode="after")
    def _names_its_format(self) -> HeldOutSet:
        if self.rules is not None and self.format is not None:
            known = component_names(self.rules, model=False)
            if self.format not in known:
                raise ValueError(f"format: {shown(self.format)} names no rule of this set; allowed: {list(known)}")
        return self

    @model_validator(mode="after")
    def _has_responses_enough(self) -> HeldOutSet:
        if not self.k or max(self.k) > self.samples_per_prompt:
            raise ValueError(
                f"k: {list(self.k)} needs 1 to samples_per_prompt: {self.samples_per_prompt} responses; raise that"
            )
        if self.temperature == 0.0 and self.samples_per_prompt > 1:
            raise ValueError(
                f"temperature: 0 gives the same answer {self.samples_per_prompt} times; set samples_per_prompt: 1"
            )
        return self


SetName = Annotated[str, Field(pattern=SET_NAME)]


class Evaluate(Node):
    """Evaluation on the held-out prompts before the first step, after the last, and every `every` steps (0: never).
    `samples_per_prompt` is of data.heldout; `sets` are further held-out sets by name."""

    every: NonNegative = 0
    samples_per_prompt: Positive = 1
    sets: dict[SetName, HeldOutSet] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_room(self) -> Evaluate:
        if HELDOUT in self.sets:
            raise ValueError(f"sets.{HELDOUT} is the name of data.heldout; choose another")
        if len(self.sets) > MOST_SETS:
            raise ValueError(f"sets: {len(self.sets)} are more than {MOST_SETS}; remove some")
        return self

    def every_of(self, name: str) -> int:
        """Steps between evaluations of a set; 0: only before the first step and after the last."""
        own = self.sets[name].every if name in self.sets else None
        return self.every if own is None else own

    @property
    def answered(self) -> dict[str, HeldOutSet]:
        """The sets of prompts, without those of text."""
        return {name: one for name, one in self.sets.items() if one.prompts is not None}


class Best(Node):
    """`metric` is SET.NAME, of a set of evaluate.sets or of `heldout`; the checkpoint with its largest (`mode: max`) or
    smallest value is kept."""

    metric: Annotated[str, Field(pattern=r"^[^.]+\.[^.]+$")]
    mode: Literal["max", "min"] = "max"

    @property
    def of_set(self) -> str:
        return self.metric.partition(".")[0]

    @property
    def name(self) -> str:
        return self.metric.partition(".")[2]
