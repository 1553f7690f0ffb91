"""Sizes of the models of a recipe, where some are only described by their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from actors.models.model_faults import quiet_transformers
from actors.models.model_files import (
    context_length,
    end_token_ids,
    key_values_per_token,
    layer_numbers,
    logit_width,
)
from actors.models.stored import described_size
from configs.load import model_directory
from configs.node import STUDENT
from configs.places import Place, places
from configs.refusal import RecipeError, reason
from configs.schema import Recipe
from orchestrator.preflight import capacity, files
from orchestrator.preflight.adapters import adapted
from orchestrator.preflight.described.spec import ClusterSpec, Prompts
from orchestrator.preflight.estimates import WIDTH, Extent, Size
from orchestrator.preflight.inputs.architectures import refuse_architectures
from orchestrator.preflight.inputs.own_code import check_own_code


@dataclass(frozen=True)
class Described:
    """What the comparisons need of a run's files. `folders`: where each model's config.json is on this machine;
    `warnings`: of the files that are here; `unseen`: what was not looked at."""

    extent: Extent
    sizes: Mapping[str, Size]
    folders: Mapping[Place, Path]
    warnings: tuple[str, ...] = ()
    unseen: tuple[str, ...] = field(default=())


def read(recipe: Recipe, spec: ClusterSpec) -> Described:
    """Read what is here, and the spec for what is not. Raises RecipeError."""
    folders = {place: _folder(recipe, place, spec) for place in places(recipe)}
    if not any(recipe.path_of(*place) in spec.models for place in folders):
        inputs = files.read_inputs(recipe)
        return Described(inputs.extent, capacity.read_sizes(recipe), folders, inputs.warnings)
    check_own_code(recipe)
    prompts = _prompts(spec)
    found = {place: _size(place, folder) for place, folder in folders.items()}
    _fit(recipe, folders, prompts)
    sizes = {
        name: max((size for place, size in found.items() if place.model == name), key=lambda size: size.parameters)
        for name in {place.model for place in found}
    }
    own = sizes[STUDENT] = adapted(recipe, sizes[STUDENT], folders[Place(STUDENT)])
    student = found[Place(STUDENT)].parameters
    version = student * WIDTH[recipe.rollout.dtype]
    extent = Extent(
        longest_prompt=prompts.longest_tokens,
        heldout=prompts.heldout if recipe.data.heldout else 0,
        vocabulary=files.common_width(recipe, folders),
        version_bytes=version if own.adapters is None else own.adapters * WIDTH[recipe.learner.dtype],
        parameters=student,
    )
    return Described(extent, sizes, folders, unseen=("weights", "tokenizers", "chat templates", "prompts"))


def _folder(recipe: Recipe, place: Place, spec: ClusterSpec) -> Path:
    path = recipe.path_of(*place)
    if path in spec.models:
        folder = Path(spec.models[path])
        if not (folder / "config.json").is_file():
            raise RecipeError(f"cluster spec: models: {path}: {folder} has no config.json; copy the model's there")
        return folder
    folder = model_directory(path)
    if not folder.exists():
        raise RecipeError(
            f"{place}: {path} is not on this machine; name a folder that has its config.json in the cluster spec: "
            f"models: {{{path}: FOLDER}}"
        )
    return folder


def _prompts(spec: ClusterSpec) -> Prompts:
    if spec.prompts is None:
        raise RecipeError(
            "cluster spec: prompts: missing; without the models' tokenizers prompts are described: "
            "prompts: {longest_tokens: N, heldout: N}"
        )
    return spec.prompts


def _size(place: Place, folder: Path) -> Size:
    """A model's size, from its config.json. Raises RecipeError."""
    try:
        with quiet_transformers():
            parameters, hidden = described_size(folder)
        logit_width(folder)
        layers, layer = layer_numbers(folder) or (None, None)
        return Size(parameters, hidden, key_values_per_token(folder), layers=layers, layer=layer)
    except Exception as error:  # transformers and a configuration may raise anything
        raise RecipeError(
            f"{place}: {folder}/config.json describes no model that can be sized ({type(error).__name__}: "
            f"{reason(error)}); copy the model's own"
        ) from None


def _fit(recipe: Recipe, folders: Mapping[Place, Path], prompts: Prompts) -> None:
    """The checks that need no tokenizer and no weights. Raises RecipeError."""
    files.fit_contexts(recipe, folders)
    ends = {place: frozenset(end_token_ids(folder)) for place, folder in folders.items()}
    if all(ends.values()):
        files.common_ends(recipe, ends, files.common_width(recipe, folders))
    longest = prompts.longest_tokens + recipe.sampling.max_response_tokens
    for name, role, limit in files.context_limits(recipe):
        if longest > limit:
            raise RecipeError(
                f"{role}.max_context_tokens: {limit}; the longest prompt of {prompts.longest_tokens} and a response of "
                f"{recipe.sampling.max_response_tokens} under models.{name} take {longest}; raise the limit"
            )
    refuse_architectures(recipe, folders)


def line(described: Described) -> str:
    """Of `logratio check`: the student's size."""
    extent = described.extent
    positions = context_length(described.folders[Place(STUDENT)])
    return (
        f"{extent.parameters / 1e6:.1f} M parameters, {extent.version_bytes / 2**20:.0f} MiB a weight version, "
        f"{positions or 'unlimited'} positions"
    )
