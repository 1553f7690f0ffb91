"""What `ray job submit --working-dir .` uploads: the program, and neither runs nor environments nor secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env import packaging

from tests.deploy.manifests import ROOT

LARGEST = 4 * 2**20  # bytes; Ray refuses 500 MiB
LEFT_OUT = (
    "runs/opd/checkpoints/step_1/state.pt",
    "runs/opd/metrics.jsonl",
    ".venv/bin/python",
    ".venv-gpu/bin/python",
    ".git/config",
    ".trl/trl/__init__.py",
    ".trackers/bin/python",
    ".env",
    "models/student/model.safetensors",
    "build/lib/x.py",
    "actors/__pycache__/metrics.cpython-311.pyc",
    ".pytest_cache/x",
    "auth_token",
    "tests/conftest.py",
)


def uploaded(root: Path, gitignore: bool) -> dict[str, int]:
    """Files that Ray would put into the package of a working directory, with their sizes."""
    found: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            found[str(path.relative_to(root))] = path.stat().st_size

    excludes = packaging._get_excludes(root, get_runtime_env_default_excludes())
    packaging._dir_travel(root, [excludes], note, include_gitignore=gitignore)
    return found


@pytest.mark.parametrize("gitignore", [True, False])
def test_the_program_travels_and_is_small(gitignore: bool) -> None:
    found = uploaded(ROOT, gitignore)
    assert {"orchestrator/cli.py", "configs/quickstart.yaml", "pyproject.toml"} <= found.keys()
    assert "configs/prompts/questions.jsonl" in found and "orchestrator/surface/report/report.html.j2" in found
    assert sum(found.values()) < LARGEST


@pytest.mark.parametrize("gitignore", [True, False])
def test_runs_environments_and_secrets_stay(tmp_path: Path, gitignore: bool) -> None:
    for name in (".gitignore", ".rayignore"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    for name in (*LEFT_OUT, "orchestrator/cli.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert uploaded(tmp_path, gitignore).keys() - {".gitignore", ".rayignore"} == {"orchestrator/cli.py"}


def test_every_python_file_of_the_program_travels() -> None:
    tops = ("actors", "audit", "configs", "objectives", "orchestrator", "rewards")
    files = {str(file.relative_to(ROOT)) for top in tops for file in (ROOT / top).rglob("*.py")}
    assert files <= uploaded(ROOT, gitignore=True).keys()
