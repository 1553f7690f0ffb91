"""Calls to members: over Ray, or in this process. It decides nothing.

A call returns references to values that the orchestrator owns and need not open. An argument that is a reference
reaches the member as its value. Three kinds of errors: the member died (or its device failed), a value was lost with
its node, or the member raised any other error.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from configs.roles.sizes import Resources
from orchestrator.placement.on_ray import Place, Places, amounts
from orchestrator.pools.sick import Fault, fault_of


class MemberDied(Exception):
    """The process behind a call is gone. Another member may answer the call."""


class MemberSick(MemberDied):
    """A member's device, memory or connection failed. It lives, but is treated as dead."""

    def __init__(self, message: str, fault: Fault) -> None:
        super().__init__(message)
        self.fault = fault


class ValueLost(Exception):
    """A value was lost with the node that held it, and must be made again."""


@dataclass(frozen=True)
class GangSpec:
    """A member's actors: one per tuple of constructor arguments, in one placement group."""

    role: str
    cls: type
    arguments: tuple[tuple[Any, ...], ...]
    resources: Resources
    environment: Mapping[str, str] = field(default_factory=dict)


class Transport(Protocol):
    async def spawn(self, spec: GangSpec) -> Sequence[Any]:
        """Start the actors of a member; returns their handles, lead first. Raises NoPlace."""
        ...

    def call(self, actor: Any, method: str, *args: Any, returns: int = 1) -> Sequence[Any]:
        """Call without waiting. Returns one reference per result."""
        ...

    def stream(self, actor: Any, method: str, *args: Any) -> AsyncIterator[tuple[Any, Any]]:
        """Call a generator method that yields payload, header, payload, header, ... Yields pairs of a reference to the
        payload and the header's value; then raises MemberDied, ValueLost, or what the member raised."""
        ...

    async def value(self, ref: Any) -> Any:
        """Open a reference. Raises MemberDied, ValueLost, or what the member raised."""
        ...

    def node(self, actor: Any) -> str | None:
        """The node of a member's lead; None if unknown."""
        ...

    async def kill(self, actors: Sequence[Any]) -> None:
        """End the actors of a member, if any, and free their placement group."""
        ...


class RayTransport:
    """Ray actors, in one placement group per member. They die with this driver."""

    def __init__(self, placement_timeout: float = 300.0) -> None:
        self._places = Places(placement_timeout)
        self._taken: dict[Any, Place] = {}  # by lead

    async def spawn(self, spec: GangSpec) -> Sequence[Any]:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        taken = await self._places.take(spec.role, len(spec.arguments), spec.resources)
        bundle = amounts(spec.resources)
        actors: list[Any] = []
        try:
            for index, arguments in enumerate(spec.arguments):
                place = PlacementGroupSchedulingStrategy(taken.group, placement_group_bundle_index=index)
                actors.append(
                    ray.remote(spec.cls)
                    .options(
                        num_cpus=bundle.get("CPU", 0),
                        num_gpus=bundle.get("GPU", 0),
                        resources=dict(spec.resources.custom),
                        max_restarts=0,
                        max_task_retries=0,
                        enable_task_events=False,  # else Ray lists each call in its dashboard
                        scheduling_strategy=place,
                        runtime_env={"env_vars": dict(spec.environment)},
                    )
                    .remote(*arguments)
                )
        except BaseException:
            for actor in actors:
                ray.kill(actor)
            self._places.give_back(taken)
            raise
        self._taken[actors[0]] = taken
        return actors

    def node(self, actor: Any) -> str | None:
        return self._taken[actor].node if actor in self._taken else None

    def call(self, actor: Any, method: str, *args: Any, returns: int = 1) -> Sequence[Any]:
        refs = getattr(actor, method).options(num_returns=returns).remote(*args)
        return [refs] if returns == 1 else refs

    async def stream(self, actor: Any, method: str, *args: Any) -> AsyncIterator[tuple[Any, Any]]:
        import ray

        generator = getattr(actor, method).options(num_returns="streaming").remote(*args)
        try:
            while (pair := await self._pair(generator)) is not None:
                yield pair
        except (GeneratorExit, asyncio.CancelledError):  # the reader stopped
            with suppress(Exception):  # the actor may be gone
                ray.cancel(generator)
            raise

    async def _pair(self, generator: Any) -> tuple[Any, Any] | None:
        """The next payload and its header; None at the end. Ray yields the error that ended a generator as one more
        reference, in the place of a payload or a header."""
        await _wait_for_header(generator)
        payload = await anext(generator, None)
        if payload is None:
            return None
        header = await anext(generator, None)
        if header is None:
            await self.value(payload)
            raise RuntimeError("a member's generator ended with a payload that has no header")
        return payload, await self.value(header)

    async def value(self, ref: Any) -> Any:
        try:
            return await ref
        except Exception as error:
            raise _translated(error) from error

    async def kill(self, actors: Sequence[Any]) -> None:
        import ray

        for actor in actors:
            ray.kill(actor)
        if actors and (taken := self._taken.pop(actors[0], None)):
            self._places.give_back(taken)


async def _wait_for_header(generator: Any) -> None:
    """Wait for the second of the next two values. Ray's `anext` fetches a value that it waits for, so every payload,
    but not one that has arrived."""
    with suppress(Exception):  # the end, or an error, which `anext` raises again
        await generator._get_next_ref_n(2)[1]


def _translated(error: Exception) -> Exception:
    from ray import exceptions

    if isinstance(error, exceptions.RayTaskError):
        inner = error.cause if isinstance(error.cause, Exception) else error
        lost = exceptions.ObjectLostError | exceptions.OwnerDiedError
        if isinstance(inner, lost):
            return ValueLost(str(inner))
        return _sick(inner, str(error)) or inner  # only the text holds a cause that cannot be unpickled
    if isinstance(error, exceptions.ObjectLostError):
        return ValueLost(str(error))
    dead = (
        exceptions.RayActorError,
        exceptions.OutOfMemoryError,
        exceptions.NodeDiedError,
        exceptions.WorkerCrashedError,
        exceptions.ActorUnschedulableError,
    )
    if isinstance(error, dead):
        return MemberDied((str(error).strip() or type(error).__name__).splitlines()[0])
    return error


def _sick(error: Exception, traceback: str = "") -> MemberSick | None:
    """The error as MemberSick, if a device, memory or a connection failed; else None."""
    if isinstance(error, MemberDied | ValueLost) or (fault := fault_of(error, traceback)) is None:
        return None
    lines = str(error).strip().splitlines() or [""]
    return MemberSick(f"{type(error).__name__}: {lines[0]}", fault)


@dataclass(frozen=True, eq=False)
class _Box:
    """A reference of the in-process transport; `part` is the index among several results."""

    future: asyncio.Future[Any]
    part: int | None = None

    async def opened(self) -> Any:
        value = await self.future
        return value if self.part is None else value[self.part]


class LocalTransport:
    """Members in this process: for tests, and for more simulated members than a machine has processes."""

    def __init__(self) -> None:
        self._dead: dict[int, Any] = {}  # by id; kept so that no new actor gets a dead one's id
        self._working: dict[int, set[asyncio.Task[Any]]] = defaultdict(set)  # by actor id; cancelled when it is killed

    async def spawn(self, spec: GangSpec) -> Sequence[Any]:
        return [spec.cls(*arguments) for arguments in spec.arguments]

    def call(self, actor: Any, method: str, *args: Any, returns: int = 1) -> Sequence[Any]:
        whole = asyncio.ensure_future(self._run(actor, method, args))
        return [_Box(whole)] if returns == 1 else [_Box(whole, part) for part in range(returns)]

    async def stream(self, actor: Any, method: str, *args: Any) -> AsyncIterator[tuple[Any, Any]]:
        values = getattr(actor, method)(*[await a.opened() if isinstance(a, _Box) else a for a in args])
        values = values if isinstance(values, AsyncGenerator) else _asynchronous(values)
        try:
            while pair := await asyncio.ensure_future(self._alive(actor, lambda: _pair(values))):
                yield pair
        finally:
            await values.aclose()

    async def value(self, ref: Any) -> Any:
        return await ref.opened()

    def node(self, actor: Any) -> str | None:
        return None

    async def kill(self, actors: Sequence[Any]) -> None:
        self._dead.update({id(actor): actor for actor in actors})
        for actor in actors:
            for task in self._working.pop(id(actor), ()):
                task.cancel()

    async def _run(self, actor: Any, method: str, args: Sequence[Any]) -> Any:
        self._check(actor)
        opened = [await a.opened() if isinstance(a, _Box) else a for a in args]
        return await self._alive(actor, lambda: _called(actor, method, opened))

    async def _alive(self, actor: Any, work: Callable[[], Awaitable[Any]]) -> Any:
        """Run an actor's work in the current task. Raises MemberDied if the actor is killed meanwhile."""
        task, tasks = asyncio.current_task(), self._working[id(actor)]
        assert task
        tasks.add(task)
        try:
            self._check(actor)
            value = await work()
        except asyncio.CancelledError:
            self._check(actor)
            raise
        except Exception as error:
            if sick := _sick(error):
                raise sick from error
            raise
        finally:
            tasks.discard(task)
        self._check(actor)
        return value

    def _check(self, actor: Any) -> None:
        if id(actor) in self._dead:
            raise MemberDied(f"{type(actor).__name__} was killed")


async def _called(actor: Any, method: str, args: Sequence[Any]) -> Any:
    result = getattr(actor, method)(*args)
    return await result if inspect.isawaitable(result) else result


async def _pair(values: AsyncGenerator[Any, None]) -> tuple[_Box, Any] | None:
    """The next payload and its header; None at the end."""
    payload = await anext(values, None)
    return None if payload is None else (_boxed(payload), await anext(values))


async def _asynchronous(values: Iterable[Any]) -> AsyncGenerator[Any, None]:
    for value in values:
        yield value


def _boxed(value: Any) -> _Box:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return _Box(future)
