"""What the files of deploy/ name exists: variables in the code or in Ray, recipe keys, ports, paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import ray
from pydantic import BaseModel
from ray._private import ray_constants

from configs.schema import Recipe
from tests.deploy.manifests import DEPLOY, ROOT

FILES = sorted(
    path
    for folder in (DEPLOY, ROOT / "docker")
    for path in folder.rglob("*")
    if path.is_file() and path.suffix != ".pyc" and "dashboards" not in path.parts[:-2]
)
PAGES = [ROOT / "docs" / "deploy.md", ROOT / "docs" / "security.md"]
# Variables of Ray and the part of its package that reads them.
OF_RAY = {
    "RAY_ADDRESS": "_private/ray_constants.py",
    "RAY_API_SERVER_ADDRESS": "dashboard/modules/job/cli.py",
    "RAY_AUTH_MODE": "_raylet.so",
    "RAY_AUTH_TOKEN": "_raylet.so",
    "RAY_AUTH_TOKEN_PATH": "_raylet.so",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "_private/ray_constants.py",
    "RAY_JOB_STOP_WAIT_TIME_S": "dashboard/modules/job/job_supervisor.py",
    "RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "_private/ray_constants.py",
    "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT": "scripts/symmetric_run.py",
    "RAY_TMPDIR": "_common/utils.py",
    "RAY_USAGE_STATS_ENABLED": "_common/usage/usage_constants.py",
    "RAY_USE_TLS": "_common/tls_utils.py",
}


def named(pattern: str, *files: Path) -> set[str]:
    return {found for path in (*FILES, *PAGES, *files) for found in re.findall(pattern, path.read_text())}


def test_every_variable_of_ray_is_read_by_it() -> None:
    variables = named(r"\b(RAY_[A-Z_]+)\b", ROOT / ".rayignore") - {"RAY_CLUSTER"}
    assert variables <= OF_RAY.keys()
    package = Path(ray.__file__).parent
    for variable in variables:
        assert variable.encode() in (package / OF_RAY[variable]).read_bytes(), variable


def test_every_variable_of_ours_is_read_by_the_code() -> None:
    code = [*(ROOT / "scripts").glob("*"), *(DEPLOY.rglob("*.yaml")), DEPLOY / "slurm" / "run.sbatch"]
    code += [path for top in ("orchestrator", "actors", "configs") for path in (ROOT / top).rglob("*.py")]
    text = "\n".join(path.read_text() for path in code if path.is_file())
    assert not [name for name in named(r"\b(LOGRATIO_[A-Z_]+)\b") if name not in text]


def test_ports_are_those_of_ray() -> None:
    assert ray_constants.DEFAULT_PORT == 6379 and ray_constants.DEFAULT_DASHBOARD_PORT == 8265


def has_key(model: Any, keys: list[str]) -> bool:
    """Whether a path of keys leads somewhere in the schema; a name of a mapping may be anything."""
    if not keys:
        return True
    if isinstance(model, type) and issubclass(model, BaseModel):
        field = model.model_fields.get(keys[0])
        return field is not None and any(has_key(kind, keys[1:]) for kind in kinds(field.annotation))
    arguments = get_args(model)
    return len(arguments) == 2 and any(has_key(kind, keys[1:]) for kind in kinds(arguments[1]))


def kinds(annotation: Any) -> list[Any]:
    """The alternatives of a type."""
    alternatives = [kind for kind in get_args(annotation) if kind is not type(None)]
    return [annotation, *alternatives]


@pytest.mark.parametrize(("key", "there"), [("run.grace_seconds", True), ("scorer.teacher.resources.labels", True)])
def test_the_search_for_keys_sees_what_is_there(key: str, there: bool) -> None:
    assert has_key(Recipe, key.split(".")) == there and not has_key(Recipe, f"{key}s".split("."))


def test_every_key_of_a_recipe_exists() -> None:
    tops = "|".join(Recipe.model_fields)
    dotted = named(rf"(?<![\w./-])((?:{tops})\.[a-z_.]*[a-z_])(?![\w/*-])")
    files = {key for key in dotted if key.rsplit(".", 1)[-1] in ("yaml", "yml", "py", "sh", "sbatch", "md", "json")}
    assert {"run.grace_seconds", "run.root", "checkpoint.every"} <= dotted
    assert not [key for key in dotted - files if not has_key(Recipe, key.split("."))]


def test_every_page_says_what_to_change() -> None:
    pages = {path.parent.name: path.read_text() for path in FILES if path.name == "README.md"}
    assert pages.keys() == {"docker", "grafana", "kuberay", "prometheus", "skypilot", "slurm"}
    assert not [name for name, text in pages.items() if not re.search(r"^(## )?What to change(:|$)", text, re.M)]


def test_every_path_of_the_repository_exists() -> None:
    paths = named(r"(?<![\w./-])((?:deploy|docker|docs|requirements|scripts|configs)/[\w./-]*\w)")
    assert "deploy/preempt.sh" in paths
    assert not [path for path in paths if not (ROOT / path).exists()]
