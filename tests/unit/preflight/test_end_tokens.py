"""End tokens as a class outside the mathematics: which ids they are, what a scorer sends, what a rollout ranks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.learning.export import name_ends
from actors.models.model_files import end_token_ids
from actors.rollout.response import ranked_ids
from actors.scoring.scorer import _kind
from actors.scoring.torch_engine import support_of
from actors.scoring.vllm_engine import VllmEngine
from actors.wire.records import ScoreRequest
from configs.load import RecipeError
from configs.places import Place
from configs.schema import Recipe
from orchestrator.preflight.files import common_ends
from tests.unit.recipes import CROSS_ENTROPY, REWARDED, loaded

CLASS = {"objective.end_tokens": "class"}
OTHER = {"models.other": {"path": "/o"}}
ENDS = (2, 5)
LOGPROBS = torch.randn(7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
REST = [i for i in range(9) if i not in ENDS]
EOS = {"student": {2}, "teacher": {5}, "other": {2, 7}}


def ends_of(recipe: Recipe, vocabulary: int = 9, **swapped: set[int]) -> tuple[int, ...]:
    served = ("student", *recipe.served_models)
    ends = {Place(name): frozenset(EOS[name]) for name in served}
    ends |= {Place("teacher", int(step[1:])): frozenset(ids) for step, ids in swapped.items()}
    return common_ends(recipe, ends, vocabulary)


# --- which ids ---


def test_models_with_other_end_tokens_are_refused_with_the_class_as_remedy() -> None:
    with pytest.raises(RecipeError) as error:
        ends_of(loaded({}))
    assert str(error.value).startswith("models.teacher.path: end tokens [5] differ from the student's [2]; ")
    assert "set objective.end_tokens: class" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (2, 5)),
        ({"objective.target": {"teacher": 1.0, "other": 1.0}}, (2, 5, 7)),
        ({"objective.extrapolate": {"base": "other", "weight": 1.5}}, (2, 5, 7)),
        ({"objective.target": {"field": "topic", "models": {"a": "teacher", "b": "other"}}}, (2, 5, 7)),
        (CROSS_ENTROPY | {"objective.prefix": "teacher"}, (2, 5)),
    ],
    ids=str,
)
def test_the_class_is_the_union_of_the_student_and_every_target(
    changes: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert ends_of(loaded(OTHER | CLASS | changes)) == expected


def test_a_swap_of_the_target_adds_to_the_class() -> None:
    swapped = loaded(CLASS | {"models.teacher.swaps": {2: "/t2"}})
    assert ends_of(swapped, s2={8}) == (2, 5, 8)


def test_a_reference_with_other_end_tokens_is_refused() -> None:
    held_back = OTHER | REWARDED | CLASS | {"objective.reference": {"model": "other", "beta": 0.1}}
    with pytest.raises(
        RecipeError, match=r"models.other.path: it ends at \[7\], where neither the student nor a target"
    ):
        ends_of(loaded(held_back))


def test_an_end_beyond_the_common_vocabulary_is_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"models.teacher.path: its end tokens \[5\] are beyond the common vocabulary of 5"
    ):
        ends_of(loaded(CLASS), vocabulary=5)


def test_the_rollout_ranks_the_end_tokens_on_top_of_k() -> None:
    ranked = CLASS | {"objective.support": "topk", "objective.topk_of": "student"}
    assert ends_of(loaded(ranked | {"objective.topk": 254})) == (2, 5)
    with pytest.raises(RecipeError, match=r"objective.topk: 255 beside 2 end tokens exceed the 256 .* lower it to 254"):
        ends_of(loaded(ranked | {"objective.topk": 255}))


def test_only_scores_of_the_target_are_merged() -> None:
    held_back = OTHER | REWARDED | CLASS | {"objective.reference": {"model": "other", "beta": 0.1}}
    objective = loaded(held_back).objective
    assert objective.merged_ends(ENDS, "teacher") == objective.merged_ends(ENDS) == ENDS
    assert objective.merged_ends(ENDS, "other") == ()
    assert loaded({}).objective.merged_ends(ENDS, "teacher") == ()
    assert loaded(CROSS_ENTROPY | {"objective.prefix": "teacher"} | CLASS).objective.merged_ends(ENDS) == ()


# --- what a scorer sends ---


@pytest.mark.parametrize("k", [1, 3, 7])
def test_topk_ids_exclude_the_class_which_is_the_last_column_and_in_no_tail(k: int) -> None:
    found = support_of(LOGPROBS, torch.zeros(7, 0), ScoreRequest("topk", topk=k, ends=ENDS))
    best = LOGPROBS[:, REST].topk(k)
    assert found["support_ids"].tolist() == [[*row, 2] for row in torch.tensor(REST)[best.indices].tolist()]
    assert torch.equal(found["support_logprobs"][:, :-1], best.values)
    torch.testing.assert_close(found["support_logprobs"][:, -1], torch.logaddexp(LOGPROBS[:, 2], LOGPROBS[:, 5]))
    whole = found["support_logprobs"].exp().sum(-1) + found["tail_logprob"].exp()
    torch.testing.assert_close(whole, torch.ones_like(whole))


def test_a_k_beyond_the_others_leaves_places_unused() -> None:
    found = support_of(LOGPROBS, torch.zeros(7, 0), ScoreRequest("topk", topk=9, ends=ENDS))
    assert [sorted(row) for row in found["support_ids"].tolist()] == [[-1, -1, *sorted([*REST, 2])]] * 7
    torch.testing.assert_close(found["support_logprobs"].exp().sum(-1), torch.ones(7).double())


@pytest.mark.parametrize("topk_of", ["student", "union"])
def test_the_students_topk_ids_come_before_the_class(topk_of: str) -> None:
    own = torch.tensor([[0, 8]] * 7)
    found = support_of(LOGPROBS, own, ScoreRequest("topk", topk=2, topk_of=topk_of, ends=ENDS))
    for row, ids in enumerate(found["support_ids"].tolist()):
        used = [i for i in ids if i >= 0]
        assert len(used) == len(set(used)) and {0, 8, 2} <= set(used) and 5 not in used and ids[-1] == 2
        outside = [i for i in REST if i not in used]
        torch.testing.assert_close(found["tail_logprob"][row], LOGPROBS[row, outside].logsumexp(-1))


def test_scores_of_a_class_have_another_cache_key_than_scores_of_tokens() -> None:
    plain, merged = ScoreRequest("sampled"), ScoreRequest("sampled", ends=ENDS)
    assert _kind(plain) != _kind(merged) != _kind(ScoreRequest("sampled", ends=(2, 6)))


async def _score(request: ScoreRequest) -> None:
    await VllmEngine(None).score([], request)


def test_a_vllm_scorer_refuses_end_tokens_as_a_class() -> None:
    import asyncio

    with pytest.raises(ValueError, match="use engine: torch"):
        asyncio.run(_score(ScoreRequest("sampled", ends=ENDS)))


# --- what a rollout ranks, and what is exported ---


def test_ranked_ids_leave_end_tokens_out() -> None:
    """Rank r is token r + 1, the sampled one is listed first. Tokens 2 and 5 are ranks 1 and 4."""
    flat = SimpleNamespace(start_indices=[0], end_indices=[6], ranks=[9, 1, 2, 3, 4, 5], token_ids=[7, 2, 3, 4, 5, 6])
    assert ranked_ids(flat, range(1), 3, ENDS) == [3, 4, 6]
    assert ranked_ids(flat, range(1), 3) == [2, 3, 4]
    assert ranked_ids(flat, range(1), 0, ENDS) == []


@pytest.mark.parametrize(
    "config", [{"eos_token_id": 1}, {"eos_token_id": 1, "text_config": {"eos_token_id": 1, "a": 2}}]
)
def test_the_exported_model_ends_at_every_one(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    name_ends(tmp_path, ())
    assert json.loads((tmp_path / "config.json").read_text()) == config and end_token_ids(tmp_path) == (1,)
    name_ends(tmp_path, ENDS)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written.pop("eos_token_id") == [*ENDS] == [*end_token_ids(tmp_path)]
    assert written == {name: part | {"eos_token_id": [*ENDS]} for name, part in config.items() if name == "text_config"}
