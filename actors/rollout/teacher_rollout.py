"""Teacher rollout member: samples each response of a frozen teacher once, and keeps it in a folder.

Later epochs and runs read the kept file, one a response. The file's key covers what the response depends on: the
teacher's files and dtype, the prompt, the seed, the sampling settings and the longest response. It does not cover the
machine, though another one may round differently.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.rollout.rollout import Rollout
from actors.wire.records import Request, Sample
from configs.roles.rollout import Rollout as RolloutConfig
from configs.schema import Sampling

WHOLE = ("stop", "length")  # finishes of complete responses, which are kept


class TeacherRollout(Rollout):
    """`kept` is the folder of responses. Members and machines may share it."""

    def __init__(self, config: RolloutConfig, model: str, shared: str, kept: str) -> None:
        super().__init__(config, model, shared)
        self._kept = Path(kept)
        self._identity = [*_identity(Path(model)), config.dtype]
        self._counts = {"kept": 0, "sampled": 0}

    async def load(self, version: int, headers: Sequence[Any], *buckets: Any) -> int:
        """Keep the weights, and give tokens the current version from now on, since a teacher's never grow stale."""
        self._version = version
        return version

    def counts(self) -> dict[str, int]:
        """Responses read from the folder and responses sampled, since the start."""
        return dict(self._counts)

    async def _sample(
        self, request: Request, sampling: Sampling, end_token_ids: Sequence[int]
    ) -> AsyncIterator[Sample]:
        """A kept response, whole; or a newly sampled one, in segments if asked."""
        path = self._path(request, sampling, end_token_ids)
        if path.exists():
            self._counts["kept"] += 1
            yield self._answer(request, await asyncio.to_thread(_kept, path))
            return
        self._counts["sampled"] += 1
        async for row in super()._sample(request, sampling, end_token_ids):
            if row.finish in WHOLE:
                await asyncio.to_thread(_keep, path, row)
            yield replace(row, versions=[self._version] * len(row.versions))

    def _answer(self, request: Request, answer: dict[str, Any]) -> Sample:
        ids = answer["response_ids"]
        return request.answered(ids, answer["rollout_logprobs"], answer["finish"], [self._version] * len(ids))

    def _path(self, request: Request, sampling: Sampling, end_token_ids: Sequence[int]) -> Path:
        prompt = request.sampled_prompt_ids or request.prompt_ids
        parts = [self._identity, prompt, request.seed, sampling.model_dump(), sorted(end_token_ids)]
        parts.append(self._longest(request, sampling))
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return self._kept / key[:2] / f"{key}.json"


def _kept(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _keep(path: Path, sample: Sample) -> None:
    """Write a response under another name, then rename it, so that a reader never sees half a file."""
    answer = {"response_ids": sample.response_ids, "rollout_logprobs": sample.rollout_logprobs, "finish": sample.finish}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(answer))
    partial.replace(path)


def _identity(model: Path) -> list[tuple[str, int, int]]:
    """Names, sizes (bytes) and modification times (ns) of a model's files."""
    files = sorted([*model.glob("*.safetensors"), model / "config.json"])
    return [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
