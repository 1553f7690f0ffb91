"""From the recipe's objective to one callable, without a [tokens, vocabulary] tensor of a whole micro-batch:

`read` maps the student's distributions of a chunk of tokens to streams of one number a token;
`loss` reads the streams of whole responses and sums terms:

    loss = sum over terms, sum_t weight_term,t * term_t

A term's weights include its *global* denominator, so that the split into ranks, micro-batches and chunks does not
matter. Metrics are sums over tokens, divided once, globally.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.names.own_code import imported
from configs.node import START
from configs.objective import DATA, Route
from configs.objective import Objective as ObjectiveConfig
from objectives import divergence, ends, readings, signal, trust
from objectives.advantage import generalised_advantages, returns_to_go
from objectives.distributions import Distributions, by_blocks
from objectives.divergence import Family
from objectives.schedule import Dials
from objectives.tokens import Scores, Tokens

Streams = Mapping[str, Tensor]  # [N] each; `logprob` always, with its graph
Sums = dict[str, Tensor]
OwnLoss = Callable[[Tensor, Tokens], Tensor]  # (student log-probs [n, V], tokens) -> [n] nats, with a graph

ROUTED = "routed"  # slot of the target where each prompt has a teacher of its own


def build(config: ObjectiveConfig, start_kl: str | None = None, end_tokens: Sequence[int] = ()) -> Objective:
    """The objective of a recipe; configs/rules has refused invalid combinations. `start_kl` (sampled | exact) is only a
    metric. `end_tokens`: ids that count as one outcome."""
    return Objective(config, imported(config.loss) if config.loss else None, start_kl, tuple(end_tokens))


def slots(config: ObjectiveConfig, start_kl: str | None = None) -> dict[str, tuple[str, ...]]:
    """Slots of `Tokens.scores` and the models that fill each: one, or those of a route."""
    found = {name: (name,) for name in config.support_of}
    if isinstance(config.target, Route):
        teachers = tuple(config.teachers)
        kept = [config.reference.model] if config.reference else []  # a teacher may be the reference as well
        found = {n: models for n, models in found.items() if n not in teachers or n in kept} | {ROUTED: teachers}
    return found | ({START: (START,)} if start_kl else {})


def full_slots(config: ObjectiveConfig, start_kl: str | None = None) -> tuple[str, ...]:
    """Slots whose scores cover the whole vocabulary."""
    full = {slot for slot, models in slots(config).items() if config.support_of[models[0]] == "full"}
    return (*sorted(full), *((START,) if start_kl == "exact" else ()))


def teacher_slots(config: ObjectiveConfig) -> dict[str, float]:
    """Slots of the distillation term's targets, and their weights."""
    return {ROUTED: 1.0} if isinstance(config.target, Route) else config.teachers


@dataclass(frozen=True)
class Objective:
    config: ObjectiveConfig
    own_loss: OwnLoss | None = None
    start_kl: str | None = None
    ends: tuple[int, ...] = ()

    def read(
        self, student: Tensor | Distributions, tokens: Tokens, dials: Dials, measured: bool = True
    ) -> dict[str, Tensor]:
        """Streams of a chunk, [n] each. student: log-probs [n, V] over the common vocabulary, nats, or distributions.

        `logprob` and `class_logprob` of the sampled token, `distillation` (on topk and full supports, or of a
        user's own loss) and `reference` (exact) have a graph; the others are detached. Without `measured` those that
        are only metrics are left out.
        """
        if isinstance(student, Distributions):
            if not self.compares_distributions:
                return self._read_sampled(student, tokens)
            student = student.rows()
        return self._read_rows(student, tokens, dials, measured)

    @property
    def compares_distributions(self) -> bool:
        """Whether more of the student is read than the sampled token and the entropy."""
        config = self.config
        exact = bool(config.reference and config.reference.placement == "exact") or config.baseline == "exact"
        return exact or config.support != "sampled" or self.own_loss is not None or self.start_kl == "exact"

    def _read_sampled(self, student: Distributions, tokens: Tokens) -> dict[str, Tensor]:
        ids = tokens.token_ids.unsqueeze(-1)
        logprobs, entropy = student.at(torch.cat([ids, *(torch.full_like(ids, end) for end in self.ends)], dim=-1))
        streams = {"logprob": logprobs[:, 0], "entropy": entropy}
        if self.ends:
            merged = torch.where(
                ends.is_end(tokens.token_ids, self.ends), logprobs[:, 1:].logsumexp(-1), logprobs[:, 0]
            )
            streams["class_logprob"] = merged
        return streams

    def _read_rows(self, student_logprobs: Tensor, tokens: Tokens, dials: Dials, measured: bool) -> dict[str, Tensor]:
        config = self.config
        streams = {"logprob": student_logprobs.gather(-1, tokens.token_ids.unsqueeze(-1)).squeeze(-1)}
        if self.ends:
            streams["class_logprob"] = ends.class_logprob(student_logprobs, tokens.token_ids, self.ends)
        outcomes, of_outcomes = self._outcomes(student_logprobs, tokens)
        if self.own_loss is not None:
            streams["distillation"] = self.own_loss(outcomes, of_outcomes)
        elif config.distributional:
            parts = [w * self._divergence(outcomes, of_outcomes, s, dials) for s, w in teacher_slots(config).items()]
            streams["distillation"] = torch.stack(parts).sum(0)
        if config.reference and config.reference.placement == "exact":
            student, reference = readings.outcomes(config, student_logprobs, tokens.scores[config.reference.model])
            streams["reference"] = divergence.reverse_kl(student, reference, config.logprob_floor)
        with torch.no_grad():
            if config.baseline == "exact":
                streams["baseline"] = self._expected_signal(outcomes, of_outcomes, dials)
                if config.extrapolate is not None and not config.discount:  # returns use the unnormalised p*
                    streams["target_logprob"] = self._extrapolated(outcomes, of_outcomes)
            if measured:
                streams |= self._measured(student_logprobs.detach(), tokens)
                streams |= by_blocks(
                    outcomes,
                    lambda rows: readings.of_chunk(config, outcomes[rows], of_outcomes[rows], teacher_slots(config)),
                )
        return streams

    def _measured(self, student_logprobs: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        """Metrics of the distribution over the vocabulary."""

        def read(rows: slice) -> dict[str, Tensor]:
            found = {"entropy": divergence.entropy(student_logprobs[rows])}
            if start is not None:
                kl = divergence.reverse_kl(student_logprobs[rows], start[rows], self.config.logprob_floor)
                found["start_kl"] = kl
            return found

        start = tokens.scores[START].logprobs if self.start_kl == "exact" else None
        return by_blocks(student_logprobs, read)

    def _outcomes(self, student_logprobs: Tensor, tokens: Tokens) -> tuple[Tensor, Tokens]:
        """Student and tokens for the distillation term: with end tokens merged where they are a class and a
        distribution is compared."""
        if not self.ends or (self.config.support == "sampled" and self.own_loss is None):
            return student_logprobs, tokens
        slots = [*teacher_slots(self.config), *([self.config.extrapolate.base] if self.config.extrapolate else ())]
        return ends.merged(student_logprobs, self.ends), ends.merged_tokens(tokens, student_logprobs, slots, self.ends)

    def loss(self, streams: Streams, tokens: Tokens, dials: Dials) -> Tensor:
        """The loss of whole responses: the weighted sum of terms."""
        terms = self.per_token(streams, tokens, dials)
        return torch.stack([(value * tokens.weights[name]).sum() for name, value in terms.items()]).sum()

    @torch.no_grad()
    def metrics(self, streams: Streams, tokens: Tokens, dials: Dials) -> Sums:
        """Sums over tokens with loss, by name; `actors/metrics.py` turns them into metrics."""
        sums = readings.sums(self.config, streams, tokens, teacher_slots(self.config))
        if self.start_kl == "sampled":
            k1 = self._start_k1(streams, tokens)
            sums["start_k1"] = torch.where(tokens.on & tokens.drawn, k1, 0.0).sum()
        if tokens.old_logprob is not None and (signals := self._signals(streams, tokens, dials)):
            held = [self._surrogate(*_student(streams, tokens, term), tokens, s).held for term, s in signals.items()]
            sums["held"] = (torch.stack(held).any(0) & tokens.on).sum()
        return sums

    @torch.no_grad()
    def each(self, streams: Streams, tokens: Tokens) -> dict[str, Tensor]:
        """KLs and entropy of each token, [N], nats, for paired comparisons of evaluations."""
        found = readings.each(self.config, streams, tokens, teacher_slots(self.config))
        if self.start_kl == "sampled":
            found["start_kl"] = self._start_k1(streams, tokens)
        return found

    def _start_k1(self, streams: Streams, tokens: Tokens) -> Tensor:
        return streams["logprob"] - tokens.scores[START].logprob.clamp(min=self.config.logprob_floor)

    def _signals(self, streams: Streams, tokens: Tokens, dials: Dials) -> dict[str, Tensor]:
        """Advantages in the policy-gradient terms, [N] each, by term."""
        config = self.config
        signals = {"outcome": self.token_advantages(streams, tokens, dials)} if "outcome" in config.terms else {}
        sampled = config.teachers and not config.distributional and config.estimator in ("reward", "k3_in_reward")
        if sampled and self.own_loss is None:
            signals["distillation"] = self.signal(streams, tokens, dials)
        return signals

    def per_token(self, streams: Streams, tokens: Tokens, dials: Dials) -> dict[str, Tensor]:
        """Unweighted terms by name, [N] nats each."""
        terms: dict[str, Tensor] = {}
        if "distillation" in self.config.terms:
            terms["distillation"] = dials.distillation * self._distillation(streams, tokens, dials)
        if "outcome" in self.config.terms:
            terms["outcome"] = dials.outcome * self._outcome(streams, tokens, dials)
        if "reference" in self.config.terms:
            terms["reference"] = dials.beta * self._reference(streams, tokens)
        if "value" in self.config.terms:
            error = streams["value"] - self._returns(streams, tokens, dials)
            terms["value"] = self.config.outcome.value.loss_weight * 0.5 * error.square()
        return terms

    def _distillation(self, streams: Streams, tokens: Tokens, dials: Dials) -> Tensor:
        config = self.config
        if config.target == DATA:
            per_token = -streams["logprob"]  # cross-entropy: forward KL to the data, up to its entropy
        elif "distillation" in streams:
            per_token = streams["distillation"]
        elif config.estimator in ("k1_in_loss", "k2_in_loss", "k3_in_loss"):
            per_token = self._drawn_from_student(streams, tokens, "distillation") * self._in_loss(streams, tokens)
        else:
            per_token = self._policy_gradient(streams, tokens, self.signal(streams, tokens, dials), "distillation")
        return per_token * (tokens.advantage > 0) if config.outcome.combine == "gate" else per_token

    def signal(self, streams: Streams, tokens: Tokens, dials: Dials) -> Tensor:
        """The advantage A of each sampled token in `-sg(A) log q`, [N], detached."""
        config, total = self.config, self._signal_returns(streams, tokens, dials)
        if config.baseline == "value":
            total = total - self._values(streams, tokens)
        if "baseline" in streams:  # of this prefix only: later baselines depend on this token
            total = total - streams["baseline"]
        if config.outcome.combine == "sign":
            total = tokens.advantage.sign() * total.abs()
        return total

    def _signal_returns(self, streams: Streams, tokens: Tokens, dials: Dials) -> Tensor:
        """The discounted signal before any baseline, the target of a value head. [N] detached."""
        slots, discount = teacher_slots(self.config), self.config.discount
        total = torch.stack([w * self._signal_to(slot, streams, tokens, dials) for slot, w in slots.items()]).sum(0)
        return tokens.by_response(lambda a: returns_to_go(a, discount), total * tokens.on) if discount else total

    def _signal_to(self, slot: str, streams: Streams, tokens: Tokens, dials: Dials) -> Tensor:
        config, logprob = self.config, readings.of_distillation(streams).detach()
        teacher = self._target_logprob(slot, streams, tokens)
        if config.estimator == "k3_in_reward":
            return -signal.k3(logprob, teacher)
        return signal.family_signal(logprob, teacher, dials.reverse_weight, family(config), config.clip.log_ratio)

    def _in_loss(self, streams: Streams, tokens: Tokens) -> Tensor:
        kinds = {"k1_in_loss": lambda q, p: q - p, "k2_in_loss": signal.k2, "k3_in_loss": signal.k3}
        estimate, logprob = kinds[self.config.estimator], readings.of_distillation(streams)
        targets = {slot: self._target_logprob(slot, streams, tokens) for slot in teacher_slots(self.config)}
        return torch.stack([w * estimate(logprob, targets[s]) for s, w in teacher_slots(self.config).items()]).sum(0)

    def _target_logprob(self, slot: str, streams: Streams, tokens: Tokens) -> Tensor:
        """log p of the sampled token, [N], or log p* under extrapolation; on sampled support without its normaliser, a
        constant of the prefix."""
        floor, extrapolate = self.config.logprob_floor, self.config.extrapolate
        if "target_logprob" in streams:
            return streams["target_logprob"].clamp(min=floor)
        teacher = tokens.scores[slot].logprob.clamp(min=floor)
        if extrapolate is None:
            return teacher
        base = tokens.scores[extrapolate.base].logprob.clamp(min=floor)
        return base + extrapolate.weight * (teacher - base)

    def _outcome(self, streams: Streams, tokens: Tokens, dials: Dials) -> Tensor:
        return self._policy_gradient(streams, tokens, self.token_advantages(streams, tokens, dials), "outcome")

    def token_advantages(self, streams: Streams, tokens: Tokens, dials: Dials) -> Tensor:
        """Advantage of each token: the response's, or GAE, with the reference's penalties. [N] detached."""
        rewards, penalty = self._penalties(streams, tokens, dials)
        if self.config.outcome.baseline == "value":
            return self._generalised(streams, tokens, rewards) + penalty
        return tokens.advantage + tokens.by_response(lambda r: returns_to_go(r, 1.0), rewards) + penalty

    def _penalties(self, streams: Streams, tokens: Tokens, dials: Dials) -> tuple[Tensor, Tensor]:
        """-beta k1 of each token, [N] each: under `reward_token` as a reward in the returns, and under `signal_token`
        in the token's own signal; 0 for the other placement."""
        reference, nothing = self.config.reference, torch.zeros_like(tokens.rollout_logprob)
        if reference is None or reference.placement not in ("reward_token", "signal_token"):
            return nothing, nothing
        logprob = streams["logprob"].detach() if tokens.old_logprob is None else tokens.old_logprob
        floored = tokens.scores[reference.model].logprob.clamp(min=self.config.logprob_floor)
        penalty = -dials.beta * (logprob - floored) * tokens.on
        return (penalty, nothing) if reference.placement == "reward_token" else (nothing, penalty)

    def _generalised(self, streams: Streams, tokens: Tokens, penalty: Tensor) -> Tensor:
        """GAE with the response's reward on its last token."""
        value = self.config.outcome.value
        last = torch.ones_like(tokens.on)
        last[:-1] = tokens.sequence[1:] != tokens.sequence[:-1]
        rewards = penalty + torch.where(last, tokens.reward, 0.0)
        return tokens.by_response(
            lambda r, v: generalised_advantages(r, v, value.discount, value.decay),
            rewards,
            self._values(streams, tokens),
        )

    def _returns(self, streams: Streams, tokens: Tokens, dials: Dials) -> Tensor:
        """Targets of the value head, [N] detached."""
        if self.config.baseline == "value":
            return self._signal_returns(streams, tokens, dials)
        rewards, _ = self._penalties(streams, tokens, dials)
        return self._generalised(streams, tokens, rewards) + self._values(streams, tokens)

    def _values(self, streams: Streams, tokens: Tokens) -> Tensor:
        return streams["value"].detach() if tokens.old_value is None else tokens.old_value

    def _reference(self, streams: Streams, tokens: Tokens) -> Tensor:
        assert self.config.reference is not None
        if self.config.reference.placement == "exact":
            return streams["reference"]
        reference = tokens.scores[self.config.reference.model].logprob.clamp(min=self.config.logprob_floor)
        return self._drawn_from_student(streams, tokens, "reference") * signal.k2(streams["logprob"], reference)

    def _policy_gradient(self, streams: Streams, tokens: Tokens, advantage: Tensor, term: str) -> Tensor:
        surrogate = self._surrogate(*_student(streams, tokens, term), tokens, advantage)
        return self._mismatch(streams, tokens) * surrogate.loss

    def _surrogate(self, logprob: Tensor, old: Tensor | None, tokens: Tokens, advantage: Tensor) -> trust.Surrogate:
        config = self.config.trust
        low, high = config.bounds
        if old is None:
            return trust.policy_gradient(logprob, advantage)
        if config.kind in ("ppo", "dapo"):
            return trust.clipped((logprob - old).clamp(max=20.0).exp(), advantage, low, high)
        if config.kind == "gspo":
            on = tokens.on.to(logprob.dtype)
            return trust.clipped(tokens.by_response(trust.sequence_ratio, logprob, old, on), advantage, low, high)
        if config.kind == "cispo":
            return trust.capped(logprob, old, advantage, low, high)
        if config.kind == "probability":
            return trust.masked(logprob, old, advantage, config.delta)
        return trust.unclipped(logprob, old, advantage)

    def _mismatch(self, streams: Streams, tokens: Tokens) -> Tensor:
        """sg(min(q_old / mu, C)) of tokens the student drew; with one update a batch q_old is q itself."""
        logprob = streams["logprob"].detach() if tokens.old_logprob is None else tokens.old_logprob
        return mismatch_weight(self.config, logprob, tokens)

    def _drawn_from_student(self, streams: Streams, tokens: Tokens, term: str) -> Tensor:
        """sg(mismatch weight * q/q_old), [N]: the importance weight of an estimator in the loss, for y ~ q."""
        weight, (logprob, old) = self._mismatch(streams, tokens), _student(streams, tokens, term)
        return weight if old is None else weight * trust.ratio_of(logprob.detach(), old)

    def _divergence(self, student_logprobs: Tensor, tokens: Tokens, slot: str, dials: Dials) -> Tensor:
        config = self.config
        student, teacher = readings.outcomes(config, student_logprobs, tokens.scores[slot], self._base(tokens))
        return divergence.divergence(
            student,
            teacher,
            dials.reverse_weight,
            family(config),
            config.logprob_floor,
            config.clip.vocab_element,
            config.clip.token_sum,
        )

    def _expected_signal(self, student_logprobs: Tensor, tokens: Tokens, dials: Dials) -> Tensor:
        config = self.config
        parts = []
        for slot, weight in teacher_slots(config).items():
            student, teacher = readings.outcomes(config, student_logprobs, tokens.scores[slot], self._base(tokens))
            teacher = teacher.clamp(min=config.logprob_floor)
            expected = signal.expected_signal(
                student, teacher, dials.reverse_weight, family(config), config.clip.log_ratio
            )
            parts.append(weight * expected)
        return torch.stack(parts).sum(0)

    def _extrapolated(self, student_logprobs: Tensor, tokens: Tokens) -> Tensor:
        """log p* of the sampled token, normalised over the vocabulary. [n]"""
        (slot,) = teacher_slots(self.config)
        _, target = readings.outcomes(self.config, student_logprobs, tokens.scores[slot], self._base(tokens))
        return target.gather(-1, tokens.token_ids.unsqueeze(-1)).squeeze(-1)

    def _base(self, tokens: Tokens) -> Scores | None:
        return tokens.scores[self.config.extrapolate.base] if self.config.extrapolate else None


def _student(streams: Streams, tokens: Tokens, term: str) -> tuple[Tensor, Tensor | None]:
    """The student's log-prob for a term, now and at the start of the step: of the outcome in the distillation term, of
    the token in all others. The ratio to mu always takes the token's."""
    if term == "distillation" and "class_logprob" in streams:
        return streams["class_logprob"], tokens.old_class_logprob
    return streams["logprob"], tokens.old_logprob


def family(config: ObjectiveConfig) -> Family:
    return Family(config.family, config.alpha, config.scale == "unit")


def mismatch_weight(config: ObjectiveConfig, logprob: Tensor, tokens: Tokens) -> Tensor:
    """min(q/mu, C) by token, or of the product over the response's loss tokens; 1 where the student did not sample."""
    mu = torch.where(tokens.drawn, tokens.rollout_logprob, logprob)
    if config.trust.mismatch == "sequence":
        gap = tokens.by_response(lambda g: g.sum().expand(len(g)), (logprob - mu) * tokens.on)
        return trust.truncated_importance_weight(gap, torch.zeros_like(gap), config.trust.truncation)
    return trust.truncated_importance_weight(logprob, mu, config.trust.truncation)
