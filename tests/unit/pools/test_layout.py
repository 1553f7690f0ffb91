"""Member specifications of every role of a recipe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from actors.simulated.known import Speeds
from configs.schema import Recipe
from orchestrator.pools.layout import REAL, MemberSpecs, build_pools, demands
from orchestrator.pools.transport import LocalTransport
from tests.unit.simulation import recipe, simulated


def written_by_all(root: Path) -> Recipe:
    """A recipe with every role, and two scorers."""
    return recipe(
        root,
        models={"poet": {"path": "/none"}},
        objective={
            "prefix": {"student": 0.5, "teacher": 0.25, "dataset": 0.25},
            "target": {"teacher": 1.0, "poet": 1.0},
            "allow_biased": ["sampled_off_policy"],
        },
    )


@pytest.mark.parametrize("members", [REAL, simulated(Speeds())], ids=["real", "simulated"])
def test_every_role_of_a_recipe_has_a_pool_whose_members_are_of_that_role(tmp_path: Path, members: MemberSpecs) -> None:
    """A notice that a member finds no place names the role by its specification."""
    settings = written_by_all(tmp_path)
    pools = build_pools(settings, LocalTransport(), 1000, None, members).all()
    every = ["rollout", "teacher_rollout", "dataset", "scorer.teacher", "scorer.poet", "reward", "learner"]
    assert list(pools) == list(settings.roles) == every
    for role, pool in pools.items():
        spec, size = pool.startup.spec(0), settings.roles[role]
        assert (spec.role, len(spec.arguments), spec.resources) == (role, size.actors, size.resources)


def test_the_table_of_roles_gives_their_demands_and_which_may_change_size(tmp_path: Path) -> None:
    settings = written_by_all(tmp_path)
    wanted = {demand.role: (demand.members, demand.actors) for demand in demands(settings)}
    assert wanted == {role: (1, 1) for role in settings.roles} | dict.fromkeys(
        ("rollout", "scorer.teacher", "reward"), (2, 1)
    )
    assert settings.roles.keys() - settings.elastic_roles.keys() == {"dataset", "learner"}


def test_a_role_that_nobody_needs_has_no_pool(tmp_path: Path) -> None:
    """A student trained on a dataset's responses does not sample, unless it is evaluated."""
    given = {"target": "data", "prefix": "dataset", "reverse_weight": 0.0}
    pools = build_pools(recipe(tmp_path, objective=given, scorer={}), LocalTransport(), 1000, None).all()
    assert list(pools) == ["dataset", "reward", "learner"]
    evaluated = recipe(tmp_path, objective=given, scorer={}, data={"heldout": "/none"})
    assert list(evaluated.roles) == ["rollout", "dataset", "reward", "learner"]


@pytest.mark.parametrize(("gpus", "eager", "compiles"), [(0, True, False), (0, False, True), (1, True, True)])
def test_an_eager_engine_on_a_cpu_compiles_nothing(tmp_path: Path, gpus: int, eager: bool, compiles: bool) -> None:
    settings = recipe(tmp_path, rollout={"eager": eager, "resources": {"gpus": gpus}})
    assert ("TORCH_COMPILE_DISABLE" not in REAL.rollout(settings).environment) == compiles


def test_a_split_engine_is_one_actor_with_all_its_gpus(tmp_path: Path) -> None:
    split = {"engine": "vllm", "tensor_parallel": 4, "members": 2, "resources": {"cpus": 8, "gpus": 4}}
    settings = recipe(tmp_path, scorer={"teacher": split}, objective={"support": "sampled"})
    (demand,) = [demand for demand in demands(settings) if demand.role == "scorer.teacher"]
    assert (demand.members, demand.actors, demand.gpus) == (2, 1, 8)
    spec = REAL.scorer(settings, "teacher", 1000, 0)
    assert len(spec.arguments) == 1 and spec.resources.gpus == 4
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in spec.environment, "the engine's process has workers of its own"


def test_members_that_compute_on_no_tensor_import_no_torch() -> None:
    """Each is a process of its own: it would cost two seconds and 230 MB."""
    simulated = ("actors.simulated.learner", "actors.simulated.rollout", "actors.simulated.scorer")
    modules = ("actors.rewarding.reward", "actors.rollout.dataset", "actors.control", *simulated)
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
