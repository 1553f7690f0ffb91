"""`logratio replay` gives the gradient that the learner itself computed, on every support whose scores are kept."""

from __future__ import annotations

from typing import Any

import pytest

from configs.refusal import RecipeError
from orchestrator.surface.research.replaying import At, other_recipe, replay
from orchestrator.surface.submission import recorded_recipe
from tests.engines.shared import SMALL_SCORER, Engines, Finished

SUPPORTS: dict[str, dict[str, Any]] = {
    "topk": {"support": "topk", "topk": 8},
    "full": {"support": "full"},
    "two": {  # none of which the record of trained samples has
        "support": "sampled",
        "target": {"teacher": 0.5, "poet": 0.5},
    },
}


def trained(engines: Engines, objective: dict[str, Any], scores_mib: int = 8) -> Finished:
    """Two steps, with a checkpoint after each."""
    second = {"scorer": {"poet": SMALL_SCORER}} if "target" in objective else {}
    return engines.run(
        engines.recipe(
            run={"steps": 2},
            models={"poet": {"path": str(engines.models["poet"])}},
            objective=objective,
            checkpoint={"every": 1, "keep": 2},
            record={"scores_mib": scores_mib},
            **second,
        )
    )


@pytest.mark.parametrize("objective", SUPPORTS.values(), ids=SUPPORTS)
def test_the_gradient_at_a_checkpoint_is_the_learners(engines: Engines, objective: dict[str, Any]) -> None:
    run = trained(engines, objective)
    other = other_recipe(recorded_recipe(run.directory), None, ["objective.support=sampled"])
    found = replay(run.directory, other, At(checkpoint=1))
    line = run.lines[1]
    assert found["step"] == 2 and found["weights"].endswith("step_1") and found["why_no_cosine"] is None
    assert found["own"]["grad_norm"] == pytest.approx(line["grad_norm"], rel=2e-3)
    assert found["own"]["loss"] == pytest.approx(line["loss"], rel=1e-3)
    assert found["own"]["drift"] < 1e-4, "the checkpoint has the weights that the step began with"
    assert (found["cosine"] > 0.999) == (objective["support"] == "sampled")
    later = replay(run.directory, other, At(step=2, checkpoint=2))
    assert later["own"]["drift"] > 1e-4, "the weights after the step"


def test_scores_above_the_bound_are_not_kept_and_the_refusal_says_so(engines: Engines) -> None:
    run = trained(engines, {"support": "topk", "topk": 64}, scores_mib=0)
    assert not list((run.directory / "samples").glob("scores_*"))
    with pytest.raises(RecipeError, match=r"scores of teacher on topk support.*record\.scores_mib keeps more"):
        replay(run.directory, other_recipe(recorded_recipe(run.directory), None, []), At())
