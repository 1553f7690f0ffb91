"""`metrics.start_kl` on real engines: the distance to the starting weights, against plain float64, and that it enters
no loss."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.engines import plain
from tests.engines.shared import DATASET, SMALL_SCORER, Engines, Finished, merged

RATE = 16.0  # high enough to leave the start behind in one step
REWARDED: dict[str, Any] = {
    "objective": {"target": "none", "outcome": {"weight": 1.0, "baseline": "mean"}, "support": "sampled"},
    "reward": {"rules": [{"kind": "regex", "text": letter, "weight": 1.0} for letter in ascii_lowercase]},
    "learner": {"optimizer": {"lr": 1.0}},
}


@pytest.fixture(scope="module")
def instruct(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain.instructed(models["teacher"], tmp_path_factory.mktemp("instruct") / "teacher")


def run(engines: Engines, kind: str | None, changes: dict[str, Any]) -> Finished:
    """Two steps: in the first the student is where it starts, in the second one update from there."""
    tree: dict[str, Any] = {
        "run": {"steps": 2},
        "metrics": {"start_kl": kind},
        "batch": {"samples_per_prompt": 4},
        "learner": {"optimizer": {"lr": RATE}},
        "scorer": {"start": SMALL_SCORER} if kind else {},
    }
    return engines.run(engines.recipe(**merged(tree, changes)))


def enters_no_loss(done: Finished, without: Finished) -> None:
    """And costs no sample: both runs have trained on the same tokens, and come to the same model."""
    for step, (line, bare) in enumerate(zip(done.lines, without.lines, strict=True), 1):
        rows, others = (of.samples(f"step_{step:06d}") for of in (done, without))
        assert [row["response_ids"] for row in rows] == [row["response_ids"] for row in others]
        assert bare["start_kl"] is None
        for name in ("loss", "grad_norm", "entropy", "tokens_trained"):
            assert line[name] == pytest.approx(bare[name], rel=1e-4, abs=1e-6), name
    start, end, other = (plain.load(p) for p in (_start(done), done.directory / "model", without.directory / "model"))
    assert plain.apart(end, other) < 1e-4 * plain.apart(end, start)


def _start(done: Finished) -> Path:
    return Path(done.recipe.models["start"].path or "")


def test_the_exact_distance_is_of_tokens_where_the_objective_is_of_outcomes(engines: Engines, instruct: Path) -> None:
    changes = {
        "models": {"teacher": {"path": str(instruct)}},
        "objective": {"support": "full", "reverse_weight": 0.5, "end_tokens": "class"},
    }
    done, without = (run(engines, kind, changes) for kind in ("exact", None))
    first, second = (done.samples(f"step_{step:06d}") for step in (1, 2))
    student, start, teacher = plain.load(_start(done)), plain.load(_start(done)), plain.load(instruct)
    system = done.recipe.models["teacher"].system or ""

    def loss(row: Any, q: Tensor) -> Tensor:
        with torch.no_grad():
            p = plain.outcomes(plain.logprobs(teacher, plain.behind_system(row, system), row["response_ids"]))
        q = plain.outcomes(q)
        return 0.5 * plain.kl(q, p) + 0.5 * plain.kl(p, q)

    assert done.lines[0]["loss"] == pytest.approx(plain.descend(student, first, loss, RATE)[0], rel=1e-4)
    pairs = [[_read(model, row) for model in (student, start)] for row in second]
    of_tokens, of_outcomes = (
        float(torch.cat([plain.kl(kind(q), kind(p)) for q, p in pairs]).mean())
        for kind in (torch.Tensor.clone, plain.outcomes)
    )
    assert abs(done.lines[0]["start_kl"]) < 1e-5
    assert done.lines[1]["start_kl"] == pytest.approx(of_tokens, rel=2e-5)
    assert of_tokens > 0.01 and of_tokens - of_outcomes > 2e-4 * of_tokens, "or nothing could be told apart"
    enters_no_loss(done, without)


def test_the_sampled_distance_is_the_samplers_to_the_start(engines: Engines) -> None:
    """vLLM's log-probs of the tokens it sampled with the updated weights, against the start's."""
    done, without = (run(engines, kind, REWARDED) for kind in ("sampled", None))
    rows, start = done.samples("step_000002"), plain.load(_start(done))
    assert {version for row in rows for version in row["versions"]} == {1}
    k1 = [row["rollout_logprobs"] - plain.of_tokens(_read(start, row), row["response_ids"]).numpy() for row in rows]
    assert abs(done.lines[0]["start_kl"]) < 1e-5
    assert done.lines[1]["start_kl"] == pytest.approx(float(np.concatenate(k1).mean()), abs=1e-4)
    assert done.lines[1]["start_kl"] > 0.01
    assert done.lines[1]["reverse_kl"] is None and done.lines[1]["reference_kl"] is None
    enters_no_loss(done, without)


def test_cross_entropy_knows_its_distance_too(engines: Engines) -> None:
    """Nothing else is scored, and the student draws nothing."""
    changes = merged(DATASET, {"data": {"prompts": str(engines.prompts["data"])}})
    done, without = (run(engines, kind, changes) for kind in ("exact", None))
    student, start = plain.load(_start(done)), plain.load(_start(done))
    plain.descend(student, done.samples("step_000001"), lambda row, q: -plain.of_tokens(q, row["response_ids"]), RATE)
    distances = [plain.kl(_read(student, row), _read(start, row)) for row in done.samples("step_000002")]
    assert abs(done.lines[0]["start_kl"]) < 1e-5 and float(torch.cat(distances).mean()) > 0.01
    assert done.lines[1]["start_kl"] == pytest.approx(float(torch.cat(distances).mean()), rel=1e-4)
    enters_no_loss(done, without)


@torch.no_grad()
def _read(model: Any, row: Any) -> Tensor:
    return plain.logprobs(model, row["prompt_ids"], row["response_ids"])
