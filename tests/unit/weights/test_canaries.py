"""A scorer with wrong weights is found by fixed texts and replaced; if its replacement is wrong too, the run ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.scoring.canary import canary_texts, suspicion_of
from actors.scoring.scorer import Scorer
from actors.simulated.members import SimulatedScorer
from actors.wire.records import Score
from configs.roles import Resources
from configs.roles import Scorer as ScorerConfig
from orchestrator.pools.pool import Pool
from orchestrator.pools.pools import Pools
from orchestrator.pools.transport import GangSpec, LocalTransport, MemberDied
from orchestrator.run import DONE, Run
from orchestrator.weights.canaries import CEILING, FLOORS, Canaries, Examined, Occasion
from orchestrator.weights.canary_watch import CanaryWatch, TeacherWrong
from tests.unit.simulation import Simulation, learned, metrics, recipe

LOAD, WAKE, ALARM, TRIAL = Occasion.LOAD, Occasion.WAKE, Occasion.ALARM, Occasion.TRIAL
RIGHT = [-0.5, -1.5, -2.5, -3.5]


def off(by: float, of: Sequence[float] = RIGHT) -> list[float]:
    return [value + by for value in of]


def member(number: int, place: int | None = None, newest: int | None = None) -> Examined:
    return Examined(number, number if place is None else place, number + 1 if newest is None else newest)


# The state machine.


def test_the_tolerance_is_a_multiple_of_the_noise_and_never_below_rounding() -> None:
    quiet, noisy = Canaries("float32"), Canaries("bfloat16")
    quiet.judge(member(0), 0, LOAD, [RIGHT, off(1e-6)])
    assert quiet.tolerance == FLOORS["float32"]
    noisy.judge(member(0), 0, LOAD, [RIGHT, off(0.02), [*RIGHT[:3], -3.3]])
    assert noisy.tolerance == pytest.approx((0.15, 0.6))
    assert not noisy.judge(member(1), 0, LOAD, [off(0.14)]).wrong
    assert noisy.judge(member(2), 0, LOAD, [off(0.16)]).wrong == {2}


def test_a_single_token_far_off_is_found() -> None:
    canaries, many = Canaries("float32"), [*RIGHT] * 100
    canaries.judge(member(0), 0, LOAD, [many])
    assert canaries.judge(member(1), 0, WAKE, [[*many[:-1], many[-1] - 0.02]]).wrong == {1}


@pytest.mark.parametrize(
    ("readings", "said"),
    [
        ([[-6.9] * 4], "all of its scores of fixed texts are -6.9"),
        ([[-1.0, float("nan"), -2.0, -3.0]], "not finite"),
        ([[-1.0, float("-inf"), -2.0, -3.0]], "not finite"),
        ([RIGHT, off(CEILING.mean * 2)], "repeats of its scores differ"),
    ],
)
def test_impossible_readings_are_wrong_without_a_reference(readings: list[list[float]], said: str) -> None:
    canaries = Canaries("float32")
    first = canaries.judge(member(0, newest=1), 0, LOAD, readings)
    assert first.wrong == {0} and said in first.why and not first.final
    assert canaries.judge(member(1, 0), 0, LOAD, readings).final
    assert canaries.noise is None, "nothing is learned of who is wrong"


def test_two_places_that_disagree_are_both_replaced() -> None:
    """Both are replaced. A replacement that agrees with the reference stays; one that differs ends the run."""
    canaries = Canaries("float32")
    assert not canaries.judge(member(0, newest=2), 0, LOAD, [RIGHT]).wrong
    assert canaries.judge(member(1, newest=2), 0, LOAD, [off(1)]).wrong == {0, 1}
    assert not canaries.judge(member(2, 0, 4), 0, LOAD, [RIGHT]).wrong
    again = canaries.judge(member(3, 1, 4), 0, LOAD, [off(1)])
    assert again.final and "differ by 1 nats a token" in again.why and "0.001 and 0.01 are allowed" in again.why


def test_two_places_that_agree_outvote_the_reference() -> None:
    canaries = Canaries("float32")
    canaries.judge(member(0, newest=2), 0, LOAD, [off(1)])  # half loaded, and first
    assert canaries.judge(member(1, newest=2), 0, LOAD, [RIGHT]).wrong == {0, 1}
    assert canaries.judge(member(2, 0, 4), 0, LOAD, [RIGHT]).wrong == {0}
    assert not canaries.judge(member(3, 1, 4), 0, LOAD, [RIGHT]).wrong
    assert canaries.judge(member(4, newest=5), 0, LOAD, [off(1)]).wrong == {4}


def test_a_successor_is_judged_once_the_place_of_the_reference_is_read_again() -> None:
    """If the reference was half loaded, the successor of the right one differs from it too, and may come first."""
    canaries = Canaries("float32")
    canaries.judge(member(0, newest=2), 0, LOAD, [off(1)])  # half loaded, and first
    assert canaries.judge(member(1, newest=2), 0, LOAD, [RIGHT]).wrong == {0, 1}
    early = canaries.judge(member(3, 1, 4), 0, LOAD, [RIGHT], joining={0, 1})
    assert early.open and not early.wrong and not early.final
    assert canaries.judge(member(2, 0, 4), 0, LOAD, [RIGHT], joining={0, 1}).wrong == {0}
    assert canaries.judge(member(3, 1, 4), 0, LOAD, [RIGHT], joining={1}) == (frozenset(), "", False, False)


@pytest.mark.parametrize("place", ["agrees with the reference", "has no successor"])
def test_a_successor_that_waited_and_still_differs_from_the_reference_ends_the_run(place: str) -> None:
    canaries = Canaries("float32")
    canaries.judge(member(0, newest=2), 0, LOAD, [RIGHT])
    assert canaries.judge(member(1, newest=2), 0, LOAD, [off(1)]).wrong == {0, 1}
    assert canaries.judge(member(3, 1, 4), 0, LOAD, [off(1)], joining={0, 1}).open
    if place == "agrees with the reference":
        assert not canaries.judge(member(2, 0, 4), 0, LOAD, [RIGHT], joining={0, 1}).wrong
    assert canaries.judge(member(3, 1, 4), 0, LOAD, [off(1)], joining={1}).final


def test_a_joiner_that_disagrees_with_several_is_replaced_alone() -> None:
    canaries = Canaries("float32")
    for number in range(2):
        canaries.judge(member(number, newest=2), 0, LOAD, [RIGHT])
    assert canaries.judge(member(2, newest=3), 0, LOAD, [off(0.1)]).wrong == {2}
    assert canaries.judge(member(3, 2, 4), 0, LOAD, [off(0.1)]).final


def test_equally_wrong_replacements_of_one_place_do_not_outvote_the_reference() -> None:
    canaries = Canaries("float32")
    canaries.judge(member(0, newest=1), 0, LOAD, [RIGHT])
    assert canaries.judge(member(1, 0, 2), 0, LOAD, [off(1)]).wrong == {1}
    assert canaries.judge(member(2, 0, 3), 0, LOAD, [off(1)]).final


def test_wakes_are_compared_with_the_loaded_reference_and_counted_apart_from_loads() -> None:
    canaries = Canaries("float32")
    canaries.judge(member(0, newest=1), 0, LOAD, [RIGHT])
    first = canaries.judge(member(0, newest=1), 0, WAKE, [off(1)])
    assert first.wrong == {0} and not first.final
    assert not canaries.judge(member(1, 0, 2), 0, LOAD, [RIGHT]).wrong  # it starts well
    assert canaries.judge(member(1, 0, 2), 0, WAKE, [off(1)]).final, "and wakes as the one before it"


def test_a_good_wake_resets_the_count_of_bad_ones() -> None:
    canaries = Canaries("float32")
    canaries.judge(member(0, newest=1), 0, LOAD, [RIGHT])
    canaries.judge(member(0, newest=1), 0, WAKE, [off(1)])
    canaries.judge(member(1, 0, 2), 0, LOAD, [RIGHT])
    assert not canaries.judge(member(1, 0, 2), 0, WAKE, [RIGHT]).wrong
    assert not canaries.judge(member(1, 0, 2), 0, WAKE, [off(1)]).final


def test_two_members_that_wake_wrong_together_count_once() -> None:
    canaries = Canaries("float32")
    for number in range(2):
        canaries.judge(member(number, newest=2), 0, LOAD, [RIGHT])
    results = [canaries.judge(member(number, newest=2), 0, WAKE, [off(1)]) for number in range(2)]
    assert [v.wrong for v in results] == [{0}, {1}] and not any(v.final for v in results)


def test_each_version_has_its_own_reference_and_a_trial_resets_it() -> None:
    canaries = Canaries("float32")
    for version in range(20):
        assert not canaries.judge(member(0, newest=1), version, LOAD, [off(-version)]).wrong
    assert not canaries.judge(member(0, newest=1), 30, TRIAL, [off(5)]).wrong
    assert not canaries.judge(member(0, newest=1), 30, TRIAL, [off(7)]).wrong, "another directory at the same step"
    assert canaries.judge(member(0, newest=1), 31, TRIAL, [[-1.0] * 4]).wrong == {0}
    assert not canaries.judge(member(1, 0, 2), 31, TRIAL, [[-1.0] * 4]).final, "the directory is wrong, not the role"


# What raises an alarm.


def scores(logprobs: Sequence[float], entropy: float | None = None) -> list[Score]:
    return [Score("a", np.array(logprobs, np.float32), entropy_sum=entropy)]


def test_constant_or_uniform_scores_are_suspicious() -> None:
    tokens = list(range(20))
    assert "all 20 log-probs are -6.9078" in suspicion_of(scores([-np.log(1000)] * 20), tokens, 1000)
    assert suspicion_of(scores([0.0] * 20), tokens, 1000)
    varied = [-1.0 - i / 10 for i in range(20)]
    assert "mean entropy" in suspicion_of(scores(varied, 20 * 0.995 * np.log(1000)), tokens, 1000)
    assert not suspicion_of(scores(varied, 20 * 0.985 * np.log(1000)), tokens, 1000)
    assert not suspicion_of(scores(varied), tokens, 1000), "vLLM knows no entropy"


def test_equal_scores_of_one_repeated_token_are_not_suspicious() -> None:
    same = [Score(str(i), np.array([-0.25], np.float32), entropy_sum=0.5) for i in range(64)]
    assert not suspicion_of(same, [7] * 64, 1000)
    assert not suspicion_of(same, [7, 8] * 32, 1000)
    assert not suspicion_of([], [], 1000)
    assert not suspicion_of(scores([-0.5] * 8), list(range(8)), 1000), "too few to say"


@pytest.mark.parametrize(("vocabulary", "context"), [(1000, 128), (16, 8), (151_936, 2)])
def test_texts_are_within_vocabulary_and_context_and_always_the_same(vocabulary: int, context: int) -> None:
    texts = canary_texts(vocabulary, context)
    assert texts == canary_texts(vocabulary, context) and all(2 <= len(text) <= context for text in texts)
    assert all(0 <= token < vocabulary for text in texts for token in text)
    assert canary_texts(15, 128) == ()


# Whole runs.


class Ward:
    """Simulated scorers in the order in which they were made, and the error of each."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.members: list[SimulatedScorer] = []
        self.ill: dict[int, float] = {}  # by number: nats that are added to whatever it gives
        self.wakes: dict[int, int] = {}
        self.on_wake: Callable[[int], None] = lambda number: None
        self.born: Callable[[int], None] = lambda number: None
        make, ask = SimulatedScorer.__init__, SimulatedScorer.canary

        def made(scorer: SimulatedScorer, *args: Any) -> None:
            make(scorer, *args)
            self.members.append(scorer)
            self.born(len(self.members) - 1)

        async def asked(scorer: SimulatedScorer, *args: Any) -> list[list[float]]:
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
    """Real torch scorers in this process, and a watch over them."""

    def __init__(self, root: Path, model: Path, dtype: str) -> None:
        settings = recipe(root, scorer={"teacher": {"engine": "torch", "dtype": dtype, "max_context_tokens": 64}})
        config = ScorerConfig(dtype=dtype, max_context_tokens=64)
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
        self.broken(member.number, member.lead._engine._model)
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
