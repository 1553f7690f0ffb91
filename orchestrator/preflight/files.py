"""Before any actor starts: do the files of a recipe exist and fit together?

Every fault is a RecipeError: a line with the value, the missing number and the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.models.model_faults import unreadable
from actors.models.model_files import context_length, end_token_ids, logit_width, parameters, weight_bytes
from configs.load import RecipeError, model_directory
from configs.node import STUDENT
from configs.objective import Route
from configs.places import Place, places
from configs.refusal import reason
from configs.rules import VLLM_MAX_TOPK
from configs.schema import Recipe
from orchestrator.data.prompting import Limit, Prompting
from orchestrator.data.sets import Mixed, Read, Train, read_sets
from orchestrator.pools.layout import demands
from orchestrator.preflight.adapters import adapted
from orchestrator.preflight.estimates import WIDTH, Extent, Size
from orchestrator.preflight.inputs import held_out
from orchestrator.preflight.inputs.architectures import describe_architectures, refuse_architectures
from orchestrator.preflight.inputs.loadable import check_models
from orchestrator.preflight.inputs.own_code import check_own_code
from orchestrator.preflight.inputs.servers import check_servers, served_elsewhere
from orchestrator.preflight.inputs.stop_rules import check_stop_rules
from orchestrator.samples.prompts import Prompt
from orchestrator.samples.templates import Chat, Demonstrations


@dataclass(frozen=True)
class Inputs:
    """What a run reads from its files. `vocabulary`: the models' common logit width; `version_bytes`: size of a weight
    version as published; `warnings`: a line for each thing that is allowed but rarely intended; `longest`: tokens of
    the longest prompt that there may be, by model, where prompts are not in memory. `sets`: the held-out sets by name;
    `set_responses`: the responses of an evaluation of them."""

    train: Train
    heldout: Sequence[Prompt]
    tokenizer: Any
    vocabulary: int
    end_token_ids: tuple[int, ...]
    version_bytes: int
    parameters: int
    warnings: tuple[str, ...] = ()
    longest: Mapping[str, int] = field(default_factory=dict)
    sets: Mapping[str, Sequence[Prompt]] = field(default_factory=dict)
    set_responses: int = 0

    def longest_of(self, model: str) -> int:
        """Tokens of the longest prompt under a model."""
        prompts = () if self.longest or isinstance(self.train, Mixed) else (*self.train, *self.heldout)
        return max((len(prompt.ids[model]) for prompt in prompts), default=self.longest.get(model, 0))

    @property
    def extent(self) -> Extent:
        of_sets = (len(prompt.ids[STUDENT]) for prompts in self.sets.values() for prompt in prompts)
        longest, answered = max(self.longest_of(STUDENT), *of_sets, 0), len(self.heldout) + self.set_responses
        return Extent(longest, answered, self.vocabulary, self.version_bytes, self.parameters)


@dataclass(frozen=True)
class Models:
    """The directories that members read models from, and what they have in common."""

    folders: Mapping[Place, Path]
    tokenizers: Mapping[Place, Any]
    vocabulary: int
    end_token_ids: tuple[int, ...]


def read_inputs(recipe: Recipe) -> Inputs:
    """Open every file the recipe names, but no weights. Raises RecipeError."""
    check_own_code(recipe)
    check_stop_rules(recipe)
    check_servers(recipe)
    models = read_models(recipe)
    tokenizers = {name: models.tokenizers[Place(name)] for name in (STUDENT, *recipe.served_models)}
    tokenizers |= dict.fromkeys(recipe.privileged_base, tokenizers[STUDENT])
    chats = {name: Chat(name, recipe.models[name], tokenizer) for name, tokenizer in tokenizers.items()}
    student = models.folders[Place(STUDENT)]
    prompting = _prompting(recipe, chats, student)
    ends = Demonstrations(chats[STUDENT], models.end_token_ids) if "dataset" in recipe.objective.sources else None
    rules, drops, apart = recipe.reward.rules, recipe.data.too_long == "drop", recipe.data.heldout_set
    train = read_sets(recipe.data.sets, replace(prompting, demonstrations=ends), rules, drops)
    heldout = read_sets([apart], prompting, rules, drops) if apart else None
    kept_apart = [prompt for prompts in heldout.sets for prompt in prompts] if heldout else []
    held_out.check_heldout(recipe, kept_apart)
    sets = _sets(recipe, chats, models)
    if recipe.reward.model is not None:
        _reward_model(recipe.reward.model, tokenizers[STUDENT])
    return Inputs(
        train=train.sets[0] if len(train.sets) == 1 else Mixed(train.sets, tuple(e.weight for e in recipe.data.sets)),
        heldout=kept_apart,
        tokenizer=tokenizers[STUDENT],
        vocabulary=models.vocabulary,
        end_token_ids=models.end_token_ids,
        version_bytes=_version_bytes(recipe, student),
        parameters=parameters(student),
        warnings=(*train.warnings, *(heldout.warnings if heldout else ()), *sets.warnings),
        longest={name: _longest(recipe, name, [train, *([heldout] if heldout else [])]) for name in chats},
        sets=sets.prompts,
        set_responses=held_out.responses(recipe, sets.prompts),
    )


def _sets(recipe: Recipe, chats: Mapping[str, Chat], models: Models) -> held_out.Found:
    """The prompts of the held-out sets. Raises RecipeError."""

    def prompting_of(of_set: Recipe) -> Prompting:
        asked = (STUDENT, *of_set.scored_models, *of_set.privileged_base)
        return _prompting(of_set, {name: chats[name] for name in asked}, student)

    ends, student = Demonstrations(chats[STUDENT], models.end_token_ids), models.folders[Place(STUDENT)]
    return held_out.read(recipe, prompting_of, ends, context_length(student))


def read_models(recipe: Recipe) -> Models:
    """Read the served models and check that they fit together. Raises RecipeError."""
    folders = {
        place: _model_folder(str(place), recipe.path_of(*place), not served_elsewhere(recipe, place.model))
        for place in places(recipe)
    }
    tokenizers = _tokenizers(folders)
    _same_tokens(tokenizers)
    vocabulary = common_width(recipe, folders)
    end = common_ends(recipe, _end_tokens(folders, tokenizers), vocabulary)
    _same_templates(tokenizers)
    fit_contexts(recipe, folders)
    check_models(recipe, folders)
    refuse_architectures(recipe, folders)
    return Models(folders, tokenizers, vocabulary, end)


def check_swap(recipe: Recipe, swapped: Recipe) -> None:
    """Check that a live run can go on with other swaps. Raises RecipeError."""
    common = min(logit_width(model_directory(recipe.path_of(*place))) for place in places(recipe))
    after = read_models(swapped)
    if after.vocabulary < common:
        raise RecipeError(
            f"swap: its logits have {after.vocabulary} columns, the models of this run share {common}; use a model as "
            "wide"
        )
    if recipe.objective.end_tokens == "class" and (
        more := {*after.end_token_ids} - {*read_models(recipe).end_token_ids}
    ):
        raise RecipeError(
            f"swap: it ends at {sorted(more)}, which end no response of this run; use a model that does not"
        )


def describe_layout(recipe: Recipe) -> list[tuple[str, int, int, float, float, str]]:
    """Rows of `logratio check`: role or kind, members, actors a member, CPUs, GPUs, what runs there."""
    engines = {"rollout": recipe.rollout.engine, "learner": _learner_name(recipe), "reward": recipe.reward.engine}
    engines |= {f"scorer.{m}": f"{recipe.scorer_of(m).engine}, {_served(recipe, m)}" for m in recipe.scored_models}
    return [(d.name, d.members, d.actors, d.cpus, d.gpus, engines.get(d.role, "file")) for d in demands(recipe)]


def describe_models(recipe: Recipe) -> list[str]:
    """Lines of `logratio check`: how learner and torch scorers run their models."""
    return describe_architectures(recipe, {place: model_directory(recipe.path_of(*place)) for place in places(recipe)})


def describe_files(recipe: Recipe, inputs: Inputs) -> list[str]:
    """Lines of `logratio check --cluster`: tokens, widths and lengths of models and prompts."""
    names = (STUDENT, *recipe.served_models)
    folders = {name: model_directory(recipe.path_of(name)) for name in names}
    widths = ", ".join(f"{name} {logit_width(folder)}" for name, folder in folders.items())
    found = [
        f"models: {', '.join(names)} share {len(inputs.tokenizer.get_vocab())} tokens and the end tokens "
        f"{list(inputs.end_token_ids)}",
        f"models: logits have {widths} columns; the first {inputs.vocabulary} are common",
    ]
    for name, role, limit in context_limits(recipe):
        longest = inputs.longest_of(name)
        found.append(
            f"{role}.max_context_tokens: {limit}; the longest prompt of {longest} and a response of "
            f"{recipe.sampling.max_response_tokens} take {longest + recipe.sampling.max_response_tokens}, "
            f"models.{name} has {context_length(folders[name]) or 'unlimited'} positions"
        )
    return found


def _version_bytes(recipe: Recipe, student: Path) -> int:
    own = adapted(recipe, Size(0, 0, None), student)
    if own.adapters is not None:
        return own.adapters * WIDTH[recipe.learner.dtype]
    return weight_bytes(student, recipe.rollout.dtype)


def _served(recipe: Recipe, model: str) -> str:
    swaps = sorted(recipe.models[model].swaps.items())
    return "; ".join([recipe.path_of(model), *(f"from step {step} on {path}" for step, path in swaps)])


def _learner_name(recipe: Recipe) -> str:
    learner = recipe.learner
    adapters = "" if learner.lora is None else f", adapters of rank {learner.lora.rank}"
    stage, asked = learner.deepspeed_stage, learner.zero_stage
    why = "" if stage == asked else f" (zero_stage: {asked} would add {learner.dtype} gradients up in {learner.dtype})"
    return f"deepspeed ZeRO-{stage}{why}, {learner.dtype}{adapters}"


def _model_folder(key: str, path: str, weights: bool = True) -> Path:
    folder = model_directory(path)
    remedy = "run `make setup`" if path.startswith("bundled:") else "give a local Hugging Face directory"
    try:
        names = [entry.name for entry in folder.iterdir()]
    except (NotADirectoryError, FileNotFoundError):
        raise RecipeError(f"{key}: {folder} is no directory; {remedy}") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{key}: {folder} cannot be read ({reason(error)}); {remedy}") from None
    if "config.json" not in names:
        raise RecipeError(f"{key}: {folder} needs config.json; give a local Hugging Face directory")
    if weights and not any(name.endswith(".safetensors") for name in names):
        raise RecipeError(f"{key}: {folder} needs config.json and *.safetensors; export it as safetensors")
    if weights and (lack := unreadable(folder)):
        raise RecipeError(f"{key}: {folder} is not whole: {lack}; correct that, or copy it again")
    return folder


def _tokenizers(folders: Mapping[Place, Path]) -> dict[Place, Any]:
    """Each model's tokenizer; models of one directory share it, since reading one takes half a second."""
    found: dict[Path, Any] = {}
    for place, folder in folders.items():
        if folder not in found:
            found[folder] = _tokenizer(str(place), folder)
    return {place: found[folder] for place, folder in folders.items()}


def _tokenizer(key: str, folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        _ = tokenizer.get_vocab(), tokenizer.eos_token_id, tokenizer.chat_template
    except Exception as error:  # tokenizers raises bare Exception, transformers many types
        raise RecipeError(
            f"{key}: {folder} has no tokenizer that loads ({type(error).__name__}: {reason(error)}); save it anew with "
            "the installed transformers, or copy it again"
        ) from None
    return tokenizer


def _end_tokens(folders: Mapping[Place, Path], tokenizers: Mapping[Place, Any]) -> dict[Place, frozenset[int]]:
    """Each model's end tokens, of its configuration and its tokenizer."""
    ids = {place: {*end_token_ids(folder), tokenizers[place].eos_token_id} for place, folder in folders.items()}
    return {place: frozenset(i for i in of_place if i is not None) for place, of_place in ids.items()}


def common_ends(recipe: Recipe, ends: Mapping[Place, frozenset[int]], vocabulary: int) -> tuple[int, ...]:
    """The end tokens of a run, ascending. `ends`: those of every served model. Raises RecipeError."""
    if recipe.objective.end_tokens == "same":
        return _same_ends(ends)
    joined = {STUDENT, *recipe.objective.target_models, *([recipe.sampled_teacher] if recipe.sampled_teacher else [])}
    union = frozenset(i for place, ids in ends.items() if place.model in joined for i in ids)
    for place, ids in ends.items():
        if beyond := sorted(i for i in ids & union if i >= vocabulary):
            raise RecipeError(
                f"{place}: its end tokens {beyond} are beyond the common vocabulary of {vocabulary}; with "
                "objective.end_tokens: class every model has all of them; use models of one width"
            )
        if alien := sorted(ids - union):
            raise RecipeError(
                f"{place}: it ends at {alien}, where neither the student nor a target does ({sorted(union)}); use a "
                "model that ends as they do"
            )
    if recipe.objective.topk_of != "teacher" and recipe.objective.topk + len(union) > VLLM_MAX_TOPK:
        raise RecipeError(
            f"objective.topk: {recipe.objective.topk} beside {len(union)} end tokens exceed the {VLLM_MAX_TOPK} that "
            f"the rollout engine returns; lower it to {VLLM_MAX_TOPK - len(union)}"
        )
    return tuple(sorted(union))


def _same_ends(ends: Mapping[Place, frozenset[int]]) -> tuple[int, ...]:
    (student,) = (ids for place, ids in ends.items() if place.model == STUDENT and not place.swap)
    for place, ids in ends.items():
        if ids != student:
            raise RecipeError(
                f"{place}: end tokens {sorted(ids)} differ from the student's {sorted(student)}; a student scored by a "
                "teacher that ends elsewhere learns never to end; set objective.end_tokens: class, or use models that "
                "end alike"
            )
    return tuple(sorted(student))


def _same_templates(tokenizers: Mapping[Place, Any]) -> None:
    """Check templates of swaps. Prompts are made once: a swapped-in model reads those of the model it replaces."""
    for place, tokenizer in tokenizers.items():
        first = Place(place.model)
        if tokenizer.chat_template != tokenizers[first].chat_template:
            raise RecipeError(
                f"{place}: its chat template differs from that of {first}, which the prompts are made with; give it "
                "the same template"
            )


def _same_tokens(tokenizers: Mapping[Place, Any]) -> None:
    student = tokenizers[Place(STUDENT)].get_vocab()
    for place, tokenizer in tokenizers.items():
        if (other := tokenizer.get_vocab()) != student:
            differing = sum(student.get(token) != i for token, i in other.items()) or len(student) - len(other)
            raise RecipeError(
                f"{place}: its tokenizer differs from the student's in {abs(differing)} of {len(student)} "
                "tokens; log-probs of one tokenizer say nothing about another's; use models that share one"
            )


def common_width(recipe: Recipe, folders: Mapping[Place, Path]) -> int:
    """Width that all models' logits are cut to before a softmax: within a family, models differ in padding only. Raises
    RecipeError where an engine cannot cut."""
    widths = {place: logit_width(folder) for place, folder in folders.items()}
    common = min(widths.values())
    for place, width in widths.items():
        name = place.model
        if name in recipe.scored_models and recipe.scorer_of(name).is_vllm and width > common:
            raise RecipeError(
                f"scorer.{name}.engine: {recipe.scorer_of(name).engine!r} normalises over all {width} columns of "
                f"{place}, the common vocabulary has {common}; use engine: torch, which cuts before the softmax"
            )
    return common


def _reward_model(path: str, student: Any) -> None:
    folder = _model_folder("reward.model", path)
    if _tokenizer("reward.model", folder).get_vocab() != student.get_vocab():
        raise RecipeError(
            f"reward.model: {folder} has another tokenizer than the student; it reads the student's tokens"
        )


def _prompting(recipe: Recipe, chats: Mapping[str, Chat], student: Path) -> Prompting:
    response, target = recipe.sampling.max_response_tokens, recipe.objective.target
    limits = [Limit(name, role, context, response) for name, role, context in context_limits(recipe)]
    if (positions := context_length(student)) is not None:
        limits += [Limit(base, "learner", positions, response) for base in recipe.privileged_base]
    route = target if isinstance(target, Route) else None
    return Prompting(chats, tuple(limits), route, cuts=recipe.data.too_long == "cut")


def _longest(recipe: Recipe, model: str, read: Sequence[Read]) -> int:
    """Tokens of the longest prompt that a model may get: of those that there are, or by the limits of its roles."""
    if all(one.whole for one in read):
        return max(one.longest[model] for one in read)
    room = [context for name, _, context in context_limits(recipe) if name == model]
    return min(room) - recipe.sampling.max_response_tokens if room else max(one.longest[model] for one in read)


def fit_contexts(recipe: Recipe, folders: Mapping[Place, Path]) -> None:
    """Check that the roles' contexts fit into the models' positions."""
    for name, role, limit in context_limits(recipe):
        for place, folder in folders.items():
            own = context_length(folder)
            if place.model != name or own is None:
                continue
            if limit > own:
                raise RecipeError(
                    f"{role}.max_context_tokens: {limit} exceeds the {own} positions of {place}; lower it"
                )
            if role == f"scorer.{name}" and recipe.scorer_of(name).is_vllm and limit == own:
                raise RecipeError(
                    f"{role}.max_context_tokens: vLLM decodes one token behind {limit}, {place} has {own} positions; "
                    f"lower it to {limit - 1}"
                )


def context_limits(recipe: Recipe) -> list[tuple[str, str, int]]:
    """(model, role that serves it, the role's longest context in tokens)."""
    limits = [(STUDENT, "rollout", recipe.rollout.max_context_tokens)]
    limits += [(m, f"scorer.{m}", recipe.scorer_of(m).max_context_tokens) for m in recipe.scored_models]
    if recipe.sampled_teacher:
        limits.append((recipe.sampled_teacher, "teacher_rollout", recipe.teacher_rollout.max_context_tokens))
    return limits
