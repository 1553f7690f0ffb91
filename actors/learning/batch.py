"""A learner rank's share: tensors of a micro-batch from Arrow rows, and a record of what was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from actors.learning.adapting.base_scores import of_streams
from actors.learning.share_rows import JoinedScores, given_samples, tables_of, without_aged
from actors.learning.student import Head, Hidden, Targets
from actors.models import causal_lm
from actors.models.causal_lm import Projection
from actors.wire.jobs import Share
from actors.wire.kept_scores import Kept, file_beside, kept_batch
from actors.wire.records import Sample
from actors.wire.trained import LIKELIEST, Likeliest, trained_batch, write_rows
from configs.objective import Objective as ObjectiveConfig
from objectives import objective
from objectives.token_weights import token_weight, token_weights
from objectives.tokens import Scores, Tokens

FEW = 256  # tokens of a record that are projected to the vocabulary at a time
EXAMPLES = 8  # recorded samples of a rank that say what else the teacher would have written
OUTCOME_TERMS = ("outcome", "value")


class Batch:
    """This rank's samples and scores by uid. `old` holds the student's streams before the first update, by uid."""

    def __init__(
        self,
        share: Share,
        payloads: Sequence[pa.RecordBatch],
        config: ObjectiveConfig,
        packing: bool,
        start_kl: str | None = None,
        base: Sequence[str] = (),
    ) -> None:
        self._base = frozenset(base)
        self.share = share
        given = given_samples(share, payloads)
        self.samples = without_aged(share, given)
        self._given = {uid: sum(end - start for start, end in row.loss_spans) for uid, row in given.items()}
        self.old: dict[str, dict[str, np.ndarray]] = {}
        self._tables = tables_of(share, payloads)
        self._config = config
        self._slots = objective.slots(config, start_kl)
        self._full = objective.full_slots(config, start_kl)
        self._packing = packing

    def micro_batch(self, uids: Sequence[str]) -> tuple[causal_lm.Pack, Targets]:
        samples = [self.samples[uid] for uid in uids]
        pack = causal_lm.pack([(s.prompt_ids, s.response_ids) for s in samples], self._packing)
        lengths = [len(s.response_ids) for s in samples]
        logprobs = [torch.tensor(s.rollout_logprobs, dtype=torch.float32) for s in samples]
        advantages = [self.share.advantages.get(uid, 0.0) for uid in uids]
        advantage = _spread(advantages, lengths)
        tokens = Tokens(
            token_ids=pack.token_ids,
            sequence=torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(lengths, dtype=torch.long)),
            position=_cat([torch.arange(n) for n in lengths], torch.long),
            on=_cat([on_loss(s) for s in samples], torch.bool),
            weights={term: _cat([self._weights(term, s) for s in samples]) for term in self._config.terms},
            rollout_logprob=_cat(logprobs),
            advantage=advantage,
            reward=advantage,
            drawn=_spread([uid not in self.share.foreign for uid in uids], lengths).bool(),
            scores={slot: self._scores(self._slots[slot], samples) for slot in self._sent} if samples else {},
            old_logprob=self._old("logprob", uids),
            old_value=self._old("value", uids),
            old_class_logprob=self._old("class_logprob", uids),
            lengths=tuple(lengths),
        )
        return pack, Targets(
            tokens,
            {s: self._hidden(self._slots[s], samples) for s in self._full if s in self._sent},
            self._base_packs(pack, samples),
        )

    def _base_packs(self, own: causal_lm.Pack, samples: Sequence[Sample]) -> dict[str, causal_lm.Pack]:
        """By slot of the base, the samples behind its prompts; the student's own pack where those are the student's."""
        found: dict[str, causal_lm.Pack] = {}
        for slot in sorted(self._base & self._slots.keys()):
            prompts = self.share.base_prompts.get(slot)
            rows = [(prompts[s.uid], s.response_ids) for s in samples if prompts]
            found[slot] = causal_lm.pack(rows, self._packing) if rows else own
        return found

    @property
    def _sent(self) -> list[str]:
        """Slots whose scores come in payloads: not those of the base."""
        return [slot for slot in self._slots if slot not in self._base]

    def reference_sum(self, uid: str, streams: Mapping[str, Mapping[str, np.ndarray]]) -> float:
        """Sum over a response's loss tokens of k1 = log q - log p_reference, nats. `streams`: the student's."""
        assert self._config.reference is not None
        logprobs, found = streams["logprob"][uid], self._sampled((self._config.reference.model,), uid, streams)
        reference = np.maximum(found, self._config.logprob_floor)
        return float(((logprobs - reference) * on_loss(self.samples[uid]).numpy()).sum())

    def record(self, rank: int, heads: Mapping[Head, Projection]) -> None:
        """Write the trained samples to the share's `record`, if it has one, and beside it what it keeps of their
        scores. `heads`: LM heads of full support."""
        if self.share.record is None:
            return
        if (kept := self._kept()) is not None:
            write_rows(kept_batch(kept), file_beside(self.share.record, self.share.step, rank))
        write_rows(self._trained(heads), Path(f"{self.share.record}.rank{rank}.arrow"))

    def _kept(self) -> list[Kept] | None:
        """The scores of all samples by the objective's models; None if they take more than the share keeps."""
        if not self.share.kept_scores:
            return None
        joined = [
            JoinedScores.of(model, sample, [self._tables[place] for place in places])
            for uid, sample in sorted(self.samples.items())
            for model, places in self.share.scores.get(uid, {}).items()
            if model in self._config.support_of
        ]
        kept = [row for each in joined if (row := each.kept()) is not None]
        return kept if sum(row.score.nbytes for row in kept) <= self.share.kept_scores else None

    def _trained(self, heads: Mapping[Head, Projection]) -> pa.RecordBatch:
        uids = sorted(self.samples)
        teachers = next((models for slot, models in self._slots.items() if slot in self.teachers()), None)
        return trained_batch(
            [self.samples[uid] for uid in uids],
            [self.share.rewards.get(uid) for uid in uids],
            [self.old["logprob"][uid] for uid in uids],
            [self._sampled(teachers, uid, self.old, np.nan) if teachers else None for uid in uids],
            [self.old["class_logprob"][uid] for uid in uids] if "class_logprob" in self.old else None,
            [self._likeliest(teachers, self.samples[uid], heads) for uid in uids[:EXAMPLES]] if teachers else (),
            self.share.components,
        )

    def _sampled(
        self, models: Sequence[str], uid: str, streams: Mapping[str, Mapping[str, np.ndarray]], unknown: float = 0.0
    ) -> np.ndarray:
        """A model's log-probs of a response's tokens: from its payloads; of the base from the learner's `streams`."""
        if models[0] in self._base:
            return of_streams(streams)[models[0]][uid]
        return self._joined(models, self.samples[uid]).values("logprobs", unknown=unknown)

    def _likeliest(self, models: Sequence[str], sample: Sample, heads: Mapping[Head, Projection]) -> Likeliest | None:
        """What a teacher finds likeliest at each loss token, of its support; None on sampled support and base."""
        if models[0] in self._base:
            return None
        joined = self._joined(models, sample)
        ids = np.full((joined.tokens, LIKELIEST), -1, np.int32)
        logprobs = np.full((joined.tokens, LIKELIEST), -np.inf, np.float16)
        if joined.has("support_ids"):
            support, given = _support(joined, "support_ids"), _support(joined, "support_logprobs").float()
            best = given.masked_fill(support < 0, -torch.inf).topk(min(LIKELIEST, support.shape[1]))
            ids[:, : best.values.shape[1]] = support.gather(1, best.indices).numpy()
            logprobs[:, : best.values.shape[1]] = best.values.numpy()
        elif joined.has("hidden"):
            for version, places, states in _hidden(joined, on_loss(sample)):
                head = heads[joined.model, version]
                for rows, part in zip(places.split(FEW), states.split(FEW), strict=True):
                    best = head.logprobs(part.to(head.weight.device)).topk(LIKELIEST)
                    ids[rows], logprobs[rows] = best.indices.cpu().numpy(), best.values.cpu().numpy()
        else:
            return None
        ids[~on_loss(sample).numpy()] = -1  # without a score, or its head is gone
        return ids, logprobs

    def teachers(self) -> Mapping[str, float]:
        """Slots of the targets, and their weights."""
        return objective.teacher_slots(self._config)

    def _weights(self, term: str, sample: Sample) -> Tensor:
        foreign = term != "distillation" and sample.uid in self.share.foreign
        masked = term in OUTCOME_TERMS and sample.uid in self.share.masked
        total = self.share.totals[term]
        weight = token_weight(
            self._config.normalise, self._given[sample.uid], total.tokens, total.sequences, self.share.constant
        )
        return token_weights(on_loss(sample), not (foreign or masked), weight)

    def _old(self, stream: str, uids: Sequence[str]) -> Tensor | None:
        if stream not in self.old:
            return None
        return _cat([torch.from_numpy(self.old[stream][uid]) for uid in uids])

    def _joined(self, models: Sequence[str], sample: Sample) -> JoinedScores:
        """A sample's scores by the first model of a slot that has scored it. Raises RuntimeError if none has."""
        scores = self.share.scores.get(sample.uid, {})
        model = next((m for m in models if m in scores), None)
        if model is None:
            raise RuntimeError(
                f"{sample.uid} was scored by none of {list(models)}; its prompt's route and the share disagree"
            )
        return JoinedScores.of(model, sample, [self._tables[place] for place in scores[model]])

    def _scores(self, models: Sequence[str], samples: Sequence[Sample]) -> Scores:
        rows = [self._joined(models, sample) for sample in samples]
        found = {"logprob": _cat([_column(row, "logprobs") for row in rows])}
        if rows[0].has("support_ids"):
            found["support_ids"] = _cat([_support(row, "support_ids").long() for row in rows])
            found["support_logprobs"] = _cat([_support(row, "support_logprobs").float() for row in rows])
            found["tail_logprob"] = _cat([_column(row, "tail_logprob") for row in rows])
        return Scores(**found)

    def _hidden(self, models: Sequence[str], samples: Sequence[Sample]) -> list[Hidden]:
        """Hidden states of a slot, one piece for each LM head that they need."""
        rows: dict[tuple[str, int], list[Tensor]] = {}
        states: dict[tuple[str, int], list[Tensor]] = {}
        first = 0
        for sample in samples:
            joined = self._joined(models, sample)
            for version, places, part in _hidden(joined, on_loss(sample)):
                rows.setdefault((joined.model, version), []).append(first + places)
                states.setdefault((joined.model, version), []).append(part)
            first += joined.tokens
        return [Hidden.of(head, torch.cat(rows[head]), torch.cat(states[head])) for head in rows]


def on_loss(sample: Sample) -> Tensor:
    """[response tokens] bool: which tokens of a sample carry loss."""
    on = torch.zeros(len(sample.response_ids), dtype=torch.bool)
    for start, end in sample.loss_spans:
        on[start:end] = True
    return on


def _spread(values: Sequence[float], lengths: Sequence[int]) -> Tensor:
    return torch.repeat_interleave(torch.tensor(values, dtype=torch.float32), torch.tensor(lengths, dtype=torch.long))


def _cat(parts: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.zeros(0, dtype=dtype)


def _column(scores: JoinedScores, column: str) -> Tensor:
    return torch.tensor(scores.values(column).astype(np.float32))


def _support(scores: JoinedScores, column: str) -> Tensor:
    return torch.tensor(scores.values(column)).reshape(scores.tokens, -1)


def _hidden(scores: JoinedScores, on: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """(LM head's version, token positions, hidden states) of each table that scored a loss token, and of the last one.
    Tokens of other tables get zeros under the last version: they are too old to carry loss, and their heads may be
    dropped already."""
    found, left, last = [], torch.ones(len(on), dtype=torch.bool), [*scores.tables.values()][-1]
    for start, table in scores.tables.items():
        assert table.hidden_dtype is not None
        places = torch.arange(start, start + len(table.values(scores.uid, "logprobs")))
        if on[places].any() or table is last:
            states = causal_lm.from_bytes(table.hidden(scores.uid), table.hidden_dtype).reshape(len(places), -1)
            found.append((table.version(scores.uid), places, states))
            left[places] = False
    version, _, states = found[-1]
    bare = torch.nonzero(left)[:, 0]
    return [*found, (version, bare, states.new_zeros(len(bare), states.shape[1]))] if len(bare) else found
