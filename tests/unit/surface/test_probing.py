"""`logratio probe` on simulated members: which recipe it runs, what it writes, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from configs.load import RecipeError, load_recipe
from configs.objective import NONE
from orchestrator.run import DONE, STOPPED
from orchestrator.surface.measuring import advice, probing
from orchestrator.surface.measuring.probing import FILE, TOPK, Probing, recipe_for
from tests.unit.own_time import in_own_time
from tests.unit.simulation import TRAIN, Simulation, recipe

CONFIGS = Path(__file__).parents[3] / "configs"
RESPONSES = 23  # more than there are prompts


def probe(root: Path, before: Any = lambda run: None, **changes: Any) -> tuple[int, Path]:
    asked = recipe(root, **changes)
    made = Simulation(recipe_for(asked), train=TRAIN, heldout=[])
    parts = made.recipe, made.directory, made.inputs, made.pools, made, made.carrier
    run = Probing(*parts, asked=asked, responses=RESPONSES)
    before(run)
    return in_own_time(run.execute()), made.directory


def test_a_probe_answers_prompts_of_the_data_once_and_trains_nothing(tmp_path: Path) -> None:
    code, directory = probe(tmp_path)
    assert code == DONE and directory.name.startswith("sim.probe-")
    rows = list(probing.recorded(directory / "samples"))
    assert len(rows) == RESPONSES == len({row["uid"] for row in rows})
    asked = {tuple(row["prompt_ids"]) for row in rows}
    assert asked == {tuple(prompt.ids["student"]) for prompt in TRAIN}
    found = probing.read(directory)
    assert found["measured"]["responses"] == RESPONSES and found["measured"]["topk"] == TOPK
    assert found["measured"]["response_length"] > 0 and found["measured"]["tail_fraction"] == 0.0
    assert found["recommendation"] == advice.UNKNOWN, "simulated learners know no overlap"
    assert found["cost"]["step_seconds"] > 0 and found["took"]["rollout"] > 0 and found["took"]["learn"] > 0
    assert not (directory / "checkpoints").exists() and not (directory / "model").exists()
    assert json.loads((directory / "summary.json").read_text())["exit"] == DONE


def test_twice_the_same_prompts_and_seeds(tmp_path: Path) -> None:
    (_, first), (_, second) = probe(tmp_path / "a"), probe(tmp_path / "b")
    one, other = (list(probing.recorded(folder / "samples")) for folder in (first, second))
    by_uid = [
        {row["uid"]: (row["prompt_ids"], row["seed"], row["response_ids"]) for row in rows} for rows in (one, other)
    ]
    assert by_uid[0] == by_uid[1]


def test_a_probe_that_is_stopped_writes_no_results(tmp_path: Path) -> None:
    code, directory = probe(tmp_path, before=lambda run: run.stop())
    assert code == STOPPED and not (directory / FILE).exists()


def test_a_probe_without_a_response_fails_and_says_where_the_reasons_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no response could be sampled.*summary\.json"):
        probe(tmp_path, before=nothing_is_sampled)


def nothing_is_sampled(run: Probing) -> None:
    from orchestrator.samples.buffer import Batch

    async def read(*_: Any) -> tuple[Batch, dict[str, Any]]:
        return Batch((), ()), {}

    run.measurements.evaluation.read = read  # type: ignore[method-assign]


def test_the_recipe_of_a_probe_has_the_student_write_and_the_teachers_say_their_top_k(tmp_path: Path) -> None:
    asked = recipe(
        tmp_path,
        objective={"clip": 5.0, "outcome": {"weight": 0.5}, "end_tokens": "class"},
        models={"ref": {"path": "/none"}},
        scorer={"ref": {"members": 3}},
        sampling={"max_response_tokens": 9},
        run={"stop": [{"metric": "entropy", "below": 0.1}]},
    ).model_copy(deep=True)
    found = recipe_for(asked)
    assert (found.objective.support, found.objective.topk, found.objective.end_tokens) == ("topk", TOPK, "class")
    assert found.objective.clip.log_ratio is None and not found.objective.rewarded and not found.reward.rules
    assert found.models.keys() == {"student", "teacher"} and found.scorer["teacher"].members == 2
    assert found.sampling.max_response_tokens == 9 and not found.run.stop
    assert found.rollout.members == asked.rollout.members


def test_a_scorer_whose_partner_in_turns_is_not_probed_takes_none(tmp_path: Path) -> None:
    scorer = {"turns": "gpu", "resources": {"gpus": 0.5}}
    asked = recipe(
        tmp_path,
        models={"ref": {"path": "/none"}},
        scorer={"teacher": scorer, "ref": scorer},
    )
    found = recipe_for(asked)
    assert found.scorer["teacher"].turns is None and not found.scorers_in_turns


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_with_a_teacher_can_be_probed(file: Path) -> None:
    asked = load_recipe(file)
    if asked.objective.teachers:
        found = recipe_for(asked)
        assert found.objective.teachers == asked.objective.teachers and "rollout" in found.roles
    else:
        with pytest.raises(RecipeError, match=r"objective\.target: .* is no teacher"):
            recipe_for(asked)


def test_a_recipe_without_a_teacher_and_silly_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"objective\.target: 'none' is no teacher to compare with; name a model"):
        recipe_for(recipe(tmp_path, objective={"target": NONE, "outcome": {"weight": 1.0}}))
    asked = recipe(tmp_path)
    for responses in (0, -1, 10_001):
        with pytest.raises(RecipeError, match=f"--responses {responses}: say 1 to 10000"):
            probing.carry_out_of(asked, asked, responses, tmp_path, None)


def test_results_are_tables_and_lines(tmp_path: Path) -> None:
    from tests.unit.surface.test_probe_rules import GOOD, TOOK, replace

    bad = replace(GOOD, topk_overlap=0.2, topk_mass_student=0.3, end_disagreement=0.5, late_kl=None)
    found = probing.results(recipe(tmp_path, rollout={"resources": {"gpus": 1.0}}), bad, TOOK)
    json.dumps(found, allow_nan=False)
    with (tmp_path / "out").open("w") as out:
        console = Console(width=240, record=True, file=out)
        for table in probing.tables_of(found):
            console.print(table)
        text = console.export_text() + "\n".join(probing.lines_of(found))
    assert advice.SFT_FIRST in text and "at least 0.6" in text and "2604.13016" in text and "late_kl -" in text
    assert "set in the recipe: objective.end_tokens: class" in text
    assert "GPU-hours on 2 GPUs" in text and "1000 steps: about 1.11 hours" in text
