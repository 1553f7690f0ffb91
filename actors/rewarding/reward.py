"""Reward member: outcome rewards of whole responses, by the recipe's rules and by a reward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.member import Member
from actors.wire.records import Sample, unpack_samples
from configs.roles import Rule
from rewards.rules import rule_reward


class Reward(Member):
    """Decodes with the student's tokenizer; `tokenizer` is the directory that holds it. `model` is the directory of a
    sequence classifier with one output, over the student's tokens; its score counts `model_weight` times."""

    def __init__(self, tokenizer: str, model: str | None = None, model_weight: float = 1.0) -> None:
        self._directory = tokenizer
        self._tokenizer: Any = None
        self._model_directory = model
        self._model_weight = model_weight
        self._model: Any = None

    def start(self) -> None:
        """Load the reward model, if any. The tokenizer is loaded when a rule first needs it."""
        if self._model_directory:
            from actors.models.loading import load_classifier

            self._model = load_classifier(Path(self._model_directory))

    def reward(
        self, payload: pa.RecordBatch, rules: Sequence[Rule], fields: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, float]:
        """uid -> weighted sum of the rules and of the model, for the uids in `fields`, which holds their prompt rows
        (expected answers and so on)."""
        samples = [s for s in unpack_samples(payload) if s.uid in fields]
        scores = self._scores(samples)
        return {s.uid: self._by_rules(s, rules, fields[s.uid]) + scores[s.uid] for s in samples}

    def _by_rules(self, sample: Sample, rules: Sequence[Rule], row: Mapping[str, Any]) -> float:
        tokens = len(sample.response_ids)
        return sum(rule.weight * rule_reward(rule, self._decode(sample.response_ids), tokens, row) for rule in rules)

    def _scores(self, samples: Sequence[Sample]) -> dict[str, float]:
        """The classifier's weighted scores of prompt + response, one sequence at a time, so without padding."""
        if self._model is None:
            return dict.fromkeys((s.uid for s in samples), 0.0)
        from actors.models.causal_lm import classify

        return {s.uid: self._model_weight * classify(self._model, [*s.prompt_ids, *s.response_ids]) for s in samples}

    def _decode(self, ids: list[int]) -> str:
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(
                self._directory, trust_remote_code=False, local_files_only=True
            )
        return self._tokenizer.decode(ids, skip_special_tokens=True)
