"""The rules of a probe: a pair of models on each side of every threshold, by what a probe would measure of it."""

from __future__ import annotations

from dataclasses import fields, replace
from math import log, nan
from pathlib import Path
from typing import Any

import pytest

from actors.metrics import PROBE_METRICS, STEP_METRICS
from orchestrator.surface.measuring import advice, probed
from orchestrator.surface.measuring.advice import RULES, findings, recommended, settings
from orchestrator.surface.measuring.cost import Took, cost
from orchestrator.surface.measuring.probed import Measured, measured
from tests.unit.simulation import recipe

# A base student and a teacher of its own family that was trained further: everything holds.
GOOD = Measured(
    topk_overlap=0.72,
    topk_mass_student=0.97,
    topk_mass_teacher=0.98,
    reverse_kl=0.2,
    entropy=0.6,
    teacher_entropy=0.5,
    log_ratio_p1=-3.1,
    log_ratio_p99=0.9,
    tail_fraction=0.002,
    end_disagreement=0.02,
    late_kl=1.2,
    logprob_gap_mean=0.004,
    effective_sample_size=0.999,
    response_length=300.0,
    truncated_fraction=0.05,
)
# What a pair measures that fails the rule, and one that just passes it.
PAIRS: dict[str, tuple[float, float]] = {
    "overlap": (0.59, 0.61),  # another family of thinking | the paper's successful pair less some room
    "mass": (0.85, 0.91),
    "signal": (0.004, 0.012),  # the teacher is the student in bf16 | a teacher that was trained further
    "ends": (0.6, 0.08),  # <|endoftext|> against <|im_end|> | both end alike
    "tail": (0.03, 0.004),
    "engines": (0.9, 0.96),  # a quantised sampler | both in bf16
    "cap": (0.5, 0.2),
    "late": (3.5, 1.8),
}


def named(rule: str) -> advice.Rule:
    return next(one for one in RULES if one.name == rule)


@pytest.mark.parametrize("name", [rule.name for rule in RULES])
def test_each_rule_holds_on_one_side_of_its_threshold(name: str, tmp_path: Path) -> None:
    rule, (fails, passes) = named(name), PAIRS[name]
    for value, holds in ((passes, True), (fails, False)):
        found = findings(replace(GOOD, **{rule.metric: value}), recipe(tmp_path))
        assert {one.rule.name: one.holds for one in found} == {one.name: True for one in RULES} | {name: holds}
    assert rule.holds(replace(GOOD, **{rule.metric: rule.bound})), "the bound itself holds"
    assert rule.holds(replace(GOOD, **{rule.metric: None})) is None


def test_every_rule_has_a_reason_a_paper_and_a_number_that_is_defined() -> None:
    meanings = STEP_METRICS | PROBE_METRICS
    assert {field.name for field in fields(Measured)} <= meanings.keys() and PROBE_METRICS.keys() <= meanings.keys()
    assert len({rule.name for rule in RULES}) == len(RULES) == len(PAIRS)
    for rule in RULES:
        assert rule.metric in meanings and ("arXiv" in rule.source) and rule.advice
        assert "ours" in rule.reason, "no paper gives a threshold: the reason says whose it is"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, advice.DISTIL),
        ({"topk_overlap": 0.3, "topk_mass_student": 0.5}, advice.SFT_FIRST),
        ({"topk_overlap": 0.3}, advice.COMPARE),
        ({"topk_overlap": 0.99, "reverse_kl": 0.001}, advice.NOTHING),
        ({"topk_overlap": None}, advice.UNKNOWN),
        ({"reverse_kl": None}, advice.UNKNOWN),
        ({"tail_fraction": 0.5, "end_disagreement": 0.9}, advice.DISTIL),
    ],
)
def test_overlap_mass_and_signal_decide_what_comes_first(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    assert recommended(findings(replace(GOOD, **changes), recipe(tmp_path))) == expected


def test_settings_that_a_recipe_has_are_not_asked_for_again(tmp_path: Path) -> None:
    bad = replace(GOOD, end_disagreement=0.9, tail_fraction=0.1)
    plain = findings(bad, recipe(tmp_path))
    assert settings(plain) == ["objective.end_tokens: class", "objective.clip: 5.0", "or objective.support: topk"]
    has = recipe(tmp_path, objective={"end_tokens": "class", "clip": 5.0})
    assert settings(findings(bad, has)) == []
    assert {one.rule.name for one in findings(bad, has) if one.done} == {"ends", "tail"}
    assert not any(one.done for one in findings(GOOD, has)), "a rule that holds needs no setting"
    full = recipe(tmp_path, objective={"support": "full"})
    assert settings(findings(replace(GOOD, tail_fraction=0.1), full)) == [], "a clip is of the sampled signal"


def row(ratios: list[float], finish: str = "stop", **more: Any) -> dict[str, Any]:
    student = [-1.0] * len(ratios)
    teacher = [-1.0 + ratio for ratio in ratios]
    columns = {"response_ids": [5] * len(ratios), "finish": finish, "class_logprobs": None}
    return columns | {"student_logprobs": student, "teacher_logprobs": teacher} | more


def test_tails_ends_and_lengths_are_counted_by_hand() -> None:
    rows = [
        row([0.0, -5.1, 5.1, -4.9], "length"),  # two of four in the tail; no end
        row([0.0, -log(20.0) - 0.01]),  # the teacher would not end here
        row([-9.0, -log(20.0) + 0.01]),  # it might; one in the tail
        row([nan, -2.0]),  # what was not scored is left out
    ]
    found = measured({"topk_overlap": 0.5, "loss": 3.0, "entropy": None}, rows)
    assert found.tail_fraction == pytest.approx(3 / 9) and found.end_disagreement == pytest.approx(1 / 3)
    assert found.response_length == 2.5 and found.truncated_fraction == 0.25
    assert (found.topk_overlap, found.entropy, found.late_kl) == (0.5, None, None)
    assert measured({}, []) == Measured()
    unscored = row([0.0], teacher_logprobs=None)
    assert measured({}, [unscored]).tail_fraction is None and probed.end_disagreement([unscored]) is None


def test_a_class_of_end_tokens_is_compared_with_the_students_class() -> None:
    one = row([0.0, -4.0], class_logprobs=[-1.0, -5.0])
    assert probed.log_ratios(one) == [0.0, 0.0] and probed.end_disagreement([one]) == 0.0
    assert probed.end_disagreement([one | {"class_logprobs": None}]) == 1.0


def test_late_tokens_are_compared_with_early_ones_of_the_same_responses() -> None:
    long = row([-0.1] * 8 + [-0.3] * 8)
    assert probed.late_kl([long, row([-9.0] * 15)]) == pytest.approx(3.0), "a short response has no halves"
    assert probed.late_kl([row([-0.1] * 8 + [-0.3] * 9)]) == pytest.approx(3.0)
    assert probed.late_kl([row([0.1] * 16)]) is None and probed.late_kl([]) is None


TOOK = Took(samples=16, tokens=1600, rollout=4.0, score=3.0, learn=1.0, sync=0.5)


def test_a_step_costs_what_its_samples_took(tmp_path: Path) -> None:
    half = recipe(tmp_path)  # 8 samples a step
    found = cost(half, TOOK)
    assert (found.rollout, found.score, found.learn) == (2.0, 1.5, 1.5), "an update is three forward passes"
    assert found.step_seconds == pytest.approx(0.5 + 2.0 + 1.5) and found.hours == pytest.approx(4000 / 3600)
    assert (found.gpus, found.gpu_hours) == (0.0, 0.0) and found.tokens_per_second == pytest.approx(800 / 4.0)
    assert cost(recipe(tmp_path, max_staleness=1), TOOK).step_seconds == pytest.approx(2.5)
    twice = cost(recipe(tmp_path, batch={"updates": 2}, learner={"gradient_checkpointing": True}), TOOK)
    assert twice.learn == pytest.approx(0.5 * 4 * 2)


def test_gpus_are_those_that_the_recipe_reserves(tmp_path: Path) -> None:
    gpu = {"resources": {"gpus": 1.0}}
    on = recipe(tmp_path, rollout=gpu | {"members": 3}, scorer={"teacher": gpu}, learner={"ranks": 2, **gpu})
    found = cost(on, TOOK)
    assert found.gpus == 6.0 and found.gpu_hours == pytest.approx(6.0 * found.hours)
    shared = {"resources": {"gpus": 0.4}}
    turns = recipe(
        tmp_path,
        colocate=True,
        rollout=shared | {"members": 1},
        scorer={"teacher": shared},
        learner=shared | {"zero_stage": 2},
    )
    assert cost(turns, TOOK).step_seconds == pytest.approx(0.5 + 2.0 + 1.5 + 1.5), "nothing overlaps"
