"""Every recipe of configs/ through the whole system on tiny models: it moves its own target the right way.

Of recipes that differ from another one in a single term, one runs in each change; the rest are acceptance tests.
Thresholds are what a flipped sign fails: a divergence on held-out prompts must fall, a reward must rise. None is of the
reported loss, whose sign would flip along.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actors.metrics import STEP_METRICS
from configs.load import load_recipe
from configs.schema import Recipe
from orchestrator.pools.layout import demands
from tests.engines.shared import SMALL_SCORER, Engines, Finished, merged

CONFIGS = Path(__file__).parents[2] / "configs"
SHARED = ("base", "rl", "teachers")  # what recipes extend
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in SHARED)

REWARDED = (
    *("grpo", "dr_grpo", "dapo", "gspo", "cispo", "ppo", "rloo", "rlhf"),
    *("kl_rl", "rl_exact_kl", "rl_loss_k2", "rl_signal_token", "rejection_sft"),
    "opd_signed",
)
CROSS_ENTROPY = ("sft", "sequence_distillation")
DISTILLED = [name for name in RECIPES if name not in (*REWARDED, *CROSS_ENTROPY, "opd_then_rl", "self_live")]
COMPACT = ("opd_sampled", "opd_topk", "opd_union", "opd_student_topk", "opd_async", "kl_rl")  # none of full support
CLIPPED = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "ppo", "rlhf")

RARER = (  # each is another recipe but for one term, whose gradient the tests of objectives hold to its definition
    *("dr_grpo", "cispo", "rloo", "rl_exact_kl", "rl_loss_k2", "rl_signal_token", "opd_signed"),
    *("opd_discounted", "opd_baseline", "skew", "mixed_kl"),
)

TINY = {"teacher": "teacher", "poet": "poet", "origin": "student", "reference": "student"}


def over(names: Sequence[str]) -> pytest.MarkDecorator:
    marked = [pytest.param(name, marks=pytest.mark.acceptance) if name in RARER else name for name in names]
    return pytest.mark.parametrize("name", marked)


class Ran:
    """Recipes run so far, each once."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._done: dict[str, Finished] = {}

    def __getitem__(self, name: str) -> Finished:
        if name not in self._done:
            self._done[name] = self._engines.run(self._engines.recipe(**_tiny(self._engines, name)))
        return self._done[name]


@pytest.fixture(scope="module")
def ran(engines: Engines) -> Ran:
    return Ran(engines)


@over(DISTILLED)
def test_distillation_recipe_lowers_the_held_out_kl(ran: Ran, name: str) -> None:
    done = ran[name]
    before, after = done.summary["evaluation"]["before"], done.summary["evaluation"]["after"]
    measure = "forward_kl" if _forward(done.recipe) else "reverse_kl"
    bound = 0.8 if done.recipe.objective.distributional else 0.95  # one token says less than a distribution
    assert after[measure] < bound * before[measure], (before, after)


def test_a_student_that_teaches_itself_comes_to_the_teacher_it_began_with(ran: Ran, engines: Engines) -> None:
    """The KL to a live teacher falls under either sign, as both collapse: held against the start behind its prompt."""
    done, start = ran["self_live"], {"path": str(engines.models["student"]), "weights": "frozen"}
    models = {"student": {"path": str(done.directory / "model")}, "teacher": start}
    changes = merged(_tiny(engines, "self_live"), {"run": {"steps": 1}, "models": models})
    held_against_start = engines.run(engines.recipe(**changes))
    before, after = (run.summary["evaluation"]["before"] for run in (done, held_against_start))
    assert after["reverse_kl"] < 0.8 * before["reverse_kl"], (before, after)


def test_scorers_that_take_turns_teach_as_if_they_were_apart(ran: Ran, engines: Engines) -> None:
    apart, scorers = ran["teachers_weighted"], {name: {"turns": "teachers"} for name in ("teacher", "poet")}
    changes = merged(_tiny(engines, "teachers_weighted"), {"run": {"steps": 2}})
    in_turns = engines.run(engines.recipe(**merged(changes, {"scorer": scorers})))
    assert [asleep(engines, name) for name in scorers] in ([{True}, {False}], [{False}, {True}]), "one at a time"
    engines.run(engines.recipe(**changes))  # wakes who sleeps: other tests use these members
    assert [asleep(engines, name) for name in scorers] == [{False}, {False}]
    first, mine = (run.lines[0] for run in (apart, in_turns))
    assert mine["loss"] == pytest.approx(first["loss"], rel=1e-6) and mine["tokens_scored"] == first["tokens_scored"]
    assert in_turns.summary["restarts"] == apart.summary["restarts"] == {}


def asleep(engines: Engines, name: str) -> set[bool]:
    """Whether the members of a model's scorer sleep."""
    return {member.asleep for member in engines.pools.scorers[name].members}


@over(REWARDED)
def test_rewarded_recipe_earns_more(ran: Ran, name: str) -> None:
    rewards = [line["reward_mean"] for line in ran[name].lines]
    assert sum(rewards[-4:]) > sum(rewards[:4]) + 4 * 0.05, rewards


@pytest.mark.parametrize("name", CROSS_ENTROPY)
def test_cross_entropy_falls(ran: Ran, name: str) -> None:
    values = [_cross_entropy(ran[name], line["step"]) for line in ran[name].lines]
    assert sum(values[-2:]) < 0.9 * sum(values[:2]), values
    assert ran[name].lines[0]["reverse_kl"] is None
    assert ran[name].summary["evaluation"]["before"]["entropy"] > 0


@over(CLIPPED)
def test_the_trust_region_acts(ran: Ran, name: str) -> None:
    held = [line["held_fraction"] for line in ran[name].lines]
    assert max(held) > 0.0, held
    assert all(0.0 <= h < 1.0 for h in held)


@over(RECIPES)
def test_every_line_has_every_metric_and_knows_its_kl(ran: Ran, name: str) -> None:
    done = ran[name]
    objective = done.recipe.objective
    exact = bool(objective.teachers) and objective.support != "sampled"
    for line in done.lines:
        assert list(line) == list(STEP_METRICS)
        assert (line["forward_kl"] is not None) == exact
        assert (line["kl_support"] is not None) == bool(objective.teachers)
        assert line["entropy"] > 0 and line["grad_norm"] > 0
        torch_scored = all(done.recipe.scorer_of(m).engine == "torch" for m in objective.teachers)
        assert (line["teacher_entropy"] is not None) == (bool(objective.teachers) and torch_scored)
        if objective.teachers:
            assert line["log_ratio_p1"] <= line["log_ratio_p50"] <= line["log_ratio_p99"]
            assert line["kl_by_position"]


@pytest.mark.parametrize("name", COMPACT)
def test_scores_cost_their_tokens_and_at_most_64_bytes_a_response(ran: Ran, name: str) -> None:
    done = ran[name]
    objective, models, lines = done.recipe.objective, done.recipe.scored_models, done.lines
    k = objective.topk * (2 if objective.topk_of == "union" else 1)
    of_support = {"sampled": 4, "topk": 6 * k + 8}
    a_token = sum(of_support[objective.support_of[model]] for model in models) / len(models)
    sent = sum((line["score_bytes_per_token"] or 0.0) * line["tokens_scored"] for line in lines)
    asked = len(lines) * done.recipe.samples_per_step
    responses = len(models) * (asked + sum(line["samples_aged"] + line["samples_dropped"] for line in lines))
    assert 0 < sent - a_token * sum(line["tokens_scored"] for line in lines) <= 64 * responses


def test_the_driver_deserialises_no_payload(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it gets from Ray, and however: headers and plain values."""
    from ray._private.serialization import SerializationContext  # after the cluster's start has set what Ray reads

    opened: Counter[str] = Counter()
    deserialize = SerializationContext.deserialize_objects

    def counted(self: SerializationContext, *arguments: Any) -> list[Any]:
        values = deserialize(self, *arguments)
        opened.update(type(value).__name__ for value in values)
        return values

    monkeypatch.setattr(SerializationContext, "deserialize_objects", counted)
    done = engines.run(engines.recipe(**_tiny(engines, "opd_topk") | {"run": {"steps": 2}}))
    assert done.code == 0
    assert opened["BlockHeader"] > 0 and opened["ScoreHeader"] > 0 and opened["BucketHeader"] > 0
    assert opened["RecordBatch"] == opened["ndarray"] == opened["bytes"] == 0, opened


def test_async_recipe_reaches_its_staleness_bound(ran: Ran) -> None:
    staleness = [line["staleness_max"] for line in ran["opd_async"].lines]
    assert max(staleness) == 1 and min(staleness) >= 0


def test_a_mixture_trains_on_foreign_prefixes_whose_share_falls(ran: Ran) -> None:
    shares = [line["foreign_fraction"] for line in ran["dagger"].lines]
    assert sum(shares[:4]) > sum(shares[-4:]) and max(shares) > 0


def test_a_schedule_moves(ran: Ran) -> None:
    weights = [line["reverse_weight"] for line in ran["mixed_kl_scheduled"].lines]
    assert weights == sorted(weights) and weights[0] < weights[-1]


def test_a_switch_lowers_the_kl_before_it_and_raises_the_reward_after(ran: Ran) -> None:
    lines = ran["opd_then_rl"].lines
    switch = ran["opd_then_rl"].recipe.objective.outcome.switch_step
    assert switch is not None
    assert lines[switch - 1]["reverse_kl"] < lines[0]["reverse_kl"]
    rewards = [line["reward_mean"] for line in lines[switch - 1 :]]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 3 * 0.05, rewards


def test_an_adaptive_coefficient_follows_the_kl(ran: Ran) -> None:
    betas = [line["beta"] for line in ran["rlhf"].lines]
    assert len(set(betas)) > 1
    for line, later in zip(ran["rlhf"].lines, betas[1:], strict=False):
        kl = line["reference_kl"] * line["response_length"]
        assert (later > line["beta"]) == (kl > 6.0), (kl, line["beta"], later)


def test_ladders_raise_the_cap(ran: Ran) -> None:
    for name in ("ladder", "entropy_ladder"):
        caps = [line["response_cap"] for line in ran[name].lines]
        assert caps == sorted(caps) and caps[0] < caps[-1], caps
        lengths = [line["response_length"] for line in ran[name].lines]
        assert all(length <= cap for length, cap in zip(lengths, caps, strict=True))


def test_teachers_responses_are_written_once(ran: Ran, engines: Engines) -> None:
    """The same prompts under the same seed: the second run samples nothing."""
    assert ran["off_policy"] and ran["offline_reverse"]
    pool = engines.pools.teacher_rollout
    assert pool is not None

    async def counts() -> dict[str, int]:
        return await pool.call_member(pool.members[0], "counts")

    before = engines.runner.run(counts())
    engines.run(engines.recipe(**_tiny(engines, "off_policy")))
    after = engines.runner.run(counts())
    assert after["kept"] > before["kept"] and after["sampled"] == before["sampled"]


def test_a_loss_of_ones_own_lowers_the_held_out_kl(engines: Engines) -> None:
    changes = _tiny(engines, "opd_sampled")
    changes["objective"] |= {"loss": "tests.engines.own:squared_log_ratio", "clip": None}
    done = engines.run(engines.recipe(**changes))
    before, after = done.summary["evaluation"]["before"], done.summary["evaluation"]["after"]
    assert after["reverse_kl"] < 0.95 * before["reverse_kl"], (before, after)


def test_a_biased_recipe_says_so(engines: Engines) -> None:
    changes = _tiny(engines, "opd_sampled") | {"run": {"steps": 1}}
    changes["objective"] |= {"estimator": "k1_in_loss", "allow_biased": ["k1_in_loss"], "clip": None}
    assert engines.run(engines.recipe(**changes)).summary["biased"] == ["k1_in_loss"]


@pytest.mark.parametrize("name", ["ppo", "kl_rl", "sdft", "gspo"])
def test_ranks_and_shards_change_nothing(engines: Engines, name: str) -> None:
    """A value head, a reference before the group's baseline, an average, a sequence ratio: on one rank, and on two
    under ZeRO-3 in other micro-batches."""
    done = []
    for learner in ({"ranks": 1, "zero_stage": 0}, {"ranks": 2, "zero_stage": 3}):
        changes = merged(_tiny(engines, name), {"run": {"steps": 1}, "learner": learner})
        changes["batch"] |= {"tokens_per_microbatch": 128 * learner["ranks"]}
        done.append(engines.run(engines.recipe(**changes)))
    one, two = (run.lines[0] for run in done)
    for metric in ("loss", "grad_norm", "entropy", "reference_kl", "effective_sample_size"):
        assert two[metric] == (None if one[metric] is None else pytest.approx(one[metric], rel=1e-3, abs=1e-6)), metric
    if one["held_fraction"] is not None:  # PPO's tokens of no reward have an advantage of rounding, and its sign
        assert two["held_fraction"] == pytest.approx(one["held_fraction"], rel=0.35, abs=0.05)  # a sum is twice
    files = [next((run.directory / "checkpoints").glob("step_1")) for run in done]
    rate = done[0].recipe.learner.optimizer.lr
    for average in files[0].glob("average_*.safetensors"):
        decay = done[0].recipe.models[average.stem.removeprefix("average_")].decay
        _equal_tensors(average, files[1] / average.name, atol=0.1 * rate * (1.0 - decay))
    _equal_tensors(*(run.directory / "model" / "model.safetensors" for run in done), atol=0.1 * rate)


def _equal_tensors(one: Path, two: Path, atol: float) -> None:
    first, second = load_file(one), load_file(two)
    assert first.keys() == second.keys()
    for name, tensor in first.items():  # AdamW's first steps are of one size, whatever the gradient's
        torch.testing.assert_close(second[name], tensor, rtol=0.0, atol=atol, msg=name)


def test_every_recipe_file_is_valid_and_fits_two_cores() -> None:
    for path in CONFIGS.glob("*.yaml"):
        assert sum(demand.cpus for demand in demands(load_recipe(path))) <= 2.0, path.name


def _forward(recipe: Recipe) -> bool:
    weight = recipe.objective.reverse_weight
    return isinstance(weight, float) and weight < 0.5 and recipe.objective.family != "power"


def _cross_entropy(done: Finished, step: int) -> float:
    """Nats a token of what a step trained on, before its update, from the samples it recorded: not from its loss."""
    logprobs = [q for row in done.samples(f"step_{step:06d}") for q in row["student_logprobs"]]
    return -sum(logprobs) / len(logprobs)


def _tiny(engines: Engines, name: str) -> dict[str, Any]:
    """The recipe's own objective, batch shape and staleness, on the tests' models and sizes."""
    recipe = load_recipe(CONFIGS / f"{name}.yaml")
    objective = recipe.objective.model_dump()
    rewarded = name in (*REWARDED, "opd_then_rl")
    sampled = recipe.objective.samples_signal or rewarded
    if length := objective["length"]:
        length |= {"caps": [4, 8, 12], "steps_per_stage": 3}
        if length["gate"]:
            length["gate"]["eval_length"] = 12
    if objective["outcome"]["switch_step"]:
        objective["outcome"]["switch_step"] = 5
    weights = {model.weights for model in recipe.models.values()}  # moving ones are near to the student from the start
    rate = 1e-2 if sampled else 5e-5 if "live" in weights else 1e-3 if "ema" in weights else 5e-3
    changes: dict[str, Any] = {
        "run": {"steps": 18 if name == "opd_then_rl" else 12 if sampled else 10},
        "evaluate": {"samples_per_prompt": 8},
        "objective": objective,
        "batch": {
            "prompts_per_step": 4 if rewarded else 8,
            "samples_per_prompt": 8 if rewarded else 4 if sampled else 2,
            "updates": recipe.batch.updates,
        },
        "max_staleness": recipe.max_staleness,
        "models": {m: _model(engines, recipe, m) for m in recipe.models if m != "student"},
        "scorer": {m: SMALL_SCORER | {"engine": recipe.scorer_of(m).engine} for m in recipe.models if m != "student"},
        "data": _data(engines, recipe),
        "learner": {"ranks": 1, "zero_stage": 0, "optimizer": {"name": "adamw", "lr": rate}},
    }
    if recipe.reward.gives_rewards:
        paid = _paid(0.25 if rewarded else 0.02)
        changes["reward"] = {"model": str(engines.models["reward"])} if recipe.reward.model else paid
    return changes


def _paid(each: float) -> dict[str, Any]:
    """So much for each letter that a response has: what a random tiny model can learn to earn."""
    return {"rules": [{"kind": "contains", "text": letter, "weight": each} for letter in ascii_lowercase]}


def _model(engines: Engines, recipe: Recipe, name: str) -> dict[str, Any]:
    model = recipe.models[name]
    if model.weights != "frozen":
        return {
            "path": None,
            "system": None,
            "prompt": "well, {prompt}",
            "weights": model.weights,
            "decay": model.decay,
        }
    return {"path": str(engines.models[TINY[name]]), "system": "be brief" if name in ("teacher", "poet") else None}


def _data(engines: Engines, recipe: Recipe) -> dict[str, Any]:
    answered = "demonstrations" in recipe.data.prompts
    return {
        "prompts": str(engines.prompts["data" if answered else "train"]),
        "heldout": str(engines.prompts["heldout_data" if answered else "heldout"]),
    }
