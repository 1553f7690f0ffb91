"""Exact expectations: every token of a small vocabulary at a few prefixes, each with its probability as its weight.

With weight q(y) on token y, the loss is the sum over prefixes of E_{y~q}[loss(y)], and autograd through it is the
expected gradient, exact up to float64 rounding. All goes through what the learner calls: `read`, then `loss`. The
divergences here are written out again, not imported.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from configs.objective import Objective as ObjectiveConfig
from objectives import objective
from objectives.schedule import Dials, dials_at
from objectives.tokens import Scores, Tokens

LAMBDAS = (0.0, 0.1, 0.5, 0.9, 1.0)
PREFIXES, VOCABULARY = 4, 5

assert_equal = partial(torch.testing.assert_close, rtol=0.0, atol=1e-9)
proven_by_examples = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no failure
)


def logits(seed: int, prefixes: int = PREFIXES, vocabulary: int = VOCABULARY) -> Tensor:
    """Random logits [S, V], float64, a leaf that wants a gradient."""
    random = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn(prefixes, vocabulary, generator=random, dtype=torch.float64)).requires_grad_()


def log_probs(seed: int, prefixes: int = PREFIXES, vocabulary: int = VOCABULARY) -> Tensor:
    """A fixed distribution at each prefix, [S, V] nats."""
    return logits(seed, prefixes, vocabulary).detach().log_softmax(-1)


def log_of(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a||b) = sum_v a (log a - log b), [..., V] -> [...]; 0 log 0 = 0."""
    return torch.where(a == -torch.inf, 0.0, a.exp() * (a.clamp(min=-1e9) - b.clamp(min=-1e9))).sum(-1)


def mixture(q: Tensor, p: Tensor, reverse_weight: float) -> Tensor:
    """lambda KL(q||p) + (1 - lambda) KL(p||q)."""
    return reverse_weight * kl(q, p) + (1.0 - reverse_weight) * kl(p, q)


def merged(log_p: Tensor, support: Tensor) -> Tensor:
    """The support's tokens and, as one more category, all others: [S, V], [S, K] -> [S, K + 1]."""
    inside = log_p.gather(-1, support)
    return torch.cat([inside, torch.log(1.0 - inside.exp().sum(-1, keepdim=True))], dim=-1)


def gradient(value: Tensor, of: Tensor) -> Tensor:
    """d sum(value) / d of; zeros where nothing depends on it."""
    grad = torch.autograd.grad(value.sum(), of, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(of) if grad is None else grad


def recipe(**axes: Any) -> ObjectiveConfig:
    return ObjectiveConfig(**{"target": "teacher", **axes})


def loss(
    config: ObjectiveConfig, student: Tensor, tokens: Tokens, dials: Dials | None = None, **streams: Any
) -> Tensor:
    """The learner's loss: student [N, V] log-probs with their graph. `streams`: what its value head adds."""
    built, dials = objective.build(config), dials or dials_at(config, 1)
    return built.loss(built.read(student, tokens, dials) | streams, tokens, dials)


def metrics(config: ObjectiveConfig, student: Tensor, tokens: Tokens, **streams: Any) -> dict[str, Tensor]:
    built, dials = objective.build(config), dials_at(config, 1)
    return built.metrics(built.read(student, tokens, dials) | streams, tokens, dials)


def scores(support: str, logprobs: Tensor, token_ids: Tensor, ids: Tensor | None = None, topk: int = 3) -> Scores:
    """What a scorer of `support` sends of one model's [N, V] log-probs; `ids` [N, K] in place of its own, -1 unused."""
    logprob = logprobs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    if support == "full":
        return Scores(logprob, logprobs=logprobs)
    if support == "sampled":
        return Scores(logprob)
    if ids is None:
        ids = logprobs.topk(min(topk, logprobs.shape[-1])).indices
    inside = logprobs.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)
    taken = torch.zeros(*logprobs.shape[:-1], logprobs.shape[-1] + 1, dtype=torch.bool).scatter_(-1, ids + 1, True)
    tail = logprobs.masked_fill(taken[..., 1:], -torch.inf).logsumexp(-1)
    return Scores(logprob, support_ids=ids, support_logprobs=inside, tail_logprob=tail)


def micro_batch(
    config: ObjectiveConfig,
    token_ids: Tensor,
    mu: Tensor,
    weight: Tensor,
    models: dict[str, Tensor],
    ids: Tensor | None = None,
    **given: Any,
) -> Tokens:
    """N tokens with the same `weight` [N] in every term. mu and each of `models` [N, V]; `given`: other fields."""
    n = len(token_ids)
    asked = config.support_of
    scored = {m: scores(asked.get(m, config.support), p, token_ids, ids, config.topk) for m, p in models.items()}
    fields: dict[str, Any] = {
        "token_ids": token_ids,
        "sequence": torch.arange(n),  # a response a token, unless given
        "position": torch.zeros(n, dtype=torch.long),
        "on": torch.ones(n, dtype=torch.bool),
        "weights": dict.fromkeys(config.terms, weight),
        "rollout_logprob": mu.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1),
        "advantage": torch.zeros(n, dtype=mu.dtype),
        "reward": torch.zeros(n, dtype=mu.dtype),
        "drawn": torch.ones(n, dtype=torch.bool),
        "scores": scored,
    }
    return Tokens(**(fields | given))


def every_token(
    config: ObjectiveConfig,
    q: Tensor,
    models: Tensor | dict[str, Tensor],
    mu: Tensor | None = None,
    ids: Tensor | None = None,
    **given: Any,
) -> tuple[Tensor, Tokens]:
    """All V tokens at each of S prefixes, a response each, weighted by mu (q itself by default).

    `models` [S, V] by name, or the one teacher. Returns the student's rows [S V, V] with their graph, and the tokens.
    """
    count, vocabulary = q.shape
    mu = (q if mu is None else mu).detach()
    if isinstance(models, Tensor):
        models = {"teacher": models}
    rows = partial(torch.repeat_interleave, repeats=vocabulary, dim=0)
    tokens = micro_batch(
        config,
        torch.arange(vocabulary).repeat(count),
        rows(mu),
        mu.exp().flatten(),
        {name: rows(p) for name, p in models.items()},
        None if ids is None else rows(ids),
        **given,
    )
    return rows(q), tokens


def step(config: ObjectiveConfig, theta: Tensor, models: Tensor | dict[str, Tensor], **given: Any) -> Tensor:
    """The expected gradient in the logits [S, V] of a recipe's loss over every token."""
    dials = given.pop("dials", None)
    return gradient(loss(config, *every_token(config, theta.log_softmax(-1), models, **given), dials=dials), theta)


def logit_lists(size: int, bound: float = 5.0) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(-bound, bound, width=32), min_size=size, max_size=size)


@st.composite
def logit_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Student's and teacher's logits over one vocabulary of 2 to 7 tokens, [1, V] float64."""
    size = draw(st.integers(2, 7))
    student, teacher = (torch.tensor([draw(logit_lists(size))], dtype=torch.float64) for _ in range(2))
    return student, teacher


@st.composite
def extreme_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """float32: student's logits up to +-100; a teacher that gives some tokens, never all, probability 0."""
    student, teacher = draw(logit_pairs())
    kept = draw(st.sets(st.integers(0, teacher.shape[-1] - 1), min_size=1))
    barred = torch.ones_like(teacher, dtype=torch.bool)
    barred[..., list(kept)] = False
    return 20.0 * student.float(), teacher.float().masked_fill(barred, -torch.inf)
