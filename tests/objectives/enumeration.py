"""Exact expectations: every token of a small vocabulary at a few prefixes, each with its probability as its weight.

With weight q(y) on token y, `Objective.loss` is the sum over prefixes of E_{y~q}[loss(y)], and autograd through it is
the expected gradient, exact up to float64 rounding. The divergences here are written out again, not imported.
"""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from configs.schema import DATA
from configs.schema import Objective as ObjectiveConfig
from objectives import objective
from objectives.objective import Tokens

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
    """KL(a||b) = sum_v a (log a - log b), [..., V] -> [...]."""
    return (a.exp() * (a - b)).sum(-1)


def mixture(q: Tensor, p: Tensor, reverse_weight: float) -> Tensor:
    """lambda KL(q||p) + (1 - lambda) KL(p||q)."""
    return reverse_weight * kl(q, p) + (1.0 - reverse_weight) * kl(p, q)


def merged(log_p: Tensor, support: Tensor) -> Tensor:
    """The support's tokens and, as one more category, all others: [S, V], [S, K] -> [S, K + 1]."""
    inside = log_p.gather(-1, support)
    return torch.cat([inside, torch.log(1.0 - inside.exp().sum(-1, keepdim=True))], dim=-1)


def gradient(value: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), of, retain_graph=True)[0]


def recipe(**axes: Any) -> ObjectiveConfig:
    return ObjectiveConfig(**{"target": "teacher", **axes})


def loss(config: ObjectiveConfig, tokens: Tokens) -> Tensor:
    return objective.build(config).loss(tokens)


def every_token(config: ObjectiveConfig, q: Tensor, p: Tensor, mu: Tensor | None = None) -> Tokens:
    """All V tokens at each of S prefixes, drawn from mu (q itself by default), scored by p on the recipe's support."""
    count, vocabulary = q.shape
    mu = (q if mu is None else mu).detach()
    rows = partial(torch.repeat_interleave, repeats=vocabulary, dim=0)
    common = {
        "student_logprobs": rows(q),
        "token_ids": torch.arange(vocabulary).repeat(count),
        "weight": mu.exp().flatten(),
        "rollout_logprob": mu.flatten(),
        "advantage": torch.zeros(count * vocabulary, dtype=q.dtype),
    }
    if config.target == DATA:
        return Tokens(**common)
    if config.support == "sampled":
        return Tokens(**common, teacher_logprob=p.flatten())
    if config.support == "full":
        return Tokens(**common, teacher_logprobs=rows(p))
    top = p.topk(min(config.topk, vocabulary))
    tail = p.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
    return Tokens(
        **common,
        support_ids=rows(top.indices),
        support_logprobs=rows(top.values),
        tail_logprob=tail.repeat_interleave(vocabulary),
    )


def select(tokens: Tokens, rows: slice | Tensor) -> Tokens:
    """A chunk of the tokens, or the tokens in another order."""
    present = {f.name: v for f in fields(tokens) if (v := getattr(tokens, f.name)) is not None}
    return Tokens(**{name: value[rows] for name, value in present.items()})


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
