"""One contract for simulated and real members of every role: what the orchestrator relies on."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.simulated.known import Speeds
from actors.wire.jobs import LearnerSpec
from actors.wire.records import BadWeights, Request, ScoreRequest, ScoreTable, pack_samples, unpack_samples
from configs.roles.streaming import Stream
from configs.schema import Recipe, Sampling
from objectives.schedule import dials_at
from orchestrator.pools.layout import build_pools
from orchestrator.pools.pool import Pool
from orchestrator.pools.pools import Pools
from orchestrator.pools.transport import LocalTransport
from orchestrator.preflight.files import read_inputs
from orchestrator.weights.carriers import ObjectStore
from orchestrator.weights.learner_group import LearnerGroup
from tests.engines.shared import Engines
from tests.unit.simulation import simulated
from tests.written import written_in_pool


class Bench:
    """Members of one kind, real or simulated, and how to call them."""

    def __init__(self, kind: str, recipe: Recipe, pools: Pools, runner: asyncio.Runner) -> None:
        self.kind = kind
        self.recipe = recipe
        self.pools = pools
        self.runner = runner
        self.inputs = read_inputs(recipe)

    def call(self, pool: Pool, method: str, *args: Any, returns: int = 1) -> list[Any]:
        """Results of all returns, opened."""

        async def work() -> list[Any]:
            *refs, last = await pool.call(method, *args, returns=returns)
            return [*[await pool.transport.value(ref) for ref in refs], last]

        return self.runner.run(work())

    def sample(
        self, requests: Sequence[Request], stream: Stream | None = None, sampling: Sampling | None = None
    ) -> tuple[list[pa.RecordBatch], list[Any]]:
        """Payloads, opened, and their headers."""

        async def work() -> tuple[list[Any], list[Any]]:
            pairs = [pair async for pair in written_in_pool(pool, requests, sampling, stream, ends)]
            return [await pool.transport.value(payload) for payload, _ in pairs], [header for _, header in pairs]

        pool, ends = self.pools.rollout, self.inputs.end_token_ids
        assert pool is not None
        sampling, stream = sampling or self.recipe.sampling, stream or self.recipe.stream
        return self.runner.run(work())

    def requests(self, count: int = 4) -> list[Request]:
        prompts = self.inputs.train
        return [Request(f"{i:08d}.000", f"{i:08d}", 0, 1000 + i, prompts[i].ids["student"]) for i in range(count)]

    def prompt(self, uid: str) -> list[int]:
        return next(request.prompt_ids for request in self.requests() if request.uid == uid)

    async def started(self) -> LearnerGroup:
        group = LearnerGroup(self.recipe, self.pools.learner)
        await group.start(self.learner_spec())
        return group

    def learner_spec(self) -> LearnerSpec:
        path = self.recipe.path_of("student")
        config, objective = self.recipe.learner, self.recipe.objective
        return LearnerSpec(config, objective, path, self.inputs.vocabulary, 4, 0, "float32")


@pytest.fixture(scope="module", params=["simulated", "real"])
def bench(request: pytest.FixtureRequest, engines: Engines) -> Bench:
    sampled = {"objective": {"support": "sampled"}}
    if request.param == "real":
        recipe = engines.recipe(**sampled)
        pools = Pools(engines.pools.rollout, None, engines.pools.scorers, engines.pools.reward, engines.learners[2])
        return Bench(request.param, recipe, pools, engines.runner)
    recipe = engines.recipe(**sampled, learner={"ranks": 1})
    pools = build_pools(recipe, LocalTransport(), read_inputs(recipe).vocabulary, None, simulated(Speeds()))

    async def start() -> None:
        for pool in pools.all().values():
            await pool.members.start(1)

    engines.runner.run(start())
    return Bench(request.param, recipe, pools, engines.runner)


def test_blocks_hold_every_response_once(bench: Bench) -> None:
    payloads, headers = bench.sample(bench.requests(6), Stream(coalesce_ms=0.0, coalesce_samples=2))
    samples = [s for payload in payloads for s in unpack_samples(payload)]
    assert sorted(s.uid for s in samples) == [r.uid for r in bench.requests(6)]
    assert [h.uid for header in headers for h in header.samples] == [s.uid for s in samples]
    assert all(len(header.samples) <= 2 for header in headers)
    cap = bench.recipe.sampling.max_response_tokens
    for s in samples:
        assert 1 <= len(s.response_ids) <= cap
        assert len(s.rollout_logprobs) == len(s.versions) == len(s.response_ids)
        assert all(v <= 0.0 and math.isfinite(v) for v in s.rollout_logprobs)
        assert (s.finish == "stop") == (s.response_ids[-1] in bench.inputs.end_token_ids)


def test_a_seed_gives_the_same_response_again(bench: Bench) -> None:
    first, second = (bench.sample(bench.requests(2))[0] for _ in range(2))

    def responses(payloads: list[pa.RecordBatch]) -> dict[str, list[int]]:
        return {s.uid: s.response_ids for p in payloads for s in unpack_samples(p)}

    assert responses(first) == responses(second)


def test_a_renewed_member_serves_as_before(bench: Bench) -> None:
    before, _ = bench.sample(bench.requests(2))
    for pool in (bench.pools.rollout, bench.pools.scorers["teacher"], bench.pools.reward):
        assert pool is not None
        for member in pool.members:
            bench.runner.run(pool.call_member(member, "renew"))
    after, _ = bench.sample(bench.requests(2))
    tokens = [{s.uid: s.response_ids for p in found for s in unpack_samples(p)} for found in (before, after)]
    assert tokens[0] == tokens[1]
    table, header = bench.call(bench.pools.scorers["teacher"], "score", after[0], ScoreRequest("sampled"), returns=2)
    assert header.uids and all(uid in ScoreTable(table) for uid in header.uids)


def test_load_is_followed_by_tokens_of_that_version(bench: Bench) -> None:
    version = bench.runner.run(_publish(bench, 7))
    bench.runner.run(_load(bench, version))
    payloads, _ = bench.sample(bench.requests(2))
    assert {v for p in payloads for s in unpack_samples(p) for v in s.versions} == {7}


def test_a_changed_bucket_is_refused_and_the_old_version_serves_on(bench: Bench) -> None:
    bench.runner.run(_load(bench, bench.runner.run(_publish(bench, 8))))
    bad = bench.runner.run(_publish(bench, 9))
    with pytest.raises(BadWeights):
        bench.runner.run(_load(bench, bad, corrupt=True))
    payloads, _ = bench.sample(bench.requests(1))
    assert {v for p in payloads for s in unpack_samples(p) for v in s.versions} == {8}


@pytest.mark.parametrize("support", ["sampled", "topk"])
def test_scores_cover_every_response_token(bench: Bench, support: str) -> None:
    (payload, *_), _ = bench.sample(bench.requests(3), Stream(coalesce_ms=5000.0))
    pool = bench.pools.scorers["teacher"]
    table, header = bench.call(
        pool, "score", payload, ScoreRequest(support, topk=4 if support == "topk" else 0), returns=2
    )
    scores = ScoreTable(table)
    for s in unpack_samples(payload):
        logprobs = scores.values(s.uid, "logprobs")
        assert len(logprobs) == len(s.response_ids) and (logprobs <= 0).all()
        if support == "topk":
            assert len(scores.values(s.uid, "support_ids")) == 4 * len(s.response_ids)
            mass = np.exp(scores.values(s.uid, "support_logprobs").astype(np.float64)).reshape(-1, 4).sum(-1)
            assert (mass < 1.0 + 1e-2).all()
    assert header.tokens == sum(len(s.response_ids) for s in unpack_samples(payload)) and not header.rejected


def test_what_cannot_be_scored_is_rejected_by_uid(bench: Bench) -> None:
    (payload, *_), _ = bench.sample(bench.requests(2), Stream(coalesce_ms=5000.0))
    good, bad = unpack_samples(payload)[:2]
    foreign = type(bad)(
        **{name: getattr(bad, name) for name in bad.__slots__} | {"response_ids": [10_000] * len(bad.response_ids)}
    )
    mixed, _ = pack_samples([good, foreign])
    table, header = bench.call(bench.pools.scorers["teacher"], "score", mixed, ScoreRequest("sampled"), returns=2)
    assert list(header.rejected) == [bad.uid] and header.uids == (good.uid,)
    assert good.uid in ScoreTable(table)


def segmented(requests: Sequence[Request]) -> list[Request]:
    return [replace(request, segment_tokens=4) for request in requests]


def test_what_is_submitted_leaves_through_one_stream_whatever_call_asked_for_it(bench: Bench) -> None:
    (whole, *_), _ = bench.sample(bench.requests(6), Stream(coalesce_ms=5000.0))
    pool, sampling, ends = bench.pools.rollout, bench.recipe.sampling, bench.inputs.end_token_ids
    assert pool is not None
    member = pool.members[0]

    async def work() -> tuple[Any, Any]:
        stream = pool.stream(member, "blocks", "a channel", Stream(coalesce_ms=3000.0, coalesce_samples=6))
        reading = asyncio.ensure_future(anext(stream))
        for requests in (bench.requests(6)[:2], bench.requests(6)[2:]):
            await pool.call_member(member, "submit", "a channel", requests, sampling, ends)
        payload, header = await reading
        await stream.aclose()
        await pool.call_member(member, "drain")
        return await pool.transport.value(payload), header

    payload, header = bench.runner.run(work())
    assert [s.uid for s in header.samples] == [s.uid for s in unpack_samples(payload)]
    found = {s.uid: s.response_ids for s in unpack_samples(payload)}
    assert found == {s.uid: s.response_ids for s in unpack_samples(whole)}


def test_segments_add_up_to_the_whole_response_and_so_do_their_scores(bench: Bench) -> None:
    (whole, *_), _ = bench.sample(bench.requests(4), Stream(coalesce_ms=5000.0))
    payloads, headers = bench.sample(segmented(bench.requests(4)))
    responses = {s.uid: s for s in unpack_samples(whole)}
    expected = _logprobs(bench, whole)
    ends: dict[str, int] = dict.fromkeys(responses, 0)
    found: dict[str, list[np.ndarray]] = {uid: [] for uid in responses}
    for payload, header in zip(payloads, headers, strict=True):
        scored = _logprobs(bench, payload)
        assert len({h.uid for h in header.samples}) == len(header.samples)
        for h, row in zip(header.samples, unpack_samples(payload), strict=True):
            assert (h.start, h.last) == (ends[h.uid], h.end == len(responses[h.uid].response_ids))
            assert h.response_tokens == 4 or (h.last and 1 <= h.response_tokens < 4)
            assert row.response_ids == responses[h.uid].response_ids[row.offset : h.end]
            ends[h.uid] = h.end
            found[h.uid].append(scored[h.uid])
    for uid, response in responses.items():
        assert ends[uid] == len(response.response_ids)
        np.testing.assert_allclose(np.concatenate(found[uid]), expected[uid], atol=1e-4)


def test_a_scorer_says_of_which_responses_it_does_not_know_the_beginning(bench: Bench) -> None:
    (whole, *_), _ = bench.sample(bench.requests(4), Stream(coalesce_ms=5000.0))
    expected, scorer = _logprobs(bench, whole), bench.pools.scorers["teacher"]
    payloads, headers = bench.sample(segmented(bench.requests(4)))
    late, header = next((i, h) for i, h in enumerate(headers) if any(s.start and not s.last for s in h.samples))
    going_on = [s for s in header.samples if s.start and not s.last]

    asked = ScoreRequest("sampled", prompts={s.uid: bench.prompt(s.uid) for s in going_on})
    _, answer = bench.call(scorer, "score", payloads[late], asked, returns=2)
    assert set(answer.unknown) == asked.prompts.keys() and not answer.uids and not answer.rejected
    table, answer = bench.call(scorer, "score", payloads[late], asked, *payloads[:late], returns=2)
    assert set(answer.uids) == asked.prompts.keys() and not answer.unknown
    for s in going_on:
        logprobs = ScoreTable(table).values(s.uid, "logprobs")
        np.testing.assert_allclose(logprobs, expected[s.uid][s.start : s.end], atol=1e-4)


def test_a_cut_response_ends_with_what_it_has(bench: Bench) -> None:
    """All but one are cut after the first block; some may have ended by themselves before the member hears of it."""
    requests = bench.requests(4)
    *cut, spared = (request.uid for request in requests)
    sampling = bench.recipe.sampling.model_copy(update={"max_response_tokens": 90})
    pool, ends = bench.pools.rollout, bench.inputs.end_token_ids
    assert pool is not None
    (whole,), _ = bench.sample(requests, Stream(coalesce_ms=5000.0), sampling)
    expected = {s.uid: s for s in unpack_samples(whole)}

    async def work() -> list[Any]:
        payloads: list[Any] = []
        async for payload, _ in written_in_pool(pool, segmented(requests), sampling, Stream(), ends):
            payloads.append(await pool.transport.value(payload))
            if len(payloads) == 1:
                await pool.call_member(pool.members[0], "cut", [*cut, "nobody"])
        return payloads

    last = {s.uid: s for payload in bench.runner.run(work()) for s in unpack_samples(payload)}
    assert (last[spared].response_ids, last[spared].finish) == (expected[spared].response_ids, expected[spared].finish)
    ended = [last[uid] for uid in cut if last[uid].finish == "cut"]
    assert ended and all(0 < len(s.response_ids) < len(expected[s.uid].response_ids) for s in ended)
    assert all(s.response_ids == expected[s.uid].response_ids[: len(s.response_ids)] for s in last.values())


def _logprobs(bench: Bench, payload: pa.RecordBatch) -> dict[str, np.ndarray]:
    table, header = bench.call(bench.pools.scorers["teacher"], "score", payload, ScoreRequest("sampled"), returns=2)
    scores = ScoreTable(table)
    return {uid: scores.values(uid, "logprobs") for uid in header.uids}


def test_rewards_are_numbers_by_uid(bench: Bench) -> None:
    from configs.reward_rules import LengthRule

    (payload, *_), _ = bench.sample(bench.requests(3), Stream(coalesce_ms=5000.0))
    *asked, _ = (s.uid for s in unpack_samples(payload))
    fields = {uid: {} for uid in asked}
    (rewards,) = bench.call(bench.pools.reward, "reward", payload, (LengthRule(),), fields)
    assert rewards.values.keys() == set(asked), "and nothing of rows that nobody asked for"
    assert all(isinstance(value, float) for value in rewards.values.values())
    assert all(parts.keys() == {"length"} for parts in rewards.components.values())


def test_learner_steps_publishes_saves_and_restores(bench: Bench, tmp_path: Any) -> None:
    (payload, *_), (header, *_) = bench.sample(bench.requests(4), Stream(coalesce_ms=5000.0))

    async def work() -> tuple[list[bytes], ...]:
        from orchestrator.samples.buffer import Scored

        group = await bench.started()
        pool = bench.pools.scorers["teacher"]
        ref, _ = await pool.call("score", payload, ScoreRequest("sampled"), returns=2)
        batch = [Scored(h, payload, {"teacher": (ref,)}) for h in header.samples]
        versions = [await _bits(bench, await group.publish())]
        await group.save(tmp_path)
        metrics = await group.step(batch, 1, 0, dials_at(bench.recipe.objective, 1), None)
        assert {"loss", "lr", "grad_norm", "logprob_gap_mean"} <= metrics.keys()
        versions.append(await _bits(bench, await group.publish()))
        await group.restore(tmp_path)
        versions.append(await _bits(bench, await group.publish()))
        return tuple(versions)

    start, stepped, restored = bench.runner.run(work())
    assert stepped != start and restored == start


def test_engines_that_slept_answer_as_before_and_work_that_comes_meanwhile_waits(bench: Bench) -> None:
    (payload, *_), _ = bench.sample(bench.requests(3), Stream(coalesce_ms=5000.0))
    scores = _logprobs(bench, payload)
    pools = [pool for pool in (bench.pools.rollout, bench.pools.scorers["teacher"]) if pool is not None]
    scorer = pools[-1]

    async def all_members(verb: str) -> None:
        await asyncio.gather(*(pool.call_member(member, verb) for pool in pools for member in pool.members))

    async def work() -> bool:
        for verb in ("drain", "sleep"):
            await all_members(verb)
        asked = asyncio.ensure_future(scorer.call("score", payload, ScoreRequest("sampled"), returns=2))
        _, pending = await asyncio.wait([asked], timeout=0.2)
        await all_members("wake")
        await asked
        return bool(pending)

    waited = bench.runner.run(work())
    assert waited or bench.kind == "simulated", "a simulated scorer does not mind"
    (again, *_), _ = bench.sample(bench.requests(3), Stream(coalesce_ms=5000.0))
    assert {s.uid: s.response_ids for s in unpack_samples(again)} == {
        s.uid: s.response_ids for s in unpack_samples(payload)
    }
    for uid, logprobs in _logprobs(bench, again).items():
        np.testing.assert_allclose(logprobs, scores[uid], atol=1e-5)


@pytest.mark.parametrize(
    "learner",
    [
        pytest.param({"zero_stage": 1}, id="zero1"),
        pytest.param({"zero_stage": 2, "dtype": "bfloat16"}, id="zero2"),
        pytest.param(
            {"zero_stage": 3, "offload_optimizer": "cpu"},
            id="zero3-on-host",
            marks=pytest.mark.acceptance,  # DeepSpeed compiles its optimizer for a minute
        ),
    ],
)
def test_a_learner_that_sleeps_between_steps_learns_the_same(bench: Bench, learner: dict[str, Any]) -> None:
    """Its weights, its optimizer's states and what it publishes outlive its sleep."""
    (payload, *_), (header, *_) = bench.sample(bench.requests(4), Stream(coalesce_ms=5000.0))
    config = bench.recipe.learner
    optimizer = config.optimizer.model_copy(update={"name": "adamw", "lr": 1e-3})
    config = config.model_copy(update=learner | {"optimizer": optimizer})
    spec = replace(bench.learner_spec(), config=config)

    async def learned(sleeps: bool) -> list[bytes]:
        from orchestrator.samples.buffer import Scored

        group = LearnerGroup(bench.recipe, bench.pools.learner)
        await group.start(spec)
        ref, _ = await bench.pools.scorers["teacher"].call("score", payload, ScoreRequest("sampled"), returns=2)
        batch = [Scored(h, payload, {"teacher": (ref,)}) for h in header.samples]
        for step in (1, 2, 3):
            if sleeps:
                await group.sleep()
                await group.wake()
            await group.step(batch, step, step - 1, dials_at(bench.recipe.objective, step), None)
        if sleeps:
            await group.sleep()
            await group.wake()
        return await _bits(bench, await group.publish())

    assert bench.runner.run(learned(True)) == bench.runner.run(learned(False))


@pytest.mark.parametrize("verb", ["ping", "drain"])
def test_verbs_answer(bench: Bench, verb: str) -> None:
    for pool in bench.pools.all().values():
        bench.runner.run(pool.call_member(pool.members[0], verb))


async def _publish(bench: Bench, number: int) -> Any:
    group = await bench.started()
    return await ObjectStore().publish(group, number, None)


async def _load(bench: Bench, version: Any, corrupt: bool = False) -> None:
    pool = bench.pools.rollout
    assert pool is not None
    headers, *refs = version.parts
    buckets = [np.array(await pool.transport.value(ref)) for ref in refs]
    if corrupt:
        buckets[0][-1] ^= 1
    for member in pool.members:
        await pool.call_member(member, "load", version.number, headers, *buckets)


async def _bits(bench: Bench, published: tuple[list[Any], list[Any]]) -> list[bytes]:
    transport = bench.pools.learner.transport
    return [np.asarray(await transport.value(ref)).tobytes() for ref in published[1]]
