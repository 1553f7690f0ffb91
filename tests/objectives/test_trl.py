"""TRL's generalised JSD and ours are one function: its `beta` is our lambda, end points included."""

from __future__ import annotations

import pytest
import torch

from tests.objectives.enumeration import every_token, gradient, log_probs, logits, loss, recipe

gkd = pytest.importorskip("trl.experimental.gkd", reason="TRL is no dependency: pip install trl to compare with it")


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_jsd_is_trls_generalised_jsd_with_lambda_for_its_beta(weight: float, seed: int) -> None:
    theta, p = logits(seed), log_probs(seed + 10)
    config = recipe(support="full", family="jsd", reverse_weight=weight)
    ours = loss(config, *every_token(config, theta.log_softmax(-1), p))
    theirs = gkd.GKDTrainer.generalized_jsd_loss(theta[None], p[None], beta=weight, reduction="sum")
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(gradient(ours, theta), gradient(theirs, theta), rtol=0.0, atol=1e-6)
