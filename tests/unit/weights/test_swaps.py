"""Swaps: a frozen model's scorers get another directory's weights during a run, by the recipe or by a command."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from actors.simulated.known import Speeds
from actors.simulated.scorer import SimulatedScorer
from actors.wire.records import SwapRefused
from configs.load import RecipeError, load_recipe, parse_recipe, with_swaps
from configs.schema import Recipe
from orchestrator.pools.suspects import DEATHS
from orchestrator.pools.transport import MemberDied
from orchestrator.run import DONE, Run
from orchestrator.weights.teachers import SwapFailed
from tests.unit.batches import Batches
from tests.unit.recipes import loaded, refusal, tree
from tests.unit.simulation import (
    STEPS,
    Simulation,
    assert_each_once,
    crash_at,
    learned,
    recipe,
)


def swapping(root: Path, swaps: Mapping[int, str], **changes: Any) -> Recipe:
    models = {"student": {"path": "/none"}, "teacher": {"path": "/a", "swaps": dict(swaps)}}
    return recipe(root, models=models, **changes)


def at(step: int, do: Callable[[Run], None]) -> Callable[[Run, Mapping[str, Any]], None]:
    return lambda run, line: do(run) if line["step"] == step else None


def scored_by(batches: Batches) -> dict[int, set[int]]:
    """Step -> versions of the scores that it was trained with."""
    return {step: {by["teacher"] for by in samples.values()} for step, samples in batches.scorers.items()}


def serving(simulation: Simulation) -> list[int]:
    return [member.version for member in simulation.pools.scorers["teacher"].members]


def summary(simulation: Simulation) -> dict[str, Any]:
    return json.loads((simulation.directory / "summary.json").read_text())


def test_on_policy_every_step_is_scored_with_its_own_weights(tmp_path: Path, batches: Batches) -> None:
    simulation = Simulation(swapping(tmp_path, {3: "/b", 5: "/c"}))
    assert simulation.go() == DONE
    assert_each_once(tmp_path)
    assert scored_by(batches) == {1: {0}, 2: {0}, 3: {3}, 4: {3}, 5: {5}, 6: {5}}
    assert serving(simulation) == [5, 5]
    assert [(s["model"], s["step"], s["path"]) for s in summary(simulation)["swaps"]] == [
        ("teacher", 3, "/b"),
        ("teacher", 5, "/c"),
    ]


def test_samples_scored_ahead_keep_their_scores_and_the_learner_keeps_their_heads(
    tmp_path: Path, batches: Batches
) -> None:
    speed = Speeds(rollout=0.2, learn=0.0)
    settings = swapping(
        tmp_path,
        {3: "/b", 4: "/c"},
        max_staleness=2,
        objective={"target": "teacher", "support": "full"},
    )
    simulation, heads, known = Simulation(settings, speeds=speed), set[int](), dict[int, set[int]]()
    load_projection, step = simulation.run.learner.load_projection, simulation.run.learner.step

    async def loads(model: str, version: int, oldest: int, ref: Any) -> None:
        heads.difference_update({head for head in heads if head < oldest})
        heads.add(version)
        await load_projection(model, version, oldest, ref)

    async def steps(batch: Any, number: int, *rest: Any, **more: Any) -> Any:
        known[number] = set(heads)
        return await step(batch, number, *rest, **more)

    simulation.run.learner.load_projection, simulation.run.learner.step = loads, steps  # type: ignore[method-assign]
    assert simulation.go_in_own_time() == DONE
    assert_each_once(tmp_path)
    found = scored_by(batches)
    assert all(found[step] <= known[step] for step in found)
    assert any(0 in found[step] for step in (3, 4)), "some were scored ahead"
    for number, versions in found.items():
        assert all(
            settings.swap_at("teacher", number - 2) <= v <= settings.swap_at("teacher", number) for v in versions
        )
    assert known[5] == {0, 3, 4} and known[6] == {3, 4}, "heads that nothing needs any more are let go"


def test_a_command_swaps_after_the_step_under_way_and_is_written_to_the_recipe(
    tmp_path: Path, batches: Batches
) -> None:
    simulation = Simulation(swapping(tmp_path, {}), on_step=at(2, lambda run: run.swaps.ask({"teacher": "/b"})))
    assert simulation.go() == DONE
    assert scored_by(batches) == {1: {0}, 2: {0}, 3: {0}, 4: {4}, 5: {4}, 6: {4}}
    assert load_recipe(simulation.directory / "recipe.yaml").models["teacher"].swaps == {4: "/b"}
    spec = simulation.pools.scorers["teacher"].startup.spec(0)
    assert spec.arguments[0][-1] == 4, "who joins now starts with it"


def test_a_member_of_a_kind_that_joins_after_a_swap_starts_with_it(tmp_path: Path, batches: Batches) -> None:
    wide = {"kinds": {"wide": {"resources": {"cpus": 4}}}}
    simulation = Simulation(swapping(tmp_path, {4: "/b"}, scorer={"teacher": wide}))
    startup = simulation.pools.scorers["teacher"].startup
    before = startup.kinds["wide"](0)
    assert simulation.go() == DONE
    assert scored_by(batches) == {1: {0}, 2: {0}, 3: {0}, 4: {4}, 5: {4}, 6: {4}}
    after = startup.kinds["wide"](0)
    assert (before.arguments[0][-1], after.arguments[0][-1], after.resources.cpus) == (0, 4, 4)


@pytest.mark.parametrize("refusing", [1, 2])
def test_a_command_that_cannot_be_served_leaves_all_members_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: Batches, refusing: int
) -> None:
    """The first member refuses, or the second when the first has swapped."""
    refuse(monkeypatch, refusing)
    simulation = Simulation(swapping(tmp_path, {}), on_step=at(2, lambda run: run.swaps.ask({"teacher": "/bad"})))
    assert simulation.go() == DONE
    assert set().union(*scored_by(batches).values()) == {0} and serving(simulation) == [0, 0]
    assert [n for n in simulation.notices if "/bad cannot be served" in n and "came to nothing" in n]
    assert load_recipe(simulation.directory / "recipe.yaml").models["teacher"].swaps == {}
    assert summary(simulation)["swaps"] == [] and summary(simulation)["restarts"] == {}


def test_a_swap_of_the_recipe_that_cannot_be_served_ends_the_run_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, 1)
    with pytest.raises(BaseException) as raised:
        Simulation(swapping(tmp_path, {3: "/bad"})).go()
    error = raised.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, SwapFailed) and "models.teacher.swaps.3: /bad cannot be served" in str(error)


def test_a_command_replaces_the_recipes_swap_and_restores_it_if_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: Batches
) -> None:
    refuse(monkeypatch, 1)
    simulation = Simulation(
        swapping(tmp_path, {4: "/b"}), on_step=at(2, lambda run: run.swaps.ask({"teacher": "/bad"}))
    )
    assert simulation.go() == DONE
    assert load_recipe(simulation.directory / "recipe.yaml").models["teacher"].swaps == {4: "/b"}
    assert scored_by(batches)[3] == {0} and scored_by(batches)[4] == {4}


def test_a_newer_command_drops_an_older_one_that_a_rewind_made_due_again(tmp_path: Path) -> None:
    simulation = Simulation(swapping(tmp_path, {5: "/recipes"}))
    run, found = simulation.run, simulation.run.recipe
    simulation.directory.mkdir()
    run.progress.step = 3
    run.swaps.ask({"teacher": "/older"})
    assert run.swaps.recipe.models["teacher"].swaps == {5: "/older"}
    run.progress.step = 1
    run.swaps.ask({"teacher": "/newer"})
    assert run.swaps.recipe.models["teacher"].swaps == found.models["teacher"].swaps | {3: "/newer"}
    asyncio.run(run.swaps.write())
    assert load_recipe(simulation.directory / "recipe.yaml") == run.swaps.recipe


def refuse(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The `times`-th member that is asked to serve /bad refuses."""
    swap, asked = SimulatedScorer.swap, []

    async def refusing(scorer: SimulatedScorer, version: int, model: str) -> int:
        if model == "/bad":
            asked.append(scorer)
            if len(asked) == times:
                raise SwapRefused("/bad cannot be served: no such file")
        return await swap(scorer, version, model)

    monkeypatch.setattr(SimulatedScorer, "swap", refusing)


def test_a_directory_that_kills_its_members_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: Batches
) -> None:
    swap = SimulatedScorer.swap

    async def killing(scorer: SimulatedScorer, version: int, model: str) -> int:
        if model == "/huge":
            raise MemberDied("out of memory")
        return await swap(scorer, version, model)

    monkeypatch.setattr(SimulatedScorer, "swap", killing)
    simulation = Simulation(swapping(tmp_path, {}), on_step=at(2, lambda run: run.swaps.ask({"teacher": "/huge"})))
    assert simulation.go() == DONE
    assert_each_once(tmp_path)
    assert simulation.pools.scorers["teacher"].members.restarts == DEATHS
    assert set().union(*scored_by(batches).values()) == {0} and set(serving(simulation)) == {0}
    assert [n for n in simulation.notices if "came to nothing" in n and "out of memory" in n]


@pytest.mark.parametrize("killed", [2, 3])
def test_idle_members_lost_with_their_node_do_not_count_against_a_directory(
    tmp_path: Path, batches: Batches, killed: int
) -> None:
    """The node is lost before a swap, or before the learner gets a head again so as to drop the one before."""
    settings = swapping(
        tmp_path,
        {3: "/b"},
        objective={"target": "teacher", "support": "full"},
        scorer={"teacher": {"members": DEATHS}},
    )
    simulation = Simulation(settings)
    follow = simulation.run.roles.teachers.follow

    async def follows(step: int) -> None:
        if step == killed + 1:
            for member in simulation.pools.scorers["teacher"].members:
                await simulation.transport.kill(member.actors)
        await follow(step)

    simulation.run.roles.teachers.follow = follows  # type: ignore[method-assign]
    assert simulation.go() == DONE
    assert simulation.pools.scorers["teacher"].members.restarts >= DEATHS
    assert scored_by(batches) == {1: {0}, 2: {0}, 3: {3}, 4: {3}, 5: {3}, 6: {3}}
    assert set(serving(simulation)) == {3}


def test_a_member_that_dies_while_it_swaps_is_replaced_by_one_that_starts_with_the_new_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: Batches
) -> None:
    swap, asked, started = SimulatedScorer.swap, [], starts(monkeypatch)

    async def dying(scorer: SimulatedScorer, version: int, model: str) -> int:
        if model == "/b":
            asked.append(scorer)
            if len(asked) == 2:  # the first has shown that the directory can be served
                raise MemberDied("struck by lightning")
        return await swap(scorer, version, model)

    monkeypatch.setattr(SimulatedScorer, "swap", dying)
    simulation = Simulation(swapping(tmp_path, {3: "/b"}))
    assert simulation.go() == DONE
    assert started == [0, 0, 3] and scored_by(batches)[3] == {3} and serving(simulation) == [3, 3]


def test_a_rollout_that_joins_during_a_swap_samples_nothing_before_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: Batches
) -> None:
    """It has the student's new version at once, while the scorers still serve the old teacher."""
    swap, joining = SimulatedScorer.swap, list[asyncio.Task[None]]()

    async def slow(scorer: SimulatedScorer, version: int, model: str) -> int:
        if version and not joining:
            joining.append(asyncio.get_running_loop().create_task(simulation.pools.all()["rollout"].members.resize(3)))
        await asyncio.sleep(60.0)
        return await swap(scorer, version, model)

    monkeypatch.setattr(SimulatedScorer, "swap", slow)
    simulation = Simulation(swapping(tmp_path, {3: "/b"}))
    assert simulation.go_in_own_time() == DONE
    assert joining[0].done() and scored_by(batches) == {1: {0}, 2: {0}, 3: {3}, 4: {3}, 5: {3}, 6: {3}}


def starts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Versions that scorers started from now on start with."""
    start, found = SimulatedScorer.start, list[int]()

    async def starting(scorer: SimulatedScorer) -> None:
        found.append(scorer._version)
        await start(scorer)

    monkeypatch.setattr(SimulatedScorer, "start", starting)
    return found


@pytest.mark.parametrize(("crashed", "started"), [(3, 0), (5, 4)])
def test_a_resume_scores_each_step_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: Batches, crashed: int, started: int
) -> None:
    """From the checkpoint of step 2 (before the swap) or of step 4 (after it)."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert Simulation(swapping(whole, {4: "/b"})).go() == DONE
    expected = scored_by(batches)

    def ask_and_crash(run: Run, line: Mapping[str, Any]) -> None:
        if line["step"] == 2:
            run.swaps.ask({"teacher": "/b"})
        crash_at(crashed)(run, line)

    batches.scorers.clear()
    with pytest.raises(ExceptionGroup):
        Simulation(swapping(broken, {}), on_step=ask_and_crash).go()
    found, resumed = starts(monkeypatch), Simulation(load_recipe(broken / "sim" / "recipe.yaml"))
    assert resumed.go() == DONE
    assert found == [started, started]
    assert scored_by(batches) == expected and serving(resumed) == [4, 4]
    assert learned(broken) == learned(whole)


@pytest.mark.parametrize(("killed", "heads"), [(1, [0, 0, 4, 4]), (4, [0, 4, 4, 0, 4, 4])])
def test_a_rebuilt_learner_resets_the_scorers_and_gets_the_heads_again(
    tmp_path: Path, batches: Batches, killed: int, heads: list[int]
) -> None:
    """It dies before or after the swap and restarts before it: repeated steps are scored as the first time. A head is
    sent again when the one before it is dropped."""
    deaths: list[asyncio.Task[None]] = []

    def kill(run: Run) -> None:
        if not deaths:
            actors = simulation.pools.learner.members[0].actors
            deaths.append(asyncio.get_running_loop().create_task(simulation.transport.kill(actors)))

    settings = swapping(tmp_path, {4: "/b"}, objective={"target": "teacher", "support": "full"})
    simulation, given = Simulation(settings, on_step=at(killed, kill)), []
    load_projection = simulation.run.learner.load_projection

    async def loads(model: str, version: int, oldest: int, ref: Any) -> None:
        given.append(version)
        await load_projection(model, version, oldest, ref)

    simulation.run.learner.load_projection = loads  # type: ignore[method-assign]
    assert simulation.go() == DONE
    assert_each_once(tmp_path)
    assert scored_by(batches) == {1: {0}, 2: {0}, 3: {0}, 4: {4}, 5: {4}, 6: {4}}
    assert summary(simulation)["learner_rebuilds"] == 1
    assert given == heads


# --- what may be swapped ---


def test_swaps_of_a_recipe_are_validated() -> None:
    longer = {"run.steps": 9, "models.teacher.swaps": {5: "/b", "7": "/c"}}
    found = loaded(longer)
    assert [found.swap_at("teacher", step) for step in (1, 4, 5, 6, 7, 9)] == [0, 0, 5, 5, 7, 7]
    assert [found.path_of("teacher", swap) for swap in (0, 5, 7)] == ["/t", "/b", "/c"]
    assert with_swaps(found, 5, {"teacher": None}).models["teacher"].swaps == {7: "/c"}
    assert with_swaps(found, 5, {"teacher": "/d"}).models["teacher"].swaps == {5: "/d", 7: "/c"}
    with pytest.raises(RecipeError, match="nobody: no such model in this run"):
        with_swaps(found, 5, {"nobody": "/d"})
    with pytest.raises(RecipeError, match="10 is beyond the last step, 9"):
        with_swaps(found, 10, {"teacher": "/d"})


def test_a_swap_before_step_two_is_refused() -> None:
    assert "models.teacher.swaps.1: is wrong as a key: input should be greater than or equal to 2" in refusal(
        {"models.teacher.swaps": {1: "/b"}}
    )


def test_paths_of_swaps_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    import yaml

    whole = tree({"models.teacher.swaps": {2: "second"}})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(whole))
    assert load_recipe(tmp_path / "r.yaml").path_of("teacher", 2) == str((tmp_path / "second").resolve())
    assert parse_recipe(whole).models["teacher"].swaps == {2: "second"}


def test_the_last_steps_are_counted_from_the_step_under_way(tmp_path: Path) -> None:
    refused: list[str] = []

    def ask(run: Run) -> None:
        with pytest.raises(RecipeError) as error:
            run.swaps.ask({"teacher": "/b"})
        refused.append(str(error.value))

    assert Simulation(swapping(tmp_path, {}), on_step=at(STEPS - 1, ask)).go() == DONE
    assert [line for line in refused if f"beyond the last step, {STEPS}" in line]
