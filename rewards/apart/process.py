"""The worker's side of the process apart: starts it, asks it, and kills it when it is late."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from configs.reward_rules import FunctionRule, Rule, TimedRule
from rewards.function import late_by
from rewards.response import Rejection, Response, Value

START_SECONDS = 120.0  # to import the libraries and the user's modules
SLACK_SECONDS = 1.0  # beyond a rule's seconds, where the process keeps them itself for calls at the same time
HANGS = 3  # responses in a row without an answer, after which a request asks for no more


class _Ended(Exception):
    """The process is gone, by its own doing or because it was late. Says which."""


class Apart:
    """One process at a time, started when it is first needed and again after it ended. Not for several threads."""

    def __init__(self) -> None:
        self._rules: tuple[Rule, ...] = ()
        self._together: list[bool] = []
        self._connection: Connection | None = None
        self._end = weakref.finalize(self, lambda: None)
        self.pid: int | None = None  # of the process, while there is one

    def values(self, rules: Sequence[Rule], number: int, responses: Sequence[Response]) -> list[Value]:
        """The values of rule `number`, in the order of the responses. What gets no answer is rejected. Raises
        RuntimeError if the process cannot be started for these rules."""
        rule = rules[number]
        assert isinstance(rule, TimedRule), "a rule apart has seconds"
        self._start(rules)
        if not self._together[number]:
            return self._singly(rules, number, responses)
        try:
            return self._ask(number, responses, rule.seconds, SLACK_SECONDS)
        except _Ended as end:
            if (isinstance(rule, FunctionRule) and rule.batch) or len(responses) == 1:
                return [Rejection(str(end))] * len(responses)
            return self._singly(rules, number, responses)  # which of them it was shows alone

    def close(self) -> None:
        """End the process and all that it started."""
        self._end()
        self._connection = self.pid = None

    def _singly(self, rules: Sequence[Rule], number: int, responses: Sequence[Response]) -> list[Value]:
        """Ask for one response at a time. After HANGS in a row without an answer the rest is rejected unasked."""
        rule, values, hung = rules[number], list[Value](), 0
        assert isinstance(rule, TimedRule), "a rule apart has seconds"
        for response in responses:
            if hung == HANGS:
                values.append(Rejection(f"not asked for: {HANGS} responses in a row had {late_by(rule.seconds)}"))
                continue
            self._start(rules)
            try:
                values += self._ask(number, [response], rule.seconds)
                hung = 0
            except _Ended as end:
                values.append(Rejection(str(end)))
                hung += "no reward" in str(end)
        return values

    def _ask(self, number: int, responses: Sequence[Response], seconds: float, slack: float = 0.0) -> list[Value]:
        """Raises _Ended, with the process ended."""
        answer = self._exchange((number, list(responses)), seconds, slack)
        return [float(item[0]) if item[0] is not None else Rejection(item[1]) for item in answer]

    def _exchange(self, message: Any, seconds: float, slack: float = 0.0) -> Any:
        """Send a message and wait for the answer. Raises _Ended, with the process ended."""
        assert self._connection is not None, "started"
        try:
            self._connection.send(message)
            if self._connection.poll(seconds + slack):
                return json.loads(self._connection.recv_bytes())
        except BlockingIOError:  # it reads, or writes, no more
            pass
        except (EOFError, OSError):
            self.close()
            raise _Ended("its process ended before it gave a reward") from None
        self.close()
        raise _Ended(late_by(seconds))

    def _start(self, rules: Sequence[Rule]) -> None:
        """Have a process that is prepared for the rules. Raises RuntimeError."""
        if self._connection is not None and self._rules == tuple(rules):
            return
        self.close()
        self._rules = tuple(rules)
        self.pid, self._connection, end = _spawned()
        self._end = weakref.finalize(self, end)
        try:
            greeting = self._exchange(self._rules, START_SECONDS)
        except _Ended as ended:
            raise RuntimeError(
                f"reward.rules: their process did not start ({ended}); see the reward worker's log"
            ) from None
        if "error" in greeting:
            self.close()
            raise RuntimeError(f"reward.rules.{greeting['rule']}: cannot be prepared ({greeting['error']})")
        self._together = greeting["together"]


def _spawned() -> tuple[int, Connection, Callable[[], None]]:
    """A new process: its id, its connection, and a function that ends it. It finds the modules that this one finds."""
    here, there = socket.socketpair()
    _limit_waits(here)
    reads, writes = os.pipe()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "rewards.apart.child", str(there.fileno()), str(reads)],
        stdin=subprocess.DEVNULL,
        pass_fds=(there.fileno(), reads),
        env=environment,
        start_new_session=True,
    )
    there.close()
    os.close(reads)
    connection = Connection(here.detach())
    return process.pid, connection, lambda: _ended(process, connection, writes)


def _limit_waits(end: socket.socket) -> None:
    """A read or write that makes no progress for a minute raises BlockingIOError."""
    minute = struct.pack("ll", 60, 0)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, minute)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, minute)


def _ended(process: subprocess.Popen[bytes], connection: Connection, lifeline: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    connection.close()
    os.close(lifeline)
