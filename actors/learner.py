"""Learner rank: the student under DeepSpeed. It knows no algorithm: it sums weighted terms and steps.

All ranks of a learner are called together with their own share of the plan. Every weight carries a global
denominator, so ranks, micro-batches and packing change nothing.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

from actors import causal_lm, weights
from actors.jobs import LearnerSpec, Share
from actors.member import Member
from actors.optimizer import build_optimizer, deepspeed_config, learning_rate
from actors.records import Sample, ScoreTable, trained_batch, unpack_samples
from actors.student import Student, Targets
from configs.schema import Objective as ObjectiveConfig
from objectives import objective


class Learner(Member):
    def __init__(self, rank: int, ranks: int) -> None:
        self._rank = rank
        self._ranks = ranks
        self._spec: LearnerSpec | None = None
        self._engine: Any = None
        self._student: Student | None = None
        self._device = torch.device("cpu")

    def address(self) -> tuple[str, int]:
        """Host and a free port of this rank, for the others to meet at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        return _own_address(), port

    def start(self, spec: LearnerSpec, meeting: tuple[str, int]) -> None:
        """Join the ranks and build the engine. Called again, it builds a new one in the same process group."""
        import deepspeed

        self._spec = spec
        torch.set_num_threads(spec.config.resources.threads)
        torch.manual_seed(spec.seed)
        self._join(meeting)
        model = self._load_model(spec)
        self._student = Student(model, objective.build(spec.objective), spec.vocabulary, spec.config.tokens_per_chunk)
        if spec.config.zero_stage == 3:  # gather the head once a forward, however many chunks use it
            for parameter in model.get_output_embeddings().parameters():
                deepspeed.zero.register_external_parameter(self._student, parameter)
        self._engine, *_ = deepspeed.initialize(
            model=self._student,
            optimizer=build_optimizer(spec.config, self._student.parameters()),
            config=deepspeed_config(spec.config, self._ranks),
            dist_init_required=False,
        )
        self._device = self._engine.device

    def load_projection(self, projection: dict[str, Any]) -> None:
        """Take the teacher's head, for full support."""
        self._built.teacher = causal_lm.projection_from(projection, self._device)

    def step(self, share: Share, *payloads: pa.RecordBatch) -> dict[str, float | None]:
        """One update. Returns the same global metrics on every rank."""
        metrics = self.accumulate(share, *payloads)
        return metrics | self.apply(share.step)

    def accumulate(self, share: Share, *payloads: pa.RecordBatch) -> dict[str, float | None]:
        """Forward and backward of this rank's share; the gradient is whole after it, and not yet applied."""
        self._engine.train()
        batch = _Batch(share, payloads, self._specified.objective, self._specified.config.packing)
        readings = _Readings(share.version)
        for index, uids in enumerate(share.micro_batches):
            self._engine.set_gradient_accumulation_boundary(index == len(share.micro_batches) - 1)
            pack, targets = batch.micro_batch(uids)
            loss, sums, logprobs = self._engine(pack.to(self._device), targets.to(self._device))
            # DeepSpeed averages over ranks; the weights already carry the global denominator
            self._engine.backward(loss * self._ranks, scale_wrt_gas=False)
            readings.add(loss, self._named(sums), [batch.samples[uid] for uid in uids], logprobs)
        self._record(share, batch, readings)
        return readings.reduced(share.loss_tokens)

    def apply(self, step: int) -> dict[str, float | None]:
        """Take the optimizer step with the schedule's rate."""
        rate = learning_rate(self._specified.config.optimizer, step, self._specified.steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        norm = self._plain_grad_norm()
        self._engine.step()
        return {"lr": rate, "grad_norm": float(self._engine.get_global_grad_norm() if norm is None else norm)}

    @torch.no_grad()
    def evaluate(self, share: Share, *payloads: pa.RecordBatch) -> dict[str, float | None]:
        """The same readings without a gradient."""
        self._engine.eval()
        batch = _Batch(share, payloads, self._specified.objective, self._specified.config.packing)
        readings = _Readings(share.version)
        for uids in share.micro_batches:
            pack, targets = batch.micro_batch(uids)
            loss, sums, logprobs = self._built(pack.to(self._device), targets.to(self._device))
            readings.add(loss, self._named(sums), [batch.samples[uid] for uid in uids], logprobs)
        self._record(share, batch, readings)
        return readings.reduced(share.loss_tokens)

    def publish(self) -> Iterator[Any]:
        """Rank 0 yields bucket, header, bucket, header, ...; other ranks take part in gathering and yield nothing."""
        for bucket, header in weights.buckets(self._gathered(), self._specified.publish_dtype):
            if self._rank == 0:
                yield bucket
                yield header

    def save(self, directory: str) -> None:
        """This rank's part of a checkpoint: DeepSpeed's own files. They are pickles; a manifest guards them."""
        self._engine.save_checkpoint(directory, tag="deepspeed", save_latest=False)

    def restore(self, directory: str) -> None:
        """Inverse of `save`. Raises RuntimeError when DeepSpeed finds nothing to load."""
        path, _ = self._engine.load_checkpoint(directory, tag="deepspeed")
        if path is None:
            raise RuntimeError(f"{directory} holds no DeepSpeed state; is it a checkpoint of this learner?")

    def export(self, directory: str) -> None:
        """A Hugging Face directory in safetensors, with the tokenizer. Every rank takes part, rank 0 writes."""
        state = {name: tensor.detach().cpu().clone() for name, tensor in self._gathered()}
        if self._rank == 0:
            from transformers import AutoTokenizer

            self._built.model.save_pretrained(directory, state_dict=state)
            AutoTokenizer.from_pretrained(self._specified.model, local_files_only=True).save_pretrained(directory)

    def stop(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def _built(self) -> Student:
        if self._student is None:
            raise RuntimeError("the learner is not built; start() comes first")
        return self._student

    @property
    def _specified(self) -> LearnerSpec:
        if self._spec is None:
            raise RuntimeError("the learner is not built; start() comes first")
        return self._spec

    def _plain_grad_norm(self) -> float | None:
        """Where DeepSpeed takes no norm: ZeRO-0 in float32, which keeps plain averaged gradients. Before clipping."""
        config = self._specified.config
        if config.zero_stage or config.dtype != "float32":
            return None
        norms = [p.grad.norm() for p in self._built.parameters() if p.grad is not None]
        return float(torch.stack(norms).norm())

    def _join(self, meeting: tuple[str, int]) -> None:
        import deepspeed

        if dist.is_initialized():
            return
        os.environ |= {
            "MASTER_ADDR": meeting[0],
            "MASTER_PORT": str(meeting[1]),
            "RANK": str(self._rank),
            "WORLD_SIZE": str(self._ranks),
            "LOCAL_RANK": "0",  # Ray shows each actor its own devices only
        }
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)

    def _load_model(self, spec: LearnerSpec) -> Any:
        model = causal_lm.load_model(Path(spec.model), spec.config.dtype, spec.config.attention)
        if spec.config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model

    def _named(self, sums: Tensor) -> dict[str, float]:
        return dict(zip(self._built.metric_names, sums.tolist(), strict=True))

    def _gathered(self) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters by their Hugging Face names; under ZeRO-3 gathered one at a time."""
        from deepspeed.runtime.zero import GatheredParameters

        for name, parameter in self._built.model.named_parameters():
            with GatheredParameters([parameter], enabled=self._specified.config.zero_stage == 3):
                yield name, parameter.detach()

    def _record(self, share: Share, batch: _Batch, readings: _Readings) -> None:
        if share.record is None:
            return
        path = Path(f"{share.record}.rank{self._rank}.arrow")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        trained = batch.trained(readings.student_logprobs)
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, trained.schema) as writer:
            writer.write_batch(trained)
        partial.replace(path)


class _Batch:
    """This rank's samples and scores by uid, and the tensors of a micro-batch made of them."""

    def __init__(
        self, share: Share, payloads: Sequence[pa.RecordBatch], config: ObjectiveConfig, packing: bool
    ) -> None:
        mine = {uid for uids in share.micro_batches for uid in uids}
        blocks, tables = payloads[: share.sample_blocks], payloads[share.sample_blocks :]
        self.samples = {s.uid: s for block in blocks for s in unpack_samples(block) if s.uid in mine}
        scores = [ScoreTable(table) for table in tables]
        self._scores = {uid: next((t for t in scores if uid in t), None) for uid in mine}
        self._share = share
        self._config = config
        self._packing = packing

    def micro_batch(self, uids: Sequence[str]) -> tuple[causal_lm.Pack, Targets]:
        samples = [self.samples[uid] for uid in uids]
        pack = causal_lm.pack([(s.prompt_ids, s.response_ids) for s in samples], self._packing)
        return pack, Targets(
            weight=_cat([self._weights(s) for s in samples]),
            rollout_logprob=_cat([torch.tensor(s.rollout_logprobs) for s in samples]),
            advantage=_cat([self._constant(s, self._share.advantages.get(s.uid, 0.0)) for s in samples]),
            **self._teacher(samples),
        )

    def trained(self, student_logprobs: Mapping[str, np.ndarray]) -> pa.RecordBatch:
        uids = sorted(self.samples)
        return trained_batch(
            [self.samples[uid] for uid in uids],
            [self._share.rewards.get(uid) for uid in uids],
            [student_logprobs[uid] for uid in uids],
            [t.values(uid, "logprobs") if (t := self._scores[uid]) else None for uid in uids],
        )

    def _weights(self, sample: Sample) -> Tensor:
        weights = torch.zeros(len(sample.response_ids))
        loss_tokens = sum(end - start for start, end in sample.loss_spans)
        for start, end in sample.loss_spans:
            weights[start:end] = objective.token_weight(
                self._config, loss_tokens, self._share.loss_tokens, self._share.sequences
            )
        return weights

    def _teacher(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        tables = [(s, table) for s in samples if (table := self._scores[s.uid]) is not None]
        if not tables:
            return {}
        columns = {"teacher_logprob": _cat([_column(t, s, "logprobs") for s, t in tables])}
        for name, column in (("tail_logprob", "tail_logprob"), ("teacher_entropy", "entropy")):
            if tables[0][1].has(column):
                columns[name] = _cat([_column(t, s, column) for s, t in tables])
        if tables[0][1].has("support_ids"):
            columns["support_ids"] = _cat([_support(t, s, "support_ids").long() for s, t in tables])
            columns["support_logprobs"] = _cat([_support(t, s, "support_logprobs").float() for s, t in tables])
        if tables[0][1].has("hidden"):
            columns["hidden"] = _cat([_hidden(t, s) for s, t in tables])
        return columns

    def _constant(self, sample: Sample, value: float) -> Tensor:
        return torch.full((len(sample.response_ids),), value)


class _Readings:
    """Sums over this rank's tokens, reduced once over ranks."""

    def __init__(self, version: int) -> None:
        self._version = version
        self._loss = 0.0
        self._sums: dict[str, float] = {}
        self._gap = [0.0, 0.0]
        self.student_logprobs: dict[str, np.ndarray] = {}

    def add(self, loss: Tensor, sums: Mapping[str, float], samples: Sequence[Sample], logprobs: Tensor) -> None:
        self._loss += float(loss.detach())
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        rows = logprobs.float().cpu().split([len(s.response_ids) for s in samples]) if samples else ()
        for sample, row in zip(samples, rows, strict=True):
            self.student_logprobs[sample.uid] = row.numpy()
            for mine, theirs, version in zip(row.tolist(), sample.rollout_logprobs, sample.versions, strict=True):
                if version == self._version and not math.isnan(theirs):
                    self._gap[0] += abs(mine - theirs)
                    self._gap[1] += 1

    def reduced(self, loss_tokens: int) -> dict[str, float | None]:
        """Global metrics, the same on every rank. A rank without tokens does not know the names: they are shared."""
        names = sorted(_union(list(self._sums)))
        values = torch.tensor(
            [self._loss, *self._gap, *(self._sums.get(name, 0.0) for name in names)], dtype=torch.float64
        )
        values = _all_reduced(values).tolist()
        metrics: dict[str, float | None] = {"loss": values[0]}
        metrics["logprob_gap_mean"] = values[1] / values[2] if values[2] else None
        return metrics | {name: value / max(1, loss_tokens) for name, value in zip(names, values[3:], strict=True)}


def _all_reduced(values: Tensor) -> Tensor:
    if dist.get_backend() == "nccl":
        values = values.cuda()
    dist.all_reduce(values)
    return values.cpu()


def _union(names: list[str]) -> set[str]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, names)
    return {name for part in gathered for name in part}


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.zeros(0)


def _column(table: ScoreTable, sample: Sample, column: str) -> Tensor:
    return torch.tensor(table.values(sample.uid, column).astype(np.float32))


def _support(table: ScoreTable, sample: Sample, column: str) -> Tensor:
    return torch.tensor(table.values(sample.uid, column)).reshape(len(sample.response_ids), -1)


def _hidden(table: ScoreTable, sample: Sample) -> Tensor:
    assert table.hidden_dtype is not None
    return causal_lm.from_bytes(table.hidden(sample.uid), table.hidden_dtype).reshape(len(sample.response_ids), -1)


def _own_address() -> str:
    """The address that other nodes reach this one by; loopback on a machine without a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # no packet is sent: it only picks the interface
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]
