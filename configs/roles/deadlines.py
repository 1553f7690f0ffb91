"""How long members may take to answer."""

from __future__ import annotations

from configs.node import Node, Seconds


class Deadlines(Node):
    """Seconds after which a member without an answer counts as hung and is replaced. `generate`: between two blocks,
    while responses are in flight; `start`: also a swap of weights; `load`: also accepting requests; `learn`: a step, an
    evaluation, a save. `transfer`: how long an end of a transfer by NCCL waits for the others before it lets go by
    itself."""

    start: Seconds = 900.0
    generate: Seconds = 1800.0
    score: Seconds = 600.0
    reward: Seconds = 300.0
    load: Seconds = 600.0
    learn: Seconds = 3600.0
    transfer: Seconds = 120.0

    def of(self, method: str) -> float:
        """The deadline of a call, seconds, by the method's name."""
        if method in _OF_TRANSFERS:
            return self.transfer + LETTING_GO
        return getattr(self, _DEADLINE_OF.get(method, method), self.learn)


_DEADLINE_OF = {"blocks": "generate", "projection": "load", "swap": "start", "canary": "score"} | dict.fromkeys(
    ("submit", "cut", "ping", "load_shared", "mint_group"), "load"
)
_OF_TRANSFERS = ("open_group", "join_group", "send_group", "receive")
LETTING_GO = 60.0  # seconds for an end to let go by itself, and for what a member does around a transfer
