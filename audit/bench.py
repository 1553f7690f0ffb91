"""Builds the micro-batches of a world's responses that an objective reads, with scores and advantages as in a run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from audit.tree import BATCH, Tree, World, grow
from configs.objective import Objective as ObjectiveConfig
from objectives.advantage import group_advantages, returns_to_go
from objectives.divergence import extrapolated
from objectives.ends import merged, places
from objectives.objective import slots, teacher_slots
from objectives.schedule import Dials, fractions_at
from objectives.tokens import Scores, Tokens

TOPK = 2  # of four outcomes, so that a tail is left
GROUP = 2  # responses a group, enumerated as pairs


@dataclass(frozen=True)
class Draws:
    """M responses with their probabilities [M]. node [N]: the prefix of each token."""

    tokens: Tokens
    node: Tensor
    probability: Tensor


@dataclass(frozen=True)
class Bench:
    """An objective in a world. `whole`: scores have every support at once, for a user's own function."""

    world: World
    config: ObjectiveConfig
    dials: Dials
    step: int = 1
    whole: bool = False

    @property
    def tree(self) -> Tree:
        return self.world.tree

    @property
    def ends(self) -> tuple[int, ...]:
        """End tokens that are one outcome."""
        return self.config.merged_ends(self.tree.ends)

    @property
    def outcome_tree(self) -> Tree:
        """The language over outcomes: the class of end tokens is its one end token."""
        return grow() if self.ends else self.tree

    def outcomes(self, logprobs: Tensor) -> Tensor:
        """A model over the outcomes of the distillation term, [S, V] -> [S, O]; differentiable."""
        return merged(logprobs, self.ends) if self.ends else logprobs

    @property
    def mixing(self) -> dict[str, float]:
        """Share of responses by source."""
        return {source: share for source, share in fractions_at(self.config, self.step).items() if share}

    def model_of(self, slot: str) -> Tensor:
        """Log-probs of the model behind a slot, [S, V]."""
        return self.world.models[slots(self.config)[slot][0]]

    @property
    def teachers(self) -> list[tuple[float, Tensor]]:
        """Weights and target distributions over outcomes [S, O]; an extrapolated one is normalised."""
        found = [(weight, self.outcomes(self.model_of(slot))) for slot, weight in teacher_slots(self.config).items()]
        beyond = self.config.extrapolate
        if beyond is None:
            return found
        base = self.outcomes(self.model_of(beyond.base))
        return [(weight, extrapolated(p, base, beyond.weight)) for weight, p in found]

    def writer(self, source: str, stale: bool = False) -> Tensor:
        """Log-probs of the model that writes a source's responses, [S, V]; `stale`: of the older student."""
        if source == "student":
            return self.world.older if stale else self.world.student
        slot = next(iter(teacher_slots(self.config)), None)
        return self.model_of(slot) if source == "teacher" and slot else self.world.data

    def support(self, slot: str) -> Tensor:
        """Outcomes of the support at each prefix, [S, K]; -1 is an unused place. A class of end tokens is the last
        column."""
        ranked = slice(0, self.ends[0] if self.ends else None)
        p, q = self.model_of(slot)[:, ranked], self.world.student[:, ranked]
        if self.config.topk_of == "union":
            ids = torch.cat([p.topk(1).indices, q.topk(1).indices], dim=-1)
            ids = torch.where((ids == ids[:, :1]) & torch.tensor([False, True]), -1, ids)
        else:
            ids = (q if self.config.topk_of == "student" else p).topk(TOPK).indices
        return torch.cat([ids, torch.full_like(ids[:, :1], self.ends[0])], dim=-1) if self.ends else ids

    def enumerated(self, source: str, stale: bool = False) -> Draws:
        """Every response of a source, or every group of two, with its exact probability."""
        tree, mu = self.tree, self.writer(source, stale)
        chance = tree.of_responses(mu).exp()
        responses = torch.arange(tree.responses)
        own = source == "student"
        if not (own and self._grouped):
            return self.draws(responses, chance, mu, self._shaped(mu)[responses] if own else None, own)
        first, other = responses.repeat_interleave(tree.responses), responses.repeat(tree.responses)
        shaped, outcome = self._shaped(mu).tolist(), self.config.outcome
        pairs = [
            reward for i, j in zip(first.tolist(), other.tolist(), strict=True) for reward in (shaped[i], shaped[j])
        ]
        groups = [str(place // GROUP) for place in range(len(pairs))]
        baseline = "none" if outcome.baseline == "value" else outcome.baseline
        credit = torch.tensor(group_advantages(pairs, groups, baseline, outcome.scale)[::GROUP], dtype=chance.dtype)
        return self.draws(first, chance[first] * chance[other], mu, credit, own)

    def sampled(self, mu: Tensor, advantage: float | Tensor = 0.0) -> Draws:
        """A batch with each response in exact proportion to mu, whose probabilities are multiples of 1/PARTS.
        `advantage`: [R]."""
        counts = (self.tree.of_responses(mu).exp() * BATCH).round().long()
        responses = torch.arange(self.tree.responses).repeat_interleave(counts)
        credit = torch.as_tensor(advantage, dtype=mu.dtype).expand(self.tree.responses)[responses]
        return self.draws(responses, torch.full((len(responses),), 1.0 / BATCH, dtype=mu.dtype), mu, credit, True)

    def draws(self, responses: Tensor, probability: Tensor, mu: Tensor, credit: Tensor | None, own: bool) -> Draws:
        """These responses as one micro-batch. credit [M]: the advantage of each; `own`: the student wrote them."""
        tree = self.tree
        rows, lengths = tree.rows(responses), tree.lengths[responses]
        node, ids = tree.node[rows], tree.token_ids[rows]
        on_each = (torch.zeros_like(probability) if credit is None else credit).repeat_interleave(lengths)
        valued = "value" in self.config.terms
        tokens = Tokens(
            token_ids=ids,
            sequence=torch.arange(len(responses)).repeat_interleave(lengths),
            position=tree.position[rows],
            on=torch.ones(len(rows), dtype=torch.bool),
            weights={term: self._weights(term, responses, own) for term in self.config.terms},
            rollout_logprob=mu[node, ids],
            advantage=on_each,
            reward=on_each,
            drawn=torch.full((len(rows),), own),
            scores={slot: self.scores(slot, node, ids) for slot in slots(self.config)},
            old_logprob=self.world.student[node, ids] if self.config.trust.kind != "none" else None,
            old_class_logprob=self._old_class(node, ids),
            old_value=self._values()[node] if valued else None,
        )
        return Draws(tokens, node, probability)

    def scores(self, slot: str, node: Tensor, ids: Tensor) -> Scores:
        """Scores by a slot's model of the tokens `ids` [N] after the prefixes `node` [N]."""
        plain, model = self.model_of(slot), slots(self.config)[slot][0]
        asked = self.config.support_of[model]
        ends = self.config.merged_ends(self.tree.ends, model)
        logprobs = merged(plain, ends) if ends else plain
        found = Scores(logprob=logprobs[node, places(ids, ends) if ends else ids])
        if asked == "topk" or self.whole:
            support = self.support(slot) if ends or not self.ends else _ranked(logprobs)
            unused = support < 0
            inside = logprobs.gather(-1, support.clamp(min=0)).masked_fill(unused, -torch.inf)
            tail = torch.log1p(-inside.exp().sum(-1))
            found = replace(found, support_ids=support[node], support_logprobs=inside[node], tail_logprob=tail[node])
        return replace(found, logprobs=plain[node]) if asked == "full" or self.whole else found

    def _old_class(self, node: Tensor, ids: Tensor) -> Tensor | None:
        if self.config.trust.kind == "none" or not self.ends:
            return None
        return self.outcomes(self.world.student)[node, places(ids, self.ends)]

    @property
    def centred(self) -> Tensor:
        """Advantages without a group: rewards less their mean, [R]."""
        return self.world.reward - self.world.reward.mean()

    @property
    def _grouped(self) -> bool:
        outcome = self.config.outcome
        return self.config.needs_advantages and (outcome.baseline in ("mean", "rloo") or outcome.scale == "std")

    @property
    def reward(self) -> Tensor:
        """The weighted reward of each response, with the recipe's treatment of truncated ones, [R]."""
        outcome = self.config.outcome
        earned = self.world.reward * (outcome.weight or 1.0)
        return torch.where(self.tree.truncated, 0.0, earned) if outcome.truncated == "as_zero" else earned

    def _shaped(self, mu: Tensor) -> Tensor:
        """The reward, less the reference's penalty under `reward_sum`. [R]"""
        reference = self.config.reference
        if not self.config.needs_advantages:
            return torch.zeros_like(self.world.reward)
        if reference is None or reference.placement != "reward_sum":
            return self.reward
        gap = self.world.student - self.world.models[reference.model]
        return self.reward - self.dials.beta * self.tree.summed(self.tree.of_tokens(gap))

    def _weights(self, term: str, responses: Tensor, own: bool) -> Tensor:
        """Weight of each token, 1 or 1 / length, [N]; a large batch's denominator is constant and left out."""
        lengths = self.tree.lengths[responses]
        weight = torch.ones(len(responses), dtype=torch.float64)
        if self.config.normalise == "sequence":
            weight = weight / lengths
        if term in ("outcome", "value") and self.config.outcome.truncated == "mask":
            weight = weight * ~self.tree.truncated[responses]
        if term != "distillation":  # only the student's own responses, divided by their share
            weight = weight * own / self.mixing.get("student", 1.0)
        return weight.repeat_interleave(lengths)

    def _values(self) -> Tensor:
        """Exact target of the value head at each prefix, [S]."""
        tree, q = self.tree, self.world.student
        last = torch.cat([tree.sequence[1:] != tree.sequence[:-1], torch.tensor([True])])
        rewards = torch.where(last, self._shaped(q)[tree.sequence], 0.0)
        reference = self.config.reference
        if reference is not None and reference.placement == "reward_token":
            rewards = rewards - self.dials.beta * tree.of_tokens(q - self.world.models[reference.model])
        discount = self.config.outcome.value.discount
        parts = rewards.split(tree.lengths.tolist())
        returns = torch.cat([returns_to_go(part, discount) for part in parts])
        chance = tree.of_responses(q).exp()[tree.sequence]
        return torch.zeros_like(tree.visits(q)).index_add(0, tree.node, chance * returns) / tree.visits(q)


def _ranked(logprobs: Tensor) -> Tensor:
    """Ids of the top-k tokens at each prefix, [S, K]."""
    return logprobs.topk(TOPK).indices
