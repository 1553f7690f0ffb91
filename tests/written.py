"""What a member writes for some requests, through a channel of its own; and weights as it pulls them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from actors.models.weights import buckets
from actors.rollout.writer import Writer
from actors.wire.records import BlockHeader, Request
from configs.roles.streaming import Stream
from configs.schema import Sampling
from orchestrator.pools.pool import Pool

_numbers = itertools.count()


async def written(
    member: Writer, requests: Sequence[Request], sampling: Sampling, stream: Stream, end_token_ids: Sequence[int]
) -> AsyncIterator[tuple[Any, BlockHeader]]:
    """Payload and header of each block, until all responses have ended. A block waits for no more rows than there are
    requests."""
    channel = f"tests-{next(_numbers)}"
    await member.submit(channel, requests, sampling, end_token_ids)
    parts = member.blocks(channel, _narrowed(stream, requests))
    try:
        left = len(requests)
        while left:
            payload, header = await anext(parts), await anext(parts)
            left -= sum(sample.last for sample in header.samples)
            yield payload, header
    finally:
        await parts.aclose()  # type: ignore[attr-defined]


async def written_in_pool(
    pool: Pool, requests: Sequence[Request], sampling: Sampling, stream: Stream, end_token_ids: Sequence[int]
) -> AsyncIterator[tuple[Any, BlockHeader]]:
    """As `written`, by a pool's first member; payloads are references."""
    member, channel = pool.members[0], f"tests-{next(_numbers)}"
    await pool.call_member(member, "submit", channel, requests, sampling, end_token_ids)
    pairs = pool.stream(member, "blocks", channel, _narrowed(stream, requests))
    try:
        left = len(requests)
        while left:
            payload, header = await anext(pairs)
            left -= sum(sample.last for sample in header.samples)
            yield payload, header
    finally:
        await pairs.aclose()  # type: ignore[attr-defined]


def _narrowed(stream: Stream, requests: Sequence[Request]) -> Stream:
    return stream.model_copy(update={"coalesce_samples": min(stream.coalesce_samples, len(requests))})


def published(model: Path) -> tuple[Any, ...]:
    """A model's weights as a member pulls them: headers, bucket, bucket, ..."""
    from safetensors.torch import load_file

    found = list(buckets(load_file(model / "model.safetensors").items(), "float32"))
    return [header for _, header in found], *(data for data, _ in found)
