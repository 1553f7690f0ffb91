"""The process apart: prepares the rules, then answers until its worker closes the socket or dies."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from configs.reward_rules import Rule
from rewards.response import Rejection, Value, described
from rewards.table import Kind, kind_of


def main(socket: int, lifeline: int) -> None:
    """Serve on a socket; die with the worker that holds the other end of the pipe `lifeline`."""
    _die_with(lifeline)
    worker = Connection(socket)
    rules: Sequence[Rule] = worker.recv()
    greeting, kinds = _prepared(rules)
    _send(worker, greeting)
    while True:
        try:
            number, responses = worker.recv()
        except EOFError:
            return
        values = kinds[number].values(rules[number], responses)
        _send(worker, [_written(value) for value in values])


def _die_with(lifeline: int) -> None:
    """Have the kernel kill this process when the pipe's writer is gone, whatever a user's code is doing."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)  # type: ignore[attr-defined]
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:
        os.kill(os.getpid(), signal.SIGKILL)


def _prepared(rules: Sequence[Rule]) -> tuple[dict[str, Any], list[Kind]]:
    """What each rule is given at once, and the kinds; or the first rule that cannot be prepared."""
    kinds = [kind_of(rule) for rule in rules]
    together: list[bool] = []
    for number, (rule, kind) in enumerate(zip(rules, kinds, strict=True)):
        try:
            if kind.apart(rule):
                kind.prepare(rule)
            together.append(kind.apart(rule) and kind.together(rule))
        except (Exception, SystemExit) as error:  # a user's module may raise anything
            return {"error": described(error), "rule": number}, kinds
    return {"together": together}, kinds


def _written(value: Value) -> list[Any]:
    return [None, value.reason] if isinstance(value, Rejection) else [float(value)]


def _send(worker: Connection, answer: Any) -> None:
    sys.stdout.flush()
    worker.send_bytes(json.dumps(answer).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
