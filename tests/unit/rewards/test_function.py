"""A reward function of the user's that raises, hangs, ends its process or returns what is no reward."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.rewarding.reward import Reward
from actors.wire.records import Sample, pack_samples
from rewards.apart.process import HANGS, Apart
from rewards.function import number
from rewards.response import Rejection, Response
from tests.unit.rewards.tried import rule_of

HERE = "tests.unit.rewards.misbehaving"
NAMES = ("single", "concurrent", "batch", "batch_at_once", "of_chat")
RULES = tuple(rule_of(function=f"{HERE}:{name}", seconds=0.5, batch=name.startswith("batch")) for name in NAMES)
WORDS = ["one", "raise", "none", "nan", "word", "list", "hang", "two words", "exit", "die", "true"]


class WordReward(Reward):
    """A response's ids are places of WORDS."""

    def _decode(self, ids: list[int]) -> str:
        return WORDS[ids[0]]


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    process = Apart()
    yield process
    process.close()


def sample(place: int) -> Sample:
    return Sample(f"{place:08d}.000", f"{place:08d}", 0, 1, [1], [place], [-1.0], [(0, 1)], "stop", [0])


def responses(*texts: str) -> list[Response]:
    return [Response(text, len(text), {"prompt": "p"}) for text in texts]


def test_a_response_that_the_function_fails_is_rejected_and_the_others_are_rewarded(tmp_path: Path) -> None:
    member, pid = WordReward("nowhere"), tmp_path / "pid"
    member.start()
    uids = [f"{place:08d}.000" for place in range(len(WORDS))]
    payload = pack_samples([sample(place) for place in range(len(WORDS))])[0]
    answer = member.reward(payload, RULES[:1], {uid: {"prompt": "p", "pid": str(pid)} for uid in uids})
    member.stop()
    by_word = {word: answer.rejected.get(uid) for word, uid in zip(WORDS, uids, strict=True)}
    assert by_word == {
        "one": None,
        "raise": "reward function: KeyError: 'gold'",
        "none": "reward function: ValueError: it returned None; return a number",
        "nan": "reward function: it is nan",
        "word": "reward function: ValueError: it returned str '1.0'; return a number",
        "list": "reward function: ValueError: it returned list '[1.0]'; return a number",
        "hang": "reward function: no reward within 0.5 s",
        "two words": None,
        "exit": "reward function: SystemExit: 3",
        "die": "reward function: its process ended before it gave a reward",
        "true": None,
    }
    assert dict(answer.values) == {uids[0]: 1.0, uids[7]: 2.0, uids[10]: 1.0}
    assert answer.components[uids[7]] == {"function": 2.0}
    assert ended(int(pid.read_text())), "what a hanging function began does not outlive it"


def ended(pid: int) -> bool:
    """Whether a process is gone, or has ended and nobody asked."""
    for _ in range(50):
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


def test_calls_of_an_async_function_run_at_the_same_time(apart: Apart) -> None:
    apart.values(RULES, 1, responses("warm"))
    began = time.monotonic()
    values = apart.values(RULES, 1, responses(*["ok"] * 20, "hang"))
    assert time.monotonic() - began < 3.0, "20 of 0.2 s each, and one that is given up after 0.5 s"
    assert values == [1.0] * 20 + [Rejection("no reward within 0.5 s")]


def test_an_async_function_that_blocks_its_loop_costs_its_own_response_only(apart: Apart) -> None:
    values = apart.values(RULES, 1, responses("ok", "block", "ok"))
    assert values == [1.0, Rejection("no reward within 0.5 s"), 1.0]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("a", "bb"), [1.0, 2.0]),
        (("a", "none"), [1.0, Rejection("ValueError: it returned None; return a number")]),
        (("a", "short"), [Rejection("ValueError: it returned 1 values for 2 responses")] * 2),
        (("number",), [Rejection("ValueError: it returned float; return a list with a number for each response")]),
        (("a", "hang"), [Rejection("no reward within 0.5 s")] * 2),
    ],
)
def test_a_batch_gives_each_response_its_value_or_rejects_all(
    apart: Apart, texts: tuple[str, ...], expected: list[float | Rejection]
) -> None:
    assert apart.values(RULES, 2, responses(*texts)) == expected


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("a", "bb", "ccc"), [1.0, 2.0, 3.0]),
        (("a", "late"), [Rejection("no reward within 0.5 s")] * 2),
        (("a", "raise"), [Rejection("KeyError: 'gold'")] * 2),
        (("a", "timeout"), [Rejection("TimeoutError: the judge gave up")] * 2),
    ],
)
def test_an_async_batch_is_awaited_for_its_seconds(
    apart: Apart, texts: tuple[str, ...], expected: list[float | Rejection]
) -> None:
    apart.values(RULES, 3, responses("warm"))
    process = apart.pid
    assert apart.values(RULES, 3, responses(*texts)) == expected
    assert apart.pid == process, "it keeps the time itself: nothing is killed"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "two words"}, 1.9),
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "abc"}]}, 2.3),
        ({"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "given"}]}, 1.2),
    ],
    ids=["a prompt is one turn of the user's", "a chat", "a given answer is left out"],
)
def test_a_function_may_ask_for_the_chat_that_is_answered(apart: Apart, row: dict[str, Any], expected: float) -> None:
    assert apart.values(RULES, 4, [Response("text", 1, row)]) == [pytest.approx(expected)]


def test_a_function_that_never_answers_is_not_asked_for_ever(apart: Apart, tmp_path: Path) -> None:
    row = {"pid": str(tmp_path / "pid")}
    values = apart.values(RULES[:1], 0, [Response("hang", 1, row)] * (HANGS + 40))
    assert [value.reason for value in values[:HANGS] if isinstance(value, Rejection)] == [
        "no reward within 0.5 s"
    ] * HANGS
    assert values[-1] == Rejection(f"not asked for: {HANGS} responses in a row had no reward within 0.5 s")


def test_the_process_apart_dies_with_its_worker_whatever_its_function_does() -> None:
    code = (
        "import os, signal, threading\n"
        "from tests.unit.rewards.test_function import RULES, Apart, responses\n"
        "apart = Apart()\n"
        "apart.values(RULES, 1, responses('ok'))\n"
        "print(apart.pid, flush=True)\n"
        "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()\n"
        "apart.values(RULES, 1, responses('block'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended(int(done.stdout)), done.stderr


def test_a_module_that_cannot_be_imported_ends_the_request(apart: Apart) -> None:
    with pytest.raises(RuntimeError, match=r"reward.rules.0: cannot be prepared \(ModuleNotFoundError: No module"):
        apart.values((rule_of(function="nowhere:score"),), 0, responses("a"))


def test_numbers_of_numpy_are_numbers() -> None:
    assert number(np.float32(0.5)) == 0.5 and number(np.int64(2)) == 2.0 and number(np.bool_(True)) == 1.0
