"""The loss of given responses under the student: held-out text that a run should not unlearn. No member samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.metrics import OF_TEXT, finite
from actors.wire.records import Request, pack_samples
from configs.objective import PLAIN
from objectives.schedule import Dials
from orchestrator.evaluation.intervals import bootstrap
from orchestrator.samples.buffer import Scored
from orchestrator.samples.leases import Ticket
from orchestrator.samples.prompts import Prompt
from orchestrator.weights.learner_group import LearnerGroup

TEXTS_A_BLOCK = 64


@dataclass(frozen=True)
class Texts:
    """`prompts` have responses; `first` is the number of their first group, and `seed` the run's."""

    learner: LearnerGroup
    prompts: Sequence[Prompt]
    first: int
    seed: int

    async def measure(self, version: int, dials: Dials) -> dict[str, Any]:
        """Means over tokens by the names of OF_TEXT, and counts; `intervals` of the loss, over texts."""
        batch = given(self.prompts, self.first, version)
        async with self.learner.turns.learner():
            read = await self.learner.evaluate(batch, version, dials, None, PLAIN, start_kl=False)
        each = [read["each"][scored.header.uid] for scored in batch]
        tokens = [sums["tokens"] for sums in each]
        line = {name: sum(sums[name] for sums in each) / sum(tokens) for name in OF_TEXT}
        losses = [sums["nll"] / sums["tokens"] for sums in each]
        counts = {"prompts": len(each), "samples": len(each), "samples_skipped": 0}
        return finite(counts | line) | {"intervals": {"nll": list(bootstrap(losses, self.seed, weights=tokens))}}


def given(prompts: Sequence[Prompt], first: int, version: int) -> list[Scored]:
    """The prompts' own responses as samples, whole, with loss on every token. Their payloads are values, of at most
    TEXTS_A_BLOCK rows: the learner's ranks get them with the call."""
    found: list[Scored] = []
    for start in range(0, len(prompts), TEXTS_A_BLOCK):
        block = prompts[start : start + TEXTS_A_BLOCK]
        rows = [
            _request(prompt, first + start + i).answered(*_written(prompt, version)) for i, prompt in enumerate(block)
        ]
        payload, header = pack_samples(rows)
        found += [Scored(header=sample, samples=payload, source="dataset") for sample in header.samples]
    return found


def _request(prompt: Prompt, index: int) -> Request:
    ticket = Ticket(index, 0)
    return Request(ticket.uid, ticket.group, 0, 0, prompt.ids["student"], prompt.response_ids)


def _written(prompt: Prompt, version: int) -> tuple[list[int], list[float], str, list[int]]:
    """Ids, log-probs of the sampler (there was none), why the response ends, and versions."""
    assert prompt.response_ids is not None, "rows of a text have responses: preflight"
    ids = prompt.response_ids
    return ids, [float("nan")] * len(ids), "data", [version] * len(ids)
