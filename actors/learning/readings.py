"""What the student gave for a learner rank's share, as metrics of all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from actors.learning.adapting.base_scores import of_streams
from actors.learning.batch import Batch, on_loss
from actors.learning.student import Targets
from actors.metrics import EVALUATION_METRICS, OF_TEXT
from actors.wire.jobs import Share
from actors.wire.records import Sample
from objectives import readings
from objectives.devices import on_host
from objectives.tokens import Tokens

GATHERED = 16_384  # tokens a rank gives to quantiles; every n-th of a longer share
MEASURED = {*EVALUATION_METRICS, *OF_TEXT}


@dataclass(frozen=True)
class _Left:
    """The student's outputs for a micro-batch, where the student left them; its `tokens` on the host."""

    uids: Sequence[str]
    tokens: Tokens
    loss: Tensor
    sums: Mapping[str, Tensor]
    streams: Mapping[str, Tensor]

    def numbers(self, names: Sequence[str]) -> Tensor:
        """[1 + names] float64: the loss, and the sums; 0 for those that it has not."""
        nothing = self.loss.new_zeros(())
        return torch.stack([self.loss.double(), *(self.sums.get(name, nothing).double() for name in names)])


class Readings:
    """Sums over this rank's tokens, reduced once over ranks. Without `compares_sampler` there is no metric of q/mu.

    Outputs stay where the student left them until something is asked for: to read one would make the host wait for a
    micro-batch, where it could start the next. Then all are copied, and waited for once.
    """

    def __init__(self, batch: Batch, compares_sampler: bool = True) -> None:
        self._batch = batch
        self._compares_sampler = compares_sampler
        self._left: list[_Left] = []
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
        self._left.append(_Left(uids, targets.tokens, loss.detach(), sums, streams))

    @property
    def student(self) -> dict[str, dict[str, np.ndarray]]:
        """The student's streams by name and uid."""
        self._settle()
        return self._student

    def _settle(self) -> None:
        left, self._left = self._left, []
        if not left:
            return
        names = sorted({name for one in left for name in one.sums})
        full = [one for one in left if one.uids]
        kept = [*full[0].streams] if full else []
        streams = [torch.cat([one.streams[name] for one in full]).float() for name in kept]
        numbers, *found = on_host([torch.stack([one.numbers(names) for one in left]), *streams])
        loss, *sums = numbers.sum(0).tolist()
        self._loss += loss
        self._sums |= {name: self._sums.get(name, 0.0) + value for name, value in zip(names, sums, strict=True)}
        parts = zip(*(stream.split([len(one.tokens) for one in full]) for stream in found), strict=True)
        for one, own in zip(full, parts, strict=True):
            self._take(one.uids, one.tokens, dict(zip(kept, own, strict=True)))

    def _take(self, uids: Sequence[str], tokens: Tokens, streams: Mapping[str, Tensor]) -> None:
        """Take in the streams of a micro-batch, [its tokens] each, on the host."""
        samples = [self._batch.samples[uid] for uid in uids]
        lengths = [len(s.response_ids) for s in samples]
        for name, stream in streams.items():
            parts = stream.split(lengths)
            self._student.setdefault(name, {}).update(zip(uids, (part.numpy() for part in parts), strict=True))
        logprob, against = (s.numpy() for s in (streams["logprob"], readings.of_distillation(streams)))
        self._compare(tokens, logprob, against, samples, self._teacher(tokens, streams))

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
            on = on_loss(self._batch.samples[uid]).numpy()
            values = {n: by_uid[uid] for n, by_uid in self.student.items() if n in MEASURED}
            found[uid] = {name: float(value[on].sum(dtype=np.float64)) for name, value in values.items()}
            found[uid]["tokens"] = float(on.sum())
        return found

    def _teacher(self, tokens: Tokens, streams: Mapping[str, Tensor]) -> np.ndarray | None:
        """The first teacher's log-probs of the sampled tokens, [N] nats."""
        given = {slot: scores.logprob for slot, scores in tokens.scores.items()} | of_streams(streams)
        found = next((given[slot] for slot in self._batch.teachers() if slot in given), None)
        return None if found is None else found.float().cpu().numpy()

    def _compare(
        self,
        tokens: Tokens,
        logprob: np.ndarray,
        against: np.ndarray,
        samples: Sequence[Sample],
        teacher: np.ndarray | None,
    ) -> None:
        """Collect log q - log mu from `logprob`, and the log-ratio to the first teacher from `against`."""
        on, drawn = tokens.on.numpy(), (tokens.drawn & tokens.on).numpy()
        if self._compares_sampler:
            drift = logprob - tokens.rollout_logprob.numpy()
            self._drift.append(drift[drawn])
            versions = np.concatenate([np.asarray(s.versions) for s in samples])
            same = drawn & (versions == self._batch.share.version)
            self._gap[0] += float(np.abs(drift[same]).sum())
            self._gap[1] += float(same.sum())
        if teacher is not None:
            self._log_ratios.append((teacher - against)[on])


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
