"""Scores of responses that come again are read from files of the same weights and tokens, and of no others."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.scoring import score_files
from actors.scoring.engine import Item
from actors.scoring.score_files import Entry, ScoreFiles, oldest_beyond
from actors.scoring.scorer import Scorer
from actors.wire.records import Request, Score, ScoreHeader, ScoreRequest, pack_samples
from configs.roles.scorer import Scorer as ScorerConfig

ROOM = 2**20
KIND = ("sampled", 0, "teacher", ())


def item(uid: str = "0.0", prompt: Sequence[int] = (1, 2), response: Sequence[int] = (5, 6, 7)) -> Item:
    return Item(uid, [*prompt], [*response], 0, True, [])


def score(uid: str = "0.0", value: float = -0.5, k: int = 0) -> Score:
    logprobs = np.array([value, -1.25, -2.0], np.float32)
    if not k:
        return Score(uid, logprobs, entropy_sum=1.5)
    ids = np.arange(3 * k, dtype=np.int32).reshape(3, k)
    return Score(uid, logprobs, ids, (-ids).astype(np.float16), logprobs - 9.0, tails_floored=2)


def files(folder: Path, most: int = ROOM, identity: Sequence[object] = ("weights",)) -> ScoreFiles:
    return ScoreFiles(folder, most, identity)


def only(folder: Path) -> Path:
    (path,) = folder.glob("*/*")
    return path


@pytest.mark.parametrize("k", [0, 1, 3])
def test_what_is_read_is_what_was_written(tmp_path: Path, k: int) -> None:
    wrote = score(k=k)
    files(tmp_path).put(KIND, item(), wrote)
    found = files(tmp_path).get(KIND, item("9.1"))
    assert found is not None and found.uid == "9.1" and found.from_file
    for name in ("logprobs", "support_ids", "support_logprobs", "tail_logprob"):
        one, other = getattr(wrote, name), getattr(found, name)
        assert (one is None) == (other is None)
        assert one is None or (one.dtype == other.dtype and one.shape == other.shape and (one == other).all()), name
    assert (found.entropy_sum, found.tails_floored) == (wrote.entropy_sum, wrote.tails_floored)
    assert stat.S_IMODE(only(tmp_path).parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("identity", "kind", "other"),
    [
        (("other weights",), KIND, item()),
        (("weights",), ("topk", 2, "teacher", ()), item()),
        (("weights",), ("sampled", 0, "teacher", (5,)), item()),
        (("weights",), KIND, item(prompt=(1, 3))),
        (("weights",), KIND, item(response=(5, 6, 8))),
        (("weights",), KIND, item(prompt=(1, 2, 5), response=(6, 7))),
    ],
)
def test_other_weights_supports_and_tokens_have_other_files(
    tmp_path: Path, identity: tuple[str], kind: Any, other: Item
) -> None:
    files(tmp_path).put(KIND, item(), score())
    assert files(tmp_path, identity=identity).get(kind, other) is None
    assert files(tmp_path).get(KIND, item()) is not None


def model(folder: Path, weights: bytes, config: str = '{"rope_theta": 1e4}') -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(config)
    return folder


@pytest.mark.parametrize(
    ("weights", "config", "settings", "vocabulary", "same"),
    [
        (b"a", '{ "rope_theta": 1e4 }', {}, 9, True),
        (b"b", '{"rope_theta": 1e4}', {}, 9, False),
        (b"a", '{"rope_theta": 1e5}', {}, 9, False),
        (b"a", '{"rope_theta": 1e4}', {"dtype": "bfloat16"}, 9, False),
        (b"a", '{"rope_theta": 1e4}', {"engine": "vllm"}, 9, False),
        (b"a", '{"rope_theta": 1e4}', {}, 8, False),
        (b"a", '{"rope_theta": 1e4}', {"members": 2, "tokens_per_batch": 9, "cache_gib": 1.0}, 9, True),
    ],
)
def test_a_model_is_its_bytes_wherever_it_lies(
    tmp_path: Path, weights: bytes, config: str, settings: dict[str, Any], vocabulary: int, same: bool
) -> None:
    base = {"dtype": "float32", "cache": str(tmp_path / "kept")}
    first = ScoreFiles.of(ScorerConfig.model_validate(base), model(tmp_path / "one", b"a"), 9)
    other = ScoreFiles.of(
        ScorerConfig.model_validate(base | settings), model(tmp_path / "two", weights, config), vocabulary
    )
    assert first is not None and other is not None
    first.put(KIND, item(), score())
    assert (other.get(KIND, item()) is not None) == same


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _of_another(path: Path) -> None:
    """A whole file under a key that is not its own."""
    beside = files(path.parents[1] / "beside")
    beside.put(KIND, item(response=(8, 8, 8)), score())
    path.write_bytes(only(path.parents[1] / "beside").read_bytes())


def _of_another_version(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_files, "_ROW", score_files._ROW.set(5, pa.field("tails_floored", pa.int32())))
        data = score_files._packed(bytes.fromhex(path.stem), score())
    path.write_bytes(data)


@pytest.mark.parametrize("spoil", [_cut, _flip, _empty, _of_another, _of_another_version])
def test_a_file_that_is_not_what_was_written_is_said_and_written_anew(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], spoil: Any
) -> None:
    own = files(tmp_path / "kept")
    own.put(KIND, item(), score())
    path = only(tmp_path / "kept")
    spoil(path)
    assert own.get(KIND, item()) is None
    assert f"{path}: " in (said := capfd.readouterr().out) and "is scored again" in said
    assert not path.exists()
    own.put(KIND, item(), score())
    assert own.get(KIND, item()) is not None


def test_each_byte_counts(tmp_path: Path) -> None:
    own = files(tmp_path)
    own.put(KIND, item(), score(k=2))
    data = only(tmp_path).read_bytes()
    key = bytes.fromhex(only(tmp_path).stem)
    for place in range(0, len(data), 37):
        changed = bytearray(data)
        changed[place] ^= 0x10
        with pytest.raises(score_files.Unreadable):
            score_files._unpacked(bytes(changed), key, item())


def test_the_longest_unused_make_room(tmp_path: Path) -> None:
    own = files(tmp_path)
    for i in range(10):
        own.put(KIND, item(response=(i, i, i)), score())
        os.utime(next(p for p in tmp_path.glob("*/*") if p.stat().st_mtime > 1000), (100 + i, 100 + i))
    assert own.get(KIND, item(response=(0, 0, 0))) is not None, "used now"
    small = files(tmp_path, most=5 * 4096)
    left = [i for i in range(10) if small.get(KIND, item(response=(i, i, i)))]
    assert left == [0, 7, 8, 9], "nine tenths of five blocks"


def test_the_bound_holds_while_scores_are_written(tmp_path: Path) -> None:
    most = 16 * 4096
    own, other = files(tmp_path, most), files(tmp_path, most)
    for i in range(60):
        (own if i % 2 else other).put(KIND, item(response=(i, 1, 1)), score())
        assert sum(4096 for _ in tmp_path.glob("*/*.scores")) <= most * (1 + 2 / 16) + 4096
    assert own.get(KIND, item(response=(59, 1, 1))) is not None
    assert own.get(KIND, item(response=(0, 1, 1))) is None


def test_what_is_half_written_is_not_read_and_goes_with_the_rest(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "0.partial").write_bytes(b"x" * 9000)
    (tmp_path / "ab" / "README").write_text("not ours")
    (tmp_path / "notes.txt").write_text("not ours")
    files(tmp_path, most=4096)
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"README", "notes.txt"}


def test_oldest_beyond_leaves_what_fits() -> None:
    entries = [Entry(Path(str(i)), float(-i), 10) for i in range(5)]
    assert oldest_beyond(entries, 50) == []
    assert [e.path.name for e in oldest_beyond(entries, 49)] == ["4"]
    assert [e.path.name for e in oldest_beyond(entries, 0)] == ["4", "3", "2", "1", "0"]


def test_numbers_that_are_none_are_not_kept(tmp_path: Path) -> None:
    files(tmp_path).put(KIND, item(), score(value=float("nan")))
    assert not [*tmp_path.glob("*/*")]


def test_a_disk_that_takes_nothing_is_said_once_and_stops_no_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, folder = files(tmp_path / "kept"), model(tmp_path / "one", b"a")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for i in range(3):
        own.put(KIND, item(response=(i, 1, 1)), score())
    said = capfd.readouterr().out
    assert said.count("No space left on device") == 1 and "scores are no longer kept there" in said
    (tmp_path / "file").touch()
    config = ScorerConfig.model_validate({"cache": str(tmp_path / "file")})
    assert ScoreFiles.of(config, folder, 9) is None
    assert "no scores are kept there" in capfd.readouterr().out


def test_many_may_write_and_read_the_same(tmp_path: Path) -> None:
    """Members share a folder: nobody ever reads half a file."""
    failures: list[str] = []

    def work(seed: int) -> None:
        own = files(tmp_path, most=16 * 4096)
        for i in range(60):
            one = item(response=((seed + i) % 24, 1, 1))
            own.put(KIND, one, score())
            found = own.get(KIND, one)
            if found is not None and (found.logprobs != score().logprobs).any():
                failures.append(f"{i}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


class Counting:
    """An engine that counts what it is asked to score."""

    hidden_dtype = "float32"
    continuous = False

    def __init__(self, logprobs: Sequence[float] = (-0.5, -0.25)) -> None:
        self.asked: list[str] = []
        self.logprobs = np.array(logprobs, np.float32)

    async def score(self, items: Sequence[Item], request: ScoreRequest) -> list[Score]:
        self.asked += [one.uid for one in items]
        return [Score(one.uid, self.logprobs, entropy_sum=0.5) for one in items]

    async def replace(self, tensors: dict[str, Any]) -> None: ...

    def stop(self) -> None: ...


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting()

    async def build(*_: Any) -> Counting:
        return counting

    monkeypatch.setattr("actors.scoring.scorer._build", build)
    monkeypatch.setattr("actors.models.weights.unpack", lambda headers, data: {})
    monkeypatch.setattr("actors.models.weights.check_names", lambda tensors, directory: None)
    return counting


def ask(config: ScorerConfig, folder: Path, *stories: Any) -> list[ScoreHeader]:
    """The headers of one run's answers: a ScoreRequest asks for the one response, a callable does something else."""

    async def work() -> list[ScoreHeader]:
        scorer, headers = Scorer(config, str(folder), 100), []
        await scorer.start()
        for number, story in enumerate(stories):
            if not isinstance(story, ScoreRequest):
                await story(scorer)
                continue
            asked = Request(f"{number:08d}.000", f"{number:08d}", 0, 1, [1, 2])
            payload, _ = pack_samples([asked.answered([5, 6], [-1.0, -1.0], "stop", [0, 0])])
            headers.append((await scorer.score(payload, story))[1])
        await scorer.stop()
        return headers

    return asyncio.run(work())


AGAIN = ScoreRequest("sampled", reusable=True)


def test_a_later_run_is_not_scored_again(tmp_path: Path, engine: Counting) -> None:
    folder = model(tmp_path / "one", b"a")
    config = ScorerConfig.model_validate({"dtype": "float32", "cache": str(tmp_path / "kept")})
    first = ask(config, folder, AGAIN, AGAIN)
    assert len(engine.asked) == 1 and [h.from_files for h in first] == [0, 0], "the second is in memory"
    second = ask(config, folder, AGAIN, AGAIN)
    assert len(engine.asked) == 1 and [h.from_files for h in second] == [2, 0]
    assert [(h.tokens, h.entropies, h.log_ratios) for h in second] == [(2, (0.5,), (1.25,))] * 2
    assert [h._replace(from_files=0) for h in second] == first
    ask(config, model(tmp_path / "two", b"b"), AGAIN)
    assert len(engine.asked) == 2, "other weights"
    ask(config.model_copy(update={"cache": None}), folder, AGAIN)
    assert len(engine.asked) == 3, "off"


def test_what_does_not_come_again_is_not_written(tmp_path: Path, engine: Counting) -> None:
    config = ScorerConfig.model_validate({"cache": str(tmp_path / "kept")})
    folder = model(tmp_path / "one", b"a")
    ask(config, folder, ScoreRequest("sampled"), ScoreRequest("full", reusable=True))
    engine.logprobs = np.array([-0.5, float("nan")], np.float32)
    ask(config, folder, AGAIN)
    assert not [*(tmp_path / "kept").glob("*/*")]


def test_suspicious_scores_are_not_kept(tmp_path: Path, engine: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.scoring.scorer.suspicion_of", lambda *_: "all log-probs are 0")
    config = ScorerConfig.model_validate({"cache": str(tmp_path / "kept")})
    ask(config, model(tmp_path / "one", b"a"), AGAIN)
    assert not [*(tmp_path / "kept").glob("*/*")]


def test_weights_that_moved_neither_read_nor_write(tmp_path: Path, engine: Counting) -> None:
    config = ScorerConfig.model_validate({"cache": str(tmp_path / "kept")})
    folder = model(tmp_path / "one", b"a")
    ask(config, folder, AGAIN)
    kept = only(tmp_path / "kept").read_bytes()

    async def load(scorer: Scorer) -> None:
        await scorer.load(1, ())

    engine.logprobs = np.array([-3.0, -3.0], np.float32)
    (header,) = ask(config, folder, load, AGAIN)
    assert header.from_files == 0 and len(engine.asked) == 2
    assert only(tmp_path / "kept").read_bytes() == kept


def test_a_swap_has_files_of_its_own(tmp_path: Path, engine: Counting) -> None:
    config = ScorerConfig.model_validate({"cache": str(tmp_path / "kept")})
    one, two = model(tmp_path / "one", b"a"), model(tmp_path / "two", b"b")

    async def swap(scorer: Scorer) -> None:
        await scorer.swap(7, str(two))

    headers = ask(config, one, AGAIN, swap, AGAIN)
    assert len(engine.asked) == 2 and [h.scorer_version for h in headers] == [0, 7]
    assert len([*(tmp_path / "kept").glob("*/*")]) == 2
    (found,) = ask(config, two, AGAIN)
    assert len(engine.asked) == 2 and found.from_files == 2 and found.scorer_version == 0
