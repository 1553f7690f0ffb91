"""A run: bring up the roles, evaluate, train a stage, evaluate again, leave a report.

A Run is *given* its pools; what it starts it leaves running, so that one cluster and its engines serve many runs. When
its learner dies it goes back to the newest whole checkpoint, as a resume does, and on from there; all else lives on.
"""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import time
from collections import Counter
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from configs import rules
from configs.load import RecipeError, dump_recipe, with_swaps
from configs.schema import Recipe
from objectives.curriculum import Action, Ladder, judge
from objectives.schedule import dials_at, initial_beta
from orchestrator import checkpoint
from orchestrator.evaluate import HELDOUT_INDEX, Evaluation, Found, compared
from orchestrator.modes import open_up
from orchestrator.pools.pools import Pools
from orchestrator.pools.suspects import Suspects
from orchestrator.pools.telemetry import Meter
from orchestrator.preflight.files import Inputs
from orchestrator.samples.dispatch import Ticket
from orchestrator.samples.flow import Flow
from orchestrator.samples.ledger import Ledger
from orchestrator.samples.prompts import PromptStream
from orchestrator.stage import Progress, Stage
from orchestrator.stopping import Ask, StopAsked, Stopping
from orchestrator.weights.carriers import Carrier, ObjectStore
from orchestrator.weights.learner_group import LearnerDied
from orchestrator.weights.roles import Roles
from orchestrator.weights.skipped_updates import SkippedUpdates
from orchestrator.weights.teachers import SwapFailed

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 3  # exit codes
REBUILDS = 3  # deaths of the learner without a new step, one beyond all before, that end a run


class Observer(Protocol):
    """Who watches a run: the terminal, the control actor, a test."""

    def phase(self, text: str) -> None:
        """The run has entered a phase, said in a few words."""
        ...

    def notice(self, text: str) -> None:
        """Something a person should know, though the run goes on."""
        ...

    def step(self, line: Mapping[str, Any]) -> None:
        """A step is done; its line of metrics.jsonl."""
        ...

    def evaluated(self, when: str, result: Mapping[str, Any] | None) -> None:
        """An evaluation is done: `before`, `after`, or `step N`."""
        ...


@dataclass(frozen=True)
class Faults:
    """What a run has outlived: members that were replaced, by role, and learners that were built anew."""

    restarts: Mapping[str, int] = field(default_factory=dict)
    learner_rebuilds: int = 0


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
    stage: Stage | None = None

    def __post_init__(self) -> None:
        ends = self.inputs.end_token_ids
        self.flow = Flow(self.recipe, self.pools, self.meter, ends, self.recipe.stream_tokens)
        claim = partial(checkpoint.claim_version, self.directory)
        vocabulary, notice = self.inputs.vocabulary, self.observer.notice
        self.roles = Roles(self.recipe, self.pools, vocabulary, self.carrier, claim, notice, ends)
        self.flow.alarm = self.roles.canaries.alarm
        self.learner = self.roles.learner
        aside = Flow(self.recipe, self.pools, self.evaluation_meter, ends)
        aside.alarm = self.roles.canaries.alarm
        self.suspects = Suspects()  # what kills members kills them in every lineage: it outlives a rebuilt learner
        self.progress = self._beginning()
        self.evaluation = Evaluation(
            self.recipe,
            self.pools,
            aside,
            self.learner,
            self.inputs.heldout,
            self.suspects,
            self._skip,
        )
        self._anchor: int | None = None  # step of the checkpoint that a length curriculum may return to
        self._ended_early = False
        self._save_due = False  # a checkpoint waits for a step that moves the weights
        self.evaluations: dict[str, Any] = {"before": None, "steps": [], "after": None}
        self._before: Found | None = None  # what the evaluation before found, sample by sample
        self.skipped: dict[str, str] = {}  # uid -> why it was not trained, or not evaluated
        # swaps that commands asked for, by model and first step, and what the recipe had there before
        self._swaps_asked_for: dict[tuple[str, int], str | None] = {}
        self._writing = asyncio.Lock()
        self._on_disk: Recipe | None = None  # what recipe.yaml says, as far as this process knows
        self._deaths: list[int] = []  # steps that the learner died after; those made again are no news
        self._served_others = {role: pool.restarts for role, pool in self.pools.all().items()}
        self._earlier: Faults | None = None  # of this run's lives before this one; None until they are known
        self.unsummarised: str | None = None  # why summary.json could not be written
        self._last_saved: tuple[Any, ...] = ()
        self._began = time.monotonic()
        self._startup: float | None = None

    async def execute(self) -> int:
        """Train to the last step, or to the step after `stop`. Goes on from the newest whole checkpoint, if any.

        Returns the exit code (0 or 3) and leaves metrics, checkpoint, model, summary and report in the directory.
        Raises what failed.
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
        self.meter.take()
        self.stage = self._stage()
        if self._ended_early or self.stopping.asked:
            self.stage.stop()
        await self.stage.run()
        stopped = self.progress.step < self.recipe.run.steps and not self._ended_early
        if not stopped or self._state() != self._last_saved:
            await self._save()
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
        if self.evaluations["before"] is None:
            self._before = await self._evaluate("before")
            self.evaluations["before"] = dict(self._before.means) if self._before else None
        if saved:  # a stop keeps nobody waiting for a measurement that was due
            self._last_saved = self._state()
            await self._between_steps()

    async def _end(self) -> None:
        """What comes after the last step, and is done anew by a resume where it was given up. The model has its name
        when it is whole."""
        self._compare(await self._evaluate("after"))
        self.observer.phase("exporting the model")
        model, partial = self.directory / "model", self.directory / "model.partial"
        await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
        async with self.learner.turns.learner():
            await self.learner.export(partial)
        await asyncio.to_thread(_put_in_place, partial, model)

    async def _end_stopped(self) -> int:
        """Stopped where no step was under way, or where it was given up: the last whole checkpoint stands."""
        self.observer.phase("stopping")
        await asyncio.to_thread(checkpoint.keep_recipe, self.directory, dump_recipe(self.recipe))
        await self.summarise(STOPPED)
        return STOPPED

    def _state(self) -> tuple[Any, ...]:
        """What a stop would lose if it were not saved."""
        evaluated = self.evaluations["before"] is not None, len(self.evaluations["steps"])
        blamed = deepcopy((self.suspects.to_state(), self.skipped))
        return self.progress.step, self.progress.ladder, self._ended_early, *evaluated, *blamed

    async def _bury(self, death: LearnerDied) -> None:
        """End what is left of a dead learner. Raises its death when it has come too often without a new step."""
        self._deaths.append(self.progress.step)
        if len(self._deaths) - self._deaths.index(max(self._deaths)) >= REBUILDS:
            raise death
        self.stage = None
        self.observer.notice(f"the learner is built anew from the newest checkpoint: {death}")
        await self.roles.bury_learner()

    def working(self) -> tuple[str, ...]:
        """Roles busy right now."""
        return (*self.meter.working(), *self.evaluation_meter.working())

    def stop(self, ask: Ask = Ask.GENTLY) -> None:
        """Stop, by default after the step under way with a checkpoint to resume from. Other asks: see stopping.py."""
        self.stopping.to(ask, self.recipe.run.grace_seconds)
        if self.stage is not None:
            self.stage.stop()

    def swap(self, paths: Mapping[str, str]) -> None:
        """Give scored models other directories, by name, once the step under way is done. What was asked for before and
        is still to come, as after a rewind, comes no more. Raises RecipeError."""
        step, asked = self.progress.step + 2, self._swaps_asked_for
        recipe = with_swaps(self.recipe, step, paths)
        stale = {(model, first): path for (model, first), path in asked.items() if model in paths and first > step}
        for (model, first), path in stale.items():
            recipe = with_swaps(recipe, first, {model: path})
        before = {(model, step): self.recipe.models[model].swaps.get(step) for model in paths}
        self._use(recipe)
        self._swaps_asked_for = before | {swap: path for swap, path in asked.items() if swap not in stale}

    def swaps(self) -> list[dict[str, Any]]:
        """What was swapped in so far: model, the step from which on, and its path."""
        models, coming = self.recipe.models.items(), self.progress.step + 1
        swaps = [{"model": name, "step": s, "path": p} for name, model in models for s, p in model.swaps.items()]
        return sorted((s for s in swaps if s["step"] <= coming), key=lambda s: s["step"])

    def _use(self, recipe: Recipe) -> None:
        """Go on with a recipe that has other swaps, as will a resume once it is `written`."""
        self.recipe = self.roles.teachers.recipe = recipe

    async def written(self) -> None:
        """Return when the recipe that the run goes on with is on the disk. Raises OSError."""
        async with self._writing:
            if self._on_disk is not (recipe := self.recipe):
                text = dump_recipe(recipe)
                await asyncio.to_thread(checkpoint.write_whole, self.directory / "recipe.yaml", text)
                self._on_disk = recipe

    async def _follow(self) -> None:
        """Bring scored models to what the coming step is to have. What a command asked for may come to nothing; what
        the recipe says may not."""
        await self.written()  # first: a resume must not find other weights than these
        try:
            await self.roles.teachers.follow(self.progress.step + 1)
        except SwapFailed as failure:
            if failure.swap not in self._swaps_asked_for:
                raise
            self.observer.notice(f"the swap came to nothing: {failure}")
            (model, step), before = failure.swap, self._swaps_asked_for.pop(failure.swap)
            self._use(with_swaps(self.recipe, step, {model: before}))
            await self._follow()

    async def _rewind(self, saved: checkpoint.Saved | None) -> None:
        if saved and saved.state["ranks"] != self.recipe.learner.ranks:
            raise RecipeError(
                f"learner.ranks: {self.recipe.learner.ranks}, but {saved.folder} was saved by {saved.state['ranks']}; "
                "resume with as many"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "summary.json").unlink(missing_ok=True)  # an earlier end is not this one's
        await self.written()
        await asyncio.to_thread(checkpoint.rewind, self.directory, saved)
        self.progress, self._anchor = self._beginning(), None
        self._ended_early = self._save_due = False
        self.evaluations["steps"] = []
        if saved:
            self.progress.step = saved.state["step"]
            self.progress.beta = saved.state["beta"]
            self.progress.ladder = Ladder(**saved.state["ladder"])
            self.progress.ledger = Ledger.from_state(saved.state["ledger"])
            self.progress.drops = Counter(dict(saved.state["drops"]))
            self.progress.skips = SkippedUpdates.from_state(saved.state.get("updates_skipped", ()))
            self.suspects.recall(saved.state["suspects"])
            self._anchor, self._ended_early = saved.state["anchor"], saved.state["ended"]
            self.evaluations |= saved.state["evaluation"]
            self._before = Found(**saved.state["before"]) if saved.state.get("before") else None
        self._earlier = self._earlier or Faults(**saved.state["faults"] if saved else {})
        self.skipped = self._still_skipped(saved.state["skipped"] if saved else {})
        highest = await asyncio.to_thread(checkpoint.highest_version, self.directory)
        self.progress.version = 0 if highest is None else highest + 1  # a number names one set of weights, for ever

    def _beginning(self) -> Progress:
        return Progress(beta=initial_beta(self.recipe.objective), suspects=self.suspects)

    def _still_skipped(self, then: Mapping[str, str]) -> dict[str, str]:
        """Of what was skipped up to a checkpoint: groups that are behind it, and held-out ones. Others come again."""
        known = {Ticket.of(uid, 0): reason for uid, reason in {**self.skipped, **then}.items()}
        ledger = self.progress.ledger
        return {t.uid: why for t, why in known.items() if t.index >= HELDOUT_INDEX or t.index in ledger}

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
        length = self.recipe.objective.length
        if length and length.gate and length.gate.on_fail == "rollback" and self._anchor is None:
            self._anchor = self.progress.step
            await self._save()

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
            after_publish=self._follow,
            after_step=self._after_step,
            notice=self.observer.notice,
            skipped=self.skipped,
        )

    def _prompts(self) -> PromptStream:
        return PromptStream(self.inputs.train, self.recipe.run.seed, self.recipe.data.shuffle)

    async def _after_step(self, line: Mapping[str, Any]) -> None:
        await asyncio.to_thread(checkpoint.append_line, self.directory, line)
        self.observer.step(line)
        with suppress(StopAsked):
            await self._between_steps()
        step = self.progress.step
        if step == self.recipe.run.steps or self._ended_early or self.stopping.asked:
            return
        self._save_due |= bool(self.recipe.saved_every) and step % self.recipe.saved_every == 0
        if self._save_due and self.progress.skips.moved(step):
            self._save_due = False
            await self._save_on_the_way()
        self.observer.phase("training")

    async def _between_steps(self) -> None:
        """Measure what is due after this step; it comes before the checkpoint, so that it is saved. Raises StopAsked,
        and a resume does it."""
        await self._judge_length()
        step, steps, every = self.progress.step, self.recipe.run.steps, self.recipe.evaluate.every
        measured = any(line["step"] == step for line in self.evaluations["steps"])
        if not step or step == steps or self._ended_early or not every or step % every or measured:
            return
        result = await self.stopping.unless_asked(self._evaluate(f"step {step}"))
        self.evaluations["steps"] += [{"step": step, **result.means}] if result else []

    async def _judge_length(self) -> None:
        """At the end of a stage of the length curriculum: measure, judge, and do what follows."""
        length, ladder = self.recipe.objective.length, self.progress.ladder
        if length is None or not ladder.due(length):
            return
        measured: Mapping[str, Any] = {}
        if length.gate:
            found = await self.stopping.unless_asked(self._measure(length.gate.eval_length))
            measured = found.means if found else {}
        cap, entropy = ladder.cap(length), measured.get("entropy")
        ladder, action = judge(ladder, length, entropy, measured.get("truncated_fraction", 0.0))
        if action is Action.ROLLBACK:  # before anything is leased at the cap that is gone on with
            await self._roll_back()
        self.progress.ladder = ladder
        seen = "" if entropy is None else f" (held-out entropy {entropy:.3f} nats)"
        self.observer.notice(f"responses of up to {cap} tokens{seen}: {action.value}, now up to {ladder.cap(length)}")
        if action in (Action.ADVANCE, Action.FINISH) and length.gate and length.gate.on_fail == "rollback":
            self._anchor = self.progress.step
            await self._save()
        elif action is Action.STOP:
            self._end_early()

    async def _measure(self, cap: int) -> Found | None:
        """An evaluation that is not recorded, of responses of up to `cap` tokens."""
        await self.roles.pull()
        dials = dials_at(self.recipe.objective, self.progress.step, self.progress.beta)
        return await self.evaluation.run(self.progress.version, dials, None, cap)

    def _end_early(self) -> None:
        """Done, though fewer steps were made than the recipe allows."""
        self._ended_early = True
        if self.stage is not None:
            self.stage.stop()

    def _skip(self, uid: str, reason: str) -> None:
        self.skipped[uid] = reason
        self.observer.notice(f"skipped {uid}: {reason}")

    async def _roll_back(self) -> None:
        """Take the weights that the longest good cap passed with; they are published as a new version."""
        anchor = self.directory / "checkpoints" / f"step_{self._anchor}"
        self.progress.beta = await asyncio.to_thread(checkpoint.beta_of, anchor)
        self.progress.version += 1
        async with self.learner.turns.learner():
            await self.learner.restore(anchor)
            await self.roles.publish(self.progress.version)
        await self.roles.pull()
        await self._follow()

    def _compare(self, after: Found | None) -> None:
        """The evaluation after, and the one before anew: both on the samples that both could score."""
        self.evaluations["after"] = dict(after.means) if after else None
        if self._before and after and self._before.each.keys() != after.each.keys():
            self.evaluations["before"], self.evaluations["after"] = compared(self._before, after)
            common = self._before.each.keys() & after.each.keys()
            self.observer.notice(
                f"before and after are compared on the {len(common)} held-out samples that were scored both times; "
                f"before: {len(self._before.each)}, after: {len(after.each)}"
            )

    async def _evaluate(self, when: str) -> Found | None:
        if not self.inputs.heldout:
            return None
        self.observer.phase(f"evaluating on {len(self.inputs.heldout)} held-out prompts ({when})")
        await self.roles.pull()
        record = self.directory / "samples" / f"eval_{when.replace(' ', '_')}"
        with self.evaluation_meter.clock("evaluation").busy():
            dials = dials_at(self.recipe.objective, max(1, self.progress.step), self.progress.beta)
            result = await self.evaluation.run(self.progress.version, dials, record)
        self.observer.evaluated(when, result and result.means)
        return result

    async def _save(self) -> None:
        self.observer.phase(f"saving step {self.progress.step}")
        folder = await asyncio.to_thread(checkpoint.partial_folder, self.directory, self.progress.step)
        state = {
            "step": self.progress.step,
            "ledger": self.progress.ledger.to_state(),
            "evaluation": self.evaluations,
            "before": self._before and self._before.to_state(),
            "ranks": self.recipe.learner.ranks,
            "beta": self.progress.beta,
            "ladder": self.progress.ladder.to_state(),
            "anchor": self._anchor,
            "ended": self._ended_early,
            "skipped": self.skipped,
            "suspects": self.suspects.to_state(),
            "drops": sorted(self.progress.drops.items()),
            "updates_skipped": self.progress.skips.to_state(),
            "faults": asdict(self._faults()),
        }
        state = deepcopy(state)  # what a thread writes, while members come and go here
        keep, sealing, last = self.recipe.checkpoint.keep, None, self._state()
        try:
            async with self.learner.turns.learner():
                await self.learner.save(folder)
            sealing = asyncio.ensure_future(
                asyncio.to_thread(checkpoint.seal, self.directory, folder, state, keep, self._anchor)
            )
            await asyncio.shield(sealing)
            self._last_saved = last
        except BaseException:
            if sealing and not sealing.done():  # given up, and its thread goes on: it may be whole yet
                raise
            await asyncio.to_thread(
                shutil.rmtree, folder, ignore_errors=True
            )  # a full disk gets its room back; the last whole one stays
            raise

    async def _save_on_the_way(self) -> None:
        """A checkpoint that a run can do without: what keeps it from being written is said, and the run goes on."""
        try:
            await self._save()
        except (OSError, RuntimeError) as error:  # torch says a full disk with a RuntimeError
            self.observer.notice(f"step {self.progress.step} was not saved, the last checkpoint stays: {error}")

    async def summarise(self, code: int) -> None:
        """Write summary.json: how the run ended, whatever the end."""
        summary = {
            "exit": code,
            "steps": self.progress.step,
            "seconds": time.monotonic() - self._began,
            "seconds_startup": self._startup,
            "evaluation": self.evaluations,
            "biased": list(rules.biases(self.recipe)),
            "swaps": self.swaps(),
            "skipped": self.skipped,
            "updates_skipped": self.progress.skips.to_state(),
            "skipped_prompts": self._skipped_prompts(),
            **asdict(self._faults()),
        }
        text = json.dumps(summary, indent=1, allow_nan=False)  # here, where nothing moves meanwhile
        try:
            await asyncio.to_thread(checkpoint.write_whole, self.directory / "summary.json", text)
            self.unsummarised = None
        except OSError as error:  # whoever ends the run tries again, and says it
            self.unsummarised = str(error)

    def _faults(self) -> Faults:
        """Of all the run's lives: those before a resume as far as its checkpoint knew."""
        earlier = self._earlier or Faults()
        here = {role: pool.restarts - self._served_others[role] for role, pool in self.pools.all().items()}
        restarts = {role: earlier.restarts.get(role, 0) + count for role, count in here.items()}
        rebuilds = earlier.learner_rebuilds + len(self._deaths)
        return Faults({role: count for role, count in restarts.items() if count}, rebuilds)

    def _skipped_prompts(self) -> dict[str, str]:
        """Text of the prompts that skipped samples belong to, by group."""
        train, heldout = self._prompts(), self.inputs.heldout
        indices = sorted({Ticket.of(uid, 0).index for uid in self.skipped})
        prompts = [train[i] if i < HELDOUT_INDEX else heldout[i - HELDOUT_INDEX] for i in indices]
        return {Ticket(i, 0).group: prompt.row["prompt"] for i, prompt in zip(indices, prompts, strict=True)}


def _put_in_place(partial: Path, model: Path) -> None:
    open_up(partial)
    shutil.rmtree(model, ignore_errors=True)
    partial.replace(model)


def _learner_death(error: Exception) -> LearnerDied | None:
    """The learner's death, where it is all that went wrong."""
    if isinstance(error, ExceptionGroup):
        deaths = [_learner_death(inner) for inner in error.exceptions]
        return deaths[0] if all(deaths) else None
    return error if isinstance(error, LearnerDied) else None
