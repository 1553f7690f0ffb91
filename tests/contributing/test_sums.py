"""The sums of configs/pipelines/sums.yaml, and what is said of a pipeline's gain on them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from orchestrator.evaluation.intervals import bootstrap
from scripts.sums import FILES, FOLDER, HELDOUT, ROWS, SEED, write


def test_the_files_are_what_the_seed_gives_and_their_answers_are_right() -> None:
    texts = [(FOLDER / file).read_text() for file in FILES]
    assert write(ROWS, HELDOUT, SEED) == tuple(texts)
    pairs: list[set[frozenset[int]]] = []
    for text in texts:
        rows = [json.loads(line) for line in text.splitlines()]
        asked = [[int(number) for number in re.findall(r"\d+", row["prompt"])] for row in rows]
        for (a, b), row in zip(asked, rows, strict=True):
            assert (row["answer"], row["response"]) == (str(a + b), f"{a} + {b} = {a + b}")
        pairs.append({frozenset(pair) for pair in asked})
        assert len(pairs[-1]) == len(rows)
    assert not pairs[0] & pairs[1], "no held-out pair is trained on, in either order"


def test_the_interval_of_a_gain_is_that_of_a_mean_over_prompts() -> None:
    rng = np.random.default_rng(3)
    differences = rng.choice([-0.25, 0.0, 0.5, 1.0], 64)
    error = differences.std() / 8
    low, high = bootstrap(differences.tolist(), seed=0)
    assert low == pytest.approx(differences.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(differences.mean() + 1.96 * error, abs=0.2 * error)
    assert bootstrap([0.25] * 5, seed=0) == (0.25, 0.25)
