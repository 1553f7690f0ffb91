"""Every response to one prompt over 3 tokens and an end token, up to 3 tokens long: 40, of which 27 are cut unended.

A policy is the next-token log-probs at each of 13 prefixes, [13, 4]. One micro-batch holds all 40 responses, each
weighted by its probability, so that the gradient of the loss is the exact mean over responses.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from configs.objective import Objective as ObjectiveConfig
from objectives.schedule import Dials
from objectives.tokens import Tokens
from tests.objectives.enumeration import gradient, kl, loss, micro_batch

BRANCHES, END, LENGTH = 3, 3, 3
PREFIXES = [prefix for n in range(LENGTH) for prefix in product(range(BRANCHES), repeat=n)]
RESPONSES = [(*prefix, END) for prefix in PREFIXES] + list(product(range(BRANCHES), repeat=LENGTH))
NODES, OUTCOMES, RESPONSE_COUNT = len(PREFIXES), BRANCHES + 1, len(RESPONSES)

SEQUENCE = torch.tensor([i for i, response in enumerate(RESPONSES) for _ in response])
POSITION = torch.tensor([t for response in RESPONSES for t in range(len(response))])
TOKEN = torch.tensor([token for response in RESPONSES for token in response])
NODE = torch.tensor([PREFIXES.index(response[:t]) for response in RESPONSES for t in range(len(response))])
LENGTHS = torch.tensor([len(response) for response in RESPONSES])


def log_prob(policy: Tensor) -> Tensor:
    """log probability of each response, [13, 4] -> [40]."""
    return policy.new_zeros(RESPONSE_COUNT).index_add(0, SEQUENCE, policy[NODE, TOKEN])


def sequence_kl(a: Tensor, b: Tensor) -> Tensor:
    """KL of two policies as distributions over whole responses."""
    return kl(log_prob(a), log_prob(b))


def reach(policy: Tensor) -> Tensor:
    """Probability that a response passes each prefix, [13], by its own steps; a constant."""
    steps = [[policy[PREFIXES.index(prefix[:t]), token] for t, token in enumerate(prefix)] for prefix in PREFIXES]
    return torch.stack([torch.stack([policy.new_zeros(()), *s]).sum() for s in steps]).exp().detach()


def responses(
    config: ObjectiveConfig, student: Tensor, models: dict[str, Tensor], mu: Tensor | None = None, **given: Any
) -> tuple[Tensor, Tokens]:
    """All responses, weighted by their probability under mu (the student by default): its rows and the tokens."""
    mu = (student if mu is None else mu).detach()
    given = {"sequence": SEQUENCE, "position": POSITION} | given
    weight = log_prob(mu).exp()[SEQUENCE]
    rows = {name: policy[NODE] for name, policy in models.items()}
    return student[NODE], micro_batch(config, TOKEN, mu[NODE], weight, rows, **given)


def tree_loss(
    config: ObjectiveConfig,
    student: Tensor,
    models: dict[str, Tensor],
    dials: Dials | None = None,
    value: Tensor | None = None,
    **given: Any,
) -> Tensor:
    """The loss over all responses. `value`: what a value head says of the prefix of each token, [N]."""
    streams = {} if value is None else {"value": value}
    return loss(config, *responses(config, student, models, **given), dials=dials, **streams)


def tree_step(config: ObjectiveConfig, theta: Tensor, models: dict[str, Tensor], **given: Any) -> Tensor:
    """The mean gradient in the student's logits [13, 4]."""
    return gradient(tree_loss(config, theta.log_softmax(-1), models, **given), theta)
