"""Sizes of roles in a live run: read once a second how busy they are, and scale them.

A person and autoscaling both use `scale`. It returns at once: a member that finds no place delays no other command, and
the later of two calls for a role decides.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping

from configs.roles.sizes import name_of
from orchestrator.run import Run
from orchestrator.scaling.autoscale import Autoscaler
from orchestrator.scaling.bottleneck import Diagnosis, Figures, RoleFigures, find_bottleneck
from orchestrator.scaling.utilisation import Reading, Use, Window

JUDGED_EVERY = 10.0  # seconds between diagnoses for autoscaling, at least


class Elastic:
    """Owns the tasks that resize roles. `notice` is called for each decision, and for each resize that fails."""

    def __init__(self, run: Run, notice: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        self._run = run
        self._now = now
        self._pools = run.pools.all()
        self._notice = notice
        self._window = Window()
        self._presence: defaultdict[str, float] = defaultdict(float)
        self._gpu_seconds: defaultdict[str, float] = defaultdict(float)
        self._gpus = {name: part.actors * part.resources.gpus for name, part in run.recipe.parts.items()}  # a member
        self._read_at = now()
        self._autoscaler = Autoscaler(run.recipe.autoscale)
        self._judged_at, self._judged_step = self._read_at, run.progress.step
        self._resizing: set[asyncio.Task[None]] = set()

    def scale(self, sizes: Mapping[str, int], by_itself: bool = False) -> None:
        """Begin to resize elastic roles, to at least 1 member, those of their kinds aside. `by_itself`: by autoscaling,
        which remembers a failure."""
        for role, size in sizes.items():
            task = asyncio.get_running_loop().create_task(self._resize(role, size, by_itself))
            self._resizing.add(task)
            task.add_done_callback(self._resizing.discard)

    def tick(self) -> None:
        """Take a reading, and let autoscaling decide if there are new steps."""
        now, step = self._now(), self._run.progress.step
        self._window.add(self._read(now))
        if step == self._judged_step or now - self._judged_at < JUDGED_EVERY:
            return
        self._judged_at, self._judged_step = now, step
        sizes = {role: sum(not m.kind for m in pool.members.serving()) for role, pool in self._pools.items()}
        if decision := self._autoscaler.decide(self.diagnosis(), sizes, self._settled()):
            self._notice(f"autoscale: {decision.role} {sizes[decision.role]} -> {decision.size} ({decision.why})")
            self.scale({decision.role: decision.size}, by_itself=True)

    def last_minute(self) -> Use | None:
        return self._window.last_minute()

    def gpu_seconds(self) -> Mapping[str, float]:
        """GPU-seconds of each role so far: of members that served, or were leaving."""
        return self._gpu_seconds

    def diagnosis(self) -> Diagnosis | None:
        """The bottleneck; None before enough steps with the current members."""
        use, recipe = self._window.whole_steps(), self._run.recipe
        if use is None:
            return None
        roles = {
            role: RoleFigures(share.members, share.busy, share.waiting, role in recipe.elastic_roles)
            for role, share in use.shares.items()
        }
        return find_bottleneck(Figures(roles, use.steps * recipe.samples_per_step / use.seconds, recipe.max_staleness))

    async def close(self) -> None:
        """Cancel resizes under way."""
        for task in self._resizing:
            task.cancel()
        await asyncio.gather(*self._resizing, return_exceptions=True)

    async def _resize(self, role: str, size: int, by_itself: bool) -> None:
        try:
            await self._pools[role].members.resize(size)
        except Exception as failure:  # the run goes on with the members it has
            if by_itself:
                self._autoscaler.no_place(role)
            self._notice(f"scale: {role}={size} came to nothing: {failure}")
        finally:
            self._window.restart()  # earlier readings are of other members

    def _settled(self) -> bool:
        """Whether no member joins, leaves or is being replaced."""
        return not self._resizing and all(
            m.serving and not m.apart for pool in self._pools.values() for m in pool.members
        )

    def _read(self, now: float) -> Reading:
        for role, pool in self._pools.items():
            there = [member for member in pool.members if member.serving or member.leaving]
            self._presence[role] += len(there) * (now - self._read_at)
            gpus = sum(self._gpus[name_of(role, member.kind)] for member in there)
            self._gpu_seconds[role] += gpus * (now - self._read_at)
        self._read_at = now
        work = {role: pool.clock.total() for role, pool in self._pools.items()}
        waited = self._run.meter.clock("wait").total()
        return Reading(now, self._run.progress.step, work, dict(self._presence), waited)
