"""Scorers that serve wrong weights in a run, simulated and real: found by their scores of fixed texts, and replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.scoring.scorer import Scorer
from actors.simulated.scorer import SimulatedScorer
from configs.roles.scorer import Scorer as ScorerConfig
from configs.roles.sizes import Resources
from orchestrator.pools.pool import Pool
from orchestrator.pools.pools import Pools
from orchestrator.pools.transport import GangSpec, LocalTransport, MemberDied
from orchestrator.run import DONE, Run
from orchestrator.weights.canaries import FLOORS, Occasion
from orchestrator.weights.canary_watch import CanaryWatch, TeacherWrong
from tests.unit.scoring.stub_vllm import Logprobs, right, stand_in
from tests.unit.simulation import Simulation, learned, metrics, recipe
from tests.unit.weights.test_canaries import off

# Whole runs.


class Ward:
    """Simulated scorers in the order in which they were made, and the error of each."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.members: list[SimulatedScorer] = []
        self.ill: dict[int, float] = {}  # by number: nats that are added to whatever it gives
        self.repeats: list[bool] = []  # whether each reading was to be repeated in other batches
        self.on_wake: Callable[[int], None] = lambda number: None
        self.born: Callable[[int], None] = lambda number: None
        make, ask = SimulatedScorer.__init__, SimulatedScorer.canary

        def made(scorer: SimulatedScorer, *args: Any) -> None:
            make(scorer, *args)
            self.members.append(scorer)
            self.born(len(self.members) - 1)

        async def asked(scorer: SimulatedScorer, *args: Any) -> list[list[float]]:
            self.repeats.append(args[1])
            by, readings = self.ill.get(self.members.index(scorer), 0.0), await ask(scorer, *args)
            return [off(scorer._version * 0.5 + by, reading) for reading in readings]

        async def awake(scorer: SimulatedScorer) -> None:
            self.on_wake(self.members.index(scorer))

        patch.setattr(SimulatedScorer, "__init__", made)
        patch.setattr(SimulatedScorer, "canary", asked)
        patch.setattr(SimulatedScorer, "wake", awake)


@pytest.fixture
def ward(monkeypatch: pytest.MonkeyPatch) -> Ward:
    return Ward(monkeypatch)


ONE: dict[str, Any] = {"scorer": {"teacher": {"members": 1}}}


def ends(simulation: Simulation) -> BaseException:
    with pytest.raises(BaseException) as raised:
        simulation.go()
    error: BaseException = raised.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def teacher(simulation: Simulation) -> Pool:
    return simulation.pools.scorers["teacher"]


def numbers(simulation: Simulation) -> list[int]:
    return sorted(m.number for m in teacher(simulation).members.serving())


def at(step: int, do: Callable[[Run], Any]) -> Callable[[Run, Mapping[str, Any]], None]:
    return lambda run, line: do(run) if line["step"] == step else None


def kill(run: Run) -> None:
    pool = run.pools.scorers["teacher"]
    asyncio.get_running_loop().create_task(pool.transport.kill(pool.members[0].actors))


@pytest.mark.parametrize("objective", ["frozen", "live", "ema"])
def test_right_scorers_are_never_replaced(tmp_path: Path, ward: Ward, objective: str) -> None:
    models: dict[str, Any] = {"student": {"path": "/none"}, "teacher": {"weights": objective}}
    models["teacher"] |= {"path": "/none", "swaps": {3: "/b"}} if objective == "frozen" else {}
    models["teacher"] |= {"decay": 0.9} if objective == "ema" else {}
    models["teacher"] |= {"system": "Think."} if objective == "live" else {}
    simulation = Simulation(recipe(tmp_path, models=models))
    assert simulation.go() == DONE
    assert numbers(simulation) == [0, 1] and not [n for n in simulation.notices if "fixed texts" in n]
    assert ward.repeats[0] and not ward.repeats[-1], "what other batches change is measured once"


def test_a_half_loaded_replica_is_replaced_before_it_scores(tmp_path: Path, ward: Ward) -> None:
    ward.ill[1] = -0.5
    simulation = Simulation(recipe(tmp_path))
    assert simulation.go() == DONE
    assert numbers(simulation) == [2, 3], "nobody knows which of two is right"
    assert [n for n in simulation.notices if "differ by 0.5 nats a token" in n]
    assert max(line["step"] for line in metrics(tmp_path)) == 6


@pytest.mark.parametrize("late", [2, 3])
def test_of_a_half_loaded_reference_both_successors_stay_whichever_comes_first(
    tmp_path: Path, ward: Ward, monkeypatch: pytest.MonkeyPatch, late: int
) -> None:
    ward.ill[0] = -0.5
    begin = SimulatedScorer.start

    async def start(scorer: SimulatedScorer) -> None:
        await asyncio.sleep(0.3 if ward.members.index(scorer) == late else 0.0)
        await begin(scorer)

    monkeypatch.setattr(SimulatedScorer, "start", start)
    simulation = Simulation(recipe(tmp_path))
    assert simulation.go() == DONE
    assert numbers(simulation) == [2, 3]


def test_a_joiner_that_is_slightly_wrong_is_replaced_alone(tmp_path: Path, ward: Ward) -> None:
    ward.ill[2] = FLOORS["float32"].mean * 1.5
    grown = at(1, lambda run: asyncio.ensure_future(run.pools.scorers["teacher"].members.resize(3)))
    simulation = Simulation(recipe(tmp_path), on_step=grown)
    assert simulation.go() == DONE
    assert numbers(simulation) == [0, 1, 3]


def test_a_model_that_stays_wrong_ends_the_run_with_the_numbers(tmp_path: Path, ward: Ward) -> None:
    ward.born = lambda number: ward.ill.update({number: 0.75} if number else {})
    error = ends(Simulation(recipe(tmp_path, **ONE), on_step=at(2, kill)))
    assert isinstance(error, TeacherWrong) and "differ by 0.75 nats a token" in str(error)
    assert "scorer.teacher-2" in str(error) and "\n" not in str(error)


def test_a_swap_that_one_member_loads_wrongly_replaces_that_member_only(tmp_path: Path, ward: Ward) -> None:
    models = {"student": {"path": "/none"}, "teacher": {"path": "/a", "swaps": {3: "/b"}}}
    swap = SimulatedScorer.swap

    async def half(scorer: SimulatedScorer, version: int, model: str) -> int:
        if version == 3 and ward.members.index(scorer) == 1:
            ward.ill[1] = 0.5
        return await swap(scorer, version, model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimulatedScorer, "swap", half)
        simulation = Simulation(recipe(tmp_path, models=models))
        assert simulation.go() == DONE
    assert 1 not in numbers(simulation) and len(numbers(simulation)) == 2
    assert {m.version for m in teacher(simulation).members.serving()} == {3}


@pytest.mark.parametrize("weights", ["live", "ema"])
def test_a_version_that_one_member_loads_wrongly_replaces_it_and_trains_nothing_wrong(
    tmp_path: Path, ward: Ward, weights: str
) -> None:
    moving = {"weights": weights} | ({"decay": 0.9} if weights == "ema" else {"system": "Think."})
    models = {"student": {"path": "/none"}, "teacher": moving}
    load = SimulatedScorer.load

    async def half(scorer: SimulatedScorer, version: int, *rest: Any) -> int:
        if version == 3 and ward.members.index(scorer) == 1:
            ward.ill[1] = 0.5
        return await load(scorer, version, *rest)

    untouched = Simulation(recipe(tmp_path / "right", models=models))
    assert untouched.go() == DONE
    ward.members.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimulatedScorer, "load", half)
        simulation = Simulation(recipe(tmp_path / "wrong", models=models))
        assert simulation.go() == DONE
    assert 1 not in numbers(simulation) and len(numbers(simulation)) == 2
    assert [n for n in simulation.notices if "of version 3 its scores" in n and "differ by 0.5 nats a token" in n]
    assert learned(tmp_path / "wrong") == learned(tmp_path / "right")


def shared(root: Path, **changes: Any) -> Simulation:
    return Simulation(recipe(root, colocate=True, learner={"zero_stage": 2}, data={"heldout": "/none"}, **changes))


def test_a_member_that_wakes_wrong_is_replaced(tmp_path: Path, ward: Ward) -> None:
    ward.on_wake = lambda number: ward.ill.update({1: -6.0}) if number == 1 else None
    simulation = shared(tmp_path)
    assert simulation.go() == DONE
    assert numbers(simulation) == [0, 2]


def test_members_that_wake_wrong_twice_in_a_row_end_the_run(tmp_path: Path, ward: Ward) -> None:
    ward.on_wake = lambda number: ward.ill.update({number: -6.0})
    error = ends(shared(tmp_path, **ONE))
    assert isinstance(error, TeacherWrong) and "differ by 6 nats a token" in str(error)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    root = tmp_path_factory.mktemp("untouched")
    assert Simulation(recipe(root)).go() == DONE
    return learned(root)


@pytest.mark.parametrize("wrong", [True, False])
def test_an_alarm_checks_all_members_and_rescores_what_a_wrong_one_scored(
    tmp_path: Path, ward: Ward, monkeypatch: pytest.MonkeyPatch, untouched: list[list[Any]], wrong: bool
) -> None:
    score = SimulatedScorer.score

    async def suspected(scorer: SimulatedScorer, *args: Any) -> Any:
        payload, header = await score(scorer, *args)
        number = ward.members.index(scorer)
        if number == 0 and header.scorer_version >= 0 and wrong:
            ward.ill[0] = 2.0
        return payload, header._replace(suspicion="all 9 log-probs are -6.9") if number == 0 else header

    monkeypatch.setattr(SimulatedScorer, "score", suspected)
    simulation = Simulation(recipe(tmp_path))
    assert simulation.go() == DONE
    said = [n for n in simulation.notices if "scores of teacher are suspicious: all 9" in n]
    assert len(said) == 1, "it is said once"
    assert learned(tmp_path) == untouched
    assert numbers(simulation) == ([1, 2] if wrong else [0, 1])
    if not wrong:
        assert sum(line["scores_suspicious"] for line in metrics(tmp_path)) > 0


# The real engine.


class Bed:
    """Real scorers in this process, and a watch over them."""

    def __init__(self, root: Path, model: Path, dtype: str, engine: str = "torch") -> None:
        keys = {"engine": engine, "dtype": dtype, "max_context_tokens": 64}
        settings, config = recipe(root, scorer={"teacher": keys}), ScorerConfig.model_validate(keys)
        spec = GangSpec("scorer.teacher", Scorer, ((config, str(model), 250, 0),), Resources())
        self.pool = Pool("scorer.teacher", LocalTransport(), lambda number: spec)
        self.pool.startup.admit = self.admit
        self.said: list[str] = []
        self.pool.members.notice = self.said.append
        nobody = Pool("nobody", LocalTransport(), lambda number: spec)
        pools = Pools(None, None, {"teacher": self.pool}, nobody, nobody)
        self.watch = CanaryWatch(settings, pools, 250, self.said.append)
        self.broken: Callable[[int, Any], None] = lambda number, model: None

    async def admit(self, member: Any) -> None:
        self.broken(member.number, getattr(member.lead._engine, "_model", None))
        await self.watch.check(self.pool, member, 0)


def zero_a_layer(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.model.layers[1].parameters():
            parameter.zero_()


def zero_the_head(model: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight.zero_()


def change_slightly(model: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight.mul_(1.03)


DAMAGE = {"half loaded": zero_a_layer, "uniform": zero_the_head, "slightly other": change_slightly}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_real_scorer_that_wakes_wrong_is_found(
    models: dict[str, Path], tmp_path: Path, dtype: str, damage: Callable[[Any], None]
) -> None:
    async def story() -> None:
        bed = Bed(tmp_path, models["teacher"], dtype)
        await bed.pool.members.start(1)  # transformers does not load two models at once in one process
        await bed.pool.members.resize(2)
        for member in bed.pool.members.serving():
            for _ in range(3):
                await bed.watch.check_woken(bed.pool, member)  # nothing is wrong: nothing happens
        sick = bed.pool.members[1]
        damage(sick.lead._engine._model)
        with pytest.raises(MemberDied):
            await bed.watch.check(bed.pool, sick, 0, Occasion.WAKE)
        while len(bed.pool.members.serving()) < 2:
            await asyncio.sleep(0.01)
        assert [m.number for m in bed.pool.members.serving()] == [0, 2]
        await bed.pool.members.stop()

    asyncio.run(story())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_real_replica_that_is_loaded_wrong_twice_ends_its_role(
    models: dict[str, Path], tmp_path: Path, dtype: str
) -> None:
    async def story() -> None:
        bed = Bed(tmp_path, models["teacher"], dtype)
        await bed.pool.members.start(1)  # transformers does not load two models at once in one process
        await bed.pool.members.resize(2)
        bed.broken = lambda number, model: zero_a_layer(model) if number > 1 else None
        with pytest.raises(TeacherWrong, match="nats a token"):
            await bed.pool.members.resize(3)
        with pytest.raises(TeacherWrong):
            await bed.pool.call("score")

    asyncio.run(story())


# vLLM's engine; vLLM itself is a stand-in.


def shifted(by: float) -> Logprobs:
    return lambda ids: off(by, right(ids))


def of_the_next_token(ids: Sequence[int]) -> list[float]:
    found = right(ids)
    return [*found[1:], found[0]]


STRAYED = {
    "slightly shifted": shifted(-1.5e-3),
    "far off": shifted(-3.0),
    "of the next token": of_the_next_token,
    "uniform": lambda ids: [-5.52] * (len(ids) - 1),
    "not finite": lambda ids: [float("nan")] * (len(ids) - 1),
}


@pytest.mark.parametrize("strayed", STRAYED.values(), ids=STRAYED)
@pytest.mark.parametrize("occasion", [Occasion.WAKE, Occasion.ALARM])
def test_a_vllm_scorer_whose_log_probs_have_strayed_is_found_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strayed: Logprobs, occasion: Occasion
) -> None:
    built = stand_in(monkeypatch)

    async def story() -> None:
        bed = Bed(tmp_path, Path("/model"), "float32", engine="vllm")
        await bed.pool.members.start(2)
        sick = bed.pool.members[1]
        await bed.watch.check(bed.pool, sick, 0, occasion)  # nothing is wrong: nothing happens
        built[1].logprobs = strayed
        with pytest.raises(MemberDied):
            await bed.watch.check(bed.pool, sick, 0, occasion)
        while len(bed.pool.members.serving()) < 2:
            await asyncio.sleep(0.01)
        assert [m.number for m in bed.pool.members.serving()] == [0, 2] and len(built) == 3
        await bed.pool.members.stop()

    asyncio.run(asyncio.wait_for(story(), 60))
