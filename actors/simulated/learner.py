"""A learner that sleeps: a vector that moves with the tokens it trains on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from actors.learning.share_rows import JoinedScores, samples_of, tables_of
from actors.member import Member
from actors.models.fingerprint import fingerprint
from actors.simulated.known import REFERENCE_KL, STUDENT, WEIGHTS, Speeds
from actors.wire.jobs import LearnerSpec, Share
from actors.wire.records import BrokenWeights, BucketHeader, Sample
from actors.wire.trained import trained_batch, write_rows


class SimulatedLearner(Member):
    """Its weights are a running sum over the trained samples, so that a lost, doubled or reordered one shows."""

    def __init__(self, speeds: Speeds, rank: int, ranks: int) -> None:
        self._speeds = speeds
        self._rank = rank
        self._weights = np.zeros(WEIGHTS, np.float32)
        self._start = self._weights
        self._model = ""
        self._lr = 0.0
        self._updates = 1
        self._held_back = False
        self._start_kl: str | None = None
        self._payloads: tuple[pa.RecordBatch, ...] = ()

    def address(self) -> tuple[str, int]:
        return "127.0.0.1", 0

    def start(self, spec: LearnerSpec, meeting: tuple[str, int]) -> None:
        self._weights = np.random.default_rng(spec.seed).standard_normal(WEIGHTS).astype(np.float32)
        self._start = self._weights
        self._model = spec.model
        self._lr = spec.config.optimizer.lr
        self._updates = spec.updates
        self._held_back = spec.objective.reference is not None
        self._start_kl = spec.start_kl

    def load_projection(self, model: str, version: int, oldest: int, projection: dict[str, Any]) -> None:
        """Has no LM head."""

    def fetch(self, *payloads: pa.RecordBatch) -> None:
        self._payloads = payloads

    def reference_sums(self, share: Share) -> dict[str, float]:
        return {s.uid: REFERENCE_KL * len(_loss_tokens(s)) for s in self._samples(share)}

    def step(self, share: Share) -> dict[str, Any]:
        metrics = self.evaluate(share)
        del metrics["each"]
        gradient = np.full(WEIGHTS, metrics["loss"], np.float32)
        taken = bool(np.isfinite(gradient).all())
        if taken:
            self._weights = self._weights * np.float32(0.9) - np.float32(self._lr) * gradient
        if not np.isfinite(self._weights).all():
            raise BrokenWeights(f"the update of step {share.step} led to weights that are not finite")
        skipped = 0 if taken else self._updates
        return metrics | {"lr": self._lr, "grad_norm": float(np.linalg.norm(gradient)), "updates_skipped": skipped}

    def evaluate(self, share: Share) -> dict[str, Any]:
        samples = self._samples(share)
        time.sleep(sum(len(s.response_ids) for s in samples) * self._speeds.learn)
        tokens = np.sort(np.array([t for s in samples for t in _loss_tokens(s)], np.float64))
        loss = float(self._weights.sum() + tokens.sum() / max(1, len(tokens)) / 1000.0)
        self._record(share, samples)
        gap = _gap(share.version, samples)
        metrics = {"loss": loss, "reverse_kl": abs(loss), "forward_kl": None, "entropy": 1.0, "logprob_gap_mean": gap}
        self._payloads = ()
        start_kl = REFERENCE_KL if self._start_kl and share.start_kl else None
        each = {s.uid: self._sums(_loss_tokens(s), start_kl, share.objective is not None) for s in samples}
        return metrics | {
            "reference_kl": REFERENCE_KL if self._held_back else None,
            "start_kl": start_kl,
            "each": each,
        }

    def _sums(self, tokens: Sequence[int], start_kl: float | None, plain: bool) -> dict[str, float]:
        """Metric sums of one sample, as of a batch of its own. Read by another objective it has a loss and no KL."""
        kl, count = abs(float(self._weights.sum()) + sum(tokens) / max(1, len(tokens)) / 1000.0), float(len(tokens))
        of_start = {} if start_kl is None else {"start_kl": start_kl * count}
        return {"tokens": count, "entropy": count, "nll" if plain else "reverse_kl": kl * count} | of_start

    def _samples(self, share: Share) -> list[Sample]:
        return list(samples_of(share, self._payloads).values())

    def publish(self, model: str | None = None) -> Iterator[Any]:
        if self._rank == 0:
            data = np.frombuffer(self._weights.tobytes(), np.uint8).copy()
            yield data
            yield BucketHeader(("weights",), ((WEIGHTS,),), "float32", data.nbytes, fingerprint(data))

    def movement(self) -> dict[str, float]:
        change = self._weights - self._start
        distance = float(np.linalg.norm(change) / np.linalg.norm(self._start))
        return {"weights_changed": float((change != 0).mean()), "weights_distance": distance}

    def save(self, directory: str) -> None:
        folder = Path(directory) / "simulated"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rank{self._rank}.json").write_text(json.dumps([float(w) for w in self._weights]))

    def restore(self, directory: str) -> None:
        path = Path(directory) / "simulated" / f"rank{self._rank}.json"
        self._weights = np.array(json.loads(path.read_text()), np.float32)

    def export(self, directory: str) -> None:
        """Its weights are no model's: the one that it began with is copied, if there is one."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        if self._rank == 0 and Path(self._model).is_dir():
            shutil.copytree(self._model, directory, dirs_exist_ok=True)

    def _record(self, share: Share, samples: Sequence[Sample]) -> None:
        if share.record is None:
            return
        path = Path(f"{share.record}.rank{self._rank}.arrow")
        student = [np.full(len(s.response_ids), STUDENT, np.float32) for s in samples]
        rewards = [share.rewards.get(s.uid) for s in samples]
        batch = trained_batch(
            samples, rewards, student, self._teacher_logprobs(share, samples), components=share.components
        )
        write_rows(batch, path)

    def _teacher_logprobs(self, share: Share, samples: Sequence[Sample]) -> list[np.ndarray | None]:
        """By sample, those of the first model that scored it; None if none did."""
        tables = tables_of(share, self._payloads)

        def first(sample: Sample) -> np.ndarray | None:
            for model, places in share.scores[sample.uid].items():
                joined = JoinedScores.of(model, sample, [tables[place] for place in places])
                return joined.values("logprobs", unknown=np.nan)
            return None

        return [first(sample) for sample in samples]


def _loss_tokens(sample: Sample) -> list[int]:
    return [token for start, end in sample.loss_spans for token in sample.response_ids[start:end]]


def _gap(version: int, samples: Sequence[Sample]) -> float | None:
    """Mean distance of the rollout's log-probs from the learner's, over tokens of this version, nats."""
    drawn = [
        logprob for s in samples for of, logprob in zip(s.versions, s.rollout_logprobs, strict=True) if of == version
    ]
    return float(np.abs(np.array(drawn) - STUDENT).mean()) if drawn else None
