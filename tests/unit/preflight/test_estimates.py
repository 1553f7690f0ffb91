"""Estimates against numbers computed by hand, and against payloads as they are packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.models import model_files
from actors.wire.records import Sample, Score, pack_samples, pack_scores
from actors.wire.trained import trained_batch
from configs.hardware import resolve_dtypes
from configs.roles.learner import Learner
from configs.schema import SHOWN, Recipe
from orchestrator.preflight import estimates
from orchestrator.preflight.estimates import Size
from orchestrator.preflight.files import describe_layout
from tests.unit.recipes import loaded

MIB, GIB = 2**20, 2**30
SMALL = THOUSAND = Size(parameters=1000, hidden=64, key_values=128)
LENGTHS = [(1, 16), (1, 200), (16, 40), (64, 1000)]  # responses in a block, tokens of each


def recipe(**changes: Any) -> Recipe:
    return resolve_dtypes(loaded({key.replace("__", "."): value for key, value in changes.items()}), cpu_has_bf16=False)


def learner(**changes: Any) -> Learner:
    return recipe(**{f"learner__{key}": value for key, value in changes.items()}).learner


def planned(loaded_recipe: Recipe, heldout: int = 0) -> estimates.Planned:
    sizes = {name: SMALL for name in loaded_recipe.models}
    return estimates.planned(loaded_recipe, sizes, 4000, prompt_tokens=10, heldout=heldout, vocabulary=100)


# --- payloads as they are packed ---


@pytest.mark.parametrize(("responses", "tokens"), LENGTHS)
@pytest.mark.parametrize("k", [0, 8])
@pytest.mark.parametrize("prompt", [1, 300])
def test_estimates_of_samples_are_tight_upper_bounds(responses: int, tokens: int, k: int, prompt: int) -> None:
    payload, header = pack_samples([_sample(i, prompt, tokens, k) for i in range(responses)])
    estimate = responses * estimates.sample_bytes(prompt, tokens, k)
    assert header.payload_bytes <= payload.get_total_buffer_size() <= estimate <= 1.5 * header.payload_bytes


@pytest.mark.parametrize(("responses", "tokens"), LENGTHS)
@pytest.mark.parametrize(
    ("support", "k", "dtype"),
    [
        ("sampled", 0, "float32"),
        ("topk", 1, "float32"),
        ("topk", 32, "float32"),
        ("full", 0, "float32"),
        ("full", 0, "bfloat16"),
    ],
)
def test_estimates_of_scores_are_tight_upper_bounds(
    responses: int, tokens: int, support: str, k: int, dtype: str
) -> None:
    width = 96 * estimates.WIDTH[dtype]
    scores = [_score(i, tokens, k, width if support == "full" else 0) for i in range(responses)]
    payload, header = pack_scores(scores, {}, dtype)
    estimate = responses * estimates.score_bytes(support, tokens, k, hidden=96, dtype=dtype)
    assert header.payload_bytes <= payload.get_total_buffer_size() <= estimate <= 1.5 * header.payload_bytes


@pytest.mark.parametrize("tokens", [16, 40, 500])
def test_estimates_of_recorded_samples_are_tight_upper_bounds(tokens: int) -> None:
    wanted = recipe(sampling__max_response_tokens=tokens)  # 2 steps of 4 samples
    rows = [_sample(i, 10, tokens, 0) for i in range(8)]
    logprobs = [np.zeros(tokens, np.float32)] * 8
    written = trained_batch(rows, [0.5] * 8, logprobs, logprobs).nbytes
    assert written <= estimates.recorded_bytes(wanted, prompt_tokens=10, heldout=0) <= 1.5 * written


# --- by hand ---


def test_bytes_a_token_by_support() -> None:
    assert estimates.score_bytes("sampled", 100) == 100 * 4 + 64
    assert estimates.score_bytes("topk", 100, topk=32) == 100 * (6 * 32 + 8) + 64
    assert estimates.score_bytes("full", 100, hidden=576, dtype="bfloat16") == 100 * (4 + 1152) + 64
    assert estimates.sample_bytes(50, 100) == 50 * 4 + 100 * 12 + 144
    assert estimates.sample_bytes(50, 100, topk=8) == 50 * 4 + 100 * (12 + 32) + 144


def test_payloads_in_flight_grow_with_staleness_and_with_the_held_out_prompts() -> None:
    sample, score = 10 * 4 + 16 * 12 + 144, 16 * 4 + 64
    assert planned(recipe()).samples == 4 * sample
    assert planned(recipe(max_staleness=2)).samples == 3 * 4 * sample
    both = planned(recipe(max_staleness=2, evaluate__samples_per_prompt=2), heldout=5)
    assert (both.samples, both.scores) == (22 * sample, {"teacher": 22 * score})
    assert both.payloads == 22 * (sample + score)


def test_two_versions_of_the_student_and_of_each_average_are_alive() -> None:
    assert planned(recipe()).versions == 2 * 4000
    follower = {"models__teacher": {"weights": "ema", "system": "x"}, "scorer__teacher__engine": "torch"}
    assert planned(recipe(**follower)).versions == 4 * 4000


def test_segments_leave_a_row_each_and_the_last_holds_the_response() -> None:
    segmented = planned(recipe(stream_tokens=6), heldout=5)  # rows of 6, 6 and 16 tokens, but for an evaluation's
    assert segmented.samples == 4 * (3 * (10 * 4 + 144) + (6 + 6 + 16) * 12) + 5 * (10 * 4 + 144 + 16 * 12)
    assert segmented.scores == {"teacher": 4 * (16 * 4 + 3 * 64) + 5 * (16 * 4 + 64)}
    assert planned(recipe(stream_tokens=16)).payloads == planned(recipe()).payloads


def test_full_support_adds_a_head_and_two_for_a_moving_model() -> None:
    frozen = planned(recipe(objective__support="full"))
    assert frozen.projections == {"teacher": 100 * 64 * 4}
    assert frozen.scores["teacher"] == 4 * (16 * (4 + 64 * 4) + 64)
    moving = recipe(objective__support="full", models__teacher={"weights": "live", "system": "x"})
    assert planned(moving).projections == {"teacher": 2 * 100 * 64 * 4}
    assert planned(recipe()).projections == {}


def test_a_union_of_supports_is_twice_as_wide_and_samples_carry_the_students() -> None:
    union = planned(recipe(objective__support="topk", objective__topk=8, objective__topk_of="union"))
    assert union.scores["teacher"] == 4 * (16 * (6 * 16 + 8) + 64)
    assert union.samples == 4 * (10 * 4 + 16 * (12 + 32) + 144)


@pytest.mark.parametrize(  # measured: what a rank of one wrote of a model of 90,944 parameters, bytes a parameter
    ("stage", "dtype", "optimizer", "bytes_each"),
    [
        (0, "float32", "adamw", 12),  # 12.3
        (0, "bfloat16", "adamw", 14),  # 14.4
        (2, "float32", "adamw", 16),  # 16.2 and two scripts
        (2, "bfloat16", "adamw", 14),  # 14.2 and two scripts
        (3, "bfloat16", "adamw", 12),
        (0, "float32", "sgd", 4),  # 4.1
        (2, "bfloat16", "sgd", 6),  # 6.1 and two scripts
    ],
)
def test_a_checkpoint_is_weights_master_copy_and_moments(
    stage: int, dtype: str, optimizer: str, bytes_each: int
) -> None:
    config = learner(zero_stage=stage, dtype=dtype, optimizer={"name": optimizer, "lr": 0.1})
    assert estimates.checkpoint_bytes(THOUSAND, config) == 1000 * bytes_each
    assert estimates.checkpoint_bytes(THOUSAND, config, averages=2) == 1000 * (bytes_each + 8)


def test_zero_shards_a_ranks_memory() -> None:
    of = {s: estimates.rank_bytes(THOUSAND, learner(zero_stage=s, ranks=4, dtype="bfloat16")) for s in range(4)}
    sharded = 2_000 + 1_000 + 3_000  # whole weights, shards of float32 gradients and of the rest
    assert of == {0: sharded, 1: sharded, 2: sharded, 3: 4_500}
    plain = {s: estimates.rank_bytes(THOUSAND, learner(zero_stage=s, ranks=4, dtype="float32")) for s in range(4)}
    assert plain == {0: 16_000, 1: 11_000, 2: 8_000, 3: 5_000}
    assert estimates.rank_bytes(THOUSAND, learner(dtype="float32")) == 16_000


def test_records_are_counted_by_step_and_evaluation() -> None:
    row = 10 * 4 + 16 * 12 + 144 + 8 * 16 + 32
    every_third = recipe(run__steps=10, record__every=3, evaluate__every=4, evaluate__samples_per_prompt=2)
    assert estimates.recorded_bytes(every_third, 10, heldout=5) == row * (3 * 4 + (2 + 2) * 5 * 2 + 2 * SHOWN)


def test_the_estimated_memory_of_an_actor_follows_its_role() -> None:
    sizes = {"student": Size(1 * MIB, 64, 128), "teacher": Size(2 * MIB, 64, 128)}
    cpu = recipe(rollout__kv_cache_gib=2)
    roles = ("rollout", "scorer.teacher", "reward", "learner")
    taken = [estimates.memory_bytes(cpu, sizes, role) for role in roles]
    assert taken == [4 * MIB + 2 * GIB, 8 * MIB, 0, 16 * MIB]
    on_gpus = recipe(rollout__resources={"gpus": 1}, learner__resources={"gpus": 1}, scorer__teacher__engine="vllm")
    assert [estimates.memory_bytes(on_gpus, sizes, role) for role in roles] == [0, 8 * MIB + GIB, 0, 0]
    shared = recipe(
        colocate=True,
        rollout__resources={"gpus": 0.3},
        learner__zero_stage=1,
        learner__resources={"gpus": 0.6},
    )
    asleep = [estimates.memory_bytes(shared, sizes, role) for role in roles]
    assert asleep == [2 * MIB, 8 * MIB, 0, 14 * MIB], "on GPUs in bfloat16: weights; weights, master copy, moments"


def test_of_a_scored_model_the_scorer_in_turns_sleeps_on_the_host_and_its_rollout_does_not() -> None:
    sizes = {name: Size(2 * MIB, 64, 128) for name in ("student", "teacher", "other")}
    scorer = {"turns": "gpu", "resources": {"gpus": 0.5}}
    shared = recipe(
        objective__target={"teacher": 0.5, "other": 0.5},
        objective__prefix={"student": 0.5, "teacher": 0.5},
        objective__support="topk",
        models__other={"path": "/none"},
        scorer={"teacher": scorer, "other": scorer},
        teacher_rollout__resources={"gpus": 1},
    )
    roles = ("scorer.teacher", "scorer.other", "teacher_rollout")
    assert [estimates.memory_bytes(shared, sizes, role) for role in roles] == [4 * MIB, 4 * MIB, 0]


def test_the_layout_names_the_zero_stage_that_runs_and_why_it_is_another() -> None:
    def learner(**keys: Any) -> str:
        return next(row[-1] for row in describe_layout(recipe(**keys)) if row[0] == "learner")

    assert learner(learner__dtype="float32") == "deepspeed ZeRO-0, float32"
    assert learner(learner__dtype="bfloat16", learner__zero_stage=3) == "deepspeed ZeRO-3, bfloat16"
    said = "deepspeed ZeRO-2 (zero_stage: 0 would add bfloat16 gradients up in bfloat16), bfloat16"
    assert learner(learner__dtype="bfloat16") == said


def test_a_models_sizes_come_from_its_headers(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"norm": np.ones(64), "down": np.ones((64, 128))}, tmp_path / "model-1.safetensors")
    save_file({"embed": np.ones((264, 64), np.float16)}, tmp_path / "model-2.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 264}))
    assert model_files.parameters(tmp_path) == 64 + 64 * 128 + 264 * 64
    assert model_files.hidden_width(tmp_path) == 64


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        ({}, None),
        ({"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64}, 2 * 3 * 64),
        ({"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64, "head_dim": 32}, 2 * 3 * 4 * 32),
        ({"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64, "num_key_value_heads": 1}, 2 * 3 * 16),
        ({"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64, "sliding_window": 8}, None),
        ({"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64, "kv_lora_rank": 8}, None),
    ],
)
def test_a_cache_that_cannot_be_computed_is_not_guessed(tmp_path: Path, config: dict[str, Any], numbers: Any) -> None:
    for written in (config, {"text_config": config}):
        (tmp_path / "config.json").write_text(json.dumps(written))
        assert model_files.key_values_per_token(tmp_path) == numbers


def _sample(number: int, prompt: int, tokens: int, k: int) -> Sample:
    return Sample(
        uid=f"{number:08d}.000", group=f"{number:08d}", attempt=0, seed=number, prompt_ids=[1] * prompt,
        response_ids=[2] * tokens, rollout_logprobs=[-0.5] * tokens, loss_spans=[(0, tokens)],
        finish="length", versions=[3] * tokens, support_ids=[4] * (tokens * k),
    )  # fmt: skip


def _score(number: int, tokens: int, k: int, hidden_bytes: int) -> Score:
    support: dict[str, Any] = {}
    if k:
        support["support_ids"] = np.zeros((tokens, k), np.int32)
        support["support_logprobs"] = np.zeros((tokens, k), np.float16)
        support["tail_logprob"] = np.zeros(tokens, np.float32)
    hidden = bytes(tokens * hidden_bytes) if hidden_bytes else None
    return Score(f"{number:08d}.000", np.zeros(tokens, np.float32), hidden=hidden, **support)
