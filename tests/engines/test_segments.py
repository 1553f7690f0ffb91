"""The segments of a rollout are the response that it would have handed on whole."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.models import causal_lm
from actors.models.handling import PLAIN
from actors.rollout.rollout import Rollout
from actors.wire.records import (
    Request,
    Sample,
    header_of,
    unpack_samples,
)
from configs.roles.rollout import Rollout as RolloutConfig
from configs.roles.sizes import Resources
from configs.roles.streaming import Stream
from configs.schema import Sampling
from orchestrator.pools.layout import environment
from orchestrator.pools.sick import fault_of
from tests.written import published, written

CONCURRENT, CONTEXT, LONGEST, VOCABULARY = 12, 256, 60, 259
BATCH = 2048  # tokens that vLLM computes at a time, by its own default
Between = Callable[[Sequence[Sample]], Awaitable[None]]


@pytest.fixture(scope="module")
def member(
    models: dict[str, Path], runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rollout]:
    """A vLLM rollout in this process, of a model whose head is its own, with room for a few responses at a time."""
    resources = Resources(threads=1)
    kept = dict(os.environ)
    os.environ |= environment(resources)
    config = RolloutConfig(dtype="float32", max_context_tokens=CONTEXT, max_concurrent=CONCURRENT, resources=resources)
    rollout = Rollout(config, str(models["teacher"]), str(tmp_path_factory.mktemp("shared")))
    runner.run(rollout.start())
    yield rollout
    runner.run(rollout.stop())
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture
def updating(member: Rollout, models: dict[str, Path], runner: asyncio.Runner) -> Iterator[Callable[..., None]]:
    """Sets what the recipe says of weight updates; afterwards the first weights and settings serve again."""

    def configure(**changes: Any) -> None:
        member._config = member._config.model_copy(update=changes)

    yield configure
    configure(on_update="keep", keep_key_values=False)
    runner.run(member.load(0, *published(models["teacher"])))


def requests(count: int, prompt: int = 4, topk: int = 0) -> list[Request]:
    """Prompts that share no first token, so that no prefix of one is of another."""
    ids = [[(7 * i + t) % VOCABULARY for t in range(prompt)] for i in range(count)]
    return [Request(f"{i:08d}.000", f"{i:08d}", 0, 50 + i, ids[i], topk=topk) for i in range(count)]


def segmented(asked: Sequence[Request], tokens: int) -> list[Request]:
    return [replace(request, segment_tokens=tokens) for request in asked]


def sampled(
    runner: asyncio.Runner,
    member: Rollout,
    asked: Sequence[Request],
    stream: Stream,
    between: Between | None = None,
    longest: int = LONGEST,
) -> list[list[Sample]]:
    """Blocks of a call; `between` is awaited after each with the rows so far, while the engine goes on."""

    async def work() -> list[list[Sample]]:
        blocks: list[list[Sample]] = []
        sampling = Sampling(max_response_tokens=longest)
        async for payload, header in written(member, asked, sampling, stream, (2,)):
            blocks.append(unpack_samples(payload))
            assert header.samples == tuple(header_of(row) for row in blocks[-1])
            if between:
                await between([row for block in blocks for row in block])
        return blocks

    return runner.run(asyncio.wait_for(work(), 120))


def by_uid(blocks: Sequence[Sequence[Sample]]) -> dict[str, list[Sample]]:
    """Rows of each response in the order they came; checks what every consumer relies on."""
    found: dict[str, list[Sample]] = {}
    for block in blocks:
        assert len({row.uid for row in block}) == len(block), "a response stands in a block once"
        for row in block:
            found.setdefault(row.uid, []).append(row)
    for rows in found.values():
        assert [row.start for row in rows] == [0, *(header_of(row).end for row in rows[:-1])]
        assert all(row.response_ids[row.new] for row in rows), "no segment is empty"
        assert [row.finish != "" for row in rows] == [False] * (len(rows) - 1) + [True]
        for row in rows:
            held = slice(row.offset, header_of(row).end)
            assert row.response_ids == rows[-1].response_ids[held]
            assert row.rollout_logprobs == rows[-1].rollout_logprobs[held]
            assert row.versions == rows[-1].versions[held]
    return found


def logprobs_of(model: Any, row: Sample) -> np.ndarray:
    """Log-prob of each response token under a plain model, float32."""
    batch = causal_lm.pack([(row.prompt_ids, row.response_ids)])
    with torch.no_grad():
        return read(model, causal_lm.hidden_states(model, batch, PLAIN), row.response_ids)


def read(model: Any, hidden: Any, ids: Sequence[int]) -> np.ndarray:
    logprobs = causal_lm.head_logprobs(model, hidden, model.config.vocab_size, PLAIN)
    return logprobs.gather(-1, torch.tensor(list(ids)).unsqueeze(-1)).squeeze(-1).numpy()


def test_more_prompts_than_fit_a_forward_pass_are_sampled_all(member: Rollout, runner: asyncio.Runner) -> None:
    """None is begun in part: on a CPU vLLM cannot take back what a seeded generator drew for it."""
    asked = requests(CONCURRENT, prompt=200)
    assert sum(len(request.prompt_ids) for request in asked) > BATCH
    found = by_uid(sampled(runner, member, asked, Stream(), longest=4))
    assert found.keys() == {request.uid for request in asked}


def test_segments_become_the_response_that_would_have_left_whole(member: Rollout, runner: asyncio.Runner) -> None:
    asked = requests(6, topk=2)
    whole = by_uid(sampled(runner, member, asked, Stream()))
    segments = by_uid(sampled(runner, member, segmented(asked, 8), Stream()))
    assert segments.keys() == whole.keys()
    for uid, rows in segments.items():
        (expected,), last = whole[uid], rows[-1]
        assert expected.start == 0 and (last.response_ids, last.finish) == (expected.response_ids, expected.finish)
        assert (last.support_ids, last.versions) == (expected.support_ids, expected.versions)
        np.testing.assert_allclose(last.rollout_logprobs, expected.rollout_logprobs, atol=1e-4)
        assert all(len(row.response_ids) == 8 for row in rows[:-1]), "what is new alone"
        assert len(last.response_ids[last.new]) <= 8
    assert max(len(rows) for rows in segments.values()) == -(-LONGEST // 8), "some response is as long as it may be"


def test_a_cut_response_ends_there_and_no_other_one(member: Rollout, runner: asyncio.Runner) -> None:
    asked = requests(CONCURRENT + 2)
    waiting = [request.uid for request in asked[CONCURRENT:]]
    cut: list[str] = []

    async def between(rows: Sequence[Sample]) -> None:
        if not cut:
            cut.extend(row.uid for row in rows[:2])
            await member.cut([*cut, *waiting, "nobody"])

    expected = by_uid(sampled(runner, member, segmented(asked, 8), Stream()))
    segments = by_uid(sampled(runner, member, segmented(asked, 8), Stream(), between))
    assert cut and not set(cut) & set(waiting)
    for uid, rows in segments.items():
        last, whole = rows[-1], expected[uid][-1]
        if uid in cut:
            assert last.finish == "cut" and 8 < len(last.response_ids) < len(whole.response_ids)
            assert last.response_ids == whole.response_ids[: len(last.response_ids)]
        else:
            assert (last.response_ids, last.finish) == (whole.response_ids, whole.finish)


@pytest.mark.parametrize("tokens", [0, 8])
def test_an_update_that_aborts_ends_what_runs_and_begins_what_waits(
    member: Rollout, models: dict[str, Path], runner: asyncio.Runner, updating: Callable[..., None], tokens: int
) -> None:
    updating(on_update="abort")
    asked = requests(3 * CONCURRENT)

    async def update() -> None:
        running = member._engine.output_processor.request_states
        while not any(state.detokenizer.num_output_tokens() for state in running.values()):
            await asyncio.sleep(0.001)
        await member.load(1, *published(models["poet"]))

    async def work() -> list[list[Sample]]:
        updated = asyncio.create_task(update())
        sampling = Sampling(max_response_tokens=200)
        pairs = [pair async for pair in written(member, segmented(asked, tokens), sampling, Stream(), (2,))]
        await updated
        return [unpack_samples(payload) for payload, _ in pairs]

    segments = by_uid(runner.run(asyncio.wait_for(work(), 120)))
    assert segments.keys() == {request.uid for request in asked}
    ended = [rows[-1] for rows in segments.values()]
    aborted = [row for row in ended if row.finish == "abort"]
    assert 1 <= len(aborted) <= CONCURRENT and all(set(row.versions) == {0} for row in aborted)
    begun = [row for row in ended if row.finish != "abort" and set(row.versions) == {1}]
    assert len(begun) >= len(asked) - 2 * CONCURRENT, "what waited is sampled with the new weights"
    assert all(len(set(row.versions)) == 1 for row in ended), "no response is of two versions"


@pytest.mark.parametrize("kept", [False, True], ids=["anew", "kept"])
def test_key_values_of_running_responses_are_those_the_recipe_asks_for(
    member: Rollout, models: dict[str, Path], runner: asyncio.Runner, updating: Callable[..., None], kept: bool
) -> None:
    """Prompts are longer than vLLM's blocks, so that later requests would find what is left of them."""
    updating(keep_key_values=kept)
    asked = requests(CONCURRENT, prompt=150)
    loaded = False

    async def between(rows: Sequence[Sample]) -> None:
        nonlocal loaded
        if not loaded:
            loaded = True
            await member.load(1, *published(models["poet"]))

    rows = by_uid(sampled(runner, member, segmented(asked, 8), Stream(), between, longest=100))
    later = [block_row for block in sampled(runner, member, asked, Stream()) for block_row in block]
    old, new = (causal_lm.load_model(models[name], "float32").eval() for name in ("teacher", "poet"))
    switched = [r[-1] for r in rows.values() if set(r[-1].versions) == {0, 1}]
    assert switched
    for row in switched:
        ids, first = [*row.prompt_ids, *row.response_ids], row.versions.index(1)
        met = len(row.prompt_ids) + first - 1  # tokens whose key-values the old weights had made
        with torch.no_grad():
            _, cache = causal_lm.continued_states(old, ids[:met], PLAIN)
            states, _ = causal_lm.continued_states(new, ids[met:-1], PLAIN, cache)
            mixed = read(new, states, row.response_ids[first:])
        pure = logprobs_of(new, row)[first:]
        assert np.abs(mixed - pure).max() > 1e-2, "old and new key-values must differ enough to be told apart"
        np.testing.assert_allclose(row.rollout_logprobs[first:], mixed if kept else pure, atol=1e-4)
        np.testing.assert_allclose(row.rollout_logprobs[:first], logprobs_of(old, row)[:first], atol=1e-4)
    for row in later:
        assert set(row.versions) == {1}
        np.testing.assert_allclose(row.rollout_logprobs, logprobs_of(new, row), atol=1e-4)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the engine's log has it
def test_an_error_of_a_step_is_a_fault_of_the_device(member: Rollout, runner: asyncio.Runner) -> None:
    """The member's process lives on without an engine, so its pool must learn that it is dead. Last: it ends the
    engine."""
    core, thread = member._engine.running

    def broken() -> None:
        raise ValueError("no step today")

    core.step_fn = broken
    for _ in range(2):
        with pytest.raises(Exception) as raised:
            sampled(runner, member, requests(1), Stream())
        assert fault_of(raised.value) == "device"
    thread.join(10)
    assert not thread.is_alive()
