"""Sizes that follow from memory: by hand, on the common GPUs and shapes, and on machines that say little."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from actors.models.model_files import layer_numbers
from configs.hardware import resolve_dtypes
from configs.load import dump_recipe, parse_recipe
from configs.node import AUTO, UNSIZED
from configs.reading import yaml_tree
from configs.schema import Recipe
from orchestrator.placement.packing import Node
from orchestrator.preflight import gpu_memory
from orchestrator.preflight.budgets import fitted as budgets
from orchestrator.preflight.budgets.fitted import COMMON, Known, by_gpu, fitted, fitted_to, unsized
from orchestrator.preflight.budgets.gpus import gpus_of, part
from orchestrator.preflight.budgets.room import Room
from orchestrator.preflight.comparison import GIB, MIB
from orchestrator.preflight.estimates import Extent, Size, gpu_rank_bytes
from orchestrator.preflight.survey import Free, Machine
from orchestrator.surface.submission import differences
from tests.unit.recipes import loaded, refusal

VOCABULARY = 151_936
SHAPES = {  # Qwen3: parameters, width, numbers of the cache a token, layers, numbers that a layer keeps of a token
    "0.6b": Size(596_049_920, 1024, 57_344, layers=28, layer=35_840),
    "1.7b": Size(1_720_574_976, 2048, 57_344, layers=28, layer=56_320),
    "8b": Size(8_190_735_360, 4096, 73_728, layers=36, layer=107_520),
}
GPU = {"resources": {"gpus": 1}}
GPUS: dict[str, Any] = {
    "learner.resources": {"gpus": 1},
    "rollout": GPU | {"max_context_tokens": 2048},
    "scorer.teacher": GPU | {"max_context_tokens": 2048},
    "sampling.max_response_tokens": 1024,
}
EXTENT = Extent(longest_prompt=1024, heldout=0, vocabulary=VOCABULARY, version_bytes=0, parameters=0)


def recipe(**changes: Any) -> Recipe:
    whole = GPUS | {key.replace("__", "."): value for key, value in changes.items()}
    return resolve_dtypes(loaded(whole), cpu_has_bf16=True)


def known(shape: str, gib: int, of: Recipe, teacher: str | None = None) -> Known:
    sizes = {"student": SHAPES[shape], "teacher": SHAPES[teacher or shape]}
    return Known(EXTENT, sizes, dict.fromkeys(of.roles, gib * GIB))


def numbers(of: Recipe) -> tuple[int, int, int]:
    return of.rollout.max_concurrent, of.scorer_of("teacher").tokens_per_batch, of.batch.tokens_per_microbatch


# --- by hand ---


@pytest.mark.parametrize(("model", "shape"), [("Qwen3-1.7B", "1.7b"), ("Qwen3-8B", "8b")])
def test_what_a_layer_keeps_follows_from_the_configuration(model: str, shape: str) -> None:
    folder = Path(__file__).parents[3] / "configs" / "cluster" / "models" / model
    assert layer_numbers(folder) == (SHAPES[shape].layers, SHAPES[shape].layer)


@pytest.mark.parametrize("config", ["{}", '{"hidden_size": 8, "intermediate_size": [8, 8], "num_hidden_layers": 2}'])
def test_a_configuration_that_does_not_say_is_no_estimate(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    assert layer_numbers(tmp_path) is None


def test_responses_at_a_time_are_those_whose_cache_fits_at_full_length() -> None:
    of = recipe()
    _, (line, *_) = fitted(of, known("8b", 80, of))
    each = 2048 * 73_728 * 2 + 12 * VOCABULARY
    left = int(0.9 * 80 * GIB) - 2 * 8_190_735_360 - 2 * GIB
    assert fitted(of, known("8b", 80, of))[0].rollout.max_concurrent == left // each == 193
    assert line == (
        "rollout.max_concurrent: 193: 72.0 GiB of a GPU less 15.3 GiB of weights, 2048.0 MiB for CUDA graphs leave "
        "54.7 GiB; a response of 2048 tokens, 288.0 MiB of it KV cache, takes 289.7 MiB"
    )
    halved = recipe(rollout=GPU | {"max_context_tokens": 2048, "gpu_memory_fraction": 0.45})
    assert fitted(halved, known("8b", 80, halved))[0].rollout.max_concurrent == 66
    short = recipe(rollout=GPU | {"max_context_tokens": 1536})  # shorter than prompt and response
    assert fitted(short, known("8b", 80, short))[0].rollout.max_concurrent == 257
    parallel = recipe(rollout={"resources": {"gpus": 2}, "max_context_tokens": 2048, "tensor_parallel": 2})
    assert fitted(parallel, known("8b", 24, parallel))[0].rollout.max_concurrent == (
        (2 * int(0.9 * 24 * GIB) - 2 * 8_190_735_360 - 4 * GIB) // each
    )


def test_tokens_of_a_micro_batch_are_what_weights_optimizer_and_logits_leave() -> None:
    of = recipe(learner__zero_stage=2, learner__ranks=8)
    learner, size = of.learner, SHAPES["8b"]
    assert gpu_rank_bytes(size, learner) == pytest.approx(size.parameters * (2 + 16 / 8), rel=1e-6)
    taken = gpu_rank_bytes(size, learner) + 4 * VOCABULARY * 4096 + 2 * 10**9 + 3 * 4 * 2048 * VOCABULARY
    each = 2 * (36 * 107_520 + 107_520 + 4 * 4096)
    fits = (int(0.9 * 80 * GIB) - taken) // each
    whole, lines = fitted(of, known("8b", 80, of))
    assert whole.batch.tokens_per_microbatch == fits // 256 * 256 == 4352
    assert "30.5 GiB of weights, gradients and optimizer" in lines[-1] and lines[-1].endswith("a token takes 7.6 MiB")
    recomputed = recipe(learner__zero_stage=2, learner__ranks=8, learner__gradient_checkpointing=True)
    assert numbers(fitted(recomputed, known("8b", 80, recomputed))[0])[2] == 32_768, "more gains nothing"


def test_wider_supports_adapters_and_offloading_change_the_room_of_a_micro_batch() -> None:
    def tokens(gib: int = 48, size: Size = SHAPES["1.7b"], **changes: Any) -> int:
        of = recipe(**changes)
        found = replace(known("1.7b", gib, of), sizes={"student": size, "teacher": SHAPES["8b"]})
        return fitted(of, found)[0].batch.tokens_per_microbatch

    plain = tokens()
    assert tokens(objective__support="full") < tokens(objective__support="topk") < plain
    assert tokens(learner__offload_optimizer="cpu", learner__zero_stage=2) > 2 * plain
    adapted = replace(SHAPES["1.7b"], adapters=17_000_000, adapted=10**9)
    assert tokens(24, adapted, learner__lora={"rank": 16}) > tokens(24) == 512
    assert tokens(learner__resources={"gpus": 0.75}) < plain


def test_teachers_heads_and_the_copy_for_rollouts_are_held_beside_a_micro_batch() -> None:
    def room(**changes: Any) -> Room:
        of = recipe(**changes)
        found = budgets._room(of, "learner", known("1.7b", 80, of, "8b"))
        assert found is not None
        return found

    plain, full = room(), room(objective__support="full")
    assert "of LM heads" in full.words and full.taken["of LM heads"] == VOCABULARY * 4096 * 2
    assert "LM heads" not in plain.words and "copy" not in plain.words
    ipc = GPU | {"max_context_tokens": 2048, "carrier": "ipc"}
    for ranks in (1, 4):
        copied = room(rollout=ipc, learner__ranks=ranks)
        assert copied.left == room(learner__ranks=ranks).left - 2 * 1_720_574_976


def test_a_scorer_leaves_room_for_its_weights_and_the_beginnings_that_it_keeps() -> None:
    def tokens(gib: int, **changes: Any) -> int:
        of = recipe(**changes)
        return numbers(fitted(of, known("0.6b", gib, of, "8b"))[0])[1]

    assert tokens(80) == tokens(48) == 16_384
    left = int(0.9 * 20 * GIB) - 2 * 8_190_735_360 - 256 * 12 * VOCABULARY
    assert tokens(20) == left // (2 * (107_520 + 2 * 4096)) // 256 * 256 == 10_496
    assert tokens(24, stream_tokens=64) == 512, "131,072 cached tokens of 8 B take 18 GiB"
    assert tokens(24, scorer__teacher=GPU | {"engine": "vllm"}) == 12_288
    assert tokens(14) == 512


# --- on every common GPU ---

WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "full": {"objective__support": "full"},
    "shared": {"learner__ranks": 8, "learner__zero_stage": 3, "learner__gradient_checkpointing": True},
    "vllm": {"scorer__teacher": GPU | {"engine": "vllm", "max_context_tokens": 2048}},
    "turns": {
        "colocate": True,
        "learner__zero_stage": 2,
        "learner__resources": {"gpus": 0.51},
        "rollout": {"resources": {"gpus": 0.3}, "max_context_tokens": 2048, "gpu_memory_fraction": 0.4},
        "scorer__teacher": {"resources": {"gpus": 0.19}},
    },
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_chosen_fits_and_more_memory_never_gives_less(shape: str, way: str) -> None:
    of, found = recipe(**WAYS[way]), []
    for gib in COMMON:
        rooms = [budgets._room(of, role, known(shape, gib, of)) for _, role in unsized(of)]
        assert len(rooms) == 3
        for room in rooms:
            assert isinstance(room, Room) and room.least <= room.count <= room.most
            assert room.count == room.least or room.count * room.each <= room.left
            assert room.count == room.most or (room.count + room.step) * room.each > room.left
        found.append(numbers(fitted(of, known(shape, gib, of))[0]))
    assert all(more >= less for one, other in pairwise(found) for less, more in zip(one, other, strict=True))


def test_the_numbers_of_the_page() -> None:
    """docs/sizing.md shows these."""
    page = (Path(__file__).parents[3] / "docs" / "sizing.md").read_text()
    for shape, size in SHAPES.items():
        of = recipe(learner__zero_stage=2, learner__ranks=8)
        sizes = {"student": size, "teacher": SHAPES["8b"]}
        cells = [numbers(fitted(of, Known(EXTENT, sizes, dict.fromkeys(of.roles, g * GIB)))[0]) for g in COMMON]
        row = " | ".join(f"{responses:,}; {tokens:,}" for responses, _, tokens in cells)
        assert f"| {shape.replace('b', ' B')} | {row} |" in page, row


# --- what is chosen, and what is not ---


def test_only_auto_is_replaced_and_a_users_number_wins() -> None:
    own = recipe(
        batch__tokens_per_microbatch=700,
        rollout=GPU | {"max_concurrent": 3, "max_context_tokens": 2048},
        scorer__teacher=GPU | {"tokens_per_batch": 5},
    )
    assert not any(unsized(own))
    assert fitted(own, known("8b", 24, own)) == (own, [])
    one = recipe(batch__tokens_per_microbatch=700)
    whole, lines = fitted(one, known("0.6b", 24, one))
    assert numbers(whole)[2] == 700 and not any("microbatch" in line for line in lines) and len(lines) == 2
    assert not any(unsized(whole)) and whole.model_dump() != one.model_dump()


def test_a_recipe_keeps_its_auto_until_it_is_fitted() -> None:
    of = recipe()
    assert numbers(of) == (UNSIZED,) * 3
    tree = yaml_tree.parse(dump_recipe(of), "own")
    assert tree["rollout"]["max_concurrent"] == tree["batch"]["tokens_per_microbatch"] == AUTO
    assert parse_recipe(tree) == of
    whole, _ = fitted(of, known("0.6b", 80, of))
    assert parse_recipe(yaml_tree.parse(dump_recipe(whole), "own")) == whole
    old, new = (one.model_dump(mode="json") for one in (whole, of))
    assert list(differences(old, new)) == [], "the same recipe submitted again"
    assert list(differences(old, new | {"batch": new["batch"] | {"tokens_per_microbatch": 1}})) != []


@pytest.mark.parametrize("value", [0, -1, "most", 1.5, None, []])
def test_what_is_no_number_and_not_auto_is_refused(value: Any) -> None:
    assert refusal({"batch.tokens_per_microbatch": value}).startswith("batch.tokens_per_microbatch: ")


def test_on_a_cpu_auto_is_the_default_of_a_cpu() -> None:
    small = loaded(
        {"rollout.max_concurrent": AUTO, "batch.tokens_per_microbatch": AUTO, "scorer.teacher.tokens_per_batch": AUTO}
    )
    whole, lines = fitted(small, Known(EXTENT, {}, {}))
    assert numbers(whole) == (64, 1024, 512) and lines == []


def test_what_is_unknown_has_a_default() -> None:
    of = recipe()
    whole, lines = fitted(of, replace(known("8b", 80, of), gpus={}))
    assert numbers(whole) == (256, 16_384, 8192)
    assert lines[0] == "rollout.max_concurrent: 256: the memory of its GPUs is not known"
    silent = dict.fromkeys(("student", "teacher"), Size(8_000_000_000, 4096, None))
    whole, lines = fitted(of, replace(known("8b", 80, of), sizes=silent))
    assert numbers(whole) == (256, 16_384, 8192) and "what a token takes of the GPU is not known" in lines[0]
    own = recipe(learner__engine="toys:Learner", rollout=GPU | {"engine": "toys:Rollout", "max_context_tokens": 2048})
    assert numbers(fitted(own, known("8b", 80, own))[0]) == (256, 16_384, 8192)


def test_check_says_the_number_on_each_common_gpu() -> None:
    of = recipe()
    lines = by_gpu(of, EXTENT, {"student": SHAPES["8b"], "teacher": SHAPES["8b"]})
    numbers = "15 on 24 GiB, 91 on 48 GiB, 193 on 80 GiB, 387 on 141 GiB"
    assert lines[0] == f"rollout.max_concurrent follows from the GPU's memory: {numbers}"
    assert by_gpu(loaded({}), EXTENT, {}) == []


# --- which GPU ---


def machine(name: str, gib: int | None, gpus: float = 8, **labels: str) -> Machine:
    return Machine(Node(name, 64, gpus, labels), 0, Free(None, 0, 0, gpu_memory=None if gib is None else gib * GIB))


def test_a_role_counts_on_the_smallest_gpu_that_it_may_get() -> None:
    of = recipe(learner__resources={"gpus": 1, "labels": {"kind": "large"}})
    machines = [machine("a", 24), machine("b", 80, kind="large"), machine("c", None, gpus=0)]
    assert gpus_of(of, machines) == {"rollout": 24 * GIB, "scorer.teacher": 24 * GIB, "learner": 80 * GIB}
    assert gpus_of(of, [*machines, machine("d", None)]) == {"learner": 80 * GIB}
    silent = Machine(Node("e", 64, 8, {"kind": "large"}), 0, None, "no answer")
    assert gpus_of(of, [*machines, silent]) == {}
    assert gpus_of(of, []) == {}
    _, lines = fitted_to(of, EXTENT, {"student": SHAPES["0.6b"], "teacher": SHAPES["0.6b"]}, machines)
    assert "21.6 GiB of a GPU" in lines[0] and "72.0 GiB of a GPU" in lines[-1]


def test_shares_of_a_gpu() -> None:
    apart, turns = recipe(learner__resources={"gpus": 0.5}), recipe(**WAYS["turns"])
    assert part(apart, "learner", 80) == 40 and part(apart, "scorer.teacher", 80) == 80
    assert part(turns, "learner", 80) == 80 and part(turns, "scorer.teacher", 80) == 48


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("81559, Disabled\n24576, [N/A]\n", 24_576),
        ("81559, Enabled\n", None),
        ("[N/A], [N/A]\n", None),
        ("81559, Disabled\n[Unknown Error], Disabled\n", None),
        ("No devices were found\n", None),
        ("", None),
    ],
)
def test_what_nvidia_smi_says(said: str, found: int | None) -> None:
    assert gpu_memory.read(said) == (None if found is None else found * MIB)


@pytest.mark.parametrize(
    "happens",
    [
        FileNotFoundError("nvidia-smi"),
        subprocess.TimeoutExpired("nvidia-smi", 20.0),
        subprocess.CompletedProcess("", 9, "1, N\n"),
    ],
)
def test_a_driver_that_fails_tells_nothing(monkeypatch: pytest.MonkeyPatch, happens: Any) -> None:
    def run(*_: Any, **__: Any) -> Any:
        if isinstance(happens, Exception):
            raise happens
        return happens

    monkeypatch.setattr(gpu_memory.subprocess, "run", run)
    assert gpu_memory.smallest_gpu() is None


# --- kinds of members ---


def test_auto_is_a_number_of_its_own_for_each_kind_on_its_own_gpus() -> None:
    wide = {"tensor_parallel": 2, "resources": {"gpus": 2, "labels": {"card": "h200"}}}
    fixed = {"max_concurrent": 8}
    rollout = GPU | {"max_context_tokens": 2048, "kinds": {"wide": wide, "fixed": fixed}}
    scorer = GPU | {"engine": "vllm", "kinds": {"wide": wide}}
    of = recipe(rollout=rollout, scorer__teacher=scorer)
    small, large = (Free(GIB, GIB, GIB, gpu_memory=gib * GIB) for gib in (24, 80))
    machines = (
        Machine(Node("small", 64, 8), GIB, small),
        Machine(Node("large", 64, 8, {"card": "h200"}), GIB, large),
    )
    sizes = {"student": SHAPES["8b"], "teacher": SHAPES["0.6b"]}
    whole, lines = fitted_to(of, EXTENT, sizes, machines)
    each, weights = 2048 * 73_728 * 2 + 12 * VOCABULARY, 2 * 8_190_735_360
    assert whole.rollout.max_concurrent == (int(0.9 * 24 * GIB) - weights - 2 * GIB) // each
    assert whole.rollout.kinds["wide"].max_concurrent == (2 * int(0.9 * 80 * GIB) - weights - 4 * GIB) // each
    assert whole.rollout.kinds["fixed"].max_concurrent == 8
    said = [line.split(": ")[0] for line in lines]
    assert said == [
        "rollout.max_concurrent",
        "rollout.kinds.wide.max_concurrent",
        "scorer.teacher.tokens_per_batch",
        "scorer.teacher.kinds.wide.tokens_per_batch",
        "batch.tokens_per_microbatch",
    ]
    assert not list(unsized(whole))
    assert [line.split(" follows")[0] for line in by_gpu(of, EXTENT, sizes)] == said
