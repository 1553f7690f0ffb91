"""How far weights moved: matrices of known rank, bf16 by hand, and files in either dtype."""

from __future__ import annotations

import json
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from actors.metrics import MOVEMENT_METRICS
from actors.models.movement import EXACT, SKETCH, Files, effective_rank, moved, movement, spectrum
from orchestrator.surface.measuring.movement import measured, summed, table_of

STEP = 2.0**-7  # of bf16 between 1 and 2: 8 bits of precision


def of_singular_values(values: torch.Tensor, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, len(values), dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, len(values), dtype=torch.float64)).Q
    return (left * values) @ right.T


@pytest.mark.parametrize(("rows", "columns"), [(7, 90), (EXACT, 300), (400, 300)])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_effective_rank_of_equal_singular_values_is_their_number(rows: int, columns: int, rank: int) -> None:
    start = torch.randn(rows, columns)
    change = of_singular_values(torch.full((rank,), 0.5, dtype=torch.float64), rows, columns)
    found = moved(start.double(), start.double() + change)
    assert found.rank == pytest.approx(rank, rel=2e-3)
    assert found.most == min(rows, columns) and found.seen == pytest.approx(1.0, abs=1e-5)
    assert found.change == pytest.approx(0.25 * rank, rel=1e-4)


def test_unequal_singular_values_count_by_the_entropy_of_their_squares() -> None:
    values = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
    shares = values.square() / values.square().sum()
    expected = float(torch.exp(-(shares * shares.log()).sum()))
    for rows in (20, 200):
        found = moved(torch.zeros(rows, 250), of_singular_values(values, rows, 250).float())
        assert found.rank == pytest.approx(expected, rel=1e-4)
    assert 1.0 < expected < 3.0


def test_noise_of_full_rank_is_not_taken_for_the_rank_of_the_sketch() -> None:
    """The randomised SVD sees a part of it: what it does not see is spread over the rest, from above."""
    torch.manual_seed(1)
    change = torch.randn(300, 400)
    shares = torch.linalg.svdvals(change.double()).square()
    exact = effective_rank(shares / shares.sum(), 300)
    found = moved(torch.zeros_like(change), change)
    assert found.seen is not None and found.seen < 0.7 and found.rank is not None
    assert exact <= found.rank <= 300.01 and found.rank > 3 * SKETCH
    assert found == moved(torch.zeros_like(change), change), "twice the same"


def test_the_sketch_has_the_largest_singular_values_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(2)
    change = of_singular_values(0.9 ** torch.arange(200, dtype=torch.float64), 260, 320).float()
    unit = change / change.norm()
    before = torch.get_rng_state()
    found = spectrum(unit)
    assert torch.equal(before, torch.get_rng_state())
    exact = torch.linalg.svdvals(unit.double()).square()[:SKETCH]
    assert torch.allclose(found[:32], exact[:32], rtol=1e-3)


def test_a_weight_has_changed_if_it_differs_after_rounding_both_to_bf16() -> None:
    start = torch.tensor([1.0, 1.0, 1.0, 1.0 + 0.49 * STEP, 0.0, 3.0])
    now = start + torch.tensor([0.49 * STEP, 0.51 * STEP, STEP, 0.02 * STEP, 1e-30, 0.0])
    found = moved(start, now)
    # below half a step; above it; a whole step; a small change over a boundary; from 0 anything; none
    assert (start.bfloat16() != now.bfloat16()).tolist() == [False, True, True, True, True, False]
    assert (found.weights, found.changed) == (6, 4)
    assert moved(start.bfloat16(), now).changed == 4, "a start in bf16 is its own rounding"
    assert moved(torch.tensor([0.0]), torch.tensor([-0.0])).changed == 0
    tie = torch.tensor([1.0 + 0.5 * STEP])
    assert moved(torch.tensor([1.0]), tie).changed == 0, "half way: to the even neighbour, which is 1"


def test_only_a_matrix_that_moved_has_a_rank() -> None:
    same = moved(torch.ones(3, 4), torch.ones(3, 4))
    assert (same.rank, same.changed, same.change, same.start) == (None, 0, 0.0, 12.0)
    for shape in ((5,), (2, 3, 4)):
        found = moved(torch.zeros(shape), torch.ones(shape))
        assert found.rank is None and found.changed == found.weights
    tiny = moved(torch.zeros(4, 4), torch.full((4, 4), 1e-30))
    assert tiny.rank == pytest.approx(1.0), "squares of float32 would be 0"


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


def models(tmp_path: Path, dtype: torch.dtype, now_dtype: torch.dtype) -> tuple[Path, Path]:
    torch.manual_seed(3)
    start = {f"layers.{i}.proj.weight": torch.randn(8, 6).to(dtype) for i in range(2)}
    start["norm.weight"] = torch.ones(6).to(dtype)
    now = {name: tensor.float() for name, tensor in start.items()}
    now["layers.1.proj.weight"] = now["layers.1.proj.weight"] + torch.outer(torch.full((8,), 4.0), torch.ones(6))
    stored = {name: tensor.to(now_dtype) for name, tensor in now.items()}
    return write(tmp_path / "start", start), write(tmp_path / "now", stored)


@pytest.mark.parametrize("now_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_are_compared_in_either_dtype(tmp_path: Path, dtype: torch.dtype, now_dtype: torch.dtype) -> None:
    start, now = models(tmp_path, dtype, now_dtype)
    found = measured(str(start), now)
    assert found.keys() == {"start", "tensors", *MOVEMENT_METRICS}
    assert found["weights"] == 102 and found["weights_changed"] == pytest.approx(48 / 102)
    tensors = found["tensors"]
    assert tensors["layers.0.proj.weight"]["changed"] == 0 and tensors["norm.weight"]["rank"] is None
    assert tensors["layers.1.proj.weight"]["rank"] == pytest.approx(1.0, abs=0.02), "rounding adds some noise"
    assert tensors["layers.1.proj.weight"]["change"] == pytest.approx(48 * 16, rel=0.01)
    json.dumps(found, allow_nan=False)


def test_a_tied_copy_is_left_out_and_other_models_are_not_compared(tmp_path: Path) -> None:
    start, now = models(tmp_path, torch.float32, torch.float32)
    copied = write(tmp_path / "copied", {"norm.weight": torch.ones(6), "lm_head.weight": torch.ones(2, 6)})
    assert [name for name, _ in movement(Files(start), Files(copied))] == ["norm.weight"]
    other = write(tmp_path / "other", {"norm.weight": torch.ones(7)})
    assert measured(str(start), other)["unknown"] == "norm.weight is [7], and [6] in the start"
    strange = write(tmp_path / "strange", {"bias": torch.ones(7)})
    assert "no tensor of the start's names" in measured(str(start), strange)["unknown"]
    (now / "model.safetensors").write_bytes(b"short")
    assert measured(str(start), now).keys() == {"start", "unknown"}


def test_the_table_has_a_row_for_each_kind_of_tensor(tmp_path: Path) -> None:
    start, now = models(tmp_path, torch.float32, torch.float32)
    text = shown(measured(str(start), now), tmp_path)
    assert "layers.*.proj.weight" in text and "50.00%" in text and "47.06%" in text and "layers.1" not in text
    assert "not compared: short" in shown({"start": "a", "unknown": "short"}, tmp_path)
    same = summed({"w": moved(torch.zeros(2, 2), torch.zeros(2, 2))})
    assert same["weights_distance"] is None and same["effective_rank"] is None
    assert "0.00%" in shown({"start": "a", **same}, tmp_path)


def shown(found: dict[str, Any], tmp_path: Path) -> str:
    with (tmp_path / "out").open("w") as out:
        console = Console(width=120, record=True, file=out)
        console.print(table_of(found))
        return console.export_text()


def test_weights_that_are_not_finite_are_changes() -> None:
    assert moved(torch.ones(2), torch.tensor([nan, 1.0])).changed == 1
