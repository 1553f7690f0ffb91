"""The order of a mixture: shares, a function of seed and index alone, and every prompt of a set once an epoch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.mixture import BLOCK, Mixture
from orchestrator.samples.prompts import Prompt, PromptStream


@dataclass
class Endless:
    name: str

    def __getitem__(self, index: int) -> Prompt:
        return Prompt({"prompt": f"{self.name}{index}"}, {}, None)


def mixture(shares: list[float], seed: int = 0) -> Mixture:
    return Mixture([Endless("abcdefgh"[i]) for i in range(len(shares))], shares, seed)


def said(found: Mixture, indices: range) -> list[str]:
    return [found[i].row["prompt"] for i in indices]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6), st.integers(0, 3))
def test_in_every_block_each_set_has_its_share_to_one(shares: list[float], seed: int) -> None:
    found = mixture(shares, seed)
    for block in range(3):
        counts = Counter(found.place(block * BLOCK + i)[0] for i in range(BLOCK))
        for which, share in enumerate(shares):
            assert abs(counts[which] - BLOCK * share / sum(shares)) < 1 + 1e-6


def test_shares_are_right_in_the_mean_however_small() -> None:
    found = mixture([0.001, 0.999])
    count = sum(found.place(i)[0] == 0 for i in range(300 * BLOCK))
    assert count == pytest.approx(300 * BLOCK * 0.001, rel=0.35)


def test_each_set_is_read_in_its_own_order_without_a_gap() -> None:
    found = said(mixture([3, 1, 0.5]), range(2000))
    for name in "abc":
        mine = [text for text in found if text[0] == name]
        assert mine == [f"{name}{i}" for i in range(len(mine))]


def test_an_index_is_the_whole_state() -> None:
    whole = said(mixture([2, 1], seed=3), range(3000))
    assert said(mixture([2, 1], seed=3), range(2500, 3000)) == whole[2500:]
    forth_and_back = mixture([2, 1], seed=3)
    assert [forth_and_back[i].row["prompt"] for i in (2900, 7, 1400)] == [whole[i] for i in (2900, 7, 1400)]


def test_the_order_follows_from_the_seed() -> None:
    assert (
        said(mixture([1, 1], 1), range(300))
        == said(mixture([1, 1], 1), range(300))
        != said(mixture([1, 1], 2), range(300))
    )


def test_a_small_set_comes_round_in_epochs_of_its_own() -> None:
    small = [Prompt({"prompt": str(i)}, {}, None) for i in range(5)]
    found = Mixture([Endless("a"), PromptStream(small, "0:1", True)], [1, 1], 0)
    mine = [text for text in said(found, range(1000)) if text[0] != "a"]
    epochs = [mine[i : i + 5] for i in range(0, len(mine) - 5, 5)]
    assert all(sorted(epoch) == list("01234") for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) > 10
