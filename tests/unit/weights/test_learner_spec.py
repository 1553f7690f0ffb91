"""What a run tells its learner of the distribution that its samples come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.simulation import Simulation, recipe

REWARD_ALONE = {"target": "none", "support": "sampled", "outcome": {"weight": 1.0, "baseline": "mean"}}


@pytest.mark.parametrize(
    ("sampling", "objective", "temperature", "compares"),
    [
        ({}, {}, 1.0, True),
        ({"temperature": 0.7}, {}, 1.0, False),
        ({"top_p": 0.9}, {}, 1.0, False),
        ({"temperature": 0.7}, REWARD_ALONE, 0.7, True),
    ],
    ids=["as the learner", "cooler", "a nucleus", "cooler, for a reward alone"],
)
def test_the_learner_compares_the_sampler_where_both_have_one_distribution(
    tmp_path: Path, sampling: dict[str, Any], objective: dict[str, Any], temperature: float, compares: bool
) -> None:
    objective = objective or {"target": "teacher", "support": "full"}
    roles = Simulation(recipe(tmp_path, sampling=sampling, objective=objective)).run.roles
    spec = roles._learner_spec()
    assert (spec.temperature, spec.compares_sampler) == (temperature, compares)
