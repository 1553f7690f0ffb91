"""Whole simulated runs over the carriers from GPU to GPU: members join, leave, die and hang in the middle of a
transfer, and so does the learner."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.learning.learner import Learner
from actors.rollout.rollout import Rollout
from actors.simulated.scorer import SimulatedScorer
from configs.roles.deadlines import Deadlines
from orchestrator.run import DONE, Run
from orchestrator.weights.carriers import Carrier
from orchestrator.weights.transfer.nccl import Broadcast
from orchestrator.weights.transfer.shared import NotOneNode, Shared, check_node
from orchestrator.weights.transfer.to_rollouts import ToRollouts
from tests.unit import simulation
from tests.unit.simulation import STEPS, Simulation, assert_each_once, learned, recipe
from tests.unit.weights.faults import once
from tests.unit.weights.transfers import NETWORK, Network, Receiving, Sending

PATIENCE = 120.0  # seconds


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    NETWORK[0] = Network()
    monkeypatch.setattr(simulation, "SimulatedLearner", Sending)
    monkeypatch.setattr(simulation, "SimulatedRollout", Receiving)
    return NETWORK[0]


@pytest.fixture(scope="module")
def by_object_store(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """What a run over the object store learns."""
    root = tmp_path_factory.mktemp("object_store")
    assert Simulation(recipe(root)).go_in_own_time() == DONE
    return learned(root)


def carrier(name: str, stored: bool = False) -> Carrier:
    return ToRollouts(Broadcast(PATIENCE, 1) if name == "nccl" else Shared(), stored=stored)


def simulated(root: Path, name: str, **changes: Any) -> Simulation:
    return Simulation(recipe(root, **changes), carrier=carrier(name))


def assert_whole(root: Path, network: Network, expected: list[list[Any]] | None) -> None:
    """Every sample is trained once, a version is the same weights wherever it came, and no copy was torn."""
    assert_each_once(root)
    weights: dict[int, set[bytes]] = {}
    for version, data in network.taken:
        weights.setdefault(version, set()).add(data)
    assert weights and all(len(found) == 1 for found in weights.values())
    assert not network.torn and not network.readers
    assert expected is None or learned(root) == expected


def resizing(sizes: Mapping[int, int]) -> Callable[[Run, Mapping[str, Any]], None]:
    """Change the number of rollouts after these steps."""
    tasks: list[asyncio.Task[None]] = []

    def resize(run: Run, line: Mapping[str, Any]) -> None:
        if line["step"] in sizes:
            assert run.pools.rollout is not None
            tasks.append(asyncio.get_running_loop().create_task(run.pools.rollout.members.resize(sizes[line["step"]])))

    return resize


def summary(made: Simulation) -> dict[str, Any]:
    return json.loads((made.directory / "summary.json").read_text())


@pytest.mark.parametrize(
    ("name", "changes"),
    [("nccl", {}), ("nccl", {"max_staleness": 1}), ("ipc", {"learner": {"ranks": 2}}), ("ipc", {"max_staleness": 1})],
    ids=str,
)
def test_a_run_learns_what_it_learns_over_the_object_store(
    network: Network, by_object_store: list[list[Any]], tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    made = simulated(tmp_path, name, **changes)
    assert made.go_in_own_time() == DONE and not made.notices
    assert_whole(tmp_path, network, by_object_store if not changes else None)
    if "max_staleness" not in changes:
        assert {version for version, _ in network.taken} == set(range(STEPS + 1))


def test_members_that_pull_together_share_one_group_for_the_whole_run(network: Network, tmp_path: Path) -> None:
    assert simulated(tmp_path, "nccl").go_in_own_time() == DONE
    assert network.sizes[-1] == 3, "two members and the learner"
    assert network.sizes.count(3) == 1 and len(network.sizes) <= 3, "and not one for each version"


@pytest.mark.parametrize("name", ["nccl", "ipc"])
def test_members_join_and_leave_while_weights_travel(
    network: Network, by_object_store: list[list[Any]], tmp_path: Path, name: str
) -> None:
    made = simulated(tmp_path, name)
    made.on_step = resizing({2: 4, 4: 1})
    assert made.go_in_own_time() == DONE
    assert_whole(tmp_path, network, by_object_store)
    if name == "nccl":
        assert 5 in network.sizes and network.sizes[-1] == 2, "late joiners make another group, and so do leavers"


@pytest.mark.parametrize(
    ("name", "fate", "bound"),
    [
        *((name, fate, 0) for name in ("nccl", "ipc") for fate in ("dies", "hangs", "raises")),
        *((name, "dies", 1) for name in ("nccl", "ipc")),
    ],
)
def test_a_member_that_fails_in_mid_transfer_is_replaced_and_the_learner_goes_on(
    network: Network, by_object_store: list[list[Any]], tmp_path: Path, name: str, fate: str, bound: int
) -> None:
    network.fault = once("member", 3, fate)
    made = simulated(tmp_path, name, max_staleness=bound)
    assert made.go_in_own_time() == DONE
    assert_whole(tmp_path, network, None if bound else by_object_store)
    assert summary(made)["learner_rebuilds"] == 0, "the sender let go"
    restarts = made.pools.all()["rollout"].members.restarts
    assert restarts == 1 if name == "ipc" else 1 <= restarts <= 2, "only who was in the same transfer"


@pytest.mark.parametrize("fate", ["dies", "hangs", "raises"])
def test_a_member_that_fails_before_its_group_is_whole_costs_nobody_else(
    network: Network, by_object_store: list[list[Any]], tmp_path: Path, fate: str
) -> None:
    network.fault = once("joining member", 3, fate)  # the joiner's group is the second, that of all the third
    made = simulated(tmp_path, "nccl")
    made.on_step = resizing({2: 3})
    assert made.go_in_own_time() == DONE
    assert_whole(tmp_path, network, by_object_store)
    assert network.sizes[:3] == [3, 2, 4]
    assert made.pools.all()["rollout"].members.restarts == 1 and summary(made)["learner_rebuilds"] == 0


@pytest.mark.parametrize("fate", ["dies", "hangs"])
@pytest.mark.parametrize("end", ["learner", "opening learner"])
def test_a_learner_that_fails_in_a_transfer_is_built_anew_or_lets_go(
    network: Network, tmp_path: Path, fate: str, end: str
) -> None:
    network.fault = once(end, 2, fate)
    made = simulated(tmp_path, "nccl")
    made.on_step = resizing({2: 3})
    assert made.go_in_own_time() == DONE
    assert_whole(tmp_path, network, None)
    assert not network.fault(end, STEPS), "it has happened"
    assert summary(made)["learner_rebuilds"] == (1 if fate == "dies" else 0)


@pytest.fixture
def scorers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Versions that scorers loaded; asserts that each came in buckets, as from the object store."""
    load, loaded = SimulatedScorer.load, list[int]()

    async def spied(self: SimulatedScorer, version: int, headers: Sequence[Any], *buckets: Any) -> int:
        assert len(headers) == len(buckets) > 0 and all(isinstance(bucket, np.ndarray) for bucket in buckets)
        loaded.append(version)
        return await load(self, version, headers, *buckets)

    monkeypatch.setattr(SimulatedScorer, "load", spied)
    return loaded


def test_scorers_that_follow_the_student_pull_from_the_object_store(
    network: Network, tmp_path: Path, scorers: list[int]
) -> None:
    changes = {"models": {"student": {"path": "/none"}, "teacher": {"weights": "live", "system": "Answer: 42."}}}
    made = Simulation(recipe(tmp_path, **changes), carrier=carrier("nccl", stored=True))
    assert made.go_in_own_time() == DONE
    assert_whole(tmp_path, network, None)
    assert sorted(scorers) == sorted([*range(STEPS + 1)] * 2), "both members, each version once"


def test_averages_go_by_the_object_store(network: Network, tmp_path: Path, scorers: list[int]) -> None:
    changes = {"models": {"student": {"path": "/none"}, "teacher": {"weights": "ema", "system": "Answer: 42."}}}
    made = Simulation(recipe(tmp_path, **changes), carrier=carrier("ipc"))
    assert made.go_in_own_time() == DONE
    assert_whole(tmp_path, network, None)
    assert sorted(scorers) == sorted([*range(STEPS + 1)] * 2), "both members, each version once"


def test_an_end_lets_go_by_itself_before_it_counts_as_hung() -> None:
    deadlines = Deadlines(transfer=5.0)
    for method in ("open_group", "join_group", "send_group", "receive"):
        assert deadlines.of(method) > 5.0 + 10.0
        assert callable(getattr(Learner, method, None) or getattr(Rollout, method, None)), "they are called so"
    assert deadlines.of("load_shared") == deadlines.of("mint_group") == deadlines.load


def test_a_copy_on_another_node_is_refused_by_name() -> None:
    check_node(None, "b")
    check_node("a", "a")
    with pytest.raises(
        NotOneNode, match=r"rollout.carrier: 'ipc' needs one node, the learner is on a and .* on b; .*nccl"
    ):
        check_node("a", "b")
