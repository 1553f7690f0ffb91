"""The control file by which commands find a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.preflight import cluster


def test_a_control_file_is_absent_or_whole_with_mode_600(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    write_text = Path.write_text

    def watched(file: Path, text: str, **how: Any) -> int:
        seen.append((tmp_path / cluster.CONTROL_FILE).exists())
        assert file.stat().st_mode & 0o777 == 0o600
        return write_text(file, text, **how)

    context = SimpleNamespace(gcs_address="127.0.0.1:6379")
    monkeypatch.setattr(cluster, "_ray", lambda: SimpleNamespace(get_runtime_context=lambda: context))
    monkeypatch.setattr(Path, "write_text", watched)
    (tmp_path / f"{cluster.CONTROL_FILE}.partial").touch(mode=0o644)  # as a kill leaves it, and an umask
    cluster._write_control(tmp_path)
    assert seen == [False]
    control = tmp_path / cluster.CONTROL_FILE
    assert json.loads(control.read_text())["address"] == "127.0.0.1:6379" and control.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == [cluster.CONTROL_FILE]
