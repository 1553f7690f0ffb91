"""The learner's end of a transfer from its GPU to the rollouts': what a carrier calls, on every rank at once."""

from __future__ import annotations

import torch

from actors.learning.ranks.gathering import Gathering
from actors.models.stored import Stored
from actors.transfer.layout import Layout, layout_of
from actors.transfer.nccl import Sender
from actors.transfer.shared import Handle, Staging
from actors.wire.jobs import LearnerSpec


class Sending:
    """A part of `Learner`, which has the rest."""

    _rank: int
    _device: torch.device
    _stored: Stored
    _staging: Staging | None = None
    _sender: Sender | None = None

    def describe(self) -> Layout:
        """What a version of the student will be."""
        return layout_of(self._stored.tensors, self._specified.publish_dtype, self._stored.precise)

    def stage(self) -> tuple[Layout, Handle] | None:
        """Fill the copy on rank 0's GPU with the student's weights; its layout and handle, None from other ranks."""
        layout = self.describe()
        if self._rank == 0 and (self._staging is None or self._staging.layout != layout):
            self._staging = None  # its memory first
            self._staging = Staging(layout, self._device)
        tensors = self._whole.published()
        if self._staging is None:
            for _ in tensors:
                pass  # joins the gathering
            return None
        self._staging.fill(tensors)
        return layout, self._staging.handle

    def mint_group(self) -> str:
        """Leave the last group; the id of the next from rank 0."""
        return self._sends.mint()

    def open_group(self, token: str, size: int, seconds: float) -> None:
        """Meet the members in a group of `size` processes. Raises TransferBroken."""
        self._sends.open(token, size, seconds)

    def send_group(self, seconds: float) -> None:
        """Broadcast the student's weights to the group. Raises TransferBroken."""
        self._sends.send(self.describe(), seconds)

    @property
    def _sends(self) -> Sender:
        if self._sender is None:
            self._sender = self._new_sender()
        return self._sender

    def _new_sender(self) -> Sender:
        return Sender(self._rank, lambda: self._whole.published())

    @property
    def _specified(self) -> LearnerSpec:
        raise NotImplementedError

    @property
    def _whole(self) -> Gathering:
        raise NotImplementedError
