"""Responses in segments: scored while they are sampled, joined when they end, trained as if they had come whole."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from actors.scoring.beginnings import Beginnings
from actors.simulated import rollout, scorer
from actors.simulated.known import Speeds
from actors.simulated.rollout import SimulatedRollout
from actors.simulated.scorer import SimulatedScorer
from actors.wire.records import SampleHeader, unpack_samples
from configs.roles.streaming import EarlyStop
from orchestrator.pools.transport import ValueLost
from orchestrator.run import DONE
from orchestrator.samples.buffer import Scored
from orchestrator.samples.segments import Segments
from tests.unit.batches import Batches
from tests.unit.own_time import in_own_time
from tests.unit.runs.deaths import Assassin, has_yielded, lose_a_value
from tests.unit.simulation import (
    MEMBER,
    Simulation,
    assert_each_once,
    expected_order,
    learned,
    metrics,
    order_of,
    recipe,
    trained,
)

UID = "00000003.001"


def part(start: int, tokens: int, finish: str = "", attempt: int = 0, log_ratio: float = 0.0) -> Scored:
    version = start // 4
    header = SampleHeader(UID, UID[:8], attempt, 5, tokens, tokens, finish, ((version, tokens),), start)
    return Scored(header, f"row {start}", {"teacher": (f"scores {start}",)}, teacher_entropy=1.0, log_ratio=log_ratio)


PARTS = [part(0, 4), part(4, 4), part(8, 1, "stop")]


@pytest.mark.parametrize(
    "order", list(itertools.permutations(PARTS)), ids=lambda parts: "-".join(str(p.header.start) for p in parts)
)
def test_segments_join_in_whatever_order_they_are_scored(order: tuple[Scored, ...]) -> None:
    segments = Segments()
    *before, whole = [segments.join(p) for p in order]
    assert before == [None, None] and whole is not None and len(segments) == 0
    header = whole.header
    assert (header.start, header.response_tokens, header.loss_tokens, header.finish) == (0, 9, 9, "stop")
    assert header.versions == ((0, 4), (1, 4), (2, 1))
    assert whole.samples == "row 8", "the last row holds the whole response"
    assert whole.scores == {"teacher": ("scores 0", "scores 4", "scores 8")} and whole.teacher_entropy == 3.0


def test_a_whole_response_waits_for_nothing() -> None:
    whole = part(0, 4, "stop")
    assert Segments().join(whole) is whole


def test_an_earlier_attempt_is_forgotten() -> None:
    segments = Segments()
    assert segments.join(part(0, 4)) is None
    assert segments.join(part(4, 4, "stop", attempt=1)) is None
    assert segments.join(part(0, 4, attempt=1)) is not None


def test_a_response_is_cut_by_the_mean_log_ratio_of_its_scored_tokens() -> None:
    segments, rule = Segments(), EarlyStop(log_ratio=-1.0, after_tokens=8)
    far, near = part(0, 4, log_ratio=-20.0), part(4, 4, log_ratio=0.0)
    segments.join(far)
    assert not segments.should_cut(far.header, rule), "too early to judge"
    segments.join(near)
    assert segments.should_cut(near.header, rule), "-20 nats over 8 tokens"
    assert not segments.should_cut(near.header, EarlyStop(log_ratio=-2.6, after_tokens=8))
    assert not segments.should_cut(near.header, None)


# --- whole runs ---

SEGMENTS: dict[str, Any] = {"stream_tokens": 4}
SLOWLY = Speeds(rollout=1e-3, score=1e-4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    assert Simulation(recipe(root)).go() == DONE
    return root


def test_a_run_in_segments_learns_what_a_run_in_whole_responses_learns(whole: Path, tmp_path: Path) -> None:
    assert Simulation(recipe(tmp_path, **SEGMENTS), speeds=SLOWLY).go() == DONE
    assert learned(tmp_path) == learned(whole)
    assert order_of(trained(tmp_path)) == order_of(trained(whole))
    for name in ("tokens_generated", "tokens_scored", "tokens_trained"):
        assert sum(line[name] for line in metrics(tmp_path)) == sum(line[name] for line in metrics(whole))


def test_a_response_is_scored_before_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[str] = []
    score = SimulatedScorer.score

    async def spied(self: SimulatedScorer, payload: Any, request: Any) -> Any:
        ends.extend(payload.column("finish").to_pylist())
        return await score(self, payload, request)

    monkeypatch.setattr(SimulatedScorer, "score", spied)
    assert Simulation(recipe(tmp_path, **SEGMENTS), speeds=SLOWLY).go() == DONE
    assert ends.count("") > 20, "segments of responses that still run"


def test_segments_of_one_rollout_are_scored_where_the_ones_before_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scorer remembers the key-values of what it has scored. Scoring takes as long as sampling: the least loaded of
    three is now one and now another. An evaluation has no segments."""
    wrote: dict[str, SimulatedRollout] = {}
    scored: dict[SimulatedRollout, list[SimulatedScorer]] = {}
    write, score = SimulatedRollout.write, SimulatedScorer.score

    def writing(self: SimulatedRollout, request: Any, *arguments: Any) -> Any:
        if request.segment_tokens:
            wrote[request.uid] = self
        return write(self, request, *arguments)

    async def scoring(self: SimulatedScorer, payload: Any, request: Any) -> Any:
        for uid in request.prompts.keys() & wrote.keys():
            scored.setdefault(wrote[uid], []).append(self)
        return await score(self, payload, request)

    monkeypatch.setattr(SimulatedRollout, "write", writing)
    monkeypatch.setattr(SimulatedScorer, "score", scoring)
    speed = Speeds(rollout=0.1, score=0.1)
    settings = recipe(tmp_path, **SEGMENTS, scorer={"teacher": MEMBER | {"members": 3}})
    assert Simulation(settings, speeds=speed).go_in_own_time() == DONE
    assert all(len(scorers) > 20 for scorers in scored.values())
    assert [len(set(scorers)) for scorers in scored.values()] == [1, 1]
    assert len({scorer for scorers in scored.values() for scorer in scorers}) == 2, "two rollouts share none of three"


@pytest.mark.parametrize("bound", [0, 2])
def test_a_rollout_that_dies_between_two_segments_is_leased_again(tmp_path: Path, bound: int) -> None:
    settings = recipe(tmp_path, **SEGMENTS, max_staleness=bound)
    assert Simulation(settings, Assassin("rollout", has_yielded), speeds=SLOWLY).go_in_own_time() == DONE
    assert_each_once(tmp_path)
    assert {row["attempt"] for row in trained(tmp_path)} == {0, 1}


def test_a_lost_segment_resamples_its_response_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_a_value(monkeypatch, SimulatedScorer, "score", 20)
    simulation = Simulation(recipe(tmp_path, **SEGMENTS), speeds=SLOWLY)
    assert simulation.go() == DONE
    assert_each_once(tmp_path)
    assert sum(row["attempt"] for row in trained(tmp_path)) == 1
    assert simulation.run.stage and len(simulation.run.stage.rollouts.intake.segments) == 0


@pytest.mark.parametrize("fault", ["replaced", "resized", "forgetful"])
def test_a_scorer_without_earlier_segments_is_given_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: Batches, fault: str
) -> None:
    """In mid-response: another takes over, or more do, or the one there is has too many."""
    score, unknown, told = SimulatedScorer.score, list[str](), list[str]()

    async def spied(self: SimulatedScorer, payload: Any, request: Any, *earlier: Any) -> Any:
        answer = await score(self, payload, request, *earlier)
        unknown.extend(answer[1].unknown)
        told.extend(answer[1].uids if earlier else ())
        assert not (earlier and answer[1].unknown)
        assert request.channel or not any(payload.column("start").to_pylist()), "attempts may be counted anew"
        return answer

    async def strike(simulation: Simulation) -> None:
        pool = simulation.pools.scorers["teacher"]
        for turn in itertools.count():
            await asyncio.sleep(0.7)
            if fault == "replaced" and pool.members.serving():
                pool.members.replace(pool.members.serving()[0])
            elif fault == "resized":
                await pool.members.resize((3, 1)[turn % 2])

    async def story() -> int:
        striking = asyncio.create_task(strike(simulation))
        code = await simulation.run.execute()
        striking.cancel()
        return code

    monkeypatch.setattr(SimulatedScorer, "score", spied)
    if fault == "forgetful":
        monkeypatch.setattr(scorer, "Beginnings", lambda: Beginnings(tokens=8))
    simulation = Simulation(recipe(tmp_path, **SEGMENTS), speeds=Speeds(rollout=0.1))
    assert in_own_time(story()) == DONE
    assert sorted(told) == sorted(unknown) and len(told) > 5
    assert_each_once(tmp_path)
    batches.assert_trained(trained(tmp_path))


@pytest.mark.parametrize("on_update", ["keep", "abort"])
def test_running_responses_go_on_over_an_update_or_are_sampled_again(tmp_path: Path, on_update: str) -> None:
    speed = Speeds(rollout=2e-3, learn=1e-5)
    settings = recipe(tmp_path, max_staleness=2, on_stale="wait", rollout={"on_update": on_update})
    assert Simulation(settings, speeds=speed).go_in_own_time() == DONE
    assert_each_once(tmp_path)
    rows = trained(tmp_path)
    mixed = [row for row in rows if len(set(row["versions"])) > 1]
    again = [row for row in rows if row["attempt"]]
    assert bool(mixed) == (on_update == "keep") and bool(again) == (on_update == "abort")


def test_a_response_below_the_early_stop_log_ratio_is_cut_and_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = SimulatedScorer.score

    async def disliking(self: SimulatedScorer, payload: Any, request: Any) -> Any:
        scores, header = await score(self, payload, request)
        odd = [int(uid.split(".")[0]) % 2 for uid in header.uids]
        return scores, header._replace(log_ratios=tuple(-50.0 if o else 0.0 for o in odd))

    monkeypatch.setattr(SimulatedScorer, "score", disliking)
    stop = {"log_ratio": -1.0, "after_tokens": 4}
    settings = recipe(tmp_path, stream_tokens=4, early_stop=stop)
    assert Simulation(settings, speeds=SLOWLY).go_in_own_time() == DONE
    assert_each_once(tmp_path)
    rows = trained(tmp_path)
    cut = [row for row in rows if row["finish"] == "cut"]
    assert cut and all(int(row["uid"].split(".")[0]) % 2 for row in cut)
    assert all(4 <= len(row["response_ids"]) < 16 for row in cut)
    counted = sum(line["samples_cut"] for line in metrics(tmp_path))
    assert len(cut) <= counted <= sum(int(row["uid"].split(".")[0]) % 2 for row in rows)


# --- outcomes that come late ---

LATE = expected_order()[9][1]  # the response that is spoken of
NOT_FINITE = "log-probs are not finite"


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[float, str]]:
    """Segments of the first attempt at LATE, by where they start: how long they are scored, and what comes of it.
    All responses are as long as they may be."""
    told: dict[int, tuple[float, str]] = {}
    score = SimulatedScorer.score

    async def late(self: SimulatedScorer, payload: Any, request: Any) -> Any:
        scores, header = await score(self, payload, request)
        (row,) = unpack_samples(payload)
        seconds, reason = told.get(row.start, (0.0, "")) if row.uid == LATE and not row.attempt else (0.0, "")
        await asyncio.sleep(seconds)
        if reason == "lost":
            raise ValueLost("the node that held it is gone")
        return (scores, header._replace(uids=(), log_ratios=None, rejected={LATE: reason}) if reason else header)

    monkeypatch.setattr(SimulatedScorer, "score", late)
    monkeypatch.setattr(rollout, "_length", lambda request, sampling: sampling.max_response_tokens)
    return told


def run_with_verdicts(root: Path) -> Simulation:
    """One rollout, 0.1 s a token: a segment of four comes every 0.4 s."""
    member = {"members": 1, "max_concurrent": 64}
    settings = recipe(root, **SEGMENTS, rollout=member)
    simulation = Simulation(settings, speeds=Speeds(rollout=0.1))
    assert simulation.go_in_own_time() == DONE
    return simulation


def test_a_response_of_which_two_segments_are_rejected_is_skipped_once(
    tmp_path: Path, outcomes: dict[int, tuple[float, str]]
) -> None:
    outcomes |= {0: (0.5, NOT_FINITE), 4: (0.5, NOT_FINITE)}
    simulation = run_with_verdicts(tmp_path)
    assert [text for text in simulation.notices if "skipped" in text] == [f"skipped {LATE}: {NOT_FINITE}"]
    assert sum(line["samples_dropped"] for line in metrics(tmp_path)) == 1
    assert_each_once(tmp_path, skipped={LATE})


@pytest.mark.parametrize("later", ["lost", NOT_FINITE, ""])
def test_a_late_result_of_a_lost_attempt_does_not_touch_the_next(
    tmp_path: Path, outcomes: dict[int, tuple[float, str]], later: str
) -> None:
    """The next attempt is being sampled, by the same rollout, when the second segment of the first is judged."""
    outcomes |= {0: (0.5, "lost"), 4: (1.0, later)}
    simulation = run_with_verdicts(tmp_path)
    assert_each_once(tmp_path)
    (row,) = [row for row in trained(tmp_path) if row["uid"] == LATE]
    assert (row["attempt"], row["finish"], len(row["response_ids"])) == (1, "length", 16)
    assert not simulation.run.progress.skipped
