"""Every recipe of configs/ through the whole system on the tiny model: it moves its own target the right way.

Thresholds are what a flipped sign fails: the measured divergence must fall, on held-out prompts never trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.metrics import STEP_METRICS
from configs.load import load_recipe
from tests.engines.shared import Engines, Finished

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in ("base", "simulated"))


@pytest.mark.parametrize("name", [n for n in RECIPES if n not in ("sft", "quickstart")])
def test_distillation_recipe_lowers_the_held_out_kl(engines: Engines, name: str) -> None:
    done = _run(engines, name)
    before, after = done.summary["evaluation"]["before"], done.summary["evaluation"]["after"]
    measure = "forward_kl" if done.recipe.objective.reverse_weight < 0.5 else "reverse_kl"
    bound = 0.95 if done.recipe.objective.support == "sampled" else 0.8  # one token says less than a distribution
    assert after[measure] < bound * before[measure], (before, after)
    for line in done.lines:
        assert list(line) == list(STEP_METRICS)
        assert (line["forward_kl"] is None) == (done.recipe.objective.support == "sampled")


def test_async_recipe_reaches_its_staleness_bound(engines: Engines) -> None:
    staleness = [line["staleness_max"] for line in _run(engines, "opd_async").lines]
    assert max(staleness) == 1 and min(staleness) >= 0


def test_sft_recipe_lowers_the_cross_entropy(engines: Engines) -> None:
    done = _run(engines, "sft", data={"prompts": str(engines.prompts["data"])})
    losses = [line["loss"] for line in done.lines]
    assert sum(losses[-2:]) < 0.8 * sum(losses[:2]), losses
    assert done.lines[0]["reverse_kl"] is None and done.lines[0]["logprob_gap_mean"] is None
    assert done.summary["evaluation"]["before"]["entropy"] > 0


def test_rewards_reach_metrics_and_gradient(engines: Engines) -> None:
    """With the log-ratio clipped to nothing the outcome reward acts alone: what it rewards becomes more frequent."""
    done = engines.run(
        engines.recipe(
            run={"steps": 10},
            batch={"prompts_per_step": 4, "samples_per_prompt": 8},
            objective={"support": "sampled", "outcome": {"weight": 1.0, "baseline": "rloo"}, "clip": 1e-6},
            reward={"rules": [{"kind": "regex", "text": "[a-h]"}]},
            learner={"ranks": 1, "zero_stage": 0, "optimizer": {"name": "adamw", "lr": 1e-2}},
        )
    )
    rewards = [line["reward_mean"] for line in done.lines]
    assert sum(rewards[-3:]) > 1.2 * sum(rewards[:3]), rewards


def test_every_recipe_file_is_valid() -> None:
    for path in CONFIGS.glob("*.yaml"):
        load_recipe(path)


def _run(engines: Engines, name: str, **changes: Any) -> Finished:
    """The recipe's own objective, batch shape and staleness, on the tests' models and sizes."""
    recipe = load_recipe(CONFIGS / f"{name}.yaml")
    scorer = recipe.scorer_of("teacher").engine if recipe.scored_models else "torch"
    sampled = recipe.objective.support == "sampled" and bool(recipe.scored_models)
    return engines.run(
        engines.recipe(
            **{
                "run": {"steps": 16 if sampled else 8},
                "evaluate": {"samples_per_prompt": 8},
                "objective": recipe.objective.model_dump(),
                "batch": {"prompts_per_step": 8, "samples_per_prompt": 4 if sampled else 2},
                "max_staleness": recipe.max_staleness,
                "scorer": {"teacher": {"engine": scorer}},
                "learner": {
                    "ranks": 1,
                    "zero_stage": 0,
                    "optimizer": {"name": "adamw", "lr": 1e-2 if sampled else 5e-3},
                },
            }
            | {"data": {"heldout": str(engines.prompts["heldout"])} | changes.get("data", {})}
        )
    )
