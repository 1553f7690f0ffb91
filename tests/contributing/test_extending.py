"""CONTRIBUTING.md's promise: an objective, a reward rule, a member engine, a carrier and a command are one file and one
line of registration each. Every toy runs in a whole simulated run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import audit
from configs.load import RecipeError
from configs.names.own_code import imported
from orchestrator import cli
from orchestrator.preflight.files import read_inputs
from orchestrator.run import DONE
from tests.contributing import toys
from tests.unit.simulation import STEPS, Simulation, assert_each_once, metrics, recipe, trained

TOYS = "tests.contributing.toys"


def test_an_objective_is_a_function_that_the_recipe_names(tmp_path: Path) -> None:
    loss = f"{TOYS}:capped_distillation"
    simulated = recipe(tmp_path, objective={"loss": loss}, learner={"engine": f"{TOYS}:LossLearner"})
    assert Simulation(simulated).go() == DONE
    assert_each_once(tmp_path)
    every = toys.capped_distillation(toys.LOGPROBS.expand(64, 64), toys.tokens_of(torch.arange(64)))
    assert all(every.min() < line["loss"] < every.max() for line in metrics(tmp_path))


def test_the_audit_reads_an_objective_of_ones_own() -> None:
    found = audit.audit(imported(f"{TOYS}:capped_distillation"))
    assert "reverse" in audit.describe(found)


def test_a_reward_rule_is_a_function_that_the_recipe_names(tmp_path: Path) -> None:
    module = "tests.contributing.toy_reward"
    rules = [{"function": f"{module}:ends_early", "weight": 2.0}, {"kind": f"{module}:keeps_below", "high": 5}]
    simulated = recipe(tmp_path, reward={"engine": f"{TOYS}:NumberReward", "rules": rules})
    assert Simulation(simulated).go(60.0) == DONE
    rows = [(row["reward"], len(row["response_ids"])) for row in trained(tmp_path)]
    assert [reward for reward, _ in rows] == [2.0 * (tokens < 8) + (tokens < 5) for _, tokens in rows]


def test_a_member_engine_is_a_class_that_the_recipe_names(tmp_path: Path) -> None:
    """All four roles at once, none of them built in."""
    simulation = Simulation(
        recipe(
            tmp_path,
            objective={"loss": f"{TOYS}:capped_distillation"},
            rollout={"engine": f"{TOYS}:PlainRollout"},
            scorer={"teacher": {"engine": f"{TOYS}:PlainScorer"}},
            reward={"engine": f"{TOYS}:NumberReward"},
            learner={"engine": f"{TOYS}:LossLearner"},
        )
    )
    assert simulation.go() == DONE
    assert_each_once(tmp_path)
    made = {role: pool.startup.spec(0).cls for role, pool in simulation.pools.all().items()}
    assert made == {
        "rollout": toys.PlainRollout,
        "scorer.teacher": toys.PlainScorer,
        "reward": toys.NumberReward,
        "learner": toys.LossLearner,
    }


def test_a_carrier_is_a_class_that_the_recipe_names(tmp_path: Path) -> None:
    simulation = Simulation(recipe(tmp_path, rollout={"carrier": f"{TOYS}:NamedVersions"}))
    assert simulation.go() == DONE
    carrier = simulation.run.roles.versions._carrier
    assert isinstance(carrier, toys.NamedVersions)
    assert list(carrier.kept) == [f"student-{number}" for number in range(STEPS + 1)]
    assert set(carrier.pulled) == set(carrier.kept)
    assert_each_once(tmp_path)


@pytest.fixture
def a_command() -> Iterator[None]:
    cli.app.command()(toys.steps)
    yield
    cli.app.registered_commands.pop()


def test_a_command_is_a_function_that_the_app_is_given(
    tmp_path: Path, a_command: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Simulation(recipe(tmp_path)).go() == DONE
    monkeypatch.setattr("sys.argv", ["logratio", "steps", str(tmp_path / "sim")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert capsys.readouterr().out == f"{STEPS}\n"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"reward": {"rules": [{"kind": "nowhere:rule"}]}}, "reward.rules.0.kind"),
        ({"reward": {"engine": "nowhere:Reward"}}, "reward.engine"),
        ({"scorer": {"teacher": {"engine": f"{TOYS}:Missing"}}}, "scorer.teacher.engine"),
    ],
)
def test_code_that_cannot_be_imported_is_refused_before_any_actor(tmp_path: Path, change: dict, key: str) -> None:
    with pytest.raises(RecipeError, match=f"{key}: .* cannot be imported"):
        read_inputs(recipe(tmp_path, **change))


@pytest.mark.parametrize("value", ["vlm", "my_engine", "my engine:Scorer"])
def test_an_engine_that_is_neither_built_in_nor_code_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(RecipeError, match=r"scorer.teacher.engine: .* input should be 'torch', 'vllm', 'server' or"):
        recipe(tmp_path, scorer={"teacher": {"engine": value}})
