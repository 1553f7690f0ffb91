"""Reward worker: outcome rewards of whole responses, by the recipe's rules. Only small numbers leave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from actors.member import Member
from actors.records import unpack_samples
from configs.schema import Rule
from rewards.rules import rule_reward


class Reward(Member):
    """Decodes with the student's tokenizer; `model` is the directory that holds it."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._tokenizer: Any = None

    def start(self) -> None:
        """The tokenizer is read with the first response: most runs have no rules."""

    def reward(
        self, payload: pa.RecordBatch, rules: Sequence[Rule], fields: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, float]:
        """uid -> weighted sum of the rules. `fields` holds each uid's prompt row (expected answers and so on)."""
        return {
            s.uid: sum(
                rule.weight
                * rule_reward(rule, self._decode(s.response_ids), len(s.response_ids), fields.get(s.uid, {}))
                for rule in rules
            )
            for s in unpack_samples(payload)
        }

    def _decode(self, ids: list[int]) -> str:
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self._model, trust_remote_code=False, local_files_only=True)
        return self._tokenizer.decode(ids, skip_special_tokens=True)
