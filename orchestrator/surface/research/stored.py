"""What a run's recorded samples can say of an objective: which scores are there, and the shares by which a learner
reads them. Refuses what was not stored, by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from actors.wire.jobs import Share
from actors.wire.records import Score, header_of, pack_scores, unpack_samples
from configs.objective import Objective, Route
from configs.refusal import RecipeError
from configs.schema import Recipe
from objectives.schedule import dials_at
from orchestrator.samples import credit
from orchestrator.samples.buffer import Scored
from orchestrator.surface.report.recorded import Row
from orchestrator.weights.learner_group import RankShare, share_of_rank, term_totals


def missing(own: Recipe, other: Objective) -> str | None:
    """Which score or fact that `other` needs the record of a run of `own` lacks; None where it has all."""
    recorded = own.objective
    for model, support in other.support_of.items():
        if support != "sampled":
            return f"scores of {model} on {support} support; the record has log-probs of sampled tokens alone"
        if model not in _scored(recorded, other):
            return f"scores of {model}; the record has those of {_named(recorded)}"
    if other.end_tokens != recorded.end_tokens and other.teachers:
        return f"scores with end_tokens: {other.end_tokens}; the record has them with {recorded.end_tokens}"
    if "value" in other.terms:
        return "the value head's weights; set objective.baseline and outcome.baseline to others"
    if len(recorded.sources) > 1:
        return f"who wrote each response; the run mixed {', '.join(recorded.sources)}"
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
    """The recorded samples of one step: rows by uid, and the payloads that hold them and their scores."""

    rows: Sequence[Row]
    samples: pa.RecordBatch
    scores: pa.RecordBatch | None

    @staticmethod
    def of(table: pa.Table) -> Stored:
        rows = table.to_pylist()
        known = all(row["teacher_logprobs"] is not None for row in rows)
        return Stored(rows, table.combine_chunks().to_batches()[0], _scores(rows) if rows and known else None)

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
        if objective.support_of and self.scores is None:
            raise RecipeError(
                f"replay: this objective needs scores of {next(iter(objective.support_of))}; none were stored"
            )
        scores = {model: (self.scores,) for model in list(objective.support_of)[:1]}
        source = objective.sources[0]
        return [
            Scored(header_of(sample), self.samples, scores, row["reward"], dict(row["reward_components"] or ()), source)
            for sample, row in zip(unpack_samples(self.samples), self.rows, strict=True)
        ]

    def _reference_sums(self, objective: Objective) -> dict[str, float]:
        """By uid: the sum over loss tokens of log q - log p_reference, nats, where a penalty in the reward reads it."""
        if objective.reference is None or objective.reference.placement != "reward_sum":
            return {}
        found: dict[str, float] = {}
        for row in self.rows:
            floored = np.maximum(np.asarray(row["teacher_logprobs"], float), objective.logprob_floor)
            k1 = np.asarray(row["student_logprobs"], float) - floored
            found[row["uid"]] = float(sum(k1[start:end].sum() for start, end in row["loss_spans"]))
        return found


def _scores(rows: Sequence[Row]) -> pa.RecordBatch:
    """Log-probs of the teacher as a payload of scores; tokens that it did not score carry no loss."""
    given = [np.asarray(row["teacher_logprobs"], np.float32) for row in rows]
    return pack_scores([Score(row["uid"], np.nan_to_num(v)) for row, v in zip(rows, given, strict=True)], {})[0]
