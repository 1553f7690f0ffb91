"""Probes of a loss: tests that every correct loss passes, whatever its divergence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from audit.bench import Bench, Draws
from audit.estimate import NEGLIGIBLE, Estimate, Run, estimate, gradients_at, row_gradients
from audit.tree import any_model
from audit.variants import padded, with_a_zero, with_unused_places
from objectives.objective import teacher_slots

FAINT = 1e-9  # nats; as good as probability 1
SURE, ALMOST = 40.0, 25.0  # a logit ahead by these has log-prob exactly 0 in float64, and just below 0


@dataclass(frozen=True)
class Subject:
    """The distillation term under audit. `advantage`: of every response; `own`: the user's function; `scalar`: it
    returns one normalised number; `supports`: it may read a support; `taught`: it has a teacher."""

    run: Run
    bench: Bench
    advantage: float = 0.0
    own: bool = False
    scalar: bool = False
    supports: bool = False
    taught: bool = True

    @property
    def student(self) -> Tensor:
        return self.bench.world.student

    def batch(self, bench: Bench | None = None, stale: bool = False, advantage: float | Tensor | None = None) -> Draws:
        """A batch in exact proportion; for a scalar loss the weights include the denominator."""
        world = self.bench.world
        credit = self.advantage if advantage is None else advantage
        draws = (bench or self.bench).sampled(world.older if stale else world.student, credit)
        if not self.scalar:
            return draws
        weights = {name: weight / len(draws.node) for name, weight in draws.tokens.weights.items()}
        return replace(draws, tokens=replace(draws.tokens, weights=weights))

    def estimate(self, draws: Draws) -> Estimate:
        return estimate(self.run, [(1.0, draws)], self.student, float(len(draws.node)) if self.scalar else 1.0)

    def rows(self, draws: Draws) -> Tensor:
        return row_gradients(self.run, draws, self.student)

    def under(self, change: Callable[[Tensor], Tensor]) -> Bench:
        """The bench with every model's log-probs changed."""
        world = self.bench.world
        return replace(self.bench, world=replace(world, models={n: change(p) for n, p in world.models.items()}))

    def reads(self, draws: Draws, changed: Draws) -> bool:
        """Whether its gradients differ between the two."""
        return not _same(self.rows(draws), self.rows(changed))

    @property
    def support(self) -> Tensor:
        """The teacher's top-k ids at each prefix, with all ids of a class of end tokens, [S, K]."""
        (slot, *_) = teacher_slots(self.bench.config)
        ids = self.bench.support(slot)
        others = torch.tensor(self.bench.ends[1:], dtype=ids.dtype).expand(len(ids), -1)
        return torch.cat([ids, others], dim=-1)


def probe(subject: Subject) -> list[str]:
    """Names of findings in the loss of a batch, the most specific first."""
    draws = subject.batch()
    rows = subject.rows(draws)
    if not rows.isfinite().all():
        return ["nan_gradient"]
    if not rows.any():
        return ["no_signal"]
    found = _teaching(subject, draws, rows) if subject.taught else []
    probes = {
        "local_denominator" if subject.scalar else "batch_statistics": _differs_in_halves,
        "padding_in_loss": _counts_padding,
        "nan_gradient": _breaks_on_minus_infinity,
        "ragged_support": _reads_unused_places,
        "certain_token_dropped": _drops_certain_tokens,
        "end_token_dropped": _drops_the_end,
    }
    return found + [name for name, ask in probes.items() if ask(subject, draws, rows)]


def corrects_staleness(subject: Subject, draws: Draws) -> bool:
    """Whether it reads the sampler's log-prob, or does not depend on the sampled token."""
    rows = subject.rows(draws)
    later = replace(draws.tokens, rollout_logprob=draws.tokens.rollout_logprob + 0.3)
    if not _same(rows, subject.rows(replace(draws, tokens=later))):
        return True
    first = {int(n): int((draws.node == n).nonzero()[0]) for n in draws.node.unique()}
    return _same(rows, rows[torch.tensor([first[int(n)] for n in draws.node])])


def _teaching(subject: Subject, draws: Draws, rows: Tensor) -> list[str]:
    """Findings about its dependence on the teacher."""
    random = torch.Generator().manual_seed(1)
    other = subject.under(lambda p: any_model(subject.bench.tree, random))
    deaf = _same(rows, subject.rows(subject.batch(other)))
    if subject.estimate(draws).silent:
        return ["no_signal", "ignores_teacher" if deaf else "action_independent"]
    if deaf:
        return ["ignores_teacher"]
    found = [_of_support(subject, draws, rows)] if subject.supports else []
    if not any(found) and _pushes_at_the_teacher(subject, rows):
        found.append(
            "tail_dropped" if subject.supports and _reads_support_alone(subject, rows) else "teacher_not_minimum"
        )
    if _pushes_where_both_agree(subject, rows):
        found.append("sign_flips")
    return [name for name in found if name]


def _of_support(subject: Subject, draws: Draws, rows: Tensor) -> str | None:
    inside = torch.zeros_like(subject.student).scatter(-1, subject.support, 1.0)[draws.node].bool()
    mean = _by_prefix(subject, draws, rows)[draws.node]
    if mean.masked_fill(inside, 0.0).abs().max() <= NEGLIGIBLE * mean.abs().max():
        return "support_blind"
    return "clamped_at_zero" if _dies_on_the_support(subject, draws) else None


def _dies_on_the_support(subject: Subject, draws: Draws) -> bool:
    """Whether a student equal to the teacher on the support, with almost no mass off it, gets no gradient."""
    teacher = next(iter(subject.bench.world.models.values()))
    mass = torch.full_like(teacher, 1e-3 / (teacher.shape[-1] - subject.support.shape[-1]))
    inside = teacher.gather(-1, subject.support).softmax(-1) * (1.0 - 1e-3)
    logits = mass.scatter(-1, subject.support, inside).log()
    return not gradients_at(subject.run, draws.tokens, logits[draws.node]).any()


def _pushes_at_the_teacher(subject: Subject, rows: Tensor) -> bool:
    draws = subject.batch(subject.under(lambda p: subject.student))
    pushed = _by_prefix(subject, draws, subject.rows(draws))
    return bool(pushed.abs().max() > 1e-7 * rows.abs().max())


def _reads_support_alone(subject: Subject, rows: Tensor) -> bool:
    def shuffled(p: Tensor) -> Tensor:
        outside = torch.ones_like(p).scatter(-1, subject.support, 0.0).bool()
        return p.masked_scatter(outside, p[outside].view(len(p), -1).flip(-1).flatten())

    return _same(rows, subject.rows(subject.batch(subject.under(shuffled))))


def _pushes_where_both_agree(subject: Subject, rows: Tensor) -> bool:
    """Whether tokens after prefixes where student and teacher agree have gradients that cancel in the mean."""
    last = subject.bench.tree.last.unsqueeze(-1)
    draws = subject.batch(subject.under(lambda p: torch.where(last, subject.student, p)))
    behind = last[draws.node].squeeze(-1)
    pushed = subject.rows(draws)
    mean = _by_prefix(subject, draws, pushed)[subject.bench.tree.last]
    size = rows.abs().max()
    cancels = mean.abs().max() <= 1e-7 * pushed[behind].abs().max()
    return bool(pushed[behind].abs().max() > 1e-7 * size and cancels)


def _differs_in_halves(subject: Subject, draws: Draws, rows: Tensor) -> bool:
    early = draws.tokens.sequence < len(draws.probability) // 2
    parts = [
        gradients_at(subject.run, draws.tokens[half], subject.student[draws.node[half]]) for half in (early, ~early)
    ]
    return not _same(rows, torch.cat(parts))


def _counts_padding(subject: Subject, draws: Draws, rows: Tensor) -> bool:
    longer = subject.rows(padded(draws))
    return bool(longer[len(rows) :].any()) or not _same(rows, longer[: len(rows)])


def _breaks_on_minus_infinity(subject: Subject, draws: Draws, rows: Tensor) -> bool:
    if not subject.own:
        cases = [with_a_zero(draws)]
    else:
        cases = [with_a_zero(draws), padded(draws, fill=-torch.inf), with_unused_places(draws)]
    return any(not found.isfinite().all() for case in cases if (found := _attempt(subject, case)) is not None)


def _reads_unused_places(subject: Subject, draws: Draws, rows: Tensor) -> bool:
    found = _attempt(subject, with_unused_places(draws))
    return found is None or (bool(found.isfinite().all()) and not _same(rows, found))


def _attempt(subject: Subject, draws: Draws) -> Tensor | None:
    try:
        return subject.rows(draws)
    except (IndexError, RuntimeError):
        return None


def _drops_certain_tokens(subject: Subject, draws: Draws, rows: Tensor) -> bool:
    """Whether the gradient jumps between probability 1 and almost 1 of any one model."""
    chosen = (draws.node == 0) & (draws.tokens.token_ids == 0)
    logits = subject.student[draws.node]

    def student_sure(gap: float) -> Tensor:
        sure = torch.full((logits.shape[-1],), -gap, dtype=logits.dtype).index_fill(0, torch.tensor([0]), 0.0)
        found = gradients_at(subject.run, draws.tokens, torch.where(chosen.unsqueeze(-1), sure, logits))
        return found[~chosen]  # the token's own gradient is lost to rounding in 1 - q

    def sampler_sure(value: float) -> Tensor:
        told = draws.tokens.rollout_logprob.masked_fill(chosen, value)
        return gradients_at(subject.run, replace(draws.tokens, rollout_logprob=told), logits)

    def teacher_sure(value: float) -> Tensor:
        scores = {
            name: replace(score, logprob=score.logprob.masked_fill(chosen, value))
            for name, score in draws.tokens.scores.items()
        }
        return gradients_at(subject.run, replace(draws.tokens, scores=scores), logits)

    pairs = ((student_sure(SURE), student_sure(ALMOST)), (sampler_sure(0.0), sampler_sure(-FAINT)))
    if subject.taught:
        pairs = (*pairs, (teacher_sure(0.0), teacher_sure(-FAINT)))
    return any(not _same(sure, almost, 1e-6) for sure, almost in pairs)


def _drops_the_end(subject: Subject, draws: Draws, rows: Tensor) -> bool:
    ends = torch.isin(draws.tokens.token_ids, torch.tensor(subject.bench.tree.ends))
    return not rows[ends].any()


def _by_prefix(subject: Subject, draws: Draws, rows: Tensor) -> Tensor:
    """Mean gradient at each prefix, [S, V]."""
    sums = torch.zeros_like(subject.student).index_add(0, draws.node, rows)
    return sums / torch.bincount(draws.node, minlength=len(sums)).clamp(min=1).unsqueeze(-1)


def _same(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    """Equal up to rounding; NaN equals nothing."""
    size = torch.maximum(a.abs().max(), b.abs().max())
    return bool((a - b).abs().max() <= tolerance * size)
