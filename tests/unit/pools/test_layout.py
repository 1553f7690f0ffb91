"""Member specifications of every role of a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.simulated.members import Speeds
from orchestrator.pools.layout import REAL, MemberSpecs, build_pools
from orchestrator.pools.transport import LocalTransport
from tests.unit.simulation import recipe, simulated


@pytest.mark.parametrize("members", [REAL, simulated(Speeds())], ids=["real", "simulated"])
def test_a_members_spec_names_its_role(tmp_path: Path, members: MemberSpecs) -> None:
    """A notice that a member finds no place names the role by it."""
    settings = recipe(
        tmp_path,
        models={"poet": {"path": "/none"}},
        objective={
            "prefix": {"student": 0.5, "teacher": 0.5},
            "target": {"teacher": 1.0, "poet": 1.0},
            "allow_biased": ["sampled_off_policy"],
        },
    )
    pools = build_pools(settings, LocalTransport(), 1000, None, members).all()
    assert {"teacher_rollout", "scorer.teacher", "scorer.poet"} < pools.keys()
    assert [pool.startup.spec(0).role for pool in pools.values()] == list(pools)
