"""A learner whose loaded weights leak where a small copy of their model does not."""

from __future__ import annotations

from typing import Any

import torch

from actors.learning.learner import Learner
from actors.models import loading
from actors.models.handling import PLAIN
from actors.models.probing.probe import Gaps, Packing, ProbeResult, decide

LEAK = Gaps(head=0.0, packed=0.5, packed_first=0.0, apart=0.5, padded=0.0, continued=0.0, attention=0.0)


def found(model: Any, packing: Packing) -> ProbeResult:
    """In place of `loading._probed`."""
    handling, refusal = decide(LEAK, PLAIN, packing, torch.float32)
    return ProbeResult(handling, LEAK, torch.float32, refusal)


class LeakyLearner(Learner):
    def start(self, *arguments: Any) -> None:
        loading._probed = found
        super().start(*arguments)
