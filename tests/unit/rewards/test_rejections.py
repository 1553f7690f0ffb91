"""A run goes on without samples that a reward function rejects, and ends where it rejects them all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from configs.load import load_recipe
from configs.names.own_code import imported
from configs.refusal import RecipeError
from configs.reward_rules import FunctionRule
from orchestrator.preflight.inputs.own_code import check_own_code
from orchestrator.run import DONE
from tests.unit.recipes import loaded, tree, write
from tests.unit.simulation import Simulation, assert_each_once, metrics, recipe, trained

HERE = "tests.unit.rewards.misbehaving"
ENGINE = {"engine": "tests.contributing.toys:NumberReward", "members": 1}


def simulated(root: Path, name: str) -> Simulation:
    rules = [{"kind": "length", "high": 8}, {"function": f"{HERE}:{name}", "weight": 2.0}]
    return Simulation(recipe(root, run={"steps": 3}, reward=ENGINE | {"rules": rules}))


def test_rejected_samples_are_skipped_by_name_and_the_others_are_trained(tmp_path: Path) -> None:
    simulation = simulated(tmp_path, "sometimes")
    assert simulation.go(60.0) == DONE
    skipped = simulation.run.progress.skipped
    assert skipped and set(skipped.values()) == {"reward function: ValueError: odd"}
    assert_each_once(tmp_path, 3, skipped)
    rows = trained(tmp_path)
    assert rows and all(len(row["response_ids"]) % 2 == 0 for row in rows)
    for row in rows:
        parts = dict(row["reward_components"])
        assert parts == {"length": float(len(row["response_ids"]) <= 8), "function": 1.0}
        assert row["reward"] == parts["length"] + 2.0 * parts["function"]
    means = [line["reward_component"]["function"] for line in metrics(tmp_path)]
    assert means == [1.0] * 3, "of the samples that were trained"


def test_a_run_whose_every_sample_is_rejected_ends_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as failure:
        simulated(tmp_path, "raises").go(60.0)
    said: BaseException = failure.value
    while isinstance(said, ExceptionGroup):
        (said,) = said.exceptions
    assert str(said).startswith("every sample of the last 16 prompt groups was rejected, e.g. 000000")
    assert str(said).endswith("reward function: ValueError: the judge is away")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            f"{HERE}:needs_more",
            "nothing fills its parameter 'gold'; it may ask for text, tokens, row, messages by name",
        ),
        (f"{HERE}:asks_for_nothing", "it asks for nothing; give it parameters among text, tokens, row, messages"),
        (f"{HERE}:HERE", "cannot be imported (AttributeError"),
        (f"{HERE}:os", "cannot be called; give a function"),
        ("nowhere:score", "cannot be imported (ModuleNotFoundError"),
        ("/nowhere/my_rewards.py:score", "cannot be imported (FileNotFoundError"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_before_a_run(function: str, message: str) -> None:
    with pytest.raises(RecipeError, match=r"^reward\.rules\.0\.function: ") as refused:
        check_own_code(loaded({"reward.rules": [{"function": function}]}))
    assert message in str(refused.value)


def test_a_function_in_a_file_is_found_beside_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "helper_of_rewards.py").write_text("GOLD = 'x'\n")
    (tmp_path / "my_rewards.py").write_text(
        "from helper_of_rewards import GOLD\n\n\ndef score(text):\n    return text == GOLD\n"
    )
    file = write(tmp_path / "r.yaml", tree({"reward.rules": [{"function": "my_rewards.py:score"}]}))
    (rule,) = load_recipe(file).reward.rules
    assert isinstance(rule, FunctionRule)
    assert rule.function == f"{tmp_path / 'my_rewards.py'}:score"
    assert imported(rule.function)("x") is True
    assert os.path.isabs(rule.function.rpartition(":")[0])
