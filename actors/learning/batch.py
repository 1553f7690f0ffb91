"""A learner rank's share: tensors of a micro-batch from Arrow rows, and metrics from the student's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

from actors.learning.share_rows import JoinedScores, given_samples, tables_of, without_aged
from actors.learning.student import Head, Hidden, Targets
from actors.metrics import EVALUATION_METRICS, OF_TEXT
from actors.models import causal_lm
from actors.models.causal_lm import Projection
from actors.wire.jobs import Share
from actors.wire.records import Sample
from actors.wire.trained import LIKELIEST, Likeliest, trained_batch
from configs.objective import Objective as ObjectiveConfig
from objectives import objective, readings
from objectives.token_weights import token_weight, token_weights
from objectives.tokens import Scores, Tokens

GATHERED = 16_384  # tokens a rank gives to quantiles; every n-th of a longer share
FEW = 256  # tokens of a record that are projected to the vocabulary at a time
EXAMPLES = 8  # recorded samples of a rank that say what else the teacher would have written
OUTCOME_TERMS = ("outcome", "value")
MEASURED = {*EVALUATION_METRICS, *OF_TEXT}


class Batch:
    """This rank's samples and scores by uid. `old` holds the student's streams before the first update, by uid."""

    def __init__(
        self,
        share: Share,
        payloads: Sequence[pa.RecordBatch],
        config: ObjectiveConfig,
        packing: bool,
        start_kl: str | None = None,
    ) -> None:
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
            on=_cat([_on(s) for s in samples], torch.bool),
            weights={term: _cat([self._weights(term, s) for s in samples]) for term in self._config.terms},
            rollout_logprob=_cat(logprobs),
            advantage=advantage,
            reward=advantage,
            drawn=_spread([uid not in self.share.foreign for uid in uids], lengths).bool(),
            scores={slot: self._scores(models, samples) for slot, models in self._slots.items()} if samples else {},
            old_logprob=self._old("logprob", uids),
            old_value=self._old("value", uids),
            old_class_logprob=self._old("class_logprob", uids),
            lengths=tuple(lengths),
        )
        return pack, Targets(tokens, {slot: self._hidden(self._slots[slot], samples) for slot in self._full})

    def reference_sum(self, uid: str, logprobs: np.ndarray) -> float:
        """Sum over a response's loss tokens of k1 = log q - log p_reference, nats."""
        assert self._config.reference is not None
        scores = self._joined((self._config.reference.model,), self.samples[uid])
        reference = np.maximum(scores.values("logprobs"), self._config.logprob_floor)
        return float(((logprobs - reference) * _on(self.samples[uid]).numpy()).sum())

    def record(self, rank: int, heads: Mapping[Head, Projection]) -> None:
        """Write the trained samples to the share's `record`, if it has one. `heads`: LM heads of full support."""
        if self.share.record is None:
            return
        path = Path(f"{self.share.record}.rank{rank}.arrow")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        trained = self._trained(heads)
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, trained.schema) as writer:
            writer.write_batch(trained)
        partial.replace(path)

    def _trained(self, heads: Mapping[Head, Projection]) -> pa.RecordBatch:
        uids = sorted(self.samples)
        teachers = next((models for slot, models in self._slots.items() if slot in self._teachers()), None)
        return trained_batch(
            [self.samples[uid] for uid in uids],
            [self.share.rewards.get(uid) for uid in uids],
            [self.old["logprob"][uid] for uid in uids],
            [self._teacher_logprobs(teachers, self.samples[uid]) if teachers else None for uid in uids],
            [self.old["class_logprob"][uid] for uid in uids] if "class_logprob" in self.old else None,
            [self._likeliest(teachers, self.samples[uid], heads) for uid in uids[:EXAMPLES]] if teachers else (),
            self.share.components,
        )

    def _teacher_logprobs(self, models: Sequence[str], sample: Sample) -> np.ndarray:
        return self._joined(models, sample).values("logprobs", unknown=np.nan)

    def _likeliest(self, models: Sequence[str], sample: Sample, heads: Mapping[Head, Projection]) -> Likeliest | None:
        """What a teacher finds likeliest at each loss token, of its support; None on sampled support."""
        joined = self._joined(models, sample)
        ids = np.full((joined.tokens, LIKELIEST), -1, np.int32)
        logprobs = np.full((joined.tokens, LIKELIEST), -np.inf, np.float16)
        if joined.has("support_ids"):
            support, given = _support(joined, "support_ids"), _support(joined, "support_logprobs").float()
            best = given.masked_fill(support < 0, -torch.inf).topk(min(LIKELIEST, support.shape[1]))
            ids[:, : best.values.shape[1]] = support.gather(1, best.indices).numpy()
            logprobs[:, : best.values.shape[1]] = best.values.numpy()
        elif joined.has("hidden"):
            for version, places, states in _hidden(joined, _on(sample)):
                head = heads[joined.model, version]
                for rows, part in zip(places.split(FEW), states.split(FEW), strict=True):
                    best = head.logprobs(part.to(head.weight.device)).topk(LIKELIEST)
                    ids[rows], logprobs[rows] = best.indices.cpu().numpy(), best.values.cpu().numpy()
        else:
            return None
        ids[~_on(sample).numpy()] = -1  # without a score, or its head is gone
        return ids, logprobs

    def _teachers(self) -> Mapping[str, float]:
        return objective.teacher_slots(self._config)

    def _weights(self, term: str, sample: Sample) -> Tensor:
        foreign = term != "distillation" and sample.uid in self.share.foreign
        masked = term in OUTCOME_TERMS and sample.uid in self.share.masked
        total = self.share.totals[term]
        weight = token_weight(
            self._config.normalise, self._given[sample.uid], total.tokens, total.sequences, self.share.constant
        )
        return token_weights(_on(sample), not (foreign or masked), weight)

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
            for version, places, part in _hidden(joined, _on(sample)):
                rows.setdefault((joined.model, version), []).append(first + places)
                states.setdefault((joined.model, version), []).append(part)
            first += joined.tokens
        return [Hidden(head, torch.cat(rows[head]), torch.cat(states[head])) for head in rows]


class Readings:
    """Sums over this rank's tokens, reduced once over ranks. Without `compares_sampler` there is no metric of q/mu.

    Outputs stay where the student left them until something is asked for: to read one would make the host wait for a
    micro-batch, where it could start the next.
    """

    def __init__(self, batch: Batch, compares_sampler: bool = True) -> None:
        self._batch = batch
        self._compares_sampler = compares_sampler
        self._left: list[tuple[Sequence[str], Tokens, Tensor, Mapping[str, Tensor], Mapping[str, Tensor]]] = []
        self._loss = 0.0
        self._sums: dict[str, float] = {}
        self._gap = [0.0, 0.0]
        self._log_ratios: list[np.ndarray] = []  # l to the first teacher
        self._drift: list[np.ndarray] = []  # log q - log mu
        self._student: dict[str, dict[str, np.ndarray]] = {}

    def add(
        self,
        uids: Sequence[str],
        targets: Targets,
        loss: Tensor,
        sums: Mapping[str, Tensor],
        streams: Mapping[str, Tensor],
    ) -> None:
        """Add the student's outputs for one micro-batch."""
        self._left.append((uids, targets.tokens, loss.detach(), sums, streams))

    @property
    def student(self) -> dict[str, dict[str, np.ndarray]]:
        """The student's streams by name and uid."""
        self._settle()
        return self._student

    def _settle(self) -> None:
        left, self._left = self._left, []
        for uids, tokens, loss, sums, streams in left:
            names = list(sums)
            values = torch.stack([loss.double(), *(sums[name].double() for name in names)]).tolist()
            self._loss += values[0]
            for name, value in zip(names, values[1:], strict=True):
                self._sums[name] = self._sums.get(name, 0.0) + value
            self._take(uids, tokens, streams)

    def _take(self, uids: Sequence[str], tokens: Tokens, streams: Mapping[str, Tensor]) -> None:
        if not uids:
            return
        samples = [self._batch.samples[uid] for uid in uids]
        lengths = [len(s.response_ids) for s in samples]
        for name, stream in streams.items():
            parts = stream.float().cpu().split(lengths)
            self._student.setdefault(name, {}).update(zip(uids, (part.numpy() for part in parts), strict=True))
        logprob, against = (s.float().cpu().numpy() for s in (streams["logprob"], readings.of_distillation(streams)))
        self._compare(tokens, logprob, against, samples)

    def reduced(self, share: Share) -> dict[str, Any]:
        """Global metrics, the same on every rank. Names are gathered first: a rank without tokens has none."""
        self._settle()
        names = sorted(_union(list(self._sums)))
        own = [self._loss, *self._gap, *(self._sums.get(name, 0.0) for name in names)]
        loss, gap, compared, *values = _all_reduced(torch.tensor(own, dtype=torch.float64)).tolist()
        sums = dict(zip(names, values, strict=True))
        ratios, drift = _gathered(self._log_ratios), _gathered(self._drift)
        return {
            "loss": loss,
            "logprob_gap_mean": gap / compared if compared else None,
            **_means(sums, max(1, share.loss_tokens)),
            **_quantiles("log_ratio", ratios),
            **_quantiles("ratio", np.exp(np.clip(drift, -50.0, 50.0))),
            "effective_sample_size": _effective(drift),
        }

    def each(self) -> dict[str, dict[str, float]]:
        """By uid: sums over loss tokens, nats, of the metrics of an evaluation, and the count of loss `tokens`."""
        found: dict[str, dict[str, float]] = {}
        for uid in self.student.get("logprob", {}):
            on = _on(self._batch.samples[uid]).numpy()
            values = {n: by_uid[uid] for n, by_uid in self.student.items() if n in MEASURED}
            found[uid] = {name: float(value[on].sum(dtype=np.float64)) for name, value in values.items()}
            found[uid]["tokens"] = float(on.sum())
        return found

    def _compare(self, tokens: Tokens, logprob: np.ndarray, against: np.ndarray, samples: Sequence[Sample]) -> None:
        """Collect log q - log mu from `logprob`, and the log-ratio to the first teacher from `against`."""
        on, drawn = tokens.on.numpy(), (tokens.drawn & tokens.on).numpy()
        if self._compares_sampler:
            drift = logprob - tokens.rollout_logprob.numpy()
            self._drift.append(drift[drawn])
            versions = np.concatenate([np.asarray(s.versions) for s in samples])
            same = drawn & (versions == self._batch.share.version)
            self._gap[0] += float(np.abs(drift[same]).sum())
            self._gap[1] += float(same.sum())
        teacher = next((tokens.scores[slot] for slot in self._batch._teachers() if slot in tokens.scores), None)
        if teacher is not None:
            self._log_ratios.append((teacher.logprob.numpy() - against)[on])


def _means(sums: Mapping[str, float], tokens: int) -> dict[str, Any]:
    """Sums of objectives.readings -> metrics, by the names of actors/metrics.py."""

    def mean(name: str) -> float | None:
        return sums[name] / tokens if name in sums else None

    exact = "reverse_kl" in sums
    by_position = {
        end: sums[f"{readings.POSITION_KL}{end}"] / sums[f"{readings.POSITION_COUNT}{end}"]
        for end in readings.POSITIONS
        if sums.get(f"{readings.POSITION_COUNT}{end}")
    }
    same = ("entropy", "forward_kl", "topk_mass_teacher", "topk_mass_student", "topk_overlap")
    return {name: mean(name) for name in same} | {
        "reverse_kl": mean("reverse_kl" if exact else "k1"),
        "reverse_kl_k3": None if exact else mean("k3"),
        "kl_by_position": {str(end): kl for end, kl in by_position.items()} or None,
        "clipped_fraction": mean("clipped"),
        "held_fraction": mean("held"),
        "masked_fraction": sums.get("off_loss", 0.0) / (sums.get("off_loss", 0.0) + tokens),
        "reference_kl": sums["reference_k1"] / max(1.0, sums["drawn"]) if "reference_k1" in sums else None,
        "start_kl": mean("start_kl") if "start_kl" in sums else _over_drawn(sums, "start_k1"),
        "value_mean": mean("value"),
    }


def _over_drawn(sums: Mapping[str, float], name: str) -> float | None:
    """A mean over loss tokens that the student drew; None without any."""
    return sums[name] / sums["drawn"] if name in sums and sums["drawn"] else None


def _quantiles(name: str, values: np.ndarray) -> dict[str, float | None]:
    points = (1, 50, 99)
    found = np.percentile(values, points).tolist() if len(values) else (None, None, None)
    return {f"{name}_p{point}": value for point, value in zip(points, found, strict=True)}


def _effective(drift: np.ndarray) -> float | None:
    """(sum w)^2 / (n sum w^2) of w = q/mu; 1 if all w are equal."""
    if not len(drift):
        return None
    weights = np.exp(np.clip(drift, -50.0, 50.0))
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))


def _gathered(parts: Sequence[np.ndarray]) -> np.ndarray:
    """All ranks' values, at most GATHERED of each rank."""
    own = np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own[:: max(1, -(-len(own) // GATHERED))])
    return np.concatenate(gathered)


def _all_reduced(values: Tensor) -> Tensor:
    if dist.get_backend() == "nccl":
        values = values.cuda()
    dist.all_reduce(values)
    return values.cpu()


def _union(names: list[str]) -> set[str]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, names)
    return {name for part in gathered for name in part}


def _on(sample: Sample) -> Tensor:
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
