"""What a run's recorded samples can say of an objective: which scores are there, and the shares by which a learner
reads them. Refuses what was not stored, by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from actors.wire.jobs import Share
from actors.wire.kept_scores import by_model
from actors.wire.records import Score, ScoreTable, header_of, pack_scores, unpack_samples
from configs.objective import Objective, Route
from configs.refusal import RecipeError
from configs.schema import Recipe
from objectives.schedule import dials_at
from orchestrator.samples import credit
from orchestrator.samples.buffer import Scored
from orchestrator.surface.report.recorded import Row
from orchestrator.weights.learner_group import RankShare, share_of_rank, term_totals


def missing(own: Recipe, other: Objective, kept: Container[str] = ()) -> str | None:
    """Which score or fact that `other` needs the record of a run of `own` lacks; None where it has all. `kept`: models
    of which it has all that they scored."""
    recorded = own.objective
    for model, support in other.support_of.items():
        lacks = _unlike(own, other, model, support) if model in kept else _unkept(own, other, model, support)
        if lacks:
            return lacks
    if other.end_tokens != recorded.end_tokens and other.teachers:
        return f"scores with end_tokens: {other.end_tokens}; the record has them with {recorded.end_tokens}"
    if "value" in other.terms:
        return "the value head's weights; set objective.baseline and outcome.baseline to others"
    if len(recorded.sources) > 1:
        return f"who wrote each response; the run mixed {', '.join(recorded.sources)}"
    return None


def _unkept(own: Recipe, other: Objective, model: str, support: str) -> str | None:
    """What is missing of a model of which the record has log-probs of sampled tokens at most."""
    bound = own.record.scores_mib
    why = f"they took more than record.scores_mib: {bound}" if bound else "record.scores_mib keeps more"
    if support != "sampled":
        return f"scores of {model} on {support} support; the record has log-probs of sampled tokens alone ({why})"
    if model not in _scored(own.objective, other):
        return f"scores of {model}; the record has those of {_named(own.objective)} ({why})"
    return None


def _unlike(own: Recipe, other: Objective, model: str, support: str) -> str | None:
    """What is missing of a model whose scores are kept as the run's own objective had asked for them."""
    recorded = own.objective
    if (isinstance(recorded.target, Route) or isinstance(other.target, Route)) and other.target != recorded.target:
        return f"scores of {model} of every response; each has those of the teacher that its row names"
    if support == "sampled":
        return None
    if support != recorded.support_of[model]:
        return f"scores of {model} on {support} support; the record has them on {recorded.support_of[model]} support"
    if support == "topk" and (other.topk, other.topk_of) != (recorded.topk, recorded.topk_of):
        return (
            f"the {other.topk} likeliest tokens of the {other.topk_of}; the record has the {recorded.topk} of the "
            f"{recorded.topk_of}"
        )
    if support == "full" and own.models[model].weights != "frozen":
        return f"the LM head of {model} at that step: its hidden states are kept, and its weights have moved on"
    return None


def _scored(recorded: Objective, other: Objective) -> tuple[str, ...]:
    """Models whose log-probs are recorded: the first teacher, or the one that a row's route named."""
    if isinstance(recorded.target, Route):
        return tuple(recorded.teachers) if recorded.target == other.target else ()
    return tuple(recorded.teachers)[:1]


def _named(recorded: Objective) -> str:
    if isinstance(recorded.target, Route):
        return "each row's own teacher, and not which one that is"
    return next(iter(recorded.teachers), None) or "no model"


@dataclass(frozen=True)
class Stored:
    """The recorded samples of one step: rows by uid, the payload that holds them, and payloads of scores by model.
    `kept`: the models of which that is all that they scored; else it is the log-probs of the first teacher."""

    rows: Sequence[Row]
    samples: pa.RecordBatch
    scores: Mapping[str, pa.RecordBatch]
    kept: frozenset[str] = frozenset()

    @staticmethod
    def of(table: pa.Table, own: Recipe, kept: pa.Table | None = None) -> Stored:
        """`kept`: rows of the scores that were kept, of which some may be missing: then none are used."""
        rows, samples = table.to_pylist(), table.combine_chunks().to_batches()[0]
        if kept is not None and {row["uid"] for row in rows} <= set(kept["uid"].to_pylist()):
            scores = by_model(kept)
            return Stored(rows, samples, scores, frozenset(scores))
        known = bool(rows) and all(row["teacher_logprobs"] is not None for row in rows)
        return Stored(rows, samples, {m: _scores(rows) for m in tuple(own.objective.teachers)[:1] if known})

    def versions(self, model: str) -> set[int]:
        """Under which of a model's weights its scores are."""
        return set(self.scores[model].column("scorer_version").to_pylist())

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The uids of each prompt group."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for row in self.rows:
            found[row["group"]].append(row["uid"])
        return tuple(tuple(uids) for uids in found.values())

    def share(self, recipe: Recipe, step: int, beta: float | None) -> RankShare:
        """How one rank reads all of it by the recipe's objective: a micro-batch a prompt group. `beta`: the reference's
        coefficient at that step, None for the recipe's. Raises RecipeError where a reward that is read is null."""
        objective, batch = recipe.objective, self._batch(recipe)
        dials = dials_at(objective, step, beta)
        cut = {s.header.uid for s in batch if objective.outcome.truncated == "mask" and s.header.finish == "length"}
        whole = Share(
            step=step,
            version=0,
            micro_batches=(),
            loss_tokens=sum(s.header.loss_tokens for s in batch),
            totals=term_totals(objective.terms, batch),
            constant=recipe.samples_per_step * recipe.sampling.max_response_tokens,
            dials=dials,
            start_kl=False,
        )
        found = share_of_rank(whole, batch, self.groups(), cut)
        if not objective.needs_advantages:
            return found
        shaped = credit.shaped_rewards(recipe, batch, dials.beta, self._reference_sums(objective))
        advantages = credit.advantages(recipe, shaped, {s.header.uid: s.header.group for s in batch})
        return found._replace(share=replace(found.share, advantages=advantages))

    def _batch(self, recipe: Recipe) -> list[Scored]:
        objective = recipe.objective
        if objective.needs_advantages and any(row["reward"] is None for row in self.rows):
            raise RecipeError("replay: the objective reads rewards, and none were stored: the run had no reward")
        found = {model: set(scores.column("uid").to_pylist()) for model, scores in self.scores.items()}
        source = objective.sources[0]
        return [
            Scored(
                header_of(sample),
                self.samples,
                {model: (self.scores[model],) for model in self._models(objective, found, sample.uid)},
                row["reward"],
                dict(row["reward_components"] or ()),
                source,
            )
            for sample, row in zip(unpack_samples(self.samples), self.rows, strict=True)
        ]

    def _models(self, objective: Objective, found: Mapping[str, set[str]], uid: str) -> list[str]:
        """Which of the objective's models have scored a response. Raises RecipeError where one of them has not."""
        there = [model for model in self.scores if uid in found[model]]
        routed = isinstance(objective.target, Route)
        needed = [m for m in objective.support_of if not (routed and m in objective.teachers)]
        lacks = [model for model in needed if model not in there]
        if routed and not set(there) & set(objective.teachers):
            lacks = list(objective.teachers)
        if lacks:
            raise RecipeError(f"replay: this objective needs scores of {lacks[0]}; none were stored of {uid}")
        return there

    def _reference_sums(self, objective: Objective) -> dict[str, float]:
        """By uid: the sum over loss tokens of log q - log p_reference, nats, where a penalty in the reward reads it."""
        if objective.reference is None or objective.reference.placement != "reward_sum":
            return {}
        found: dict[str, float] = {}
        table = ScoreTable(self.scores[objective.reference.model])
        for row in self.rows:
            floored = np.maximum(table.values(row["uid"], "logprobs").astype(float), objective.logprob_floor)
            k1 = np.asarray(row["student_logprobs"], float) - floored
            found[row["uid"]] = float(sum(k1[start:end].sum() for start, end in row["loss_spans"]))
        return found


def _scores(rows: Sequence[Row]) -> pa.RecordBatch:
    """Log-probs of the teacher as a payload of scores; tokens that it did not score carry no loss."""
    given = [np.asarray(row["teacher_logprobs"], np.float32) for row in rows]
    return pack_scores([Score(row["uid"], np.nan_to_num(v)) for row, v in zip(rows, given, strict=True)], {})[0]
