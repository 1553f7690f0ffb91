"""Prompts and samples that kill their members are found, skipped with a reason, and not sampled again."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.simulated.known import Speeds
from actors.simulated.learner import SimulatedLearner
from actors.simulated.reward import SimulatedReward
from actors.simulated.rollout import SimulatedRollout
from actors.simulated.scorer import SimulatedScorer
from actors.wire.records import Request, unpack_samples
from configs.schema import Recipe
from orchestrator.evaluation.heldout import HELDOUT_INDEX
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.pools.suspects import DEATHS, SUSPECTED, Suspects
from orchestrator.pools.transport import LocalTransport, MemberDied, ValueLost
from orchestrator.run import DONE, STOPPED, Run
from orchestrator.samples.flow import Flow
from tests.unit.chaos import Nodes, lose_before_the_learner
from tests.unit.chaos import poison as poison_sample
from tests.unit.simulation import (
    EACH,
    GROUPS,
    HELDOUT,
    STEPS,
    Simulation,
    assert_each_once,
    expected_order,
    metrics,
    order_of,
    recipe,
    stop_at,
    trained,
)

POISONED = next(uid for step, uid, _ in expected_order() if step == "step_000003")
PROMPT = next(prompt for _, uid, prompt in expected_order() if uid == POISONED)
GROUP = [uid for _, uid, prompt in expected_order(4) if prompt == PROMPT]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Prompts that kill every rollout that is asked for them."""
    prompts, write = [PROMPT], SimulatedRollout.write

    async def fatal(self: SimulatedRollout, request: Request, *arguments: Any) -> AsyncIterator[Any]:
        if request.prompt_ids in prompts:
            raise MemberDied("out of memory")
        async for row in write(self, request, *arguments):
            yield row

    monkeypatch.setattr(SimulatedRollout, "write", fatal)
    return prompts


def restarts(simulation: Simulation) -> int:
    pool = simulation.pools.rollout
    assert pool is not None
    return pool.members.restarts


def summary(simulation: Simulation) -> dict[str, Any]:
    return json.loads((simulation.directory / "summary.json").read_text())


class StoppedWhen(Simulation):
    """A run that is stopped when a notice says something."""

    def __init__(self, said: str, settings: Recipe, speeds: Speeds | None = None) -> None:
        super().__init__(settings, speeds=speeds or Speeds())
        self._said = said

    def notice(self, text: str) -> None:
        super().notice(text)
        if self._said in text:
            self.run.stop()


def all_but(uids: Sequence[str], steps: int) -> list[tuple[str, str, list[int]]]:
    return [entry for entry in expected_order(steps) if entry[1] not in uids]


def test_a_poisoned_prompt_is_named_and_all_others_are_trained(tmp_path: Path, poison: list[list[int]]) -> None:
    simulation = Simulation(recipe(tmp_path, run={"steps": 4}))
    assert simulation.go_in_own_time() == DONE
    assert order_of(trained(tmp_path)) == all_but(GROUP, 4)
    assert summary(simulation)["skipped"] == dict.fromkeys(GROUP, "quarantined: 3 members of rollout died of it")
    halved = 1  # death in a cell with the other suspect, before each of them runs alone
    assert restarts(simulation) == SUSPECTED + halved + DEATHS
    assert sum(line["samples_dropped"] for line in metrics(tmp_path)) == EACH


def test_a_step_of_a_poisoned_prompt_alone_is_made_of_the_next(tmp_path: Path, poison: list[list[int]]) -> None:
    """And is after a resume, which counts the steps by what was trained."""
    settings = recipe(tmp_path, batch={"prompts_per_step": 1}, run={"steps": GROUPS * STEPS}, max_staleness=1)
    index = int(POISONED.split(".")[0])
    first = Simulation(settings, stop_at(index + 3))
    assert first.go() == STOPPED
    again = Simulation(settings)
    assert again.go() == DONE
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, GROUPS * STEPS + 1))
    groups = [int(row["uid"].split(".")[0]) for row in trained(tmp_path)]
    assert sorted(groups) == sorted([i for i in range(GROUPS * STEPS + 1) if i != index] * EACH)
    assert set(summary(again)["skipped"]) == set(GROUP)


def test_a_resume_knows_what_kills_its_members(tmp_path: Path, poison: list[list[int]]) -> None:
    """The run is stopped when the group is found guilty and not trained yet; others may be trained before it."""
    settings = recipe(tmp_path, run={"steps": 6}, max_staleness=1)
    first = StoppedWhen("quarantined", settings)
    assert first.go() == STOPPED
    again = Simulation(settings)
    assert again.go() == DONE
    assert restarts(again) == 0, "nobody died of it again"
    assert sorted(u for _, u, _ in order_of(trained(tmp_path))) == sorted(u for _, u, _ in all_but(GROUP, 6))
    assert set(summary(again)["skipped"]) == set(GROUP)


def test_a_stop_right_after_a_checkpoint_saves_whom_members_died_of_and_what_was_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 2 is saved, members die while step 3 is sampled, and no step follows: its checkpoint is written anew."""
    poison_sample(monkeypatch, POISONED, 10.0)
    settings = recipe(tmp_path, checkpoint={"every": 1})
    first = StoppedWhen("quarantined", settings)
    assert first.go_in_own_time() == STOPPED
    assert first.run.progress.step == 2 and restarts(first) >= DEATHS
    state = json.loads((tmp_path / "sim" / "checkpoints" / "step_2" / "state.json").read_text())
    assert dict(state["suspects"]["alone"])[int(POISONED.split(".")[0])] == DEATHS
    assert set(state["skipped"]) == {POISONED}
    again = Simulation(settings)
    assert again.go_in_own_time() == DONE
    assert restarts(again) == 0, "nobody died of it again"
    assert set(summary(again)["skipped"]) == set(GROUP), "a group that is guilty is not asked for any more"


MATE = next(uid for uid in GROUP if uid != POISONED)
SLOWLY = Speeds(rollout=0.1)
AHEAD: dict[str, Any] = {"max_staleness": 1}


def assert_skipped_once(root: Path, simulation: Simulation, uids: Sequence[str]) -> None:
    assert summary(simulation)["skipped"] == dict.fromkeys(uids, "quarantined: 3 members of rollout died of it")
    assert sum("skipped" in text for text in simulation.notices) == len(uids)
    assert sum(line["samples_dropped"] for line in metrics(root)) == len(uids)
    assert_each_once(root, STEPS, uids)


@pytest.mark.parametrize(
    ("on_stale", "lost"), [("wait", [POISONED]), ("mask_tokens", [POISONED, MATE]), ("drop", [POISONED, MATE])]
)
def test_a_good_sample_that_grows_too_old_beside_a_poisoned_one_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_stale: str, lost: list[str]
) -> None:
    poison_sample(monkeypatch, POISONED, 10.0)
    simulation = Simulation(recipe(tmp_path, **AHEAD, on_stale=on_stale), speeds=SLOWLY)
    assert simulation.go_in_own_time() == DONE
    assert_skipped_once(tmp_path, simulation, lost)


@pytest.mark.parametrize("changes", [{"max_staleness": 0}, {"on_stale": "wait"}], ids=["on-policy", "wait"])
def test_a_good_sample_that_is_lost_beside_a_poisoned_one_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    poison_sample(monkeypatch, POISONED, 10.0)
    lose_before_the_learner(monkeypatch, MATE)
    simulation = Simulation(recipe(tmp_path, **AHEAD | changes), speeds=SLOWLY)
    assert simulation.go_in_own_time() == DONE
    assert_skipped_once(tmp_path, simulation, GROUP)


def test_a_resume_waits_for_no_sample_of_a_poisoned_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is stopped when the good sample is given up too, with steps to go."""
    poison_sample(monkeypatch, POISONED, 1.0)
    settings = recipe(tmp_path, **AHEAD, on_stale="drop", run={"steps": 2 * STEPS})
    first = StoppedWhen(MATE, settings, SLOWLY)
    assert first.go_in_own_time() == STOPPED
    again = Simulation(settings, speeds=SLOWLY)
    assert again.go_in_own_time() == DONE and restarts(again) == 0
    assert set(summary(again)["skipped"]) == set(GROUP)
    assert_each_once(tmp_path, 2 * STEPS, GROUP)


def test_a_sample_skipped_before_a_resume_and_good_after_it_is_not_reported(tmp_path: Path) -> None:
    """A skipped sample of a group that no step has trained is judged anew."""
    settings = recipe(tmp_path, max_staleness=2)
    first = Simulation(settings, stop_at(2))
    skipped_then: dict[str, str] = {}

    def skip_ahead(run: Run, line: Mapping[str, Any]) -> None:
        if line["step"] == 2 and run.stage is not None:
            uid = f"{GROUPS * STEPS - 1:08d}.000"  # of the last group
            run.progress.skipped[uid] = skipped_then[uid] = "a passing whim"
            run.stop()

    first.on_step = skip_ahead
    assert first.go() == STOPPED and skipped_then
    again = Simulation(settings)
    assert again.go() == DONE and summary(again)["skipped"] == {}


def test_a_heldout_prompt_that_kills_its_rollout_is_left_out_of_every_evaluation(
    tmp_path: Path, poison: list[list[int]]
) -> None:
    poison[:] = [HELDOUT[1].ids["student"]]
    simulation = Simulation(recipe(tmp_path))
    assert simulation.go() == DONE
    others = [p.ids["student"] for p in HELDOUT if p is not HELDOUT[1]]
    for when in ("eval_before", "eval_after"):
        assert [row["prompt_ids"] for row in trained(tmp_path, when)] == others
    assert list(summary(simulation)["skipped"]) == ["90000001.000"]
    assert restarts(simulation) <= SUSPECTED + DEATHS
    assert order_of(trained(tmp_path)) == expected_order()


@pytest.mark.parametrize(
    ("cls", "method", "role"), [(SimulatedScorer, "score", "scorer.teacher"), (SimulatedReward, "reward", "reward")]
)
def test_a_sample_that_kills_its_scorer_or_reward_worker_is_named_and_its_neighbours_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls: type, method: str, role: str
) -> None:
    whole = getattr(cls, method)

    def fatal(self: Any, payload: Any, *rest: Any) -> Any:
        asked = rest[0].prompts if method == "score" else rest[1]
        if POISONED in asked and any(sample.uid == POISONED for sample in unpack_samples(payload)):
            raise MemberDied("segmentation fault")
        return whole(self, payload, *rest)

    monkeypatch.setattr(cls, method, fatal)
    simulation = Simulation(recipe(tmp_path, stream={"coalesce_samples": 8}))
    assert simulation.go() == DONE
    assert order_of(trained(tmp_path)) == all_but([POISONED], STEPS)
    assert list(summary(simulation)["skipped"]) == [POISONED]
    assert f"{DEATHS} members of {role} died of it" in summary(simulation)["skipped"][POISONED]


def test_members_that_were_dead_before_they_were_asked_blame_nobody(tmp_path: Path) -> None:
    """All scorers but one vanish at once, and so does what takes their place: a suspect is asked of living ones."""

    async def story(pool: Pool, transport: LocalTransport) -> list[Any]:
        await pool.members.start(2 * DEATHS)
        for member in pool.members[:-1]:
            await transport.kill(member.actors)
        return await pool.call("ping", patience="living")

    transport = LocalTransport()
    simulation = Simulation(recipe(tmp_path), transport=transport)
    assert asyncio.run(story(simulation.pools.scorers["teacher"], transport))


def test_suspects_of_trained_groups_are_forgotten(tmp_path: Path) -> None:
    """Their deaths would be kept, and saved, for as long as the run goes on."""
    kept: list[set[int]] = []

    def on_step(run: Run, line: Mapping[str, Any]) -> None:
        run.progress.suspects.died({line["step"] * GROUPS, line["step"] * GROUPS + 1})
        kept.append({*run.progress.suspects.deaths, *run.progress.suspects.alone})

    assert Simulation(recipe(tmp_path), on_step).go() == DONE
    assert kept == [{step * GROUPS, step * GROUPS + 1} for step in range(1, STEPS + 1)]


def test_deaths_that_an_evaluation_outlived_count_in_no_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each evaluation the member that has the first held-out prompt dies once."""
    simulation = Simulation(recipe(tmp_path, run={"steps": 4}, evaluate={"every": 1}))
    submit, first, phases, struck = Flow.submit, f"{HELDOUT_INDEX:08d}.000", [""], set[str]()
    monkeypatch.setattr(simulation, "phase", phases.append)

    async def deadly(self: Flow, pool: Pool, member: PoolMember, channel: str, tickets: Any, *more: Any) -> None:
        if any(ticket.uid == first for ticket, _ in tickets) and phases[-1] not in struck:
            struck.add(phases[-1])
            await simulation.transport.kill(member.actors)
            simulation.run.progress.suspects.died({HELDOUT_INDEX})
        await submit(self, pool, member, channel, tickets, *more)

    monkeypatch.setattr(Flow, "submit", deadly)
    assert simulation.go_in_own_time() == DONE
    assert len(struck) > DEATHS and summary(simulation)["skipped"] == {}


def test_what_two_lineages_know_of_suspects_adds_up() -> None:
    here, there = Suspects(), Suspects()
    for _ in range(DEATHS):
        assert not here.guilty(7)
        here.died({7})
    there.died({7, 8})
    there.acquit(7)  # it knows of one death
    there.died({7, 8})
    there.recall(json.loads(json.dumps(here.to_state())))
    assert there.guilty(7) and there.deaths == {7: DEATHS, 8: 2}
    there.acquit(7)
    there.acquit(8)
    assert there.guilty(7) and there.deaths == {7: DEATHS}


def test_a_batch_that_never_comes_whole_is_sampled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its payloads can be had, and never all of them."""
    fetch = SimulatedLearner.fetch

    def fail(self: SimulatedLearner, *payloads: Any) -> None:
        first = [s for payload in payloads if "response_ids" in payload.schema.names for s in unpack_samples(payload)]
        if len(payloads) > 1 and any(sample.uid == POISONED and not sample.attempt for sample in first):
            raise ValueLost("timed out")
        fetch(self, *payloads)

    monkeypatch.setattr(SimulatedLearner, "fetch", fail)
    assert Simulation(recipe(tmp_path)).go() == DONE
    assert order_of(trained(tmp_path)) == expected_order()
    assert {row["step"] for row in trained(tmp_path) if row["attempt"]} == {"step_000003"}


# --- a learner that dies where nobody asks it ---


def test_a_version_that_is_lost_with_its_learner_is_met_by_a_joiner_alone(tmp_path: Path) -> None:
    """The only rollout goes down with the node of the learner: its successor finds that nobody can give it the version,
    and no batch would ever come."""
    struck: list[int] = []

    def strike(run: Run, line: Mapping[str, Any]) -> None:
        if line["step"] == 3 and not struck:
            struck.append(line["step"])
            rollouts = run.pools.rollout
            assert rollouts is not None
            gone = (*rollouts.members[0].actors, *run.pools.learner.members[0].actors)
            asyncio.get_running_loop().create_task(transport.lose(gone))

    transport = Nodes(random.Random(3))
    simulation = Simulation(recipe(tmp_path, rollout={"members": 1}), strike, transport=transport)
    assert simulation.go_in_own_time() == DONE and struck
    assert summary(simulation)["learner_rebuilds"] == 1
    assert_each_once(tmp_path)
    assert simulation.pools.rollout is not None and len(simulation.pools.rollout.members.serving()) == 1
