"""The reward model's score as one more component of a reward, and in its weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from actors.rewarding import reward
from actors.rewarding.reward import Reward
from actors.wire.records import Sample, pack_samples
from actors.wire.rewards import Rewards
from configs.reward_rules import Rule
from rewards.scoring import Rewarded
from tests.unit.rewards.tried import rule_of

SHORT = rule_of(kind="length", high=2, weight=3.0)


class Scored(Reward):
    """A reward model that scores by uid: the samples it is asked for are in `asked`."""

    def __init__(self, scores: Mapping[str, float], weight: float) -> None:
        super().__init__("nowhere", "model", weight)
        self._model, self._of, self.asked = "a model", scores, list[str]()

    def _decode(self, ids: list[int]) -> str:
        return ""

    def _scores(self, samples: Sequence[Sample]) -> list[float]:
        self.asked += [sample.uid for sample in samples]
        return [self._of[sample.uid] for sample in samples]


def rewarded(member: Reward, rules: Sequence[Rule], lengths: Mapping[str, int], asked: Sequence[str]) -> Rewards:
    samples = [
        Sample(uid, uid[0], 0, 1, [1], [2] * length, [-1.0] * length, [(0, length)], "stop", [0] * length)
        for uid, length in lengths.items()
    ]
    return member.reward(pack_samples(samples)[0], rules, {uid: {} for uid in asked})


@pytest.mark.parametrize("weight", [0.5, -2.0, 0.0])
def test_a_score_counts_its_weight_beside_the_rules(weight: float) -> None:
    member = Scored({"a": 4.0, "b": -1.5}, weight)
    found = rewarded(member, [SHORT], {"a": 1, "b": 9, "c": 1}, ["a", "b"])
    assert found.values == {"a": 3.0 + weight * 4.0, "b": weight * -1.5}
    assert found.components == {"a": {"length": 1.0, "model": 4.0}, "b": {"length": 0.0, "model": -1.5}}
    assert (found.rejected, member.asked) == ({}, ["a", "b"]), "it scores what is to be rewarded"


def test_a_score_alone_is_the_reward() -> None:
    found = rewarded(Scored({"a": 4.0}, 0.5), [], {"a": 1}, ["a"])
    assert (found.values, found.components) == ({"a": 2.0}, {"a": {"model": 4.0}})


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_rejects_its_response_alone(score: float) -> None:
    found = rewarded(Scored({"a": score, "b": 1.0}, 0.0), [SHORT], {"a": 1, "b": 1}, ["a", "b"])
    assert found.rejected == {"a": f"reward model: it is {score}"}
    assert found.values == {"b": 3.0} and found.components.keys() == {"b"}


def test_what_a_rule_rejects_has_no_reward_by_its_score_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward, "score", lambda *_: [Rewarded({}, None, "reward code: no program")])
    found = rewarded(Scored({"a": 1.0}, 1.0), [SHORT], {"a": 1}, ["a"])
    assert (found.values, found.components, found.rejected) == ({}, {}, {"a": "reward code: no program"})
