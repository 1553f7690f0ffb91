"""Bytes on the wire as whole runs report them: bounded a token and a row (a response, or a segment of one), inlined
ones bounded a block.

That the orchestrator opens no payload is tested in test_simulated_run.py, and over Ray in tests/engines.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.pools.telemetry import Meter
from orchestrator.run import DONE
from tests.unit.simulation import EACH, GROUPS, HELDOUT, STEPS, TRAIN, Simulation, metrics, recipe, trained

A_TOKEN = {"sampled": 4, "topk": 6 * 5 + 8}  # bytes, with the five likeliest tokens
A_RESPONSE = 64
SAMPLED = 3 * 4  # bytes of a sampled token: its id, log-prob and version
A_ROW = 84  # and of a row: its names and counts, one prompt token, one span, and where its lists begin
HELD_BACK = {"model": "reference", "beta": 0.1}


def score_bytes(root: Path) -> float:
    lines = metrics(root)
    return sum((line["score_bytes_per_token"] or 0.0) * line["tokens_scored"] for line in lines)


@pytest.mark.parametrize("samples", [1, 64])
@pytest.mark.parametrize("bound", [0, 1])
@pytest.mark.parametrize("support", A_TOKEN)
def test_scores_cost_their_tokens_and_at_most_64_bytes_a_response(
    tmp_path: Path, support: str, bound: int, samples: int
) -> None:
    objective = {"support": support, "topk": 5} if support == "topk" else {"support": support}
    settings = recipe(tmp_path, objective=objective, max_staleness=bound, stream={"coalesce_samples": samples})
    assert Simulation(settings).go() == DONE
    tokens = sum(line["tokens_scored"] for line in metrics(tmp_path))
    responses = STEPS * GROUPS * EACH
    assert 0 < score_bytes(tmp_path) - A_TOKEN[support] * tokens <= A_RESPONSE * responses


def payload_bytes(simulation: Simulation) -> list[int]:
    """Sizes of the payloads of a run's steps, once it has run."""
    sizes: list[int] = []
    payload = simulation.run.meter.payload

    def noted(size: int) -> None:
        sizes.append(size)
        payload(size)

    simulation.run.meter.payload = noted  # type: ignore[method-assign]
    assert simulation.go() == DONE
    return sizes


@pytest.mark.parametrize("longest", [60, 500])
def test_a_response_in_segments_costs_its_tokens_however_long_it_is(tmp_path: Path, longest: int) -> None:
    """Its tokens travel in segments of 8, and all of them with the last; scores cost 64 bytes a row."""
    settings = recipe(tmp_path, stream_tokens=8, sampling={"max_response_tokens": longest})
    sizes = payload_bytes(Simulation(settings))
    tokens = sum(line["tokens_generated"] for line in metrics(tmp_path))
    lengths = [len(row["response_ids"]) for row in trained(tmp_path)]
    rows = [-(-length // 8) for length in lengths]
    assert sum(lengths) == tokens and max(rows) > longest / 8 / 2
    assert 0 < score_bytes(tmp_path) - A_TOKEN["sampled"] * tokens <= A_RESPONSE * sum(rows)
    carried = sum(8 * (count - 1) + length for count, length in zip(rows, lengths, strict=True))
    ends = sum(len(row["finish"]) for row in trained(tmp_path))
    assert sum(sizes) - score_bytes(tmp_path) == pytest.approx(SAMPLED * carried + A_ROW * sum(rows) + ends, abs=0.5)


def test_a_sampled_reference_beside_a_teachers_top_k_costs_what_sampled_support_costs(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "models": {"reference": {"path": "/none"}},
        "objective": {"support": "topk", "topk": 5, "reference": HELD_BACK, "outcome": {"weight": 1.0}},
    }
    settings = recipe(tmp_path, **changes, scorer={"reference": {}})
    train, heldout = (
        [replace(prompt, ids=prompt.ids | {"reference": [8]}) for prompt in prompts] for prompts in (TRAIN, HELDOUT)
    )
    assert Simulation(settings, train=train, heldout=heldout).go() == DONE
    of_each_model = sum(line["tokens_scored"] for line in metrics(tmp_path)) / 2
    over = score_bytes(tmp_path) - sum(A_TOKEN.values()) * of_each_model
    assert 0 < over <= 2 * A_RESPONSE * STEPS * GROUPS * EACH


def test_what_a_payload_adds_to_the_drivers_memory_is_bounded(tmp_path: Path) -> None:
    """Of samples and scores, in blocks small and large: Ray keeps those under 100 KiB inside their owner."""
    large = {"objective": {"support": "topk", "topk": 64}, "sampling": {"max_response_tokens": 500}}
    sizes = payload_bytes(Simulation(recipe(tmp_path, **large)))
    inlined = [size for size in sizes if size < Meter.INLINE_LIMIT]
    assert 0 < len(inlined) < len(sizes)
    assert len(sizes) == 2 * STEPS * GROUPS * EACH, "blocks of one response, and their scores"
    assert sum(line["bytes_inlined"] for line in metrics(tmp_path)) == sum(inlined) <= 100 * 1024 * len(sizes)
