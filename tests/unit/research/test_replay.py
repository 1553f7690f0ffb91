"""`logratio replay` on recorded samples of a tiny model, against gradients that are computed plainly here."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from actors.learning.replaying import cosine, signal_to_noise
from actors.wire.kept_scores import Kept, file_beside, kept_batch
from actors.wire.records import Sample, Score
from actors.wire.trained import trained_batch
from configs.refusal import RecipeError
from orchestrator.cli import app
from orchestrator.surface.research.replaying import At, other_recipe, replay
from orchestrator.surface.research.stored import missing
from orchestrator.surface.submission import recorded_recipe
from tests import tiny
from tests.unit.simulation import recipe as simulated

GROUPS, EACH, LENGTH = 3, 2, 4
MODELS = {name: {"path": "/none"} for name in ("student", "teacher")}
SQUARED = {"target": "teacher", "estimator": "k2_in_loss"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models alone: those of all tests take longer."""
    root = tmp_path_factory.mktemp("models")
    return {name: tiny.build_model(root / name, seed=seed) for seed, name in enumerate(("student", "teacher"))}


@cache
def model_of(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def ids() -> list[tuple[list[int], list[int]]]:
    """Prompt and response of each sample."""
    rng = np.random.default_rng(4)
    return [(rng.integers(10, 200, 5).tolist(), rng.integers(10, 200, LENGTH).tolist()) for _ in range(GROUPS * EACH)]


def logprobs(model: Any, prompt: list[int], response: list[int], vocabulary: int) -> torch.Tensor:
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1, :vocabulary]
    return logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)]


@pytest.fixture
def run(models: dict[str, Path], tmp_path: Path) -> Path:
    """A run directory whose first step was recorded; teacher log-probs are the student's less a known number."""
    folder = tmp_path / "mine"
    (folder / "samples").mkdir(parents=True)
    tree = {
        "run": {"name": "mine", "root": str(tmp_path), "steps": 2},
        "models": {name: {"path": str(models[name])} for name in ("student", "teacher")},
        "data": {"prompts": "/none"},
        "batch": {"prompts_per_step": GROUPS, "samples_per_prompt": EACH},
        "sampling": {"max_response_tokens": LENGTH},
        "objective": SQUARED,
        "learner": {"optimizer": {"lr": 0.1}},
        "reward": {"rules": [{"kind": "length", "low": 1, "high": 8}]},
        "rollout": {"max_context_tokens": 64},
        "scorer": {"teacher": {"max_context_tokens": 64}},
    }
    (folder / "recipe.yaml").write_text(json.dumps(tree))
    write(folder, models)
    return folder


def write(folder: Path, models: dict[str, Path], teacher: bool = True) -> None:
    model = model_of(models["student"])
    vocabulary = model.config.vocab_size
    samples, student = [], []
    for place, (prompt, response) in enumerate(ids()):
        group, number = f"{place // EACH:08d}", place % EACH
        uid, spans = f"{group}.{number:03d}", [(0, LENGTH)]
        with torch.no_grad():
            student.append(logprobs(model, prompt, response, vocabulary).numpy())
        mu = student[-1].tolist()
        samples.append(Sample(uid, group, 0, 0, prompt, response, mu, spans, "stop", [0] * LENGTH))
    rewards = [float(place % EACH) for place in range(len(samples))]
    off = [np.asarray([-1.0, 0.5, 2.0, -3.0], np.float32) * (1 + place) for place in range(len(samples))]
    given = [q + o if teacher else None for q, o in zip(student, off, strict=True)]
    batch = trained_batch(samples, rewards, student, given)
    with (
        pa.OSFile(str(folder / "samples" / "step_000001.rank0.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def replayed(run: Path, *overrides: str, **arguments: Any) -> dict[str, Any]:
    other = other_recipe(recorded_recipe(run), None, overrides)
    return replay(run, other, At(**arguments))


def test_the_gradient_is_that_of_the_objective(run: Path, models: dict[str, Path]) -> None:
    """k2: the mean of (log q - log p)^2 / 2; REINFORCE on the reward less its group's mean."""
    found = replayed(run, "objective.estimator=reward")
    model = model_of(models["student"])
    q = torch.cat([logprobs(model, *each, model.config.vocab_size) for each in ids()])
    ratio = torch.cat([torch.tensor([-1.0, 0.5, 2.0, -3.0]) * (1 + place) for place in range(GROUPS * EACH)])
    parameters = list(model.parameters())
    squared = torch.autograd.grad((0.5 * (q - (q.detach() + ratio)).square()).mean(), parameters)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in squared))
    assert found["own"]["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert found["own"]["loss"] == pytest.approx(float((0.5 * ratio.square()).mean()), rel=1e-4)
    assert found["cosine"] == pytest.approx(1.0, abs=1e-4), "the gradient of k2 is that of REINFORCE on the log-ratio"
    first = float((-ratio * q.detach()).mean())  # as a step's line has it, where q_old is the student itself
    assert found["other"]["loss"] == pytest.approx(first, rel=1e-3)
    assert found["own"]["drift"] < 1e-4
    assert (found["step"], found["samples"], found["groups"]) == (1, GROUPS * EACH, GROUPS)


def test_another_objective_points_elsewhere_and_a_clip_is_counted(run: Path) -> None:
    clipped = replayed(run, "objective.estimator=reward", "objective.clip.log_ratio=[-2.1,2.1]")
    cut = sum(abs(off * (1 + place)) > 2.1 for place in range(GROUPS * EACH) for off in (-1.0, 0.5, 2.0, -3.0))
    assert clipped["other"]["clipped_fraction"] == pytest.approx(cut / (GROUPS * EACH * LENGTH))
    assert clipped["own"]["clipped_fraction"] is None
    rewarded = replayed(run, "objective.target=none", "objective.outcome.weight=1.0", "objective.estimator=reward")
    assert abs(rewarded["cosine"]) < 0.9 and rewarded["other"]["signal_to_noise"] is not None


def test_other_weights_have_drifted(run: Path, models: dict[str, Path]) -> None:
    assert replayed(run, model=models["teacher"])["own"]["drift"] > 0.1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("objective.support=full", "objective.estimator=reward"), "scores of teacher on full support"),
        (("learner.optimizer.lr=1.0",), "is no key of the objective"),
    ],
)
def test_what_was_not_stored_is_refused_by_name(run: Path, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        replayed(run, *overrides)


def test_a_reference_that_was_not_stored_is_named(run: Path, models: dict[str, Path]) -> None:
    tree = json.loads((run / "recipe.yaml").read_text())
    tree["models"]["base"] = {"path": str(models["teacher"])}
    tree["objective"] = {"target": "teacher", "outcome": {"weight": 1.0}} | {
        "reference": {"model": "base", "beta": 0.1, "placement": "loss_k2"}
    }
    (run / "recipe.yaml").write_text(json.dumps(tree))
    with pytest.raises(RecipeError, match="scores of base; the record has those of teacher"):
        replayed(run, "objective.clip.log_ratio=[-1,1]")


def test_samples_without_scores_are_refused(run: Path, models: dict[str, Path]) -> None:
    write(run, models, teacher=False)
    with pytest.raises(RecipeError, match="scores of teacher; none were stored"):
        replayed(run)


def test_a_run_on_full_support_has_no_cosine_and_says_why(run: Path) -> None:
    tree = json.loads((run / "recipe.yaml").read_text())
    tree["objective"] = {"target": "teacher", "support": "full"}
    (run / "recipe.yaml").write_text(json.dumps(tree))
    found = replayed(run, "objective.support=sampled")
    assert found["own"] is None and found["cosine"] is None and "full support" in found["why_no_cosine"]
    assert found["other"]["grad_norm"] > 0


def keep(run: Path, models: dict[str, Path], support: str, k: int = 6) -> torch.Tensor:
    """Let the run have kept its teacher's scores; its log-probs [tokens, V]."""
    teacher, rows, whole = model_of(models["teacher"]), [], []
    for place, (prompt, response) in enumerate(ids()):
        with torch.no_grad():
            found = teacher(torch.tensor([prompt + response]), output_hidden_states=True)
        at = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        logprobs, hidden = found.logits[0, at].log_softmax(-1), found.hidden_states[-1][0, at].contiguous()
        best, sampled = logprobs.topk(k), logprobs[torch.arange(LENGTH), torch.tensor(response)].numpy()
        score = Score(f"{place // EACH:08d}.{place % EACH:03d}", sampled)
        if support == "full":
            score = replace(score, hidden=hidden.numpy().tobytes())
        else:
            tail = (1 - best.values.exp().sum(-1)).log().numpy()
            halves, places = best.values.half().numpy(), best.indices.int().numpy()
            score = replace(score, support_ids=places, support_logprobs=halves, tail_logprob=tail)
        rows.append(Kept("teacher", score, "float32" if support == "full" else None))
        whole.append(logprobs)
    batch = kept_batch(rows)
    with (
        pa.OSFile(str(file_beside(str(run / "samples" / "step_000001"), 1, 0)), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)
    tree = json.loads((run / "recipe.yaml").read_text())
    tree["objective"] = {"target": "teacher", "support": support} | ({"topk": k} if support == "topk" else {})
    tree["scorer"]["teacher"]["dtype"] = "float32"
    (run / "recipe.yaml").write_text(json.dumps(tree))
    return torch.cat(whole)


@pytest.mark.parametrize("support", ["full", "topk"])
def test_kept_scores_give_the_gradient_over_outcomes(run: Path, models: dict[str, Path], support: str) -> None:
    """Full: KL(student||teacher) over the vocabulary; top-k: over the teacher's top k and the rest as one outcome."""
    p, k, model = keep(run, models, support), 6, model_of(models["student"])
    found = replayed(run, "objective.support=sampled")
    logits = [model(torch.tensor([a + b])).logits[0, len(a) - 1 : -1] for a, b in ids()]
    q = torch.cat(logits).log_softmax(-1)
    if support == "topk":
        places = p.topk(k).indices
        p, q = (outcomes(each.gather(-1, places)) for each in (p, q))
    loss = (q.exp() * (q - p)).sum(-1).mean()
    squared = torch.autograd.grad(loss, list(model.parameters()))
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in squared))
    assert found["own"]["loss"] == pytest.approx(float(loss.detach()), rel=2e-3)
    assert found["own"]["grad_norm"] == pytest.approx(norm, rel=2e-3)
    assert found["why_no_cosine"] is None and abs(found["cosine"]) < 0.999


def outcomes(logprobs: torch.Tensor) -> torch.Tensor:
    """Log-probs of the top k, and of all other tokens together."""
    return torch.cat([logprobs, torch.log1p(-logprobs.exp().sum(-1, keepdim=True))], -1)


@pytest.mark.parametrize(("step", "words"), [(7, "there are 1"), (2, "were not kept; steps with theirs: 1")])
def test_a_step_without_record_or_weights_is_refused(run: Path, step: int, words: str) -> None:
    record = run / "samples" / "step_000001.rank0.arrow"
    if step == 2:
        (run / "samples" / "step_000002.rank0.arrow").write_bytes(record.read_bytes())
    with pytest.raises(RecipeError, match=words):
        replayed(run, step=step)


def test_a_checkpoint_that_was_not_kept_is_refused(run: Path) -> None:
    (run / "checkpoints" / "step_4").mkdir(parents=True)
    with pytest.raises(RecipeError, match="--checkpoint 2: was not kept, or is not whole; there are 4"):
        replayed(run, checkpoint=2)


@pytest.mark.parametrize(
    ("own", "other", "words"),
    [
        ({"support": "topk", "topk": 8}, {"support": "topk", "topk": 8}, None),
        ({"support": "topk", "topk": 8}, {"support": "sampled"}, None),
        ({"support": "full"}, {"support": "sampled"}, None),
        ({"support": "full"}, {"support": "topk", "topk": 8}, "on topk support; the record has them on full"),
        ({"support": "topk", "topk": 8}, {"support": "topk", "topk": 4}, "the 4 likeliest tokens of the teacher"),
        ({"support": "topk", "topk": 8}, {"support": "full"}, "on full support; the record has them on topk"),
        ({"target": {"teacher": 0.5, "second": 0.5}}, {"target": "second"}, None),
        ({"target": "moving", "support": "full"}, {"target": "moving", "support": "full"}, "LM head of moving"),
        ({}, {"target": "second"}, "scores of second; the record has those of teacher"),
    ],
)
def test_what_kept_scores_serve(own: dict[str, Any], other: dict[str, Any], words: str | None, tmp_path: Path) -> None:
    models = {"second": {"path": "/none"}, "moving": {"weights": "live", "prompt": "hm: {prompt}"}}
    target = {"target": "teacher"}
    recipes = [simulated(tmp_path, models=MODELS | models, objective=target | each) for each in (own, other)]
    found = missing(recipes[0], recipes[1].objective, kept=recipes[0].scored_models)
    assert found is None if words is None else words in str(found)


def test_without_a_record_it_is_refused(run: Path) -> None:
    record = run / "samples" / "step_000001.rank0.arrow"
    record.write_bytes(record.read_bytes()[:90])
    with pytest.raises(RecipeError, match="cannot be read"):
        replayed(run)
    record.unlink()
    with pytest.raises(RecipeError, match="no recorded samples"):
        replayed(run)


def test_the_command_takes_an_objective_of_a_file(run: Path) -> None:
    (run / "other.yaml").write_text("target: teacher\nestimator: k3_in_loss\nreverse_weight: 0.0\n")
    command = ["replay", str(run), "--objective", str(run / "other.yaml")]
    told = CliRunner().invoke(app, [*command, "--json"])
    assert told.exit_code == 0, (told.output, told.exception)
    found = json.loads(told.output[told.output.index("{\n") :])
    assert 0.0 < found["cosine"] < 1.0 and found["own"]["signal_to_noise"] is not None
    assert "gradient cosine" in CliRunner().invoke(app, command).output


def test_signal_to_noise_is_that_of_known_gradients() -> None:
    """Sums of n parts with mean m and variance s^2 an entry: |n m|^2 over n s^2 d."""
    rng, n, d = np.random.default_rng(0), 16, 50
    found = []
    for _ in range(200):
        parts = 0.5 + rng.standard_normal((n, d))
        ratio = signal_to_noise(float(np.square(parts.sum(0)).sum()), float(np.square(parts).sum()), n)
        assert ratio is not None
        found.append(ratio)
    assert np.mean(found) == pytest.approx(n * 0.25, rel=0.05)
    noise = rng.standard_normal((n, 5000))
    assert signal_to_noise(float(np.square(noise.sum(0)).sum()), float(np.square(noise).sum()), n) < 0.1  # type: ignore[operator]
    assert signal_to_noise(4.0, 4.0, 1) is None and signal_to_noise(4.0, 1.0, 4) is None


def test_of_a_gradient_of_0_there_is_no_cosine() -> None:
    one, none = [torch.ones(3)], [torch.zeros(3)]
    assert cosine(one, none) is None and cosine(one, one) == pytest.approx(1.0)
