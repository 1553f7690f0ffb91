"""Every key of a recipe, its type and its default. configs/rules/ refuses combinations of them.

A recipe is one YAML file read into one frozen tree. Unknown keys, wrong types and invalid combinations are refused
before any actor starts, in one line that names the path, the value and what is allowed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from configs.data import Data
from configs.evaluation import Best, Evaluate
from configs.node import OF_STAGE, START, STUDENT, FromMemory, Node, NonNegative, Positive, Seconds
from configs.objective import PLAIN, Objective
from configs.roles.deadlines import Deadlines
from configs.roles.learner import Learner
from configs.roles.reward import Reward
from configs.roles.rollout import Rollout
from configs.roles.scorer import Scorer
from configs.roles.sizes import DATASET, Bounds, RoleSize, name_of
from configs.roles.streaming import EarlyStop, Stream

FORMAT = 1  # of a recipe's keys; raised when an older recipe would mean something else
MOST_STEPS_UNSAVED = 50  # between two checkpoints, where a recipe does not set checkpoint.every
SHOWN = 3  # held-out prompts that are also answered greedily, for a person to read


# arguments that rendering a prompt sets itself; models.NAME.template may not set them
_RENDERING = {
    "conversation",
    "messages",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
}
_RENDERING |= {"padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"}
_RENDERING |= {"return_assistant_tokens_mask"}


class StopRule(Node):
    """Ends a run as done, before its last step, once a metric is below or above a number for `for_steps` values in a
    row. `metric`: a number of a step's line, or SET.NAME of an evaluation between steps, as in checkpoint.best."""

    metric: str
    below: float | None = None
    above: float | None = None
    for_steps: Positive = 1

    @model_validator(mode="after")
    def _has_one_bound(self) -> StopRule:
        if (self.below is None) == (self.above is None):
            raise ValueError("needs one of below and above")
        return self

    def __str__(self) -> str:
        bound = f"above {self.above:g}" if self.below is None else f"below {self.below:g}"
        return f"{self.metric} {bound}" + (f" {self.for_steps} times in a row" if self.for_steps > 1 else "")


class Run(Node):
    """A run's directory and length. `steps` counts learner steps; one of the rules of `stop` may end it earlier. After
    a SIGTERM the current step has `grace_seconds` to finish and be saved. `stage`: the name of the
    stage that this run is, in a recipe with `stages`, which sets it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    root: str = "runs"
    seed: NonNegative = 0
    steps: Positive
    grace_seconds: Seconds = 20.0
    stop: tuple[StopRule, ...] = ()
    stage: str | None = None


class Model(Node):
    """A model directory in Hugging Face format (safetensors), or `bundled:NAME` for one that set-up converted.

    `system` and `prompt` make a privileged prompt, which replaces the student's before the same response.
    `prompt` is a format string over the fields of the prompt row, e.g. "{prompt}\\n\\nReference: {solution}".
    `template` holds arguments of the tokenizer's chat template, e.g. {enable_thinking: false}.
    `weights`: `frozen` are the directory's. `live` are the student's version and `ema` its average with `decay`; both
    start from the student's, so `path` is left out. `base` are the student's without its adapters (`learner.lora`): the
    learner itself scores them. `swaps`: the directory of other weights from a step on, e.g.
    {121: /models/teacher-2}; `logratio swap` adds to them.
    """

    path: str | None = None
    system: str | None = None
    prompt: str = "{prompt}"
    template: dict[str, Any] = Field(default_factory=dict)
    weights: Literal["frozen", "ema", "live", "base"] = "frozen"
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    swaps: dict[Annotated[int, Field(ge=2)], str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_weights(self) -> Model:
        if (self.path is None) == (self.weights == "frozen"):
            raise ValueError("needs a path when its weights are frozen, and none when they follow the student")
        return self

    @field_validator("path", "swaps")
    @classmethod
    def _names_no_stage(cls, found: Any) -> Any:
        for path in found.values() if isinstance(found, dict) else [found]:
            if path is not None and path.startswith(OF_STAGE):
                raise ValueError("names a stage; a path under `models` of a recipe with `stages` may")
        return found

    @field_validator("template")
    @classmethod
    def _leaves_rendering_alone(cls, template: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(_RENDERING & template.keys()):
            raise ValueError(f"{', '.join(taken)}: is no argument of a chat template, or set by rendering; remove it")
        return template

    @property
    def privileged(self) -> bool:
        return self.system is not None or self.prompt != "{prompt}"


class Batch(Node):
    """One learner step trains on prompts_per_step x samples_per_prompt samples, in `updates` optimizer steps over all
    of them. From the second update on the policy differs from the one that a trust region refers to.

    `max_replacements`: prompt groups without signal, whose rewards are all equal, that a step replaces by fresh ones at
    most (DAPO's dynamic sampling); beyond them they are trained as they are.
    """

    prompts_per_step: Positive
    samples_per_prompt: Positive = 1
    tokens_per_microbatch: FromMemory = 512
    updates: Positive = 1
    max_replacements: NonNegative = 0


class Sampling(Node):
    """How the student samples. `max_response_tokens` includes the end token."""

    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_response_tokens: Positive


class Checkpoint(Node):
    """A checkpoint every `every` steps (0: only when the run ends or is stopped; null: a fifth of the run, at most
    MOST_STEPS_UNSAVED steps); the newest `keep` stay, and the `best` by a held-out metric."""

    every: NonNegative | None = None
    keep: Positive = 1
    best: Best | None = None


class Metrics(Node):
    """Metrics beyond those of the objective, and who gets them. `start_kl`: KL(student||its starting weights), in no
    loss: the mean k1 of the tokens that the student sampled, or exact over the vocabulary. The model `start` has these
    weights. `movement`: at each evaluation, the share of weights that changed since the start, beyond bf16's rounding.
    `trackers` get each step's line, through their own packages; Prometheus does without being named."""

    start_kl: Literal["sampled", "exact"] | None = None
    movement: bool = False
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)


class Record(Node):
    """Trained samples are written to samples/ every `every` steps, and beside them what their models scored, if that
    is at most `scores_mib` MiB a step: for `replay` on other supports than sampled tokens."""

    every: Positive = 1
    scores_mib: NonNegative = 0


class Cluster(Node):
    """`address` joins a running Ray cluster; null starts one on this machine (RAY_ADDRESS also joins), with Ray's
    `dashboard` and metrics on loopback."""

    address: str | None = None
    dashboard: bool = True
    object_store_mib: Positive | None = None


class Recipe(Node):
    """The whole tree. `format` numbers the keys' meaning: load_recipe refuses files of a newer one.

    `max_staleness` is in policy versions: 0 is strictly on-policy.

    `stream_tokens`: responses are scored in segments of this many tokens while they are being sampled; 0: whole.
    `early_stop` cuts those that their teacher finds unlikely.

    `on_stale`: what happens to tokens that would be staler. `wait`: the learner waits for their response first;
    `mask_tokens`: they carry no loss; `drop`: the prompt is resampled, which drops long responses first. null: wait
    where the objective reads whole responses, else mask_tokens.

    `colocate`: learner and engines share GPUs in turns: engines sleep while the learner works, and the other way round.

    `teacher_rollout`: members that sample from the first teacher, where `objective.prefix` names `teacher`.
    `autoscale`: an entry for each role (rollout, scorer.NAME, reward, ...) that may change its size by itself.
    """

    format: Annotated[int, Field(ge=1, le=FORMAT)] = FORMAT
    run: Run
    models: dict[str, Model]
    data: Data
    batch: Batch
    sampling: Sampling
    objective: Objective
    learner: Learner
    rollout: Rollout = Rollout()
    teacher_rollout: Rollout = Rollout()
    scorer: dict[str, Scorer] = Field(default_factory=dict)
    reward: Reward = Reward()
    stream: Stream = Stream()
    stream_tokens: NonNegative = 0
    early_stop: EarlyStop | None = None
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    metrics: Metrics = Metrics()
    record: Record = Record()
    deadlines: Deadlines = Deadlines()
    autoscale: dict[str, Bounds] = Field(default_factory=dict)
    cluster: Cluster = Cluster()
    colocate: bool = False
    max_staleness: NonNegative = 0
    on_stale: Literal["wait", "mask_tokens", "drop"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _add_start_model(cls, tree: Any) -> Any:
        """Under metrics.start_kl the student's starting weights are one more model."""
        metrics, models = (tree.get(name) for name in ("metrics", "models")) if isinstance(tree, dict) else (None, None)
        if not isinstance(metrics, dict) or not isinstance(models, dict) or metrics.get("start_kl") is None:
            return tree
        return (
            tree if STUDENT not in models else tree | {"models": models | {START: models.get(START, models[STUDENT])}}
        )

    @property
    def scored_models(self) -> tuple[str, ...]:
        """Names of the models with scorers; empty for cross-entropy on a response's own tokens."""
        return tuple(name for name in self.support_of if name not in self.base_models)

    @property
    def scorers_in_turns(self) -> dict[str, tuple[str, ...]]:
        """The scored models whose scorers share GPUs in turns, by the name of their `turns`. One that alone is scored
        of those with this name has its GPUs to itself."""
        groups: dict[str, tuple[str, ...]] = {}
        for model in self.scored_models:
            if group := self.scorer_of(model).turns:
                groups[group] = (*groups.get(group, ()), model)
        return {group: models for group, models in groups.items() if len(models) > 1}

    @property
    def base_models(self) -> tuple[str, ...]:
        """Scored models that are the student without its adapters: the learner scores them."""
        return tuple(n for n in self.support_of if n in self.models and self.models[n].weights == "base")

    @property
    def privileged_base(self) -> tuple[str, ...]:
        """Those of them whose prompt is not the student's."""
        student = self.models[STUDENT]
        return tuple(
            name
            for name in self.base_models
            if self.models[name].privileged or student.privileged or self.models[name].template != student.template
        )

    @property
    def support_of(self) -> dict[str, str]:
        """The support that each scored model is asked for: sampled | topk | full."""
        start = {"sampled": "sampled", "exact": "full"}.get(self.metrics.start_kl or "")
        return self.objective.support_of | ({START: start} if start else {})

    @property
    def sampled_teacher(self) -> str | None:
        """The model that writes responses under `prefix: teacher`: the first target, else the first other model."""
        if "teacher" not in self.objective.sources:
            return None
        apart = (STUDENT, START) if self.metrics.start_kl else (STUDENT,)
        return next(iter((*self.objective.teachers, *(name for name in self.models if name not in apart))), None)

    @property
    def served_models(self) -> tuple[str, ...]:
        """Models that some member serves, without the student."""
        writer = (self.sampled_teacher,) if self.sampled_teacher else ()
        return tuple(dict.fromkeys((*self.scored_models, *writer)))

    @property
    def age_policy(self) -> str:
        """`on_stale`, with its default resolved."""
        return self.on_stale or ("wait" if self.objective.reads_whole_responses else "mask_tokens")

    @property
    def saved_every(self) -> int:
        """Steps between checkpoints: `checkpoint.every`, with its default resolved; 0: none before the end."""
        every = self.checkpoint.every
        return min(MOST_STEPS_UNSAVED, -(-self.run.steps // 5)) if every is None else every

    @property
    def roles(self) -> dict[str, RoleSize]:
        """The roles that run, in the order of the data flow. Layout, placement, pools and scaling follow this table.
        `rollout` runs where the student samples: its own prefixes, or the evaluation's."""
        found: dict[str, RoleSize] = {}
        if "student" in self.objective.sources or self.data.heldout is not None or self.evaluate.answered:
            found["rollout"] = _size_of(self.rollout)
        if self.sampled_teacher:
            found["teacher_rollout"] = _size_of(self.teacher_rollout)
        if "dataset" in self.objective.sources:
            found["dataset"] = DATASET
        for model in self.scored_models:
            found[f"scorer.{model}"] = _size_of(self.scorer_of(model))
        found["reward"] = RoleSize(self.reward.members, 1, self.reward.resources)
        found["learner"] = RoleSize(1, self.learner.ranks, self.learner.resources, elastic=False)
        return found

    @property
    def parts(self) -> dict[str, RoleSize]:
        """Sizes by kind: of a role's own members under the role's name, of a kind's under `ROLE.kinds.KIND`."""
        return {
            name_of(role, kind): part
            for role, size in self.roles.items()
            for kind, part in {"": size, **size.kinds}.items()
        }

    def of_kind(self, role: str, kind: str) -> Recipe:
        """This recipe as the members of a role's kind are made by it; `kind` "": the role's own."""
        if role in ("rollout", "teacher_rollout"):
            return self.model_copy(update={role: getattr(self, role).of_kind(kind)})
        first, _, model = role.partition(".")
        if first != "scorer":
            return self
        return self.model_copy(update={"scorer": self.scorer | {model: self.scorer_of(model).of_kind(kind)}})

    @property
    def elastic_roles(self) -> dict[str, int]:
        """Roles whose size may change, and how many members each starts with, without those of its kinds."""
        return {role: size.members for role, size in self.roles.items() if size.elastic}

    def of_set(self, name: str) -> Recipe:
        """This recipe as a held-out set is answered, rewarded and scored by."""
        one, sampling, reward = self.evaluate.sets[name], self.sampling, self.reward
        own = {"temperature": one.temperature, "top_p": one.top_p, "max_response_tokens": one.max_response_tokens}
        rewards = {} if one.rules is None else {"rules": one.rules, "model": None}
        return self.model_copy(
            update={
                "sampling": sampling.model_copy(update={key: value for key, value in own.items() if value is not None}),
                "reward": reward.model_copy(update=rewards),
                "evaluate": self.evaluate.model_copy(update={"samples_per_prompt": one.samples_per_prompt}),
                "objective": self.objective if one.teachers else PLAIN,
                "data": self.data.model_copy(update={"heldout": one.prompts or one.text}),
            }
        )

    def path_of(self, model: str, swap: int = 0) -> str:
        """A model's path, or that of the swap at step `swap`. A model that follows the student has the student's
        path."""
        return self.models[model].swaps.get(swap) or self.models[model].path or str(self.models[STUDENT].path)

    def swap_at(self, model: str, step: int) -> int:
        """The step of the swap whose weights a model has at `step`; 0 before the first swap."""
        return max((first for first in self.models[model].swaps if first <= step), default=0)

    def scored_with(self, weights: str) -> tuple[str, ...]:
        """Scored models with `frozen`, `live` or `ema` weights."""
        return tuple(name for name in self.scored_models if self.models[name].weights == weights)

    @property
    def stores_versions(self) -> bool:
        """Whether the student's versions go to the object store: not if only rollouts pull them, from GPU to GPU."""
        return not self.rollout.direct or bool(self.scored_with("live"))

    def scorer_of(self, model: str) -> Scorer:
        return self.scorer.get(model, Scorer())

    @property
    def learner_temperature(self) -> float:
        """Divisor of the student's logits in the learner: the sampling temperature for a reward alone, else 1."""
        return self.sampling.temperature if self.objective.reward_only else 1.0

    @property
    def sampler_matches_learner(self) -> bool:
        """Sampler and learner take log-probs of the same distribution, so that their ratio compares policies and not
        temperatures."""
        return self.sampling.top_p == 1.0 and self.sampling.temperature == self.learner_temperature

    @property
    def samples_per_step(self) -> int:
        return self.batch.prompts_per_step * self.batch.samples_per_prompt


def _size_of(engine: Rollout | Scorer) -> RoleSize:
    kinds = {name: RoleSize(kind.members, 1, kind.resources, elastic=False) for name, kind in engine.kinds.items()}
    return RoleSize(engine.members, 1, engine.resources, kinds=kinds)
