"""A run: bring up the roles, evaluate, train a stage, evaluate again, leave a model and a summary.

A Run is *given* its pools; what it starts it leaves running, so that one cluster and its engines serve many runs. When
its learner dies it goes back to the newest whole checkpoint, as a resume does, and on from there; all else lives on.
"""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from configs import rules
from configs.load import RecipeError, dump_recipe
from configs.schema import Recipe
from objectives.schedule import initial_beta
from orchestrator import checkpoint
from orchestrator.between_steps.length import LengthCurriculum
from orchestrator.between_steps.measuring import Measurements
from orchestrator.between_steps.observer import Observer
from orchestrator.between_steps.saving import Saver
from orchestrator.between_steps.swaps import Swaps
from orchestrator.evaluate import HELDOUT_INDEX, Evaluation
from orchestrator.pools.pools import Pools
from orchestrator.pools.telemetry import Meter
from orchestrator.preflight.files import Inputs
from orchestrator.progress import Faults, Progress, readable
from orchestrator.samples.dispatch import Ticket
from orchestrator.samples.flow import Flow
from orchestrator.samples.prompts import PromptStream
from orchestrator.stage import Stage
from orchestrator.stopping import Ask, StopAsked, Stopping
from orchestrator.weights.carriers import Carrier, ObjectStore
from orchestrator.weights.learner_group import LearnerDied
from orchestrator.weights.roles import Roles

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 3  # exit codes
REBUILDS = 3  # deaths of the learner without a new step, one beyond all before, that end a run


@dataclass
class Run:
    recipe: Recipe
    directory: Path
    inputs: Inputs
    pools: Pools
    observer: Observer
    carrier: Carrier = field(default_factory=ObjectStore)
    meter: Meter = field(default_factory=Meter)
    evaluation_meter: Meter = field(default_factory=Meter)  # what an evaluation does belongs to no step
    stopping: Stopping = field(default_factory=Stopping)
    progress: Progress = field(default_factory=Progress)
    stage: Stage | None = None

    def __post_init__(self) -> None:
        recipe, directory, notice, ends = self.recipe, self.directory, self.observer.notice, self.inputs.end_token_ids
        claim = partial(checkpoint.claim_version, directory)
        self.roles = Roles(recipe, self.pools, self.inputs.vocabulary, self.carrier, claim, notice, ends)
        self.learner = self.roles.learner
        self.flow = Flow(recipe, self.pools, self.meter, ends, recipe.stream_tokens)
        aside = Flow(recipe, self.pools, self.evaluation_meter, ends)
        self.flow.alarm = aside.alarm = self.roles.canaries.alarm
        evaluation = Evaluation(
            recipe,
            self.pools,
            aside,
            self.learner,
            self.inputs.heldout,
            self.progress.suspects,
            self.evaluation_meter,
            notice,
            self.progress.skipped,
        )
        self.swaps = Swaps(recipe, directory, self.progress, self.roles.teachers, notice)
        self.measurements = Measurements(
            recipe, directory, self.progress, self.roles, evaluation, self.evaluation_meter, self.observer
        )
        self.saver = Saver(recipe, directory, self.progress, self.learner, self.faults, self.observer)
        self._length = LengthCurriculum(
            recipe,
            directory,
            self.progress,
            self.roles,
            self.measurements,
            self.saver,
            self.swaps.follow,
            self._end_early,
            notice,
        )
        self.unsummarised: str | None = None  # why summary.json could not be written
        self._deaths: list[int] = []  # steps that the learner died after; those made again are no news
        self._served_others = {role: pool.restarts for role, pool in self.pools.all().items()}
        self._began = time.monotonic()
        self._startup: float | None = None

    async def execute(self) -> int:
        """Train to the last step, or to the step after `stop`. Goes on from the newest whole checkpoint, if any.

        Returns the exit code (0 or 3) and leaves metrics, checkpoint, model and summary in the directory. Raises what
        failed.
        """
        try:
            while True:
                try:
                    return await self._while_the_learner_lives(self._attempt())
                except StopAsked:
                    return await self._end_stopped()
                except (LearnerDied, ExceptionGroup) as error:
                    death = _learner_death(error)
                    if death is None:
                        raise
                    if self.stopping.asked:
                        self.observer.notice(f"the last checkpoint stays: {death}")
                        return await self._end_stopped()
                    await self._bury(death)
                    del death  # the frames that it went through hold a batch, and a stage with its buffer
        finally:
            self.roles.release()

    def stop(self, ask: Ask = Ask.GENTLY) -> None:
        """Stop, by default after the step under way with a checkpoint to resume from. Other asks: see stopping.py."""
        self.stopping.to(ask, self.recipe.run.grace_seconds)
        if self.stage is not None:
            self.stage.stop()

    def working(self) -> tuple[str, ...]:
        """Roles busy right now."""
        return (*self.meter.working(), *self.evaluation_meter.working())

    def faults(self) -> Faults:
        """Of all the run's lives: those before a resume as far as its checkpoint knew."""
        earlier = self.progress.earlier_faults or Faults()
        here = {role: pool.restarts - self._served_others[role] for role, pool in self.pools.all().items()}
        restarts = {role: earlier.restarts.get(role, 0) + count for role, count in here.items()}
        rebuilds = earlier.learner_rebuilds + len(self._deaths)
        return Faults({role: count for role, count in restarts.items() if count}, rebuilds)

    async def summarise(self, code: int) -> None:
        """Write summary.json: how the run ended, whatever the end."""
        progress = self.progress
        summary = {
            "exit": code,
            "steps": progress.step,
            "seconds": time.monotonic() - self._began,
            "seconds_startup": self._startup,
            "evaluation": progress.evaluations,
            "biased": list(rules.biases(self.recipe)),
            "swaps": self.swaps.so_far(),
            "skipped": progress.skipped,
            "updates_skipped": progress.skips.to_state(),
            "skipped_prompts": self._skipped_prompts(),
            **asdict(self.faults()),
        }
        text = json.dumps(summary, indent=1, allow_nan=False)  # here, where nothing moves meanwhile
        try:
            await asyncio.to_thread(checkpoint.write_whole, self.directory / "summary.json", text)
            self.unsummarised = None
        except OSError as error:  # whoever ends the run tries again, and says it
            self.unsummarised = str(error)

    async def _while_the_learner_lives(self, attempt: Coroutine[Any, Any, int]) -> int:
        """What an attempt comes to. A member's pull may be all that meets a dead learner, while everybody else waits
        for that member: so whoever finds it dead ends the attempt. Raises StopAsked where it is abandoned."""
        trying, dying = asyncio.ensure_future(attempt), asyncio.ensure_future(self.learner.died.wait())
        leaving = asyncio.ensure_future(self.stopping.until_abandoned())
        try:
            await asyncio.wait([trying, dying, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not trying.done() and self.stopping.abandoned:
                raise StopAsked
            if not trying.done() and self.learner.death:
                raise self.learner.death
            return trying.result()
        finally:
            for task in (trying, dying, leaving):
                task.cancel()
            await asyncio.gather(trying, dying, leaving, return_exceptions=True)

    async def _attempt(self) -> int:
        await self.stopping.unless_asked(self._begin())
        self.observer.phase("training")
        self.meter.read_and_reset()
        self.stage = self._stage()
        if self.progress.ended_early or self.stopping.asked:
            self.stage.stop()
        await self.stage.run()
        stopped = self.progress.step < self.recipe.run.steps and not self.progress.ended_early
        if not stopped or self.saver.unsaved:
            await self.saver.save()
        if not stopped:
            await self.stopping.unless_asked(self._end())
        code = STOPPED if stopped else DONE
        await self.summarise(code)
        return code

    async def _begin(self) -> None:
        """Bring everything to where the newest checkpoint left it, and evaluate what was not evaluated by then."""
        saved = await asyncio.to_thread(checkpoint.latest, self.directory)  # it reads all of it: others go on meanwhile
        await self._rewind(saved)
        await self._bring_up(saved)
        if self._deaths:  # of what was on the way to a dead learner no payload is to stay in the object store
            gc.collect()
        self._startup = self._startup or time.monotonic() - self._began
        await self.measurements.before()
        if saved:  # a stop keeps nobody waiting for a measurement that was due
            self.saver.rewound(to_checkpoint=True)
            await self._between_steps()

    async def _end(self) -> None:
        """What comes after the last step, and is done anew by a resume where it was given up. The model has its name
        when it is whole."""
        await self.measurements.after()
        self.observer.phase("exporting the model")
        model, partial_model = self.directory / "model", self.directory / "model.partial"
        await asyncio.to_thread(shutil.rmtree, partial_model, ignore_errors=True)
        async with self.learner.turns.learner():
            await self.learner.export(partial_model)
        await asyncio.to_thread(checkpoint.put_in_place, partial_model, model)

    async def _end_stopped(self) -> int:
        """Stopped where no step was under way, or where it was given up: the last whole checkpoint stands."""
        self.observer.phase("stopping")
        await asyncio.to_thread(checkpoint.keep_recipe, self.directory, dump_recipe(self.swaps.recipe))
        await self.summarise(STOPPED)
        return STOPPED

    async def _bury(self, death: LearnerDied) -> None:
        """End what is left of a dead learner. Raises its death when it has come too often without a new step."""
        self._deaths.append(self.progress.step)
        if len(self._deaths) - self._deaths.index(max(self._deaths)) >= REBUILDS:
            raise death
        self.stage = None
        self.observer.notice(f"the learner is built anew from the newest checkpoint: {death}")
        await self.roles.bury_learner()

    async def _rewind(self, saved: checkpoint.Saved | None) -> None:
        state = readable(saved.state, str(saved.folder)) if saved else None
        if saved and state and state["ranks"] != self.recipe.learner.ranks:
            raise RecipeError(
                f"learner.ranks: {self.recipe.learner.ranks}, but {saved.folder} was saved by {state['ranks']}; "
                "resume with as many"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "summary.json").unlink(missing_ok=True)  # an earlier end is not this one's
        await self.swaps.written()
        await asyncio.to_thread(checkpoint.rewind, self.directory, saved)
        self.progress.rewind(state, initial_beta(self.recipe.objective))
        self.saver.rewound(to_checkpoint=False)
        highest = await asyncio.to_thread(checkpoint.highest_version, self.directory)
        self.progress.version = 0 if highest is None else highest + 1

    async def _bring_up(self, saved: checkpoint.Saved | None) -> None:
        for warning in (*rules.warnings(self.recipe), *self.inputs.warnings):
            self.observer.notice(f"warning: {warning}")
        for bias in rules.biases(self.recipe):
            self.observer.notice(f"biased on request: {bias}")
        self.observer.phase("starting the engines")
        step = self.progress.step + 1
        await self.roles.bring_up(step, self.progress.version, saved.folder if saved else None)
        self.observer.phase("loading the first weights")
        await self.roles.load(step)
        await self._length.begin()

    def _stage(self) -> Stage:
        return Stage(
            recipe=self.recipe,
            pools=self.pools,
            flow=self.flow,
            learner=self.learner,
            versions=self.roles.versions,
            prompts=self._prompts(),
            progress=self.progress,
            meter=self.meter,
            samples=self.directory / "samples",
            publish=self.roles.publish,
            after_publish=self.swaps.follow,
            after_step=self._after_step,
            notice=self.observer.notice,
        )

    def _prompts(self) -> PromptStream:
        return PromptStream(self.inputs.train, self.recipe.run.seed, self.recipe.data.shuffle)

    async def _after_step(self, line: Mapping[str, Any]) -> None:
        await asyncio.to_thread(checkpoint.append_line, self.directory, line)
        self.observer.step(line)
        with suppress(StopAsked):
            await self._between_steps()
        if self.progress.step < self.recipe.run.steps and not self.progress.ended_early and not self.stopping.asked:
            await self.saver.save_if_due()
            self.observer.phase("training")

    async def _between_steps(self) -> None:
        """What is due after this step; it comes before the checkpoint, so that it is saved. Raises StopAsked, and a
        resume does it."""
        await self._length.judge(self.stopping)
        await self.measurements.after_step(self.stopping)

    def _end_early(self) -> None:
        """Done, though fewer steps were made than the recipe allows."""
        self.progress.ended_early = True
        if self.stage is not None:
            self.stage.stop()

    def _skipped_prompts(self) -> dict[str, str]:
        """Text of the prompts that skipped samples belong to, by group."""
        train, heldout = self._prompts(), self.inputs.heldout
        indices = sorted({Ticket.of(uid, 0).index for uid in self.progress.skipped})
        prompts = [train[i] if i < HELDOUT_INDEX else heldout[i - HELDOUT_INDEX] for i in indices]
        return {Ticket(i, 0).group: prompt.row["prompt"] for i, prompt in zip(indices, prompts, strict=True)}


def _learner_death(error: Exception) -> LearnerDied | None:
    """The learner's death, where it is all that went wrong."""
    if isinstance(error, ExceptionGroup):
        deaths = [_learner_death(inner) for inner in error.exceptions]
        return deaths[0] if all(deaths) else None
    return error if isinstance(error, LearnerDied) else None
