"""The keys of a cluster spec, and the machines that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from configs.load import absolute_path, current_folder
from configs.node import Members, Node, NonNegative, Positive
from configs.reading import wording, yaml_tree
from configs.reading.text_file import read_text
from configs.refusal import RecipeError
from orchestrator.placement import packing
from orchestrator.preflight.comparison import GIB
from orchestrator.preflight.survey import STORE_SHARE, Free, Machine, Survey

LONGEST_FILE = 2**20  # bytes
MOST_STORE = 200 * 10**9  # bytes that Ray gives an object store by default

Amount = Annotated[float, Field(gt=0.0)]


class NodeGroup(Node):
    """`count` equal nodes, NAME-0, NAME-1 ...; an autoscaler may make them `max_count`. `shared_memory_gib`: of
    /dev/shm; null: half of the memory, as on Linux. `object_store_gib`: null: what Ray takes by itself."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    count: Members
    max_count: Members | None = None
    cpus: Amount
    gpus: NonNegative = 0
    memory_gib: Amount
    gpu_memory_gib: Amount | None = None
    shared_memory_gib: Amount | None = None
    object_store_gib: Amount | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    resources: dict[str, Amount] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> NodeGroup:
        if self.gpus and self.gpu_memory_gib is None:
            raise ValueError("has gpus; add gpu_memory_gib, the memory of one")
        if self.max_count is not None and self.max_count < self.count:
            raise ValueError(f"max_count {self.max_count} is below count {self.count}")
        return self


class Prompts(Node):
    """`longest_tokens`: of the longest prompt, as the models' tokenizer and template make it; `heldout`: rows."""

    longest_tokens: Positive
    heldout: NonNegative = 0


class ClusterSpec(Node):
    """`run_root_gib`: free below run.root. `models`: from a model's path in the recipe to a folder on this machine that
    has its config.json. `prompts`: stands for the recipe's files of prompts, where they or the tokenizers are not
    here."""

    nodes: Annotated[tuple[NodeGroup, ...], Field(min_length=1)]
    run_root_gib: Amount
    models: dict[str, str] = Field(default_factory=dict)
    prompts: Prompts | None = None

    @model_validator(mode="after")
    def _names_are_distinct(self) -> ClusterSpec:
        names = [group.name for group in self.nodes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"nodes: the name {twice[0]} is there twice; give each group its own")
        return self


def read_spec(path: Path) -> ClusterSpec:
    """Read a cluster spec; its relative paths are relative to the file. Raises RecipeError."""
    path = path if path.is_absolute() else current_folder() / path
    tree = yaml_tree.parse(read_text(path, "give the path of a cluster spec", LONGEST_FILE), str(path))
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a cluster spec is a mapping of keys, found {type(tree).__name__}")
    try:
        return ClusterSpec.model_validate(_anchored(tree, path.parent))
    except ValidationError as error:
        raise RecipeError(f"{path}: {'; '.join(wording.lines(ClusterSpec, tree, error))}") from None


def survey_of(spec: ClusterSpec) -> Survey:
    """The machines of a spec, those that an autoscaler may add among them, with all of their memory and disk free."""
    machines = [
        _machine(group, number, spec.run_root_gib)
        for group in spec.nodes
        for number in range(group.max_count or group.count)
    ]
    names = {"CPU", "GPU", *(name for group in spec.nodes for name in group.resources)}
    most = {name: sum(machine.node.of(name) for machine in machines) for name in names}
    return Survey(tuple(machines), disk=int(spec.run_root_gib * GIB), most=most)


def _anchored(tree: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    models = tree.get("models")
    if not isinstance(models, Mapping):
        return dict(tree)
    return {**tree, "models": {absolute_path(k, folder): absolute_path(v, folder) for k, v in models.items()}}


def _machine(group: NodeGroup, number: int, run_root_gib: float) -> Machine:
    memory = int(group.memory_gib * GIB)
    shared = int(group.shared_memory_gib * GIB) if group.shared_memory_gib else memory // 2
    store = int(group.object_store_gib * GIB) if group.object_store_gib else min(int(STORE_SHARE * memory), MOST_STORE)
    node = packing.Node(
        name=f"{group.name}-{number}",
        cpus=group.cpus,
        gpus=group.gpus,
        labels=group.labels,
        custom=group.resources,
        spare=number >= group.count,
    )
    gpu = int(group.gpu_memory_gib * GIB) if group.gpu_memory_gib else None
    return Machine(node, store, Free(shared, int(run_root_gib * GIB), memory, gpu_memory=gpu))
