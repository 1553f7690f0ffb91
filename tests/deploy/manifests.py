"""Reads the manifests of deploy/kuberay: files, the autoscaling variant with its patch applied, pods."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERAY = DEPLOY / "kuberay"


def documents(path: Path) -> list[Any]:
    """The documents of a file, a copy for each caller."""
    return copy.deepcopy(_parsed(path))


@cache
def _parsed(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def one(name: str) -> dict[str, Any]:
    (document,) = documents(KUBERAY / name)
    return document


def rayjob() -> dict[str, Any]:
    return one("rayjob/rayjob.yaml")


def raycluster() -> dict[str, Any]:
    return one("cluster/raycluster.yaml")


def autoscaling() -> dict[str, Any]:
    """The RayJob with the JSON patch of its variant."""
    patched = copy.deepcopy(rayjob())
    (patch,) = documents(KUBERAY / "autoscaling" / "patch.yaml")
    for operation in patch:
        *parents, last = operation["path"].strip("/").split("/")
        node: Any = patched
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node[key]
        assert (last in node) == (operation["op"] == "replace"), operation["path"]
        node[last] = operation["value"]
    return patched


def clusters() -> dict[str, dict[str, Any]]:
    """The cluster specification of each manifest that has one."""
    return {
        "rayjob": rayjob()["spec"]["rayClusterSpec"],
        "raycluster": raycluster()["spec"],
        "autoscaling": autoscaling()["spec"]["rayClusterSpec"],
    }


def pod_templates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that the manifests make, with a name for it."""
    for name, cluster in clusters().items():
        yield f"{name}-head", cluster["headGroupSpec"]["template"]
        for group in cluster["workerGroupSpecs"]:
            yield f"{name}-{group['groupName']}", group["template"]
    yield "rayjob-submitter", rayjob()["spec"]["submitterPodTemplate"]
    yield "job", one("cluster/job.yaml")["spec"]["template"]


def variables(template: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value") for entry in template["spec"]["containers"][0].get("env", [])}
