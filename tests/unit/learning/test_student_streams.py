"""Scorer and learner on tiny models in one process: scores of a class of end tokens, and the distance to the start."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from actors.learning.batch import Batch
from actors.learning.readings import Readings
from actors.learning.student import Student
from actors.models import causal_lm
from actors.models.handling import PLAIN
from actors.scoring.engine import Item
from actors.scoring.torch_engine import TorchEngine
from actors.wire.jobs import Share, Total
from actors.wire.records import Request, Sample, ScoreRequest, pack_samples, pack_scores
from configs.node import START
from configs.objective import PLAIN as READ_ALONE
from configs.objective import Objective
from configs.roles.scorer import Scorer
from objectives import objective
from objectives.schedule import dials_at

ENDS, VOCABULARY = (0, 2, 70), 264
RESPONSES = {"a": [11, 12, 70], "b": [13, 14, 15, 2], "c": [16, 17], "d": [0]}


@pytest.fixture(scope="module")
def alone() -> Any:
    """A process group of one rank: readings are reduced over ranks."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def samples() -> list[Sample]:
    return [
        Request(uid, uid, 0, 1, [5, 6, 7, 8]).answered(ids, [-1.0] * len(ids), "stop", [0] * len(ids), _best(len(ids)))
        for uid, ids in RESPONSES.items()
    ]


def _best(tokens: int) -> list[int]:
    """Two ids a token that the student ranks first, none an end token."""
    return [20, 21] * tokens


def scored(model: Path, request: ScoreRequest) -> tuple[Any, TorchEngine]:
    """A payload of scores, as a torch scorer makes it."""
    engine = TorchEngine(Scorer(dtype="float32"), model, VOCABULARY)
    items = [Item(s.uid, s.prompt_ids, s.response_ids, 0, True, s.support_ids) for s in samples()]
    scores = asyncio.run(engine.score(items, request))
    return pack_scores(scores, {}, engine.hidden_dtype)[0], engine


def read(
    config: Objective, model: Path, slots: dict[str, Any], **more: Any
) -> tuple[dict[str, Any], torch.Tensor, Any]:
    """The readings, the loss and the student, of one micro-batch that payloads `slots` were scored for."""
    start_kl, temperature = more.get("start_kl"), more.get("temperature", 1.0)
    ends = config.merged_ends(ENDS)
    uids = tuple(RESPONSES)
    share = Share(
        step=1,
        version=0,
        micro_batches=(uids,),
        loss_tokens=10,
        totals={term: Total(10, 4) for term in config.terms},
        constant=100,
        dials=dials_at(config, 1),
        rows=dict.fromkeys(uids, 0),
        scores={uid: {slot: (1 + i,) for i, slot in enumerate(slots)} for uid in uids},
        advantages=dict.fromkeys(uids, 1.0),
    )
    payloads = [pack_samples(samples())[0], *(payload for payload, _ in slots.values())]
    batch = Batch(share, payloads, config, True, start_kl)
    student = Student(
        causal_lm.load_model(model, "float32"),
        objective.build(config, start_kl, ends),
        VOCABULARY,
        4,
        PLAIN,
        temperature,
    )
    for slot, (_, engine) in slots.items():
        student.heads[slot, 0] = causal_lm.projection_from(engine.projection(), torch.device("cpu"))
    pack, targets = batch.micro_batch(uids)
    loss, sums, streams = student(pack, targets, share.dials)
    readings = Readings(batch)
    readings.add(uids, targets, loss, sums, streams)
    return readings.reduced(share), loss, (student, readings)


def distribution(model: Path) -> torch.Tensor:
    """[response tokens, V] log-probs of a plain forward."""
    plain = causal_lm.load_model(model, "float32")
    rows = []
    for ids in RESPONSES.values():
        with torch.no_grad():
            logits = plain(torch.tensor([[5, 6, 7, 8, *ids]])).logits[0, 3:-1, :VOCABULARY]
        rows.append(logits.log_softmax(-1))
    return torch.cat(rows)


def merged(logprobs: torch.Tensor) -> torch.Tensor:
    rest = [i for i in range(VOCABULARY) if i not in ENDS]
    return torch.cat([logprobs[:, rest], logprobs[:, list(ENDS)].logsumexp(-1, keepdim=True)], -1)


def of_class(logprobs: torch.Tensor) -> torch.Tensor:
    ids = torch.tensor([i for response in RESPONSES.values() for i in response])
    own = logprobs.gather(1, ids[:, None])[:, 0]
    return torch.where(torch.isin(ids, torch.tensor(ENDS)), logprobs[:, list(ENDS)].logsumexp(-1), own)


def kl(q: torch.Tensor, p: torch.Tensor) -> float:
    return float((q.exp() * (q - p)).sum(-1).mean())


CASES: list[tuple[str, str]] = [
    ("sampled", "teacher"),
    ("topk", "teacher"),
    ("topk", "student"),
    ("topk", "union"),
    ("full", "teacher"),
]


@pytest.mark.parametrize(("support", "topk_of"), CASES)
def test_a_class_is_scored_and_trained_alike(alone: Any, models: dict[str, Path], support: str, topk_of: str) -> None:
    config = Objective(target="teacher", support=support, topk=2, topk_of=topk_of, end_tokens="class")  # pyright: ignore[reportArgumentType]
    request = ScoreRequest(support, 2 if support == "topk" else 0, topk_of, ends=ENDS)
    found, loss, (student, readings) = read(config, models["student"], {"teacher": scored(models["teacher"], request)})
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())
    q, p = distribution(models["student"]), distribution(models["teacher"])
    exact, ratio = kl(merged(q), merged(p)), of_class(p) - of_class(q)
    streams = {
        name: torch.cat([torch.tensor(readings.student[name][uid]) for uid in RESPONSES])
        for name in ("logprob", "class_logprob")
    }
    torch.testing.assert_close(streams["class_logprob"], of_class(q), atol=1e-4, rtol=0)
    assert (streams["class_logprob"] - streams["logprob"]).max() > 1e-2
    assert found["log_ratio_p50"] == pytest.approx(float(ratio.median()), abs=0.3)
    if support == "full":
        assert found["reverse_kl"] == pytest.approx(exact, abs=1e-4)
        assert float(loss.detach()) == pytest.approx(exact, abs=1e-4)
    elif support == "topk":
        assert 0.0 < found["reverse_kl"] < exact
    else:
        assert found["reverse_kl"] == pytest.approx(-float(ratio.mean()), abs=1e-4)
        assert found["log_ratio_p99"] == pytest.approx(float(ratio.quantile(0.99)), abs=1e-4)
    assert found["entropy"] == pytest.approx(float(-(q.exp() * q).sum(-1).mean()), abs=1e-4)


@pytest.mark.parametrize(("kind", "temperature"), [("sampled", 1.0), ("exact", 1.0), ("exact", 0.7)])
def test_the_start_is_read_at_the_students_temperature(
    alone: Any, models: dict[str, Path], kind: str, temperature: float
) -> None:
    config = Objective(target="none", outcome={"weight": 1.0})  # pyright: ignore[reportArgumentType]
    slots = {"start": scored(models["teacher"], ScoreRequest("full" if kind == "exact" else "sampled"))}
    found, _, _ = read(config, models["student"], slots, start_kl=kind, temperature=temperature)
    q, p = ((distribution(models[name]) / temperature).log_softmax(-1) for name in ("student", "teacher"))
    ids = torch.tensor([i for response in RESPONSES.values() for i in response])
    k1 = float((q - p).gather(1, ids[:, None]).mean())
    assert found["start_kl"] == pytest.approx(kl(q, p) if kind == "exact" else k1, abs=1e-4)
    assert found["reverse_kl"] is None and found["reference_kl"] is None


def test_the_sampler_is_shown_only_where_it_is_compared(alone: Any, models: dict[str, Path]) -> None:
    config = Objective(target="none", outcome={"weight": 1.0})  # pyright: ignore[reportArgumentType]
    _, _, (_, readings) = read(config, models["student"], {})
    for compares in (True, False):
        other = Readings(readings._batch, compares)
        _, targets = readings._batch.micro_batch(tuple(RESPONSES))
        logprob = torch.tensor([x for uid in RESPONSES for x in readings.student["logprob"][uid]])
        other.add(tuple(RESPONSES), targets, torch.zeros(()), {}, {"logprob": logprob})
        found = other.reduced(readings._batch.share)
        for name in ("ratio_p1", "ratio_p50", "ratio_p99", "effective_sample_size", "logprob_gap_mean"):
            assert (found[name] is not None) == compares, name


@pytest.mark.parametrize("start_kl", [None, "sampled"])
def test_an_evaluation_reads_the_loss_of_given_responses_at_temperature_1_without_a_teacher(
    alone: Any, models: dict[str, Path], start_kl: str | None
) -> None:
    """The run's own objective is a reward alone, at another temperature; it is back afterwards."""
    config = Objective(target="none", outcome={"weight": 1.0})  # pyright: ignore[reportArgumentType]
    slots = {START: scored(models["teacher"], ScoreRequest("sampled"))} if start_kl else {}
    _, _, (student, _) = read(config, models["student"], slots, start_kl=start_kl, temperature=0.5)
    uids = tuple(RESPONSES)
    share = Share(1, 0, (uids,), 10, {"distillation": Total(10, 4)}, 100, dials_at(READ_ALONE, 1))
    share = replace(share, rows=dict.fromkeys(uids, 0), foreign=frozenset(uids), objective=READ_ALONE)
    if start_kl:
        share = replace(share, scores={uid: {START: (1,)} for uid in uids}, foreign=frozenset())
    payloads = [pack_samples(samples())[0], *(payload for payload, _ in slots.values())]
    batch, own = Batch(share, payloads, READ_ALONE, True, start_kl), student.objective
    readings = Readings(batch)
    with torch.no_grad(), student.reading(objective.build(READ_ALONE, start_kl), temperature=1.0):
        pack, targets = batch.micro_batch(uids)
        readings.add(uids, targets, *student(pack, targets, share.dials))
    assert student.objective is own
    each, logprobs, first = readings.each(), distribution(models["student"]), 0
    for uid, ids in RESPONSES.items():
        rows = logprobs[first : first + len(ids)]
        own_logprobs = rows.gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert each[uid]["nll"] == pytest.approx(float(-own_logprobs.sum()), rel=1e-4)
        assert each[uid]["entropy"] == pytest.approx(float(-(rows.exp() * rows).sum()), rel=1e-4)
        if start_kl:
            start = distribution(models["teacher"])[first : first + len(ids)]
            k1 = own_logprobs - start.gather(1, torch.tensor(ids)[:, None])[:, 0]
            assert each[uid]["start_kl"] == pytest.approx(float(k1.sum()), rel=1e-3)
        first += len(ids)
    assert readings.reduced(share)["loss"] == pytest.approx(sum(e["nll"] for e in each.values()) / 10, rel=1e-4)
