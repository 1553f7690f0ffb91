"""Log-probs of a few ids and the entropy, against those of a log-softmax: values, gradients, and what is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.objective import Objective as ObjectiveConfig
from objectives import distributions, objective
from objectives.distributions import Distributions
from objectives.divergence import entropy
from objectives.schedule import Dials
from objectives.tokens import Scores, Tokens

DIALS = Dials(reverse_weight=1.0, beta=0.5)
N, V = 13, 57


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of four rows, the last of one."""
    monkeypatch.setitem(distributions.BLOCK, "cpu", 4 * V)
    yield


def logits(dtype: torch.dtype = torch.float64, spread: float = 5.0) -> Tensor:
    drawn = torch.randn(N, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * spread
    drawn[2] += 300.0  # far from 0
    drawn[3, 5] += 90.0  # all of the mass, up to rounding
    drawn[4, 7:20] = -torch.inf  # masked by the model
    return drawn.to(dtype)


def ids() -> Tensor:
    found = torch.randint(0, V, (N, 3), generator=torch.Generator().manual_seed(1))
    found[0] = 11  # the same id three times
    found[3, 0], found[4, 0] = 5, 30
    found[4] = found[4].clamp(min=20)
    return found


def read(kind: str, values: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    leaf = values.clone().requires_grad_()
    if kind == "at":
        found, spread = Distributions(leaf * 1.0).at(wanted)
    else:
        rows = Distributions(leaf * 1.0).rows()
        found, spread = rows.gather(-1, wanted), entropy(rows.detach())
    (found * torch.linspace(-1.0, 2.0, found.numel(), dtype=values.dtype).reshape(found.shape)).sum().backward()
    assert leaf.grad is not None and not spread.requires_grad
    return found.detach(), spread, leaf.grad


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("spread", [0.1, 5.0, 30.0])
def test_ids_and_entropy_are_those_of_a_log_softmax(dtype: torch.dtype, close: float, spread: float) -> None:
    at, rows = (read(kind, logits(dtype, spread), ids()) for kind in ("at", "rows"))
    for found, expected in zip(at, rows, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=close, atol=close)


def test_an_impossible_id_stays_impossible() -> None:
    found, _ = Distributions(logits()).at(torch.full((N, 1), 8))
    assert found[4] == -torch.inf and torch.isfinite(found[:4]).all()


def test_no_second_tensor_of_the_vocabulary_is_kept() -> None:
    values = (logits().requires_grad_() * 1.0).squeeze()
    found, _ = Distributions(values).at(ids())
    kept = found.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert [t.data_ptr() for t in kept if t.shape == values.shape] == [values.data_ptr()]
    assert float(values.detach().sum()) == pytest.approx(N), "the logits have become probabilities"
    found.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.sum().backward()


def tokens() -> Tokens:
    count, generator = torch.ones(N), torch.Generator().manual_seed(2)
    drawn = ids()[:, 0]
    drawn[5] = 3  # an end token
    mu, teacher = (-5.0 * torch.rand(N, generator=generator, dtype=torch.float64) for _ in range(2))
    return Tokens(
        token_ids=drawn,
        sequence=torch.arange(N) // 5,
        position=torch.arange(N) % 5,
        on=count.bool(),
        weights={"distillation": count / N, "outcome": count / N},
        rollout_logprob=mu,
        advantage=count.double(),
        reward=count.double(),
        drawn=count.bool(),
        scores={"teacher": Scores(logprob=teacher, logprobs=logits(spread=2.0).log_softmax(-1))},
    )


@pytest.mark.parametrize(
    ("recipe", "sampled"),
    [
        ({"support": "sampled"}, True),
        ({"support": "sampled", "estimator": "k3_in_loss"}, True),
        ({"support": "full"}, False),
        ({"support": "full", "baseline": "exact"}, False),
    ],
)
@pytest.mark.parametrize("merged", [(), (3, 9)])
def test_an_objective_reads_distributions_as_it_reads_log_probs(
    recipe: dict[str, Any], sampled: bool, merged: tuple[int, ...]
) -> None:
    config = ObjectiveConfig.model_validate({"target": "teacher", "reverse_weight": 1.0} | recipe)
    built = objective.Objective(config, ends=merged)
    assert built.compares_distributions != sampled
    results = []
    for wrap in (lambda z: z.log_softmax(-1), Distributions):
        leaf = logits().requires_grad_()
        given = tokens() if not sampled else replace(tokens(), scores={"teacher": Scores(tokens().rollout_logprob - 1)})
        streams = built.read(wrap(leaf * 1.0), given, DIALS)
        loss = built.loss(streams, given, DIALS)
        loss.backward()
        results.append((streams, built.metrics(streams, given, DIALS), loss.detach(), leaf.grad))
    (streams, *others), (own, *plain) = results
    assert streams.keys() == own.keys()
    for name in streams:
        torch.testing.assert_close(own[name].detach(), streams[name].detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(plain, others, rtol=1e-10, atol=1e-10)
