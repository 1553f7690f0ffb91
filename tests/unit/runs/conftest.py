"""Shared by tests of whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.run import DONE
from tests.unit.simulation import (
    Simulation,
    recipe,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uninterrupted")
    assert Simulation(recipe(root)).go() == DONE
    return root
