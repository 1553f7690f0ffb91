"""A teacher's responses are sampled once, kept under a key of all they depend on, and never half-written."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.rollout.rollout import Rollout
from actors.rollout.teacher_rollout import TeacherRollout
from actors.wire.records import Request, Sample
from configs.roles.rollout import Rollout as RolloutConfig
from configs.schema import Sampling

REQUEST = Request("00000001.000", "00000001", 0, seed=11, prompt_ids=[1, 2], sampled_prompt_ids=[7, 1, 2])
SAMPLING = Sampling(max_response_tokens=8)
END = (2, 3)
FINISH: dict[str, str] = {"00000001.cut": "cut", "00000001.abort": "abort"}  # by uid, else stop


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Requests that the engine was asked; each answer differs from all before."""
    requests: list[Request] = []

    async def sample(self: Rollout, request: Request, sampling: Sampling, ends: Sequence[int]) -> AsyncIterator[Sample]:
        requests.append(request)
        ids = [40 + len(requests), 2]
        if request.segment_tokens:
            yield request.answered(ids[:1], [-0.25], "", [99])
        finish, start = FINISH.get(request.uid, "stop"), request.segment_tokens
        yield request.answered(ids, [-0.25, -1 / 3], finish, [99, 99], start=start)

    monkeypatch.setattr(Rollout, "_sample", sample)
    return requests


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def member(model: Path, kept: Path | None = None, **config: Any) -> TeacherRollout:
    return TeacherRollout(RolloutConfig(**config), str(model), "/none", str(kept or model.parent / "kept"))


def ask(
    teacher: TeacherRollout, request: Request = REQUEST, sampling: Sampling = SAMPLING, ends: tuple[int, ...] = END
) -> Sample:
    (sample,) = rows(teacher, request, sampling, ends)
    return sample


def rows(
    teacher: TeacherRollout,
    request: Request = REQUEST,
    sampling: Sampling = SAMPLING,
    ends: tuple[int, ...] = END,
    segment: int = 0,
) -> list[Sample]:
    async def work() -> list[Sample]:
        return [row async for row in teacher._sample(replace(request, segment_tokens=segment), sampling, ends)]

    return asyncio.run(work())


def test_a_response_is_sampled_once_and_then_read(model: Path, asked: list[Request]) -> None:
    teacher = member(model)
    first, second = ask(teacher), ask(teacher)
    assert first == second and first.rollout_logprobs == [-0.25, -1 / 3]
    assert len(asked) == 1 and teacher.counts() == {"kept": 1, "sampled": 1}


def test_segments_leave_as_they_come_and_the_response_is_kept_whole(model: Path, asked: list[Request]) -> None:
    teacher = member(model)
    asyncio.run(teacher.load(3, ()))
    first, second = rows(teacher, segment=1)
    assert (first.finish, first.versions, second.start, second.versions) == ("", [3], 1, [3, 3])
    (kept,) = rows(teacher, segment=1)
    assert (kept.start, kept.response_ids, kept.finish) == (0, second.response_ids, "stop") and len(asked) == 1


@pytest.mark.parametrize("ending", ["cut", "abort"])
def test_a_cut_or_aborted_response_is_not_kept(model: Path, asked: list[Request], ending: str) -> None:
    teacher, request = member(model), dataclasses.replace(REQUEST, uid=f"00000001.{ending}")
    assert ask(teacher, request).finish == ending
    ask(teacher)
    assert len(asked) == 2 and teacher.counts() == {"kept": 0, "sampled": 2}


def test_another_member_reads_kept_responses(model: Path, asked: list[Request]) -> None:
    first = ask(member(model))
    later = member(model)
    assert ask(later) == first and len(asked) == 1 and later.counts() == {"kept": 1, "sampled": 0}


def test_a_kept_response_takes_the_uid_of_the_request_and_the_current_version(
    model: Path, asked: list[Request]
) -> None:
    teacher = member(model)
    ask(teacher)
    asyncio.run(teacher.load(6, ()))
    again = ask(teacher, dataclasses.replace(REQUEST, uid="00000009.001", group="00000009", attempt=2))
    assert (again.uid, again.group, again.attempt, again.prompt_ids) == ("00000009.001", "00000009", 2, [1, 2])
    assert again.versions == [6, 6] and again.loss_spans == [(0, 2)] and len(asked) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"request": dataclasses.replace(REQUEST, seed=12)},
        {"request": dataclasses.replace(REQUEST, sampled_prompt_ids=[7, 1, 3])},
        {"sampling": Sampling(max_response_tokens=9)},
        {"sampling": Sampling(max_response_tokens=8, temperature=0.7)},
        {"sampling": Sampling(max_response_tokens=8, top_p=0.9)},
        {"ends": (2,)},
    ],
    ids=str,
)
def test_the_key_covers_all_that_a_response_depends_on(
    model: Path, asked: list[Request], changed: dict[str, Any]
) -> None:
    teacher = member(model)
    assert ask(teacher) != ask(teacher, **changed) and len(asked) == 2


@pytest.mark.parametrize(
    ("changed", "samples"),
    [({"dtype": "float32"}, 2), ({"max_context_tokens": 10}, 2), ({"max_context_tokens": 11}, 1)],
    ids=str,
)
def test_the_key_covers_the_dtype_and_the_room_in_the_context(
    model: Path, asked: list[Request], changed: dict[str, Any], samples: int
) -> None:
    """A prompt of 3 tokens, and a response of up to 8."""
    ask(member(model, dtype="bfloat16"))
    ask(member(model, **{"dtype": "bfloat16"} | changed))
    assert len(asked) == samples


def test_the_key_ignores_the_order_of_end_tokens_and_the_students_prompt(model: Path, asked: list[Request]) -> None:
    teacher = member(model)
    ask(teacher)
    ask(teacher, ends=END[::-1])
    assert ask(teacher, dataclasses.replace(REQUEST, prompt_ids=[5])).prompt_ids == [5] and len(asked) == 1


def rewrite(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(b"others!")
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 1_000_000))  # coarse clocks


def grow(model: Path) -> None:
    (model / "model-2.safetensors").write_bytes(b"more")


def reconfigure(model: Path) -> None:
    (model / "config.json").write_text('{"layers": 2}')


@pytest.mark.parametrize("change", [rewrite, grow, reconfigure])
def test_the_key_changes_with_the_files_of_the_model(model: Path, asked: list[Request], change: Any) -> None:
    ask(member(model))
    change(model)
    ask(member(model))
    assert len(asked) == 2


def test_a_half_written_file_is_never_read(model: Path, asked: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a member is killed while it writes: the next one samples again and keeps the whole response."""
    write = Path.write_text

    def cut_short(self: Path, text: str) -> int:
        write(self, text[:9])
        raise OSError("killed")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(Path, "write_text", cut_short)
        ask(member(model))
    later = member(model)
    assert ask(later).finish == "stop" and ask(later).finish == "stop"
    assert later.counts() == {"kept": 1, "sampled": 1} and len(asked) == 2


def test_no_partial_file_is_left(model: Path, asked: list[Request]) -> None:
    ask(member(model))
    (file,) = [f for f in (model.parent / "kept").rglob("*") if f.is_file()]
    assert file.suffix == ".json" and file.parent.name == file.name[:2]
