"""Micro-batches on the learner's device. For a GPU the next one is made ready, in a thread, while the last computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

from actors.learning.batch import Batch
from actors.learning.student import Targets
from actors.models.causal_lm import Pack

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Fed:
    """A micro-batch: `pack` and `targets` on the device, and its responses and targets as the host has them."""

    uids: Sequence[str]
    known: Targets
    pack: Pack
    targets: Targets


def fed(batch: Batch, device: torch.device) -> Iterator[Fed]:
    """The share's micro-batches in order. A GPU's host would otherwise cut and copy a micro-batch where it could launch
    it; on a CPU a thread beside the arithmetic only takes from it."""

    def make(uids: Sequence[str]) -> Fed:
        pack, targets = batch.micro_batch(uids)
        return Fed(uids, targets, pack.to(device), targets.to(device))

    each = ahead if device.type == "cuda" else map
    return iter(each(make, batch.share.micro_batches))


def ahead(make: Callable[[Given], Made], given: Iterable[Given]) -> Iterator[Made]:
    """`map`, with the next one made in a thread while the caller has the last. Raises what `make` raises, in its turn.
    At most two are held."""
    coming: Future[Made] | None = None
    with ThreadPoolExecutor(1, "ahead") as thread:
        for one in given:
            following = thread.submit(make, one)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()
