"""The keys of reward workers."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from configs.names.own_code import or_own
from configs.node import Members, Node, Positive
from configs.reward_rules import AnyRule, ProgramRule, component_names
from configs.roles.sizes import Resources


class Reward(Node):
    """Reward workers: the weighted sum of `rules`, plus `model_weight` times the score of the reward model in directory
    `model`: a sequence classifier with one output and the student's tokenizer, which reads up to `tokens_per_batch`
    tokens at a time, padding included."""

    engine: Annotated[str, or_own("rules")] = "rules"
    members: Members = 1
    resources: Resources = Resources(cpus=0.1, threads=1)
    rules: tuple[AnyRule, ...] = ()
    model: str | None = None
    model_weight: float = 1.0
    tokens_per_batch: Positive = 4096

    @model_validator(mode="after")
    def _names_its_components(self) -> Reward:
        component_names(self.rules, self.model is not None)
        return self

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the parts that a reward is the weighted sum of, the reward model's last."""
        return component_names(self.rules, self.model is not None)

    @property
    def runs_programs(self) -> bool:
        """Whether a rule runs programs of responses, in a sandbox."""
        return any(isinstance(rule, ProgramRule) for rule in self.rules)

    @property
    def gives_rewards(self) -> bool:
        return bool(self.rules) or self.model is not None
