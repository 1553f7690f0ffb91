"""Responses that a simulated rollout member decodes side by side: all running ones grow by a token each tick.

A pure state machine. It says at which tick the next block is whole and what is in it; who calls it lets time pass.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [start, end) of a response. `finish` is empty while it goes on, and None where it ends by itself."""

    uid: str
    start: int
    end: int
    finish: str | None


class Decoding:
    """`lengths` are the tokens each response will have, by uid; `segment` those of a segment, 0: whole responses;
    `block` the most pieces at a time."""

    def __init__(self, lengths: Mapping[str, int], segment: int, block: int) -> None:
        self._lengths = dict(lengths)
        self._segment = segment
        self._block = block
        self._handed = dict.fromkeys(lengths, 0)  # tokens of running responses that have left
        self._ended: list[Piece] = []  # from outside, and not yet taken
        self.versions: list[int] = []  # policy version of each token, of every response; as many as ticks have passed

    @property
    def open(self) -> bool:
        return bool(self._handed or self._ended)

    @property
    def running(self) -> Collection[str]:
        return self._handed.keys()

    @property
    def due(self) -> int:
        """The tick at which the next block is whole."""
        return len(self.versions) if self._ended else self._next()[-1].end

    def pass_until(self, tick: int, version: int) -> None:
        """Tokens up to a tick are sampled with a version. A tick that has passed changes nothing."""
        self.versions += [version] * (tick - len(self.versions))

    def take(self) -> list[Piece]:
        """The block that is whole by now, if any: a response stands in it once."""
        if self.due > len(self.versions):
            return []
        if self._ended:
            block, self._ended = self._ended[: self._block], self._ended[self._block :]
            return block
        block = self._next()
        for piece in block:
            self._handed[piece.uid] = piece.end
            if piece.finish is None:
                del self._handed[piece.uid]
        return block

    def end(self, uids: Collection[str], finish: str) -> None:
        """End those of the uids that run, with the tokens sampled so far: at least one new one each."""
        for uid in sorted(self._handed.keys() & set(uids)):
            start, length = self._handed.pop(uid), self._lengths[uid]
            end = min(max(len(self.versions), start + 1), length)
            self._ended.append(Piece(uid, start, end, None if end == length else finish))

    def _next(self) -> list[Piece]:
        pieces = []
        for uid, start in self._handed.items():
            length = self._lengths[uid]
            end = min(start + (self._segment or length), length)
            pieces.append(Piece(uid, start, end, None if end == length else ""))
        return sorted(pieces, key=lambda piece: (piece.end, piece.uid))[: self._block]
