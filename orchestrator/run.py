"""A run: bring up the roles, evaluate, train, evaluate again, write a model and a summary.

A Run is *given* its pools and leaves them running, so that one cluster and its engines can serve many runs. When the
learner dies, the run rewinds to the newest whole checkpoint, as a resume does; all other members live on.
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
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from configs import rules
from configs.load import RecipeError, dump_recipe
from configs.schema import Recipe
from objectives.schedule import initial_beta
from orchestrator import checkpoint
from orchestrator.between_steps.length import LengthCurriculum
from orchestrator.between_steps.measuring import Measurements
from orchestrator.between_steps.measuring_sets import SetMeasurements
from orchestrator.between_steps.moving import Movement
from orchestrator.between_steps.observer import Observer
from orchestrator.between_steps.saving import Saver
from orchestrator.between_steps.stop_rules import StopRules
from orchestrator.between_steps.swaps import Swaps
from orchestrator.data.sets import dropped, named, order
from orchestrator.evaluation.best import best_so_far
from orchestrator.evaluation.heldout import HELDOUT_INDEX, Evaluation
from orchestrator.evaluation.sets import Sets
from orchestrator.pools.pools import Pools
from orchestrator.pools.telemetry import Meter
from orchestrator.preflight.files import Inputs
from orchestrator.progress import Faults, Progress, readable
from orchestrator.samples.flow import Flow
from orchestrator.samples.leases import Ticket
from orchestrator.samples.prompts import Prompts, taken
from orchestrator.stage import Stage
from orchestrator.stopping import Ask, StopAsked, Stopping
from orchestrator.uninterrupted import uninterrupted
from orchestrator.weights.carriers import Carrier
from orchestrator.weights.learner_group import LearnerDied
from orchestrator.weights.roles import Roles
from orchestrator.weights.transfer.choice import carrier_of

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 3  # exit codes
SUMMARY_FORMAT = 1  # of summary.json
REBUILDS = 3  # deaths of the learner in a row, with no new furthest step between them, that end a run


@dataclass
class Run:
    recipe: Recipe
    directory: Path
    inputs: Inputs
    pools: Pools
    observer: Observer
    carrier: Carrier | None = None  # None: the one that the recipe names
    meter: Meter = field(default_factory=Meter)
    evaluation_meter: Meter = field(default_factory=Meter)  # evaluations count in no step's metrics
    stopping: Stopping = field(default_factory=Stopping)
    progress: Progress = field(default_factory=Progress)
    stage: Stage | None = None

    def __post_init__(self) -> None:
        recipe, directory, notice, ends = self.recipe, self.directory, self.observer.notice, self.inputs.end_token_ids
        claim = partial(checkpoint.claim_version, directory)
        carrier = self.carrier or carrier_of(recipe)
        self.roles = Roles(recipe, self.pools, self.inputs.vocabulary, carrier, claim, notice, ends)
        self.learner = self.roles.learner
        self.flow = Flow(recipe, self.pools, self.meter, ends, recipe.stream_tokens)
        held_out = self._held_out_flow(recipe)
        self.flow.alarm = self.roles.canaries.alarm
        evaluation = Evaluation(
            recipe,
            self.pools,
            held_out,
            self.learner,
            self.inputs.heldout,
            self.progress.suspects,
            self.evaluation_meter,
            notice,
            self.progress.skipped,
        )
        self.swaps = Swaps(recipe, directory, self.progress, self.roles.teachers, notice)
        reporting = self.evaluation_meter, self.observer
        movement = Movement(recipe, self.progress, self.roles, self.evaluation_meter)
        sets = SetMeasurements(recipe, directory, self.progress, self.roles, self._sets(), *reporting, movement)
        self.measurements = Measurements(recipe, directory, self.progress, self.roles, evaluation, *reporting, sets)
        self.saver = Saver(recipe, directory, self.progress, self.learner, self.faults, self.observer)
        self._length = LengthCurriculum(
            recipe,
            directory,
            self.progress,
            self.roles,
            self.measurements,
            self.saver,
            self.swaps.follow,
            partial(self._end_early, "the length curriculum stopped"),
            notice,
        )
        self._stop_rules = StopRules(recipe, self.progress, self._end_early)
        self.unsummarised: str | None = None  # why summary.json could not be written
        self._deaths: list[int] = []  # the step after which each death of the learner came
        self._earlier_restarts = {role: pool.members.restarts for role, pool in self.pools.all().items()}
        self._began = time.monotonic()
        self._startup: float | None = None

    async def execute(self) -> int:
        """Train to the last step, or until `stop`. Starts from the newest whole checkpoint, if there is one.

        Returns the exit code (0 or 3). Writes metrics, checkpoints, model and summary to the directory. Raises the
        error of a failed run.
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
                    await self._end_dead_learner(death)
                    del death  # its traceback holds a batch, and a stage with its buffer
        finally:
            self.roles.release()

    def stop(self, ask: Ask = Ask.GENTLY) -> None:
        """Stop; by default after the step under way, with a checkpoint to resume from. See stopping.py."""
        self.stopping.to(ask, self.recipe.run.grace_seconds)
        if self.stage is not None:
            self.stage.stop()

    def working(self) -> tuple[str, ...]:
        """Roles busy right now."""
        return (*self.meter.working(), *self.evaluation_meter.working())

    def faults(self) -> Faults:
        """The faults of this process and of those before a resume, as far as its checkpoint has them."""
        earlier = self.progress.earlier_faults or Faults()
        here = {role: pool.members.restarts - self._earlier_restarts[role] for role, pool in self.pools.all().items()}
        restarts = {role: earlier.restarts.get(role, 0) + count for role, count in here.items()}
        rebuilds = earlier.learner_rebuilds + len(self._deaths)
        return Faults({role: count for role, count in restarts.items() if count}, rebuilds)

    async def summarise(self, code: int) -> None:
        """Write summary.json. A full disk sets `unsummarised` and raises nothing."""
        progress, skipped_prompts = self.progress, await self._skipped_prompts()
        summary = {
            "format": SUMMARY_FORMAT,
            "exit": code,
            "steps": progress.step,
            "ended_early": progress.ended_because,
            "seconds": time.monotonic() - self._began,
            "seconds_startup": self._startup,
            "evaluation": progress.evaluations,
            "best": self._best(),
            "biased": list(rules.biases(self.recipe)),
            "swaps": self.swaps.so_far(),
            "skipped": progress.skipped,
            "updates_skipped": progress.skips.to_state(),
            "skipped_prompts": skipped_prompts,
            "prompts_dropped": named(dropped(self.inputs.train)),
            **asdict(self.faults()),
        }
        text = json.dumps(summary, indent=1, allow_nan=False)  # on the loop: the values must not change meanwhile
        try:
            await uninterrupted(checkpoint.write_whole, self.directory / "summary.json", text)
            self.unsummarised = None
        except OSError as error:  # surface/ending.py tries again and reports it
            self.unsummarised = str(error)

    async def _while_the_learner_lives(self, attempt: Coroutine[Any, Any, int]) -> int:
        """The exit code of an attempt. Any call that finds the learner dead ends it: a member's pull may be the only
        call to the learner, while everything else waits for that member. Raises StopAsked when it is abandoned."""
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
        """Rewind to the newest checkpoint, bring the roles up, and make the evaluations that are due."""
        saved = await uninterrupted(checkpoint.latest, self.directory)  # it reads the whole checkpoint
        await self._rewind(saved)
        await self._bring_up(saved)
        if self._deaths:  # frees payloads that were in flight to the dead learner
            gc.collect()
        self._startup = self._startup or time.monotonic() - self._began
        await self.measurements.before()
        if saved:  # a stop may have come before the measurements of that step
            self.saver.rewound(to_checkpoint=True)
            await self._between_steps()

    async def _end(self) -> None:
        """Evaluate and export after the last step. A resume repeats it if it was given up. The model's folder gets its
        name when it is whole."""
        await self.measurements.after()
        self.observer.phase("exporting the model")
        async with self.learner.turns.learner():
            await self._export("model")
            if best := self._best():
                await self._export_best(best["step"])

    async def _export(self, name: str) -> None:
        """Write the learner's weights to a folder of the run, in the learner's turn."""
        partial_model = self.directory / f"{name}.partial"
        await uninterrupted(shutil.rmtree, partial_model, ignore_errors=True)
        await self.learner.export(partial_model)
        await uninterrupted(checkpoint.put_in_place, partial_model, self.directory / name)

    async def _export_best(self, step: int) -> None:
        """Write model-best. The learner then has the weights of that checkpoint: nothing is trained after this."""
        if step != self.progress.step:
            folder = await uninterrupted(checkpoint.folder_of, self.directory, step)
            if folder is None:
                self.observer.notice(f"model-best is not written: the checkpoint of step {step} was not saved")
                return
            await self.learner.restore(folder)
        await self._export("model-best")

    def _best(self) -> dict[str, Any] | None:
        return best_so_far(self.recipe.checkpoint.best, self.progress.evaluations, self.progress.step)

    async def _end_stopped(self) -> int:
        """Stop with no step under way, or with one given up: the last whole checkpoint stays."""
        self.observer.phase("stopping")
        await uninterrupted(checkpoint.keep_recipe, self.directory, dump_recipe(self.swaps.recipe))
        await self.summarise(STOPPED)
        return STOPPED

    async def _end_dead_learner(self, death: LearnerDied) -> None:
        """End the ranks of a dead learner. Raises its death after REBUILDS deaths without progress."""
        self._deaths.append(self.progress.step)
        if len(self._deaths) - self._deaths.index(max(self._deaths)) >= REBUILDS:
            raise death
        self.stage = None
        self.observer.notice(f"the learner is rebuilt from the newest checkpoint: {death}")
        await self.roles.discard_learner()

    async def _rewind(self, saved: checkpoint.Saved | None) -> None:
        state = readable(saved.state, str(saved.folder)) if saved else None
        if saved and state and state["ranks"] != self.recipe.learner.ranks:
            raise RecipeError(
                f"learner.ranks: {self.recipe.learner.ranks}, but {saved.folder} was saved by {state['ranks']}; "
                "resume with as many"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "summary.json").unlink(missing_ok=True)  # of an earlier process
        await self.swaps.write()
        await uninterrupted(checkpoint.rewind, self.directory, saved)
        self.progress.rewind(state, initial_beta(self.recipe.objective))
        self.saver.rewound(to_checkpoint=False)
        highest = await uninterrupted(checkpoint.highest_version, self.directory)
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
            prompts=self._prompts,
            progress=self.progress,
            meter=self.meter,
            samples=self.directory / "samples",
            publish=self.roles.publish,
            after_publish=self.swaps.follow,
            after_step=self._after_step,
            notice=self.observer.notice,
            prompts_dropped=lambda: len(dropped(self.inputs.train)),
        )

    @cached_property
    def _prompts(self) -> Prompts:
        return order(self.inputs.train, self.recipe.run.seed, self.recipe.data.shuffle)

    def _sets(self) -> Sets:
        return Sets(
            self.recipe,
            self.pools,
            self._held_out_flow,
            self.learner,
            self.inputs.sets,
            self.progress.suspects,
            self.evaluation_meter,
            self.observer.notice,
            self.progress.skipped,
        )

    def _held_out_flow(self, recipe: Recipe) -> Flow:
        """The calls of an evaluation: its responses are scored whole, and count in no step's metrics."""
        flow = Flow(recipe, self.pools, self.evaluation_meter, self.inputs.end_token_ids)
        flow.alarm = self.roles.canaries.alarm
        return flow

    async def _after_step(self, line: Mapping[str, Any]) -> None:
        await uninterrupted(checkpoint.append_line, self.directory, line)
        self.observer.step(line)
        self._stop_rules.stepped(line)
        with suppress(StopAsked):
            await self._between_steps()
        if self.progress.step < self.recipe.run.steps and not self.progress.ended_early and not self.stopping.asked:
            await self.saver.save_if_due()
            self.observer.phase("training")

    async def _between_steps(self) -> None:
        """Make the measurements that are due after this step, before its checkpoint, so that it holds them. Raises
        StopAsked; a resume makes them."""
        known = self._stop_rules.evaluations()
        await self._length.judge(self.stopping)
        await self.measurements.after_step(self.stopping)
        self._stop_rules.measured(known)

    def _end_early(self, why: str) -> None:
        """End the run as done after this step, though the recipe allows more."""
        step, steps = self.progress.step, self.recipe.run.steps
        if step == steps:
            return
        self.progress.ended_early, self.progress.ended_because = True, why
        self.observer.notice(f"the run is done after step {step} of {steps}: {why}")
        if self.stage is not None:
            self.stage.stop()

    async def _skipped_prompts(self) -> dict[str, str]:
        """Texts of the prompts of skipped samples, by group."""
        heldout = self.inputs.heldout
        indices = sorted({Ticket.of(uid, 0).index for uid in self.progress.skipped})
        sets = self.measurements.sets.sets
        held_out = [
            heldout[i - HELDOUT_INDEX] if i < sets.first else sets.prompt(i) for i in indices if i >= HELDOUT_INDEX
        ]
        prompts = [*await taken(self._prompts, [i for i in indices if i < HELDOUT_INDEX]), *held_out]
        return {Ticket(i, 0).group: prompt.row["prompt"] for i, prompt in zip(indices, prompts, strict=True)}


def _learner_death(error: Exception) -> LearnerDied | None:
    """The learner's death, if the error is nothing else."""
    if isinstance(error, ExceptionGroup):
        deaths = [_learner_death(inner) for inner in error.exceptions]
        return deaths[0] if all(deaths) else None
    return error if isinstance(error, LearnerDied) else None
