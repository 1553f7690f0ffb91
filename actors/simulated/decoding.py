"""A simulated response: grows by one token each tick, and leaves in pieces.

A pure state machine. It says at which tick the next piece is whole; the caller lets ticks pass.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [start, end) of a response. `finish` is empty while it goes on, and None where it ends by itself."""

    start: int
    end: int
    finish: str | None


class Decoding:
    """`length` counts the tokens that the response will have, `segment` those of a piece; 0: the whole response."""

    def __init__(self, length: int, segment: int) -> None:
        self._length = length  # less after `end`
        self._segment = segment or length
        self._finish: str | None = None
        self._left = 0  # tokens of the pieces that have left
        self.versions: list[int] = []  # policy version of each token; as many as ticks have passed

    @property
    def open(self) -> bool:
        return self._left < self._length

    @property
    def due(self) -> int:
        """The tick at which the next piece is whole."""
        return min(self._left + self._segment, self._length)

    def pass_until(self, tick: int, version: int) -> None:
        """Sample tokens up to a tick with a version. A tick that has passed changes nothing."""
        self.versions += [version] * (tick - len(self.versions))

    def take(self) -> Piece:
        """The next piece; its ticks must have passed."""
        start, self._left = self._left, self.due
        return Piece(start, self._left, "" if self.open else self._finish)

    def end(self, finish: str) -> None:
        """End the response with the tokens sampled so far, but with at least one that has not left."""
        length = max(len(self.versions), self._left + 1)
        if length < self._length:
            self._length, self._finish = length, finish
