"""A reward model's scores of many sequences at once are those of each alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForSequenceClassification

from actors.models import classifier
from actors.models.causal_lm import classify
from actors.models.classifier import batches, classify_all

EQUAL = 1e-5  # float32
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def tiny(pad_token_id: int | None) -> Any:
    torch.manual_seed(3)
    config = LlamaConfig(vocab_size=64, pad_token_id=pad_token_id, num_key_value_heads=2, **SIZES)
    config.num_labels = 1
    model = LlamaForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    return model


@pytest.mark.parametrize("pad", [None, 0, 7])
@pytest.mark.parametrize("budget", [1, 40, 4096])
def test_scores_in_batches_are_those_of_each_alone(pad: int | None, budget: int) -> None:
    draw, model = random.Random(5), tiny(pad)
    sequences = [[draw.randrange(64) for _ in range(draw.randint(1, 30))] for _ in range(25)]
    sequences += [[3, 0], [3, 7], [0], [5, 7, 0, 0]]  # that end in what may be padding
    alone = [classify(model, ids) for ids in sequences]
    assert len({round(score, 4) for score in alone}) > 20
    assert classify_all(model, sequences, budget) == pytest.approx(alone, abs=EQUAL)
    assert model.config.pad_token_id == pad


def test_a_model_that_padding_changes_reads_one_sequence_at_a_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, sequences = tiny(0), [[1, 2, 3], [4, 5]]
    alone = [classify(model, ids) for ids in sequences]
    padded = classifier._padded
    monkeypatch.setattr(classifier, "_padded", lambda *of: [score + 0.1 * len(of[1]) for score in padded(*of)])
    assert classify_all(model, sequences, 4096) == alone
    assert "one sequence at a time: padding changes its scores by 0.3" in capsys.readouterr().out


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_batches_hold_each_sequence_once_within_the_budget(lengths: list[int], budget: int) -> None:
    found = list(batches(lengths, budget))
    assert sorted(place for batch in found for place in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or max(lengths[p] for p in batch) * len(batch) <= budget for batch in found)
