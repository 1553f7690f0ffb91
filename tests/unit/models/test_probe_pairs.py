"""The rules of a probe on pairs of real tiny models: the same, near, and far."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors.learning.readings import _effective
from configs.objective import Objective
from objectives.readings import of_chunk
from objectives.tokens import Scores
from orchestrator.surface.measuring import advice
from orchestrator.surface.measuring.advice import findings, recommended
from orchestrator.surface.measuring.probed import Measured, log_ratios, measured
from tests.tiny import build_model
from tests.unit.simulation import recipe
from tests.unit.surface.test_probe_rules import GOOD, named

PROMPT = 8  # tokens
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoModelForCausalLM

    folder = build_model(tmp_path_factory.mktemp("student"))
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def of_pair(student: Any, teacher: Any) -> Measured:
    """Overlap, mass and KL of two real models on random prefixes, as the learner computes them."""
    torch.manual_seed(4)
    ids = torch.randint(3, 259, (4, 24))
    logprobs, other = (model(ids).logits.flatten(0, 1)[:, :259].log_softmax(-1) for model in (student, teacher))
    top = other.topk(16)
    tail = torch.log1p(-top.values.exp().sum(-1))
    scores = Scores(top.values[:, 0], top.indices, top.values, tail)
    config = Objective(target="teacher", support="topk", topk=16)
    found = of_chunk(config, logprobs, SimpleNamespace(scores={"teacher": scores}), {"teacher": 1.0})  # type: ignore[arg-type]
    return replace(GOOD, **{n: float(v.mean()) for n, v in found.items() if n in {f.name for f in fields(Measured)}})


def moved(model: Any, by: float) -> Any:
    teacher = deepcopy(model)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.std() * by)
    return teacher


@pytest.mark.parametrize(("by", "expected"), [(0.0, advice.NOTHING), (0.15, advice.DISTIL), (30.0, advice.SFT_FIRST)])
def test_real_models_that_are_the_same_near_and_far(student: Any, by: float, expected: str, tmp_path: Path) -> None:
    assert recommended(findings(of_pair(student, moved(student, by)), recipe(tmp_path))) == expected


LONGEST = 128  # tokens of a response
END = 216  # the token that ends one, in these tests; the model says it in one of 60


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that is sure of itself: single tokens have log-ratios as real models' have."""
    from transformers import AutoModelForCausalLM

    folder = build_model(tmp_path_factory.mktemp("sharp"), scale=3.0)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def rows(sharp: Any) -> Rows:
    return sampled(sharp)


def test_a_pair_that_ends_by_the_same_token_and_one_that_does_not(sharp: Any, rows: Rows) -> None:
    assert holds("ends", scored(rows, moved(sharp, 0.15)))
    assert not holds("ends", scored(rows, swapped(sharp, END, 40)))


def test_a_pair_of_near_models_and_one_with_a_tail(sharp: Any, rows: Rows) -> None:
    assert holds("tail", scored(rows, moved(sharp, 0.15)))
    assert not holds("tail", scored(rows, moved(sharp, 0.6)))


def test_a_pair_that_agrees_to_the_end_and_one_that_agrees_at_first(sharp: Any, rows: Rows) -> None:
    assert holds("late", scored(rows, moved(sharp, 0.15)))
    assert not holds("late", scored(rows, with_short_sight(sharp, 48)))


def test_a_cap_that_responses_reach_and_one_that_they_seldom_reach(sharp: Any, rows: Rows) -> None:
    assert holds("cap", rows)
    assert not holds("cap", sampled(sharp, longest=12))


def test_a_sampler_of_rounded_weights_and_one_of_quantised_weights(sharp: Any) -> None:
    """The second has a sign and three bits a weight."""
    bf16, three_bits = rounded(sharp, lambda w: w.bfloat16().float()), rounded(sharp, lambda w: quantised(w, 7))
    for sampler, good in ((bf16, True), (three_bits, False)):
        assert holds("engines", [], effective_sample_size=effective_of(sharp, sampled(sampler, longest=32))) is good


@torch.no_grad()
def sampled(model: Any, longest: int = LONGEST) -> Rows:
    """Responses of a model to 48 prompts of eight random tokens, recorded as a run does."""
    torch.manual_seed(6)
    ids = torch.randint(3, 259, (48, PROMPT))
    seen = model(ids)
    for _ in range(longest):
        drawn = seen.logits[:, -1].softmax(-1).multinomial(1)
        ids = torch.cat([ids, drawn], 1)
        seen = model(drawn, past_key_values=seen.past_key_values)
    return [_row(tokens, values) for tokens, values in zip(ids.tolist(), logprobs_of(model, ids), strict=True)]


def _row(tokens: list[int], logprobs: list[float]) -> dict[str, Any]:
    """Up to the end token, if there is one."""
    ended = END in tokens[PROMPT:]
    whole = tokens[: tokens.index(END, PROMPT) + 1] if ended else tokens
    return {
        "ids": whole,
        "response_ids": whole[PROMPT:],
        "finish": "stop" if ended else "length",
        "student_logprobs": logprobs[: len(whole) - PROMPT],
        "class_logprobs": None,
        "teacher_logprobs": None,
    }


@torch.no_grad()
def logprobs_of(model: Any, ids: Any) -> list[list[float]]:
    """Of the tokens behind the prompts, nats."""
    logprobs = model(ids[:, :-1]).logits.log_softmax(-1)
    return logprobs.gather(-1, ids[:, 1:, None])[:, PROMPT - 1 :, 0].tolist()


def scored(rows: Rows, teacher: Any) -> Rows:
    return [row | {"teacher_logprobs": logprobs_of(teacher, torch.tensor([row["ids"]]))[0]} for row in rows]


def holds(name: str, rows: Rows, **metrics: Any) -> bool | None:
    return named(name).holds(measured(metrics, rows))


def effective_of(learner: Any, rows: Rows) -> float | None:
    learned = scored(rows, learner)  # what the learner gives to the sampler's tokens
    return _effective(np.array([ratio for row in learned for ratio in log_ratios(row)]))


def swapped(model: Any, one: int, other: int) -> Any:
    """The model that says one token where this one says the other."""
    found = deepcopy(model)
    with torch.no_grad():
        found.lm_head.weight[[one, other]] = model.lm_head.weight[[other, one]]
    return found


def with_short_sight(model: Any, tokens: int) -> Any:
    """The same weights in an architecture that sees the last tokens alone."""
    from transformers import MistralConfig, MistralForCausalLM

    known = MistralConfig().to_dict().keys() - {"model_type", "architectures"}
    kept = {key: value for key, value in model.config.to_dict().items() if key in known}
    found = MistralForCausalLM(MistralConfig(**kept | {"sliding_window": tokens}))
    found.load_state_dict(model.state_dict())
    found.set_attn_implementation("eager")
    return found.eval()


@torch.no_grad()
def rounded(model: Any, rounding: Callable[[Any], Any]) -> Any:
    found = deepcopy(model)
    for parameter in found.parameters():
        parameter.copy_(rounding(parameter))
    return found


def quantised(weights: Any, levels: int) -> Any:
    """To so many steps of a row's largest value, either way."""
    step = weights.abs().amax(-1, keepdim=True) / levels
    return (weights / step).round() * step
