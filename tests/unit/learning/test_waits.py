"""The host waits for no GPU between micro-batches: nothing of a pass is read before its end, and all of it at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.learning import student as learners
from actors.learning.batch import Batch
from actors.learning.feeding import ahead, fed
from actors.learning.learner import Learner
from actors.learning.ranks.finite import spoiling
from actors.learning.readings import Readings
from actors.learning.student import Student
from actors.learning.value_head import ValueHead
from actors.models import attention, causal_lm, loading
from actors.scoring.engine import Item
from actors.scoring.torch_engine import TorchEngine
from actors.wire.jobs import LearnerSpec, Share, Total
from actors.wire.records import ScoreRequest, pack_samples
from configs.objective import Objective
from configs.roles.learner import ValueHead as ValueHeadConfig
from configs.roles.scorer import Scorer
from objectives import devices, ends, objective
from objectives.readings import POSITIONS
from objectives.schedule import dials_at
from tests.unit.learning.test_student_streams import ENDS, RESPONSES, VOCABULARY, alone, samples, scored
from tests.unit.simulation import recipe
from tests.unit.waits import Waits

CPU = torch.device("cpu")
__all__ = ["alone"]

KINDS: dict[str, tuple[ScoreRequest, dict[str, Any]]] = {
    "sampled": (ScoreRequest("sampled", ends=ENDS), {"support": "sampled", "discount": 0.9, "end_tokens": "class"}),
    "topk": (ScoreRequest("topk", 2, "union", ends=ENDS), {"support": "topk", "topk": 2, "end_tokens": "class"}),
    "full": (ScoreRequest("full"), {"support": "full", "reverse_weight": 1.0}),
    "value": (ScoreRequest("sampled"), {"support": "sampled", "outcome": {"weight": 1.0, "baseline": "value"}}),
}


class Pass:
    """A learner's pass over the responses, in micro-batches of so many, without DeepSpeed."""

    def __init__(self, kind: str, models: dict[str, Path], each: int = 2) -> None:
        request, settings = KINDS[kind]
        topk_of = {"topk_of": "union"} if kind == "topk" else {}
        config = Objective.model_validate({"target": "teacher", **settings, **topk_of})
        payload, engine = scored(models["teacher"], request)
        uids = tuple(RESPONSES)
        groups = tuple(uids[i : i + each] for i in range(0, len(uids), each))
        self.share = Share(
            step=1,
            version=0,
            micro_batches=(*groups, ()),
            loss_tokens=10,
            totals={term: Total(10, 4) for term in config.terms},
            constant=100,
            dials=dials_at(config, 1),
            rows=dict.fromkeys(uids, 0),
            scores={uid: {"teacher": (1,)} for uid in uids},
            advantages=dict.fromkeys(uids, 1.0),
        )
        self.batch = Batch(self.share, [pack_samples(samples())[0], payload], config, True)
        loaded = loading.load(models["student"], "float32", "sdpa", "auto", CPU)
        assert loaded.handling.apart, "attention that reads lengths off the bounds"
        width = loaded.model.get_output_embeddings().weight.shape[1]
        value = ValueHead(width, ValueHeadConfig(), (0.9, 0.95)) if "value" in config.terms else None
        built = objective.build(config, None, config.merged_ends(ENDS))
        self.student = Student(loaded.model, built, VOCABULARY, 4, loaded.handling, value_head=value)
        self.student.heads["teacher", 0] = causal_lm.projection_from(engine.projection(), CPU)
        self.readings = Readings(self.batch)

    def run(self) -> list[str]:
        """Both directions of every micro-batch; what the host would have waited for."""
        waits = Waits()
        for one in fed(self.batch, CPU):
            with waits:
                result = self.student(one.pack, one.targets, self.share.dials)
                spoiling(result[0]).backward()
                self.readings.add(one.uids, one.known, *result)
        return waits.seen


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    for values in (ENDS, POSITIONS):
        devices.constant(values, CPU)  # made once a process
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_micro_batch_is_read_while_others_wait(kind: str, models: dict[str, Path]) -> None:
    """In chunks of 4 tokens, which are computed again in the backward pass; an empty micro-batch is the last."""
    assert Pass(kind, models).run() == []


def _plain_within(self: Any, start: int, end: int) -> Any:
    inside = (self.rows >= start) & (self.rows < end)
    return learners.Hidden(self.head, self.rows[inside] - start, self.states[inside], self.known)


def _fresh(values: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device)


BACK: dict[str, tuple[str, Any, str, Any]] = {
    "lengths off the bounds, in every layer": ("sampled", causal_lm, "with_lengths", lambda bounds, lengths: bounds),
    "transformers looks for sequences": ("sampled", causal_lm, "packing", lambda sequences: nullcontext()),
    "a fresh tensor of end tokens": ("sampled", ends, "constant", _fresh),
    "a mask cuts hidden states": ("full", learners.Hidden, "within", _plain_within),
}


@pytest.mark.parametrize("name", BACK)
def test_each_wait_that_was_there_is_seen_if_it_comes_back(
    name: str, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, module, attribute, old = BACK[name]
    monkeypatch.setattr(module, attribute, old)
    assert Pass(kind, models).run(), name


def test_the_outputs_of_a_pass_are_copied_together(alone: Any, models: dict[str, Path]) -> None:
    copies, found = [], []
    for each in (1, 2, 4):
        one = Pass("sampled", models, each)
        one.run()
        with Waits() as waits:
            own = one.readings.student
        copies.append(waits.to_host)
        found.append({name: {uid: row.tolist() for uid, row in by_uid.items()} for name, by_uid in own.items()})
        assert waits.seen.count("cpu") <= len(RESPONSES) / each, "targets, which the host has"
    assert copies[0] == copies[1] == copies[2] > 0, "whatever the number of micro-batches"
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert all(other[n][u] == pytest.approx(found[0][n][u], abs=1e-5) for n in other for u in RESPONSES)


class Engine:
    """DeepSpeed's engine, as far as a pass needs one, around a student; notes whether a micro-batch is the last."""

    def __init__(self, student: Student) -> None:
        self._student, self.last = student, []

    def __call__(self, *arguments: Any) -> Any:
        return self._student(*arguments)

    def train(self) -> None: ...

    def set_gradient_accumulation_boundary(self, last: bool) -> None:
        self.last.append(last)

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool) -> None:
        loss.backward()


def test_a_learners_pass_is_over_all_its_micro_batches(alone: Any, models: dict[str, Path], tmp_path: Path) -> None:
    found = []
    for each in (1, 4):
        own, learner, settings = Pass("full", models, each), Learner(0, 1), recipe(tmp_path)
        learner._spec = LearnerSpec(settings.learner, settings.objective, "/none", 9, 1, 0, "float32")
        learner._student, learner._engine = own.student, Engine(own.student)
        metrics = learner._accumulate(own.batch)
        assert learner._engine.last == [False] * (4 // each) + [True], "the empty one is the last"
        gradient = torch.cat([p.grad.flatten() for p in own.student.parameters() if p.grad is not None])
        found.append((metrics["loss"], metrics["reverse_kl"], gradient))
    assert found[0][:2] == pytest.approx(found[1][:2], rel=1e-4)
    torch.testing.assert_close(found[0][2], found[1][2], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("support", ["sampled", "topk", "full"])
def test_a_scorer_waits_once_a_batch(support: str, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(Scorer(dtype="float32"), models["teacher"], VOCABULARY)
    items = [Item(s.uid, s.prompt_ids, s.response_ids, 0, True, s.support_ids) for s in samples()]
    request = ScoreRequest(support, 2 if support == "topk" else 0, "union", ends=() if support == "full" else ENDS)
    before: list[list[str]] = []

    def together(tensors: Any) -> list[torch.Tensor]:
        before.append([*waits.seen])
        return devices.on_host(tensors)

    monkeypatch.setattr("actors.scoring.torch_engine.on_host", together)
    with Waits() as waits:
        engine._score(items, request)
    assert before == [[]], "all results together, and nothing before"


def test_the_next_is_made_while_the_caller_has_the_last() -> None:
    made = [threading.Event() for _ in range(4)]

    def make(index: int) -> tuple[int, str]:
        made[index].set()
        return index, threading.current_thread().name

    for index, thread in ahead(make, range(4)):
        assert thread.startswith("ahead")
        assert index == 3 or made[index + 1].wait(10.0), "made before it is asked for"
        assert not any(event.is_set() for event in made[index + 2 :]), "and no more than one"
    assert [*ahead(make, [])] == []


def test_what_fails_ahead_is_raised_in_its_turn() -> None:
    def make(index: int) -> int:
        if index == 2:
            raise RuntimeError("b.1 was scored by none")
        return index

    found: list[int] = []
    with pytest.raises(RuntimeError, match="scored by none"):
        found.extend(ahead(make, range(4)))  # a list takes in what comes before an error
    given = ahead(lambda index: time.sleep(0.01) or index, range(100))
    assert next(given) == 0
    given.close()  # type: ignore[attr-defined]  # a caller that fails leaves no thread behind
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


class OnHost:
    """Records what is asked of a tensor on the host."""

    def __init__(self) -> None:
        self.device, self.asked = CPU, []

    def pin_memory(self) -> OnHost:
        self.asked.append("pinned")
        return self

    def to(self, device: torch.device, non_blocking: bool = False) -> OnHost:
        self.asked.append((device.type, non_blocking))
        return self


@pytest.mark.parametrize(("device", "asked"), [("cuda", ["pinned", ("cuda", True)]), ("cpu", [("cpu", False)])])
def test_what_goes_to_a_gpu_goes_through_pinned_memory(device: str, asked: list[Any]) -> None:
    """Recorded: this machine has no GPU."""
    tensor = OnHost()
    devices.moved(tensor, torch.device(device))  # type: ignore[arg-type]
    assert tensor.asked == asked


def test_for_a_gpu_micro_batches_are_made_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded: pack and targets are asked onto the device in the thread that cuts them."""
    threads: list[str] = []

    class Moving:
        def to(self, device: torch.device) -> Moving:
            threads.append(threading.current_thread().name)
            return self

    batch = SimpleNamespace(
        share=SimpleNamespace(micro_batches=(("a",), ("b",))), micro_batch=lambda u: (Moving(), Moving())
    )
    assert [one.uids for one in fed(batch, torch.device("cuda"))] == [("a",), ("b",)]  # type: ignore[arg-type]
    assert len(threads) == 4 and all(name.startswith("ahead") for name in threads)
    threads.clear()
    list(fed(batch, CPU))  # type: ignore[arg-type]
    assert set(threads) == {threading.main_thread().name}


def test_rows_are_told_apart_as_by_their_positions() -> None:
    """The numbers that transformers is told are those that it would have found."""
    from transformers import masking_utils

    pairs = [([1, 2], [3]), ([4], [5, 6, 7]), ([8], [9])]
    for count in (1, 2, 3):
        pack = causal_lm.pack(pairs[:count])
        with attention.packing(None):
            found = masking_utils.find_packed_sequence_indices(pack.positions)
        with attention.packing(len(pack.lengths)):
            told = masking_utils.find_packed_sequence_indices(pack.positions)
        assert (found is None) == (told is None) == (count == 1)
        assert found is None or told is None or torch.equal(found, told)
        assert told is None or torch.equal(told.int(), pack.rows_of)


def test_packing_in_one_task_is_not_seen_in_another() -> None:
    async def inside(sequences: int | None) -> int | None:
        with attention.packing(sequences):
            await asyncio.sleep(0.01)
            return attention._SEQUENCES.get()

    async def both() -> list[int | None]:
        return [*await asyncio.gather(inside(3), inside(None), inside(5))]

    assert asyncio.run(both()) == [3, None, 5]
