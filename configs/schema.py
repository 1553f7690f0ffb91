"""What a recipe means: every key, its type and its default. What is refused beyond that is in configs/rules/.

A recipe is one YAML file read into one frozen tree. Unknown keys, wrong types and combinations without a meaning are
refused before any actor starts, in one line that names the path, the value and what is allowed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from configs.node import START, STUDENT, Node, NonNegative, Positive, Seconds
from configs.objective import Objective
from configs.roles import Bounds, Deadlines, EarlyStop, Learner, Resources, Reward, Rollout, Scorer, Stream

FORMAT = 1  # of a recipe's keys; one more where a recipe of before would mean something else
LOST_AT_MOST = 50  # steps between two checkpoints, unless a recipe says how many
SHOWN = 3  # held-out prompts that are also answered greedily, for a person to read


# what rendering a prompt sets itself; never an argument of a template
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


class Run(Node):
    """Where a run lives and how long it is. `steps` counts learner updates. After a SIGTERM the step under way has
    `grace_seconds` to end and be saved."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    root: str = "runs"
    seed: NonNegative = 0
    steps: Positive
    grace_seconds: Seconds = 20.0


class Model(Node):
    """A model directory in Hugging Face format (safetensors), or `bundled:NAME` for one that set-up converted.

    `system` and `prompt` make a privileged prompt: they replace the student's in front of the same response tokens.
    `prompt` is a format string over the fields of the prompt row, e.g. "{prompt}\\n\\nReference: {solution}".
    `template` holds arguments of the tokenizer's chat template, e.g. {enable_thinking: false}.
    `weights`: `frozen` are the directory's; `live` follow the student version by version and `ema` average it with
    `decay`: both start from the student's, so `path` is left out. `swaps`: from a step on, the weights of another
    directory, e.g. {121: /models/teacher-2}; `logratio swap` adds to them.
    """

    path: str | None = None
    system: str | None = None
    prompt: str = "{prompt}"
    template: dict[str, Any] = Field(default_factory=dict)
    weights: Literal["frozen", "ema", "live"] = "frozen"
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    swaps: dict[Annotated[int, Field(ge=2)], str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_weights(self) -> Model:
        if (self.path is None) == (self.weights == "frozen"):
            raise ValueError("needs a path when its weights are frozen, and none when they follow the student")
        return self

    @field_validator("template")
    @classmethod
    def _is_the_templates(cls, template: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(_RENDERING & template.keys()):
            raise ValueError(
                f"{', '.join(taken)}: is no argument of a chat template, or one that every prompt sets itself"
            )
        return template

    @property
    def privileged(self) -> bool:
        return self.system is not None or self.prompt != "{prompt}"


class Data(Node):
    """JSON lines, a row a prompt: {"prompt": text, ...}. `prefix: dataset` also needs "response" in each row.

    `responses` is the folder that keeps what a teacher wrote under `prefix: teacher`; null: in the user's cache.
    """

    prompts: str
    heldout: str | None = None
    shuffle: bool = True
    responses: str | None = None


class Batch(Node):
    """One learner step trains on prompts_per_step x samples_per_prompt samples, in `updates` passes over all of them,
    each an optimizer step. From the second pass on the policy has left the one that a trust region refers to."""

    prompts_per_step: Positive
    samples_per_prompt: Positive = 1
    tokens_per_microbatch: Positive = 512
    updates: Positive = 1


class Sampling(Node):
    """How the student samples. `max_response_tokens` includes the end token."""

    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_response_tokens: Positive


class Evaluate(Node):
    """Evaluation on the held-out prompts before the first step, after the last, and every `every` steps (0: never)."""

    every: NonNegative = 0
    samples_per_prompt: Positive = 1


class Checkpoint(Node):
    """A checkpoint every `every` steps (0: only when the run ends or is stopped; null: a fifth of the run, at most
    LOST_AT_MOST steps); the newest `keep` stay."""

    every: NonNegative | None = None
    keep: Positive = 1


class Metrics(Node):
    """What is logged beyond what the objective reads. `start_kl`: KL(student||its starting weights), which enters no
    loss: the mean k1 of the tokens that the student drew, or exact over the vocabulary. The weights are scored as the
    model `start`."""

    start_kl: Literal["sampled", "exact"] | None = None


class Record(Node):
    """Trained samples are written to samples/ every `every` steps."""

    every: Positive = 1


class Cluster(Node):
    """`address` joins a running Ray cluster; null starts one on this machine (RAY_ADDRESS also joins)."""

    address: str | None = None
    object_store_mib: Positive | None = None


class Recipe(Node):
    """The whole tree. `format` numbers the keys' meaning: load_recipe refuses files of a newer one.

    `max_staleness` is in policy versions: 0 is strictly on-policy.

    `stream_tokens`: responses are handed on in segments of so many tokens while they are being sampled, and scored as
    they come; 0: whole. `early_stop` cuts those that their teacher would not have written.

    `on_stale`: what becomes of tokens that would be older. `wait`: the learner waits for them before they are;
    `mask_tokens`: they carry no loss; `drop`: the prompt is sampled again, which drops long responses first. null: wait
    where the objective reads whole responses, else mask_tokens.

    `colocate`: learner and engines share GPUs and take turns on them: engines sleep while the learner works, and the
    learner while they do.

    `teacher_rollout` are the members that sample from the first teacher, where `objective.prefix` names it. `autoscale`
    has an entry for each role (rollout, scorer.NAME, reward, ...) that may change its size by itself.
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
    def _knows_its_start(cls, tree: Any) -> Any:
        """The student's starting weights are a model like any other, where something is compared with them."""
        metrics, models = (tree.get(name) for name in ("metrics", "models")) if isinstance(tree, dict) else (None, None)
        if not isinstance(metrics, dict) or not isinstance(models, dict) or metrics.get("start_kl") is None:
            return tree
        return (
            tree if STUDENT not in models else tree | {"models": models | {START: models.get(START, models[STUDENT])}}
        )

    @property
    def scored_models(self) -> tuple[str, ...]:
        """Names of the models that score responses; empty for cross-entropy on a response's own tokens."""
        return tuple(self.support_of)

    @property
    def support_of(self) -> dict[str, str]:
        """What each model that scores is asked for, by the objective and the metrics: sampled | topk | full."""
        start = {"sampled": "sampled", "exact": "full"}.get(self.metrics.start_kl or "")
        return self.objective.support_of | ({START: start} if start else {})

    @property
    def sampled_teacher(self) -> str | None:
        """The model that writes responses under `prefix: teacher`: the first target, or the only model there is."""
        if "teacher" not in self.objective.sources:
            return None
        apart = (STUDENT, START) if self.metrics.start_kl else (STUDENT,)
        return next(iter((*self.objective.teachers, *(name for name in self.models if name not in apart))), None)

    @property
    def served_models(self) -> tuple[str, ...]:
        """Models that some member needs the files or the prompts of, the student apart."""
        writer = (self.sampled_teacher,) if self.sampled_teacher else ()
        return tuple(dict.fromkeys((*self.scored_models, *writer)))

    @property
    def age_policy(self) -> str:
        """`on_stale`, or what the objective makes of its absence."""
        return self.on_stale or ("wait" if self.objective.reads_whole_responses else "mask_tokens")

    @property
    def saved_every(self) -> int:
        """`checkpoint.every`, or what the length of the run makes of its absence; 0: never on the way."""
        every = self.checkpoint.every
        return min(LOST_AT_MOST, -(-self.run.steps // 5)) if every is None else every

    @property
    def elastic_roles(self) -> dict[str, int]:
        """Roles whose members may come and go in a live run, and how many each starts with. Rollouts are there where
        the student samples: its own prefixes, or the evaluation's."""
        sizes: dict[str, int] = {}
        if "student" in self.objective.sources or self.data.heldout is not None:
            sizes["rollout"] = self.rollout.members
        if self.sampled_teacher:
            sizes["teacher_rollout"] = self.teacher_rollout.members
        sizes |= {f"scorer.{model}": self.scorer_of(model).members for model in self.scored_models}
        return sizes | {"reward": self.reward.members}

    @property
    def resources_of_roles(self) -> dict[str, Resources]:
        """What one actor of each role takes that has any, the dataset's apart."""
        found = {"rollout": self.rollout.resources, "teacher_rollout": self.teacher_rollout.resources}
        found |= {f"scorer.{model}": self.scorer_of(model).resources for model in self.scored_models}
        found["reward"] = self.reward.resources
        return {role: found[role] for role in self.elastic_roles} | {"learner": self.learner.resources}

    def path_of(self, model: str, swap: int = 0) -> str:
        """A model's path, or the one swapped in for step `swap`; that of one that follows the student is the
        student's."""
        return self.models[model].swaps.get(swap) or self.models[model].path or str(self.models[STUDENT].path)

    def swap_at(self, model: str, step: int) -> int:
        """The swap that gave a model the weights that it has at a step; 0 before the first."""
        return max((first for first in self.models[model].swaps if first <= step), default=0)

    def scored_with(self, weights: str) -> tuple[str, ...]:
        """Scored models with `frozen`, `live` or `ema` weights."""
        return tuple(name for name in self.scored_models if self.models[name].weights == weights)

    def scorer_of(self, model: str) -> Scorer:
        return self.scorer.get(model, Scorer())

    @property
    def learner_temperature(self) -> float:
        """What the learner divides the student's logits by: 1, but for a reward alone."""
        return self.sampling.temperature if self.objective.reward_only else 1.0

    @property
    def samples_what_it_reads(self) -> bool:
        """The sampler's log-probs are of the distribution that the learner's are of: their ratio is that of two
        policies, and not of two temperatures."""
        return self.sampling.top_p == 1.0 and self.sampling.temperature == self.learner_temperature

    @property
    def samples_per_step(self) -> int:
        return self.batch.prompts_per_step * self.batch.samples_per_prompt
