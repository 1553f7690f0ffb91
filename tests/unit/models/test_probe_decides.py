"""What the probe of the loaded weights finds decides, whatever a small copy showed, and where there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.models import loading
from actors.models.handling import PLAIN
from actors.models.probing import small_copy as copies
from actors.models.probing.probe import Gaps, ProbeResult
from actors.models.probing.small_copy import foresee
from actors.scoring.engine import Item
from actors.scoring.torch_engine import TorchEngine
from actors.wire.records import ScoreRequest
from configs.roles.scorer import Scorer
from tests.cli import leaky

CPU = torch.device("cpu")


@pytest.fixture
def no_copy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No small copy of any model can be built."""

    def unbuildable(*_: Any) -> Any:
        raise ValueError("sizes that do not go together")

    monkeypatch.setattr(copies, "small_copy", unbuildable)
    copies._foresee.cache_clear()
    yield
    copies._foresee.cache_clear()


@pytest.fixture
def leaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loaded weights leak by half a nat where the small copy does not."""
    monkeypatch.setattr(loading, "_probed", leaky.found)


def test_loaded_weights_that_leak_are_padded_though_the_small_copy_packs(
    leaking: None, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ahead = foresee(models["teacher"], "auto", "auto")
    assert ahead.probed and ahead.probed.handling.packs and ahead.probed.handling.apart
    loaded = loading.load(models["teacher"], "float32", "auto", "auto", CPU)
    assert not loaded.handling.packs and not loaded.handling.apart
    assert loaded.model.config._attn_implementation == "sdpa", "nothing attends apart in rows of one sequence"
    said = capsys.readouterr().out
    assert "padded to a row each" in said and "packed 0.5" in said


def test_loaded_weights_that_leak_are_refused_where_packing_is_asked_for(
    leaking: None, models: dict[str, Path]
) -> None:
    assert foresee(models["teacher"], "auto", True).refusal is None
    with pytest.raises(loading.ModelRefused) as refused:
        loading.load(models["teacher"], "float32", "auto", True, CPU)
    said = str(refused.value)
    assert said.startswith(f"{models['teacher']}: packed sequences are 0.5 nats off the same ones alone: they leak")
    assert said.endswith("set packing: auto, which pads them") and "\n" not in said


@pytest.mark.parametrize(("name", "packs"), [("qwen3_5_text", False), ("falcon_h1", False), ("llama", True)])
def test_without_a_small_copy_the_loaded_weights_decide_alone(
    no_copy: None, written: Callable[[str], Path], name: str, packs: bool
) -> None:
    assert foresee(written(name), "auto", "auto").probed is None
    assert loading.load(written(name), "float32", "auto", "auto", CPU).handling.packs == packs


def test_without_a_small_copy_what_leaks_or_is_inexact_is_refused_as_it_is_loaded(
    no_copy: None, written: Callable[[str], Path]
) -> None:
    """The numbers are those of the weights: nobody looked at a copy."""
    with pytest.raises(loading.ModelRefused, match=r"packed sequences are \d\S* nats off .* set packing: auto"):
        loading.load(written("qwen3_5_text"), "float32", "auto", True, CPU)
    with pytest.raises(loading.ModelRefused, match=r"this attention is \S+ nats off the plain one"):
        loading.load(written("gemma2"), "float32", "sdpa", "auto", CPU)


def test_a_small_copy_that_leaks_is_believed_though_the_weights_hide_it(
    written: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those do whose second sequence hardly looks back."""
    hidden = Gaps(head=0.0, packed=0.0, packed_first=0.0, apart=0.0, padded=0.0, continued=0.0, attention=0.0)
    monkeypatch.setattr(loading, "_probed", lambda *_: ProbeResult(PLAIN, hidden))
    loaded = loading.load(written("qwen3_5_text"), "float32", "auto", "auto", CPU)
    assert not loaded.handling.packs and not loaded.handling.apart


# A scorer's own attention.


def scorer(attention: str) -> Scorer:
    return Scorer.model_validate({"dtype": "float32", "attention": attention, "resources": {"threads": 1}})


@pytest.mark.parametrize(("attention", "used"), [("eager", "eager"), ("auto", "sdpa"), ("sdpa", "sdpa")])
def test_a_torch_scorer_computes_with_the_attention_that_it_is_told(
    written: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, attention: str, used: str
) -> None:
    seen: list[str] = []
    asked = loading.causal_lm.load_model

    def loading_with(directory: Path, dtype: str, chosen: str) -> Any:
        seen.append(chosen)
        return asked(directory, dtype, chosen)

    monkeypatch.setattr(loading.causal_lm, "load_model", loading_with)
    engine = TorchEngine(scorer(attention), written("llama"), 150)
    assert seen == [used]
    assert engine._handling.apart == (used == "sdpa"), "plain attention has a mask of the whole row"
    (score,) = asyncio.run(engine.score([Item("a", [20, 21], [22, 23], 0, True, [])], ScoreRequest("sampled")))
    assert len(score.logprobs) == 2


def test_a_torch_scorer_refuses_an_attention_that_leaves_something_out(written: Callable[[str], Path]) -> None:
    with pytest.raises(loading.ModelRefused, match=r"nats off the plain one: .* set attention: auto or eager"):
        TorchEngine(scorer("sdpa"), written("gemma2"), 150)
