"""Turns of scorers that share GPUs: the members of one pool are awake, those of the others sleep.

`async with turns.of(pool):` waits for the pool's turn, and holds it. Whatever starts, loads, checks or calls a member
does so inside. `Rota` decides whose turn it is, `ScorerTurns` carries it out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.pools.transport import MemberDied

TURN_SECONDS = 10.0  # a change of turns moves the weights of two models, which takes seconds


@dataclass
class Rota:
    """Whose turn it is. A turn ends with its last call. Once another pool has waited for `seconds`, no further call
    enters the turn, nor does one that would overtake calls of its own pool. Times are seconds of a monotonic clock."""

    seconds: float = TURN_SECONDS
    holder: Pool | None = None  # None while the turn changes
    inside: int = 0  # calls in the turn
    _waiting: dict[Pool, float] = field(default_factory=dict)  # since when; the longest first

    def enter(self, pool: Pool, now: float) -> bool:
        """Whether a call of the pool may enter the turn. If not, the pool waits."""
        others = (since for other, since in self._waiting.items() if other is not self.holder)
        if pool is self.holder and pool not in self._waiting and now < next(others, now) + self.seconds:
            self.inside += 1
            return True
        self._waiting.setdefault(pool, now)
        return False

    def next(self) -> Pool | None:
        """The pool whose turn comes now; None while the turn has calls, or no pool waits."""
        return None if self.inside else next(iter(self._waiting), None)

    def begin(self, pool: Pool, calls: int) -> None:
        """The turn is the pool's, and its waiting calls are in it."""
        self.holder, self.inside = pool, calls
        self.forget(pool)

    def forget(self, pool: Pool) -> None:
        """The pool waits no longer."""
        self._waiting.pop(pool, None)


class ScorerTurns:
    """`on_wake` is called for each member that woke up."""

    def __init__(self, pools: Sequence[Pool], on_wake: Callable[[Pool, PoolMember], Awaitable[None]]) -> None:
        self._on_wake = on_wake
        self._rota = Rota()
        self._lines: dict[Pool, list[asyncio.Future[None]]] = {pool: [] for pool in pools}
        self._change: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def of(self, pool: Pool) -> AsyncIterator[None]:
        """The turn of a pool. Raises what `on_wake` raised when its members woke up."""
        if not self._rota.enter(pool, asyncio.get_running_loop().time()):
            await self._wait(pool)
        try:
            yield
        finally:
            self._leave()

    async def _wait(self, pool: Pool) -> None:
        place = asyncio.get_running_loop().create_future()
        self._lines[pool].append(place)
        self._go_on()
        try:
            await place
        except asyncio.CancelledError:
            if place in self._lines[pool]:
                self._lines[pool].remove(place)
                if not self._lines[pool]:
                    self._rota.forget(pool)
            elif not place.cancelled() and not place.exception():  # its turn came in this iteration of the event loop
                self._leave()
            raise

    def _leave(self) -> None:
        self._rota.inside -= 1
        self._go_on()

    def _go_on(self) -> None:
        """Change the turn if it is time."""
        if self._change is None and (pool := self._rota.next()):
            self._rota.holder = None
            self._change = asyncio.ensure_future(self._change_to(pool))

    async def _change_to(self, pool: Pool) -> None:
        failure: Exception | None = None
        try:
            others = [other for other in self._lines if other is not pool]
            await asyncio.gather(*(_sleep(other, m) for other in others for m in other.members if _awake(m)))
            await asyncio.gather(*(other.members.vacated() for other in others))
            await asyncio.gather(*(self._wake(pool, m) for m in pool.members if m.asleep))
        except Exception as error:
            failure = error
        self._change, places = None, [place for place in self._lines[pool] if not place.cancelled()]
        self._lines[pool] = []
        self._rota.begin(pool, 0 if failure else len(places))
        for place in places:
            place.set_exception(failure) if failure else place.set_result(None)
        self._go_on()

    async def _wake(self, pool: Pool, member: PoolMember) -> None:
        with suppress(MemberDied):  # its pool replaces it
            await wake(pool, member)
            await self._on_wake(pool, member)


async def wake(pool: Pool, member: PoolMember) -> None:
    """Raises MemberDied after replacing the member."""
    await pool.call_member(member, "wake")
    pool.note_asleep(member, False)


def _awake(member: PoolMember) -> bool:
    return member.started and not member.asleep


async def _sleep(pool: Pool, member: PoolMember) -> None:
    with suppress(MemberDied):  # its pool replaces it
        await pool.call_member(member, "sleep")
        pool.note_asleep(member, True)
