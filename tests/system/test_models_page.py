"""The whole sweep: what docs/models.md says of every architecture is what the probe finds."""

from __future__ import annotations

import pytest
import torch
import transformers

from scripts.sweep_models import LIMIT, PAGE, look, names, table
from tests.probed import REQUIRED


@pytest.mark.system
@pytest.mark.timeout(900)
def test_the_page_says_what_the_sweep_finds() -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = [look(name) for name in names()]
    for row in (row for row in rows if row.supported):
        assert row.probed is not None
        gaps, packs = row.probed.gaps, row.probed.handling.packs
        measured = (gaps.head, gaps.padded, *([gaps.packed] if packs else []))
        assert all(value is not None and value < LIMIT for value in measured), row
        assert row.unbounded is not None and row.unbounded > 0.1, f"{row.name}: these weights would hide a leak"
    assert {row.name for row in rows if row.supported} >= set(REQUIRED)
    assert table(rows) == PAGE.read_text(), "run: python -m scripts.sweep_models"
