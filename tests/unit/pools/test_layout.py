"""From a recipe to what every role is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.pools.layout import build_pools
from orchestrator.pools.transport import LocalTransport
from tests.unit.simulation import recipe

REAL = {"rollout": "vllm", "teacher_rollout": "vllm", "reward": "rules", "learner": "deepspeed"}


@pytest.mark.parametrize("simulated", [True, False])
def test_a_member_goes_by_the_role_that_the_recipe_names(tmp_path: Path, simulated: bool) -> None:
    """So does what a person is told when it finds no place."""
    scorer = {"engine": "simulated" if simulated else "torch"}
    settings = recipe(
        tmp_path,
        models={"poet": {"path": "/none"}},
        objective={
            "prefix": {"student": 0.5, "teacher": 0.5},
            "target": {"teacher": 1.0, "poet": 1.0},
            "allow_biased": ["sampled_off_policy"],
        },
        scorer={"teacher": scorer, "poet": scorer},
        **{role: {"engine": "simulated" if simulated else engine} for role, engine in REAL.items()},
    )
    pools = build_pools(settings, LocalTransport(), 1000, None).all()
    assert {"teacher_rollout", "scorer.teacher", "scorer.poet"} < pools.keys()
    assert [pool.startup.spec(0).role for pool in pools.values()] == list(pools)
