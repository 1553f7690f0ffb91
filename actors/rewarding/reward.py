"""Reward member: outcome rewards of whole responses, by the recipe's rules and by a reward model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.member import Member
from actors.wire.records import Sample, unpack_samples
from actors.wire.rewards import Rewards
from configs.reward_rules import MODEL, Rule
from rewards.apart.process import Apart
from rewards.response import Response
from rewards.sandbox.isolation import isolation
from rewards.scoring import Rewarded, score


class Reward(Member):
    """Decodes with the student's tokenizer; `tokenizer` is the directory that holds it. `model` is the directory of a
    sequence classifier with one output, over the student's tokens; its score counts `model_weight` times. It reads up
    to `tokens_per_batch` tokens at once, padding included. `runs_programs`: it does not start where they cannot be
    isolated."""

    def __init__(
        self,
        tokenizer: str,
        model: str | None = None,
        model_weight: float = 1.0,
        tokens_per_batch: int = 4096,
        runs_programs: bool = False,
    ) -> None:
        self._directory = tokenizer
        self._tokenizer: Any = None
        self._model_directory = model
        self._model_weight = model_weight
        self._tokens_per_batch = tokens_per_batch
        self._runs_programs = runs_programs
        self._model: Any = None
        self._apart = Apart()

    def start(self) -> None:
        """Load the reward model, if any. The tokenizer, and the process for rewards apart, wait for the first need.
        Raises NoIsolation."""
        if self._runs_programs:
            isolation()
        if self._model_directory:
            from actors.models.loading import load_classifier

            self._model = load_classifier(Path(self._model_directory))

    def renew(self) -> None:
        """A user's function may remember responses."""
        self._apart.close()

    def stop(self) -> None:
        self._apart.close()

    def reward(
        self, payload: pa.RecordBatch, rules: Sequence[Rule], fields: Mapping[str, Mapping[str, Any]]
    ) -> Rewards:
        """The weighted sum of the rules and of the model, for the uids in `fields`, which holds their prompt rows
        (expected answers and so on). Raises RuntimeError where a rule's code cannot be imported."""
        samples = [s for s in unpack_samples(payload) if s.uid in fields]
        rewarded = score(rules, self._responses(samples, fields) if rules else [_UNREAD] * len(samples), self._apart)
        if self._model is not None:
            rewarded = [
                _with_model(*pair, self._model_weight) for pair in zip(rewarded, self._scores(samples), strict=True)
            ]
        by_uid = {sample.uid: one for sample, one in zip(samples, rewarded, strict=True)}
        return Rewards(
            {uid: one.reward for uid, one in by_uid.items() if one.reward is not None},
            {uid: one.components for uid, one in by_uid.items() if one.reward is not None},
            {uid: one.rejection for uid, one in by_uid.items() if one.rejection is not None},
        )

    def _responses(self, samples: Sequence[Sample], rows: Mapping[str, Mapping[str, Any]]) -> list[Response]:
        return [Response(self._decode(s.response_ids), len(s.response_ids), rows[s.uid]) for s in samples]

    def _scores(self, samples: Sequence[Sample]) -> list[float]:
        """The classifier's scores of prompt + response."""
        from actors.models.classifier import classify_all

        return classify_all(self._model, [[*s.prompt_ids, *s.response_ids] for s in samples], self._tokens_per_batch)

    def _decode(self, ids: list[int]) -> str:
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(
                self._directory, trust_remote_code=False, local_files_only=True
            )
        return self._tokenizer.decode(ids, skip_special_tokens=True)


_UNREAD = Response("", 0, {})  # stands for a response that no rule reads


def _with_model(rewarded: Rewarded, score: float, weight: float) -> Rewarded:
    """A reward with the reward model's score as one more component."""
    if rewarded.reward is None:
        return rewarded
    if not math.isfinite(score):
        return Rewarded({}, None, f"reward {MODEL}: it is {score}")
    return Rewarded(rewarded.components | {MODEL: score}, rewarded.reward + weight * score)
