"""`end_tokens: class` on real engines: a student and a teacher that end at different tokens, against plain float64.

Rollouts sample, torch scorers score and the learner trains; that every response is right where it ends is read from
the run's own rows.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.load import RecipeError
from configs.schema import Recipe
from orchestrator.preflight.files import read_inputs
from tests import tiny
from tests.engines import plain
from tests.engines.plain import CLASS, IM_END
from tests.engines.shared import Engines, Finished, merged

TOPK, LAMBDA, CUT, RATE = 4, 0.7, 2.0, 0.5
SAMPLED: dict[str, Any] = {"support": "sampled", "clip": CUT}
COMPACT: dict[str, Any] = {"support": "topk", "topk": TOPK}
UNION, FULL = COMPACT | {"topk_of": "union"}, {"support": "full"}
SEGMENTS, TWICE = {"stream_tokens": 3}, {"batch": {"updates": 2}}


@pytest.fixture(scope="module")
def ending(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A base student, which ends at one token and likes all that are ends of either, and an instruct teacher."""
    root = tmp_path_factory.mktemp("ending")
    student = tiny.build_model(root / "student", seed=8, tied=True)
    _like_the_ends(student)
    teacher = plain.instructed(models["teacher"], root / "teacher")
    return {"student": {"path": str(student)}, "teacher": {"path": str(teacher)}}


def _like_the_ends(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight[list(CLASS)] *= 2.0
    model.save_pretrained(folder)


def recipe(engines: Engines, ending: dict[str, Any], objective: dict[str, Any], *more: dict[str, Any]) -> Recipe:
    tree: dict[str, Any] = {
        "models": ending,
        "objective": objective | {"reverse_weight": LAMBDA, "end_tokens": "class"},
        "batch": {"prompts_per_step": 8, "samples_per_prompt": 6},
        "learner": {"optimizer": {"lr": RATE}},
    }
    for changes in more:
        tree = merged(tree, changes)
    return engines.recipe(**tree)


def test_without_the_class_such_models_are_refused(engines: Engines, ending: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"end tokens \[0, 70\] differ from the student's \[2\]"):
        read_inputs(recipe(engines, ending, FULL, {"objective": {"end_tokens": "same"}}))


@pytest.mark.parametrize(
    ("objective", "changes", "rounding"),
    [
        pytest.param(SAMPLED, TWICE, 1e-4, id="sampled-two-updates"),
        pytest.param(SAMPLED, SEGMENTS, 1e-4, id="sampled-in-segments"),
        pytest.param(COMPACT, {}, 5e-3, id="topk"),  # f16 on the wire
        pytest.param(UNION, SEGMENTS, 5e-3, id="union-in-segments"),
        pytest.param(FULL, SEGMENTS, 1e-4, id="full-in-segments"),
    ],
)
def test_ends_of_either_model_are_one_outcome(
    engines: Engines,
    ending: dict[str, Any],
    objective: dict[str, Any],
    changes: dict[str, Any],
    rounding: float,
) -> None:
    done = engines.run(recipe(engines, ending, objective, changes))
    rows, line = done.samples("step_000001"), done.lines[0]
    _responses_end_at_each(rows)
    assert line["tokens_trained"] == sum(len(row["response_ids"]) for row in rows)

    first, trained = (plain.load(Path(ending["student"]["path"])) for _ in range(2))
    reference = _Reference(done, rows, first)
    reference.recorded_rightly(rows)
    ratios = np.concatenate([reference.log_ratios(row) for row in rows])
    for point in (1, 50, 99):
        assert line[f"log_ratio_p{point}"] == pytest.approx(np.percentile(ratios, point), abs=1e-3)
        assert line[f"ratio_p{point}"] == pytest.approx(1.0, abs=1e-3), "q of the class is never held against mu"

    passes = [partial(reference.loss, later=n > 0) for n in range(done.recipe.batch.updates)]
    steps = [plain.descend(trained, rows, loss, RATE) for loss in passes]
    assert line["loss"] == pytest.approx(steps[0][0], rel=rounding)
    assert line["grad_norm"] == pytest.approx(steps[-1][1], rel=rounding)
    exported = plain.load(done.directory / "model")
    assert plain.apart(exported, trained) < rounding * plain.apart(trained, first)
    _ends_at_all(done.directory / "model")


def test_held_out_divergences_are_of_outcomes(
    engines: Engines, ending: dict[str, Any], prompts: dict[str, Path]
) -> None:
    changes = {"data": {"heldout": str(prompts["heldout"])}, "evaluate": {"samples_per_prompt": 4}}
    done = engines.run(recipe(engines, ending, FULL, changes))
    rows, student = done.samples("eval_before"), plain.load(Path(ending["student"]["path"]))
    reference = _Reference(done, rows, student)
    pairs = [reference.columns(row, reference.old[row["uid"]]) for row in rows]
    found = done.summary["evaluation"]["before"]
    assert found["reverse_kl"] == pytest.approx(float(torch.cat([plain.kl(q, p) for q, p in pairs]).mean()), rel=1e-4)
    assert found["forward_kl"] == pytest.approx(float(torch.cat([plain.kl(p, q) for q, p in pairs]).mean()), rel=1e-4)


def _responses_end_at_each(rows: list[dict[str, Any]]) -> None:
    """Every end token has ended some response, none stands before the end of one, and all tokens carry loss."""
    assert {row["response_ids"][-1] for row in rows if row["finish"] == "stop"} == {*CLASS}
    assert {row["finish"] for row in rows} == {"stop", "length"}
    for row in rows:
        *before, last = row["response_ids"]
        assert not {*before} & {*CLASS} and (last in CLASS) == (row["finish"] == "stop")
        assert row["loss_spans"] == [[0, len(row["response_ids"])]]


def _ends_at_all(model: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    assert GenerationConfig.from_pretrained(model).eos_token_id == [*CLASS]
    assert AutoConfig.from_pretrained(model).eos_token_id == [*CLASS]
    assert AutoTokenizer.from_pretrained(model).eos_token_id == IM_END, "the student's own"


class _Reference:
    """The objective over outcomes, written out. The student's log-probs of the first pass are q_old."""

    def __init__(self, done: Finished, rows: list[dict[str, Any]], student: Any) -> None:
        told = done.recipe.models["teacher"]
        self.objective = done.recipe.objective
        teacher, system = plain.load(Path(told.path or "")), told.system or ""
        self.old = {row["uid"]: self._read(student, row) for row in rows}
        self._targets = {row["uid"]: self._read(teacher, row, system) for row in rows}

    @torch.no_grad()
    def _read(self, model: Any, row: dict[str, Any], system: str = "") -> Tensor:
        prompt = plain.behind_system(row, system) if system else row["prompt_ids"]
        return plain.logprobs(model, prompt, row["response_ids"])

    def recorded_rightly(self, rows: list[dict[str, Any]]) -> None:
        """The log-probs of the run: of tokens where sampler and learner are compared, of outcomes where models are."""
        for row in rows:
            ids, q, p = row["response_ids"], self.old[row["uid"]], self._targets[row["uid"]]
            for name, expected in (
                ("rollout_logprobs", plain.of_tokens(q, ids)),
                ("student_logprobs", plain.of_tokens(q, ids)),
                ("class_logprobs", plain.of_outcomes(q, ids)),
                ("teacher_logprobs", plain.of_outcomes(p, ids)),
            ):
                np.testing.assert_allclose(row[name], expected.numpy(), atol=1e-4, err_msg=name)

    def log_ratios(self, row: dict[str, Any]) -> np.ndarray:
        return self._log_ratio(row, self.old[row["uid"]]).numpy()

    def _log_ratio(self, row: dict[str, Any], q: Tensor) -> Tensor:
        ids = row["response_ids"]
        return plain.of_outcomes(self._targets[row["uid"]], ids) - plain.of_outcomes(q.detach(), ids)

    def loss(self, row: Any, q: Tensor, later: bool) -> Tensor:
        if self.objective.support == "sampled":
            return self._sampled(row, q, later)
        q, p = self.columns(row, q)
        return LAMBDA * plain.kl(q, p) + (1 - LAMBDA) * plain.kl(p, q)

    def _sampled(self, row: Any, q: Tensor, later: bool) -> Tensor:
        """-w A log q, or -w A q/q_old in a later pass: w of the token, A, q and q_old of the outcome."""
        ids, old = row["response_ids"], self.old[row["uid"]]
        ratio = self._log_ratio(row, q).clamp(-CUT, CUT)
        signal = LAMBDA * ratio + (1 - LAMBDA) * (ratio.exp() - 1)
        weight = (plain.of_tokens(old, ids) - torch.tensor(row["rollout_logprobs"])).exp().clamp(max=2.0)
        logprob = plain.of_outcomes(q, ids)
        return -weight * signal * ((logprob - plain.of_outcomes(old, ids)).exp() if later else logprob)

    def columns(self, row: Any, q: Tensor) -> tuple[Tensor, Tensor]:
        """Student and teacher over the outcomes that are compared: all, or the support, the class and the rest."""
        p = self._targets[row["uid"]]
        if self.objective.support == "full":
            return plain.outcomes(q), plain.outcomes(p)
        on = torch.zeros_like(p, dtype=torch.bool).scatter(-1, _best(p), True)
        if self.objective.topk_of == "union":
            own = torch.tensor(row["support_ids"]).reshape(len(q), TOPK).long()
            old = self.old[row["uid"]]
            torch.testing.assert_close(old.gather(-1, own), old.gather(-1, _best(old)), atol=1e-4, rtol=0)
            on = on.scatter(-1, own, True)
        end = torch.isin(torch.arange(p.shape[-1]), torch.tensor(CLASS))
        return _compact(q, on, end), _compact(p, on, end)


def _best(rows: Tensor) -> Tensor:
    """The k likeliest ids that are no end tokens."""
    return rows.index_fill(-1, torch.tensor(CLASS), -torch.inf).topk(TOPK).indices


def _compact(rows: Tensor, on: Tensor, end: Tensor) -> Tensor:
    """[T, V] -> [T, V + 2]: the log-probs `on` the support, no mass elsewhere, then the class's and the tail's."""
    mass = rows.exp()
    apart = [(mass * where).sum(-1, keepdim=True).log() for where in (end, ~on & ~end)]
    return torch.cat([rows.masked_fill(~on, -1e3), *apart], -1)
