"""Keep transformers from saying on the terminal what the reader of a refusal, or of a layout, has no use for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unsaid() -> Iterator[None]:
    """What it says of a configuration is said again when the model is loaded, in its member's log."""
    from transformers.utils import logging as said

    before = said.get_verbosity()
    said.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        said.set_verbosity(before)
