"""Learner rank: the student under DeepSpeed. It sums weighted loss terms and takes optimizer steps.

All ranks of a learner are called together, each with its share of the plan. Every token weight includes the global
denominator, so the loss does not depend on ranks, micro-batches or packing.
"""

from __future__ import annotations

import gc
import math
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

from actors.address import node_address
from actors.learning.adapting.adapters import Adapters, adapters_of
from actors.learning.adapting.base_scores import base_scores
from actors.learning.batch import Batch
from actors.learning.compiled import without_shared_memory_op
from actors.learning.dropout import without_dropout
from actors.learning.export import name_ends, write_model
from actors.learning.feeding import fed
from actors.learning.optimizer import (
    build_optimizer,
    deepspeed_config,
    forget_gradients,
    learning_rate,
    plain_grad_norm,
    reduce_in_float32,
)
from actors.learning.ranks.finite import all_finite, spoiling
from actors.learning.ranks.gathering import Gathering
from actors.learning.ranks.late_faults import LateFaults
from actors.learning.ranks.meeting import join
from actors.learning.ranks.sending import Sending
from actors.learning.readings import Readings
from actors.learning.student import Student
from actors.learning.value_head import ValueHead
from actors.member import Member
from actors.models import causal_lm, loading, movement, weights
from actors.models.handling import PLAIN
from actors.models.stored import Stored, stored
from actors.wire.jobs import LearnerSpec, Share
from actors.wire.records import BrokenWeights
from objectives import objective


class Learner(Sending, Member):
    def __init__(self, rank: int, ranks: int) -> None:
        self._rank = rank
        self._ranks = ranks
        self._spec: LearnerSpec | None = None
        self._engine: Any = None
        self._student: Student | None = None
        self._device = torch.device("cpu")
        self._place = self._device  # of its states: the host while it sleeps
        self._stored = Stored()
        self._handling = PLAIN
        self._adapters: Adapters | None = None
        self._averages: dict[str, dict[str, Tensor]] = {}
        self._payloads: tuple[pa.RecordBatch, ...] = ()
        self._faults = LateFaults()
        self._applied = False  # whether the last update was taken

    def address(self) -> tuple[str, int]:
        """This rank's host, and a free port there, where the process group can meet."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        return node_address(), port

    def start(self, spec: LearnerSpec, meeting: tuple[str, int]) -> None:
        """Join the process group and build the engine. A second call builds a new engine in the same group."""
        import deepspeed

        self._spec = spec
        self._stored = stored(Path(spec.model))
        torch.set_num_threads(spec.config.resources.threads)
        torch.manual_seed(spec.seed)
        self._join(meeting)
        model = self._load_model(spec)
        self._adapters = adapters_of(spec, model, self._stored)
        self._student = Student(
            model,
            objective.build(spec.objective, spec.start_kl, spec.objective.merged_ends(spec.end_tokens)),
            spec.vocabulary,
            spec.config.rows_per_chunk(spec.vocabulary),
            self._handling,
            spec.temperature,
            self._value_head(spec, model),
            base_scores(spec, model, self._adapters, self._handling),
        )
        if spec.config.zero_stage == 3:  # gather the LM head once a forward pass, not once a chunk
            for parameter in model.get_output_embeddings().parameters():
                deepspeed.zero.register_external_parameter(self._student, parameter)
        self._engine, *_ = deepspeed.initialize(
            model=self._student,
            optimizer=build_optimizer(spec.config, self._trained),
            config=deepspeed_config(spec.config, self._ranks),
            dist_init_required=False,
        )
        if self._adapters is not None:
            self._adapters.save_only_adapters(self._engine)
        reduce_in_float32(self._engine)
        self._faults.delay(self._engine)
        self._device = self._engine.device
        self._move_heads(self._device)
        self._averages = {name: self._copy() for name in spec.averages}

    def load_projection(self, model: str, version: int, oldest: int, projection: dict[str, Any]) -> None:
        """Keep the LM head of a model at a version, for full support, and drop its heads before version `oldest`."""
        heads = self._built.heads
        for head in [h for h in heads if h[0] == model and h[1] < oldest]:
            del heads[head]
        heads[model, version] = causal_lm.projection_from(projection, self._place)

    def fetch(self, *payloads: pa.RecordBatch) -> None:
        """Keep the payloads of the next step or evaluation. An answer from every rank means that none is missing."""
        self._payloads = payloads

    def step(self, share: Share) -> dict[str, Any]:
        """Train on one batch, one pass for each update. Returns global metrics, the same on every rank: those of the
        first pass, before any update, and `held_fraction` as the mean over the later passes.

        If a rank's loss or the gradient is not finite, that update and later ones are skipped and change neither
        weights, optimizer state nor averages. Raises BrokenWeights on every rank if an update with a finite gradient
        makes weights that are not finite.
        """
        batch = self._batch(share)
        self._payloads = ()
        updates, held, taken = self._specified.updates, 0.0, 0
        metrics = self._accumulate(batch)
        last = self._apply(share.step)
        while self._took_update(share.step):
            taken += 1
            if taken == updates:
                break
            held += self._accumulate(batch).get("held_fraction") or 0.0
            last = self._apply(share.step)
        if taken:
            self._average()
        passes = updates - 1
        return metrics | last | {"held_fraction": held / passes if passes else None, "updates_skipped": updates - taken}

    def evaluate(self, share: Share) -> dict[str, Any]:
        """The metrics of `step` without a gradient and, as `each`, those of this rank's samples by uid."""
        batch = self._batch(share)
        self._payloads = ()
        if share.objective is None:
            read = self._read(batch)
        else:
            other = objective.build(share.objective, self._start_kl(share))
            with self._built.reading(other, temperature=1.0):
                read = self._read(batch)
        return read.reduced(share) | {"each": read.each()}

    def reference_sums(self, share: Share) -> dict[str, float]:
        """By uid of this rank's samples: sum over loss tokens of log q - log p_reference, nats."""
        batch = self._batch(share)
        read = self._read(batch)
        return {uid: batch.reference_sum(uid, read.student) for uid in read.student.get("logprob", {})}

    def publish(self, model: str | None = None) -> Iterator[Any]:
        """Yield bucket, header, bucket, header, ... of the student or of one of its averages, on rank 0. Other ranks
        join the gathering and yield nothing. Of a student with adapters these alone are published, in its own dtype,
        and of its averages the adapted weights."""
        spec, adapters = self._specified, model is None and self._adapters is not None
        tensors = self._whole.published() if model is None else self._averages[model].items()
        dtype = spec.config.dtype if adapters else spec.publish_dtype
        for bucket, header in weights.buckets(tensors, dtype, self._stored.precise):
            yield bucket
            yield header

    def movement(self) -> dict[str, float]:
        """How far the student is from the files that it began with. All ranks gather, rank 0 compares."""
        return movement.counted_from(movement.Files(Path(self._specified.model)), self._whole.student())

    def save(self, directory: str) -> None:
        """Write this rank's part of a checkpoint: DeepSpeed's files, which are pickles that a manifest guards, and the
        student's averages in safetensors. Raises OSError or RuntimeError if this rank could not write, but only after
        all ranks are done, so that every rank can go on."""
        if self._rank == 0:
            self._faults.late(self._save_averages)(Path(directory))
            if self._adapters is not None:
                self._faults.late(self._adapters.record)(Path(directory))
            if self._built.value_head is not None:
                self._faults.late(self._built.value_head.save)(Path(directory))
        part = {} if self._adapters is None else {"exclude_frozen_parameters": True}
        self._engine.save_checkpoint(directory, tag="deepspeed", save_latest=False, **part)  # ends in a barrier
        self._faults.settle()

    def restore(self, directory: str) -> None:
        """Inverse of `save`. Raises RuntimeError if DeepSpeed finds nothing to load, and where adapters are of another
        base."""
        if self._adapters is not None:
            self._adapters.check(Path(directory))
        part = {} if self._adapters is None else {"load_module_strict": False}
        path, _ = self._engine.load_checkpoint(directory, tag="deepspeed", **part)
        if path is None:
            raise RuntimeError(f"{directory} holds no DeepSpeed state; is it a checkpoint of this learner?")
        if self._built.value_head is not None:
            self._built.value_head.load(Path(directory))
        if self._rank == 0:
            from safetensors.torch import load_file

            self._averages = {n: load_file(Path(directory) / f"average_{n}.safetensors") for n in self._averages}

    def export(self, directory: str) -> None:
        """Write a Hugging Face directory in safetensors, with the tokenizer; adapters are merged, and stand beside. All
        ranks gather, rank 0 writes."""
        state = {name: tensor.detach().cpu().clone() for name, tensor in self._whole.student()}
        beside = {name: t.cpu().clone() for name, t in self._whole.published()} if self._adapters is not None else {}
        if self._rank == 0:
            source = Path(self._specified.model)
            write_model(self._built.model, state, self._stored.others, source, Path(directory))
            name_ends(Path(directory), self._specified.end_tokens)
            if self._adapters is not None:
                self._adapters.export(beside, Path(directory))

    def sleep(self) -> None:
        """Move weights, optimizer states and heads to the host, and drop gradients."""
        self._engine.offload_states(pin_memory=self._device.type != "cpu")
        self._move_heads(torch.device("cpu"))
        torch.cuda.empty_cache()  # no effect without a GPU

    def wake(self) -> None:
        self._engine.reload_states()
        self._move_heads(self._device)

    def renew(self) -> None:
        """Memory may not hold two engines; the process group stays."""
        self._engine, self._student, self._adapters, self._averages, self._payloads = None, None, None, {}, ()
        gc.collect()  # an engine's parts refer to each other
        torch.cuda.empty_cache()  # no effect without a GPU

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

    def _save_averages(self, directory: Path) -> None:
        from safetensors.torch import save_file

        for name, tensors in self._averages.items():
            save_file(tensors, directory / f"average_{name}.safetensors")

    def _move_heads(self, place: torch.device) -> None:
        """Move what DeepSpeed does not: heads, and the base of adapters."""
        heads, self._place = self._built.heads, place
        heads.update({head: projection.to(place) for head, projection in heads.items()})
        if self._built.value_head is not None:
            self._built.value_head.to(place)
        if self._adapters is not None:
            self._adapters.move_base(place)

    @property
    def _trained(self) -> list[Any]:
        """The policy's trained parameters."""
        return list(self._built.parameters()) if self._adapters is None else self._adapters.trained()

    def _batch(self, share: Share) -> Batch:
        spec = self._specified
        config = share.objective or spec.objective
        return Batch(share, self._payloads, config, self._handling.packs, self._start_kl(share), spec.base)

    def _start_kl(self, share: Share) -> str | None:
        return self._specified.start_kl if share.start_kl else None

    def _accumulate(self, batch: Batch) -> dict[str, Any]:
        """Forward and backward of this rank's share. The gradient is then complete and not yet applied."""
        self._engine.train()
        read = Readings(batch, self._specified.compares_sampler)
        for index, one in enumerate(fed(batch, self._device)):
            self._engine.set_gradient_accumulation_boundary(index == len(batch.share.micro_batches) - 1)
            result = self._engine(one.pack, one.targets, batch.share.dials)
            # DeepSpeed averages over ranks; the weights already carry the global denominator
            self._engine.backward(spoiling(result[0]) * self._ranks, scale_wrt_gas=False)
            read.add(one.uids, one.known, *result)
        self._close(batch, read)
        return read.reduced(batch.share)

    @torch.no_grad()
    def _read(self, batch: Batch) -> Readings:
        self._engine.eval()
        read = Readings(batch, self._specified.compares_sampler)
        for one in fed(batch, self._device):
            read.add(one.uids, one.known, *self._built(one.pack, one.targets, batch.share.dials))
        self._close(batch, read)
        return read

    @torch.no_grad()
    def _close(self, batch: Batch, read: Readings) -> None:
        """After the first pass, keep its log-probs as those of q_old, and write the record."""
        if not batch.old:
            batch.old = read.student
            batch.record(self._rank, self._built.heads)

    def _apply(self, step: int) -> dict[str, float]:
        """Take the optimizer step at the schedule's rate, or drop the gradient if its norm is not finite. The norm is
        over all ranks, so that they agree."""
        rate = learning_rate(self._specified.config.optimizer, step, self._specified.steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        norm = plain_grad_norm(self._specified.config, self._built.parameters())
        if norm is None or math.isfinite(norm):
            self._engine.step()  # DeepSpeed's optimizers drop a gradient whose norm is not finite
            self._applied = self._engine.was_step_applied()
            if not self._applied:
                forget_gradients(self._engine)
        else:
            self._engine.zero_grad()
            self._applied = False
        if norm is None:
            norm = float(self._engine.get_global_grad_norm()) if self._applied else math.nan
        if self._built.value_head is not None:
            self._apply_values(self._built.value_head, rate)
        return {"lr": rate, "grad_norm": norm}

    def _apply_values(self, head: ValueHead, rate: float) -> None:
        """Step the value head if the policy took its step. Every rank has the same gradient of the value head."""
        config, gradient = self._specified.config, head.gradient(self._ranks)
        if self._applied:
            head.step(gradient, config.value_head.lr * rate / config.optimizer.lr)
        else:
            head.forget()

    def _took_update(self, step: int) -> bool:
        """Whether the update was taken. Raises BrokenWeights if its weights are not finite."""
        if self._applied and not all_finite(self._trained):
            raise BrokenWeights(f"the update of step {step} led to weights that are not finite")
        return self._applied

    def _copy(self) -> dict[str, Tensor]:
        """The student's trained weights in float32, on rank 0."""
        return {name: tensor.float().cpu().clone() for name, tensor in self._whole.moving()}

    def _average(self) -> None:
        """average <- decay average + (1 - decay) student, in float32 on rank 0."""
        if not self._averages:
            return
        for name, tensor in self._whole.moving():
            for model, decay in self._specified.averages.items():
                self._averages[model][name].lerp_(tensor.float().cpu(), 1.0 - decay)

    def _join(self, meeting: tuple[str, int]) -> None:
        import deepspeed
        from deepspeed.accelerator import get_accelerator
        from deepspeed.constants import default_pg_timeout

        if dist.is_initialized():
            return
        without_shared_memory_op()
        backend: str = get_accelerator().communication_backend_name()  # type: ignore[union-attr]
        join(meeting, self._rank, self._ranks, backend, default_pg_timeout)
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)

    def _load_model(self, spec: LearnerSpec) -> Any:
        """Load and probe the whole model on every rank: on the GPU, or on the host if ZeRO-3 will partition it."""
        config = spec.config
        on_gpu = config.resources.gpus > 0 and config.zero_stage < 3
        place = torch.device("cuda" if on_gpu else "cpu")
        loaded = loading.load(Path(spec.model), config.dtype, config.attention, config.packing, place)
        model, self._handling = loaded.model.train(), loaded.handling
        if spec.config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if not spec.config.dropout:
            without_dropout(model)
        return model

    def _value_head(self, spec: LearnerSpec, model: Any) -> ValueHead | None:
        if "value" not in spec.objective.terms:
            return None
        width = model.get_output_embeddings().weight.shape[1]
        return ValueHead(width, spec.config.value_head, spec.config.optimizer.betas)

    @property
    def _whole(self) -> Gathering:
        partitioned = self._specified.config.zero_stage == 3
        return Gathering(self._built.model, self._stored, self._rank, partitioned, self._adapters)
