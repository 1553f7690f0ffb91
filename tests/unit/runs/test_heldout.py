"""Evaluations: unscored samples are counted and named, two are compared on common samples, payloads are freed, and a
person is shown greedy answers."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest

from actors.simulated.learner import SimulatedLearner
from actors.simulated.reward import SimulatedReward
from actors.simulated.rollout import SimulatedRollout
from actors.simulated.scorer import SimulatedScorer
from actors.wire.rewards import Rewards
from configs.schema import SHOWN, Sampling
from orchestrator.between_steps.measuring import Measurements
from orchestrator.evaluation.heldout import Found, compared
from orchestrator.run import DONE, STOPPED, Run
from orchestrator.samples.buffer import Scored
from orchestrator.surface.report.page import held_out_answers
from orchestrator.weights.learner_group import LearnerGroup
from tests.unit.simulation import HELDOUT, Simulation, metrics, recipe, stop_at, trained

ALL = [f"9000000{i}.000" for i in range(len(HELDOUT))]


def summary(root: Path) -> dict[str, Any]:
    return json.loads((root / "sim" / "summary.json").read_text())


def reject(monkeypatch: pytest.MonkeyPatch, *calls: set[str]) -> None:
    """Make the rewards of these uids NaN; one set for each evaluation, in order."""
    reward, evaluations = SimulatedReward.reward, iter(calls)
    now: list[set[str]] = []
    run = Measurements.evaluate

    async def counted(self: Measurements, when: str) -> Any:
        now[:] = [next(evaluations, set())]
        return await run(self, when)

    def with_nan(self: SimulatedReward, *arguments: Any) -> Rewards:
        found = reward(self, *arguments)
        return replace(found, values={uid: nan if now and uid in now[0] else v for uid, v in found.values.items()})

    monkeypatch.setattr(Measurements, "evaluate", counted)
    monkeypatch.setattr(SimulatedReward, "reward", with_nan)


def test_unscored_samples_are_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reject(monkeypatch, {ALL[1]}, {ALL[1]})
    simulation = Simulation(recipe(tmp_path))
    assert simulation.go() == DONE
    found = summary(tmp_path)
    for when in ("before", "after"):
        assert (found["evaluation"][when]["samples"], found["evaluation"][when]["samples_skipped"]) == (2, 1)
    assert found["skipped"] == {ALL[1]: "its reward is nan"}
    assert found["skipped_prompts"] == {"90000001": "h1"}
    assert any(f"skipped {ALL[1]}" in notice for notice in simulation.notices)


@pytest.mark.parametrize("stopped", [False, True], ids=["in one life", "in two"])
def test_before_and_after_are_compared_on_the_samples_that_both_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    """The first is unscored before, the second after: both are reduced to the third."""
    reject(monkeypatch, {ALL[0]}, {ALL[1]})
    simulation = Simulation(recipe(tmp_path), stop_at(3) if stopped else lambda run, line: None)
    assert simulation.go() == (STOPPED if stopped else DONE)
    if stopped:
        simulation = Simulation(recipe(tmp_path))
        assert simulation.go() == DONE
    evaluation = summary(tmp_path)["evaluation"]
    last = [row for row in trained(tmp_path, "eval_before") if row["uid"] == ALL[2]]
    for when in ("before", "after"):
        found = evaluation[when]
        assert (found["samples"], found["samples_skipped"]) == (1, 2)
        assert found["response_length"] == len(last[0]["response_ids"])
        assert found["reverse_kl"] is not None and found["kl_support"] == "sampled"
    assert any("on the 1 held-out samples" in notice for notice in simulation.notices)


def found_of(**each: Mapping[str, float]) -> Found:
    means = {"kl_support": "full", "samples": len(each), "samples_skipped": 4 - len(each), "reverse_kl": 9.0}
    return Found(means, each)


def test_means_over_tokens_are_weighted_by_tokens_and_means_over_responses_are_not() -> None:
    short, long = {"tokens": 1.0, "reverse_kl": 1.0}, {"tokens": 3.0, "reverse_kl": 6.0}
    before = found_of(a=short | {"response_length": 1.0}, b=long | {"response_length": 3.0, "reward_mean": 1.0}, c=long)
    after = found_of(a=short, b=long)
    first, second = compared(before, after)
    assert first and second
    assert (first["reverse_kl"], first["response_length"], first["reward_mean"]) == (7.0 / 4.0, 2.0, 1.0)
    assert (first["entropy"], first["samples"], first["samples_skipped"]) == (None, 2, 2)
    assert second["reverse_kl"] == 9.0, "of all it has, what the learner said"
    assert compared(found_of(a=short), found_of(b=long)) == (None, None)


def test_an_evaluation_frees_its_payloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Any]] = []
    learners: list[SimulatedLearner] = []
    evaluate, init = LearnerGroup.evaluate, SimulatedLearner.__init__

    async def noted(self: LearnerGroup, batch: Sequence[Scored], *arguments: Any) -> Any:
        held.extend(weakref.ref(scored.samples) for scored in batch)
        found = await evaluate(self, batch, *arguments)
        assert not any(learner._payloads for learner in learners)
        return found

    def begun(self: SimulatedLearner, *arguments: Any) -> None:
        learners.append(self)
        init(self, *arguments)

    def on_step(run: Run, line: Mapping[str, Any]) -> None:
        assert held and not any(payload() for payload in held)

    monkeypatch.setattr(LearnerGroup, "evaluate", noted)
    monkeypatch.setattr(SimulatedLearner, "__init__", begun)
    gc.disable()
    try:
        assert Simulation(recipe(tmp_path), on_step).go() == DONE
    finally:
        gc.enable()


def test_a_sample_that_a_scorer_rejects_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = SimulatedScorer.score

    async def refusing(self: SimulatedScorer, payload: Any, request: Any, *rest: Any) -> Any:
        ref, header = await score(self, payload, request, *rest)
        mine = {uid: "its scores are no numbers" for uid in header.uids if uid == ALL[0]}
        header.rejected.update(mine)
        return ref, header

    monkeypatch.setattr(SimulatedScorer, "score", refusing)
    assert Simulation(recipe(tmp_path)).go() == DONE
    assert summary(tmp_path)["skipped"] == {ALL[0]: "its scores are no numbers"}
    assert len(metrics(tmp_path)) == 6


def test_a_person_is_shown_greedy_answers_while_the_evaluation_stays_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[float, list[str]] = {}
    submit = SimulatedRollout.submit

    async def noted(self: SimulatedRollout, channel: str, requests: Any, sampling: Sampling, *rest: Any) -> Any:
        asked.setdefault(sampling.temperature, []).extend(request.uid for request in requests)
        return await submit(self, channel, requests, sampling, *rest)

    monkeypatch.setattr(SimulatedRollout, "submit", noted)
    many = [*HELDOUT, HELDOUT[0]]
    assert Simulation(recipe(tmp_path), heldout=many).go() == DONE
    assert sorted(asked[0.0]) == sorted(2 * ALL[:SHOWN]), "once before and once after"
    assert sorted(uid for uid in asked[1.0] if uid >= ALL[0]) == sorted(2 * [*ALL, "90000003.000"])
    for when in ("before", "after"):
        assert [row["uid"] for row in trained(tmp_path, f"eval_{when}_greedy")] == ALL[:SHOWN]
        assert summary(tmp_path)["evaluation"][when]["samples"] == len(many)
    answers = held_out_answers(tmp_path / "sim", str, greedy=True)
    assert len(answers) == SHOWN and all(answer.before and answer.after for answer in answers)


def test_an_evaluation_takes_the_slots_that_training_gives_back_also_where_nothing_is_scored(tmp_path: Path) -> None:
    """All slots of the only member are the next step's as it begins. They come back in one block, and no answer of a
    scorer follows it."""
    alone = {
        "rollout": {"members": 1, "max_concurrent": 8},
        "stream": {"coalesce_samples": 64},
        "evaluate": {"every": 1},
    }
    rewarded = {"target": "none", "outcome": {"weight": 1.0, "baseline": "rloo"}}
    simulation = Simulation(recipe(tmp_path, objective=rewarded, **alone))
    assert simulation.go() == DONE
    assert len(summary(tmp_path)["evaluation"]["steps"]) == simulation.recipe.run.steps - 1
