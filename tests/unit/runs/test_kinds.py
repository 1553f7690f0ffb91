"""Whole runs whose roles have members of two kinds: all work, one of a kind dies at work, and nothing is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from configs.load import parse_recipe
from configs.schema import Recipe
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.run import DONE, STOPPED, Run
from tests.unit.runs.deaths import VISIBLE, Assassin, has_yielded
from tests.unit.simulation import Simulation, assert_each_once, learned, recipe, stop_at, trained

ROLES = ("rollout", "scorer.teacher")


def mixed(root: Path) -> Recipe:
    wide = {"members": 1, "resources": {"cpus": 4}}
    return recipe(
        root,
        rollout={"members": 2, "max_concurrent": 2, "kinds": {"wide": wide | {"max_concurrent": 4}}},
        scorer={
            "teacher": {"members": 1, "max_queued_tokens": 64, "kinds": {"wide": wide | {"max_queued_tokens": 256}}}
        },
    )


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Load that members were given, by role and kind."""
    found: Counter[tuple[str, str]] = Counter()
    add_load = Pool.add_load

    def counted(self: Pool, member: PoolMember, load: int) -> None:
        found[self.role, member.kind] += load
        add_load(self, member, load)

    monkeypatch.setattr(Pool, "add_load", counted)
    return found


def kinds(simulation: Simulation, role: str) -> Counter[str]:
    return Counter(member.kind for member in simulation.pools.all()[role].members.serving())


def test_members_of_each_kind_work_and_steps_are_those_of_a_role_of_one_kind(
    uninterrupted: Path, tmp_path: Path, worked: Counter[tuple[str, str]]
) -> None:
    simulation = Simulation(mixed(tmp_path), speeds=VISIBLE)
    assert simulation.go() == DONE
    assert learned(tmp_path) == learned(uninterrupted)
    assert_each_once(tmp_path)
    assert kinds(simulation, "rollout") == {"": 2, "wide": 1}
    assert kinds(simulation, "scorer.teacher") == {"": 1, "wide": 1}
    assert worked["rollout", "wide"] > worked["rollout", ""] / 2 > 0, "it has as many slots as the two others"
    assert worked["scorer.teacher", "wide"] > 0 and worked["scorer.teacher", ""] > 0


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", ["", "wide"])
def test_a_member_that_dies_at_work_is_replaced_by_one_of_its_kind(
    uninterrupted: Path, tmp_path: Path, role: str, kind: str
) -> None:
    def ready(run: Run, member: PoolMember) -> bool:
        return member.kind == kind and member.load > 0 and (role != "rollout" or has_yielded(run, member))

    simulation = Simulation(mixed(tmp_path), Assassin(role, ready), speeds=VISIBLE)
    before = {"rollout": {"": 2, "wide": 1}, "scorer.teacher": {"": 1, "wide": 1}}
    assert simulation.go() == DONE
    pool = simulation.pools.all()[role]
    assert pool.members.restarts == 1 and [m.kind for m in pool.members if m.restarts] == [kind]
    assert {role: kinds(simulation, role) for role in ROLES} == before
    assert_each_once(tmp_path)
    if role == "rollout":
        assert {row["attempt"] for row in trained(tmp_path)} == {0, 1}
    else:
        assert learned(tmp_path) == learned(uninterrupted)


def test_a_run_that_goes_on_has_the_members_of_its_recipe(uninterrupted: Path, tmp_path: Path) -> None:
    assert Simulation(mixed(tmp_path), stop_at(3)).go() == STOPPED
    again = Simulation(parse_recipe(mixed(tmp_path).model_dump(mode="json")))
    assert again.go() == DONE and learned(tmp_path) == learned(uninterrupted)
    assert kinds(again, "rollout") == {"": 2, "wide": 1}
