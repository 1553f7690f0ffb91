"""A checkpoint is whole or ignored. Logs are cut back to it, and what is cut is kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.checkpoint import (
    MANIFEST,
    METRICS,
    STATE,
    claim_version,
    highest_version,
    latest,
    partial_folder,
    rewind,
    seal,
    write_whole,
)


def log(run: Path, *steps: int) -> None:
    with (run / METRICS).open("a") as file:
        file.writelines(json.dumps({"step": step, "policy_version": step + 10}) + "\n" for step in steps)


def save(run: Path, step: int, keep: int = 9) -> Path:
    partial = partial_folder(run, step)
    (partial / "rank0").mkdir()
    (partial / "rank0" / "weights.bin").write_bytes(bytes([step]) * 64)
    return seal(run, partial, {"step": step, "version": step}, keep)


def steps_kept(run: Path) -> set[str]:
    return {folder.name for folder in (run / "checkpoints").iterdir()}


def test_there_is_no_latest_checkpoint_before_the_first(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    rewind(tmp_path, None)
    assert highest_version(tmp_path) is None and not (tmp_path / f"{METRICS}.lost").exists()


def test_the_newest_is_found_by_number_with_its_state_and_log_length(tmp_path: Path) -> None:
    log(tmp_path, 1)
    save(tmp_path, 9)
    log(tmp_path, 2)
    save(tmp_path, 10)
    log(tmp_path, 3)
    saved = latest(tmp_path)
    assert saved is not None
    assert (saved.folder.name, saved.state) == ("step_10", {"step": 10, "version": 10})
    assert (tmp_path / METRICS).read_bytes()[: saved.metrics_bytes].count(b"\n") == 2


def test_the_manifest_names_every_file_with_its_hash(tmp_path: Path) -> None:
    manifest = json.loads((save(tmp_path, 1) / MANIFEST).read_text())
    assert manifest["files"].keys() == {STATE, "rank0/weights.bin"}
    assert manifest["files"]["rank0/weights.bin"]["bytes"] == 64
    assert manifest["logs"] == {METRICS: 0}


def change_a_byte(folder: Path) -> None:
    (folder / "rank0" / "weights.bin").write_bytes(b"\x00" + b"\x02" * 63)


def cut_a_file(folder: Path) -> None:
    (folder / "rank0" / "weights.bin").write_bytes(b"\x02" * 63)


def change_the_state(folder: Path) -> None:
    (folder / STATE).write_text('{"step": 3}')


def lose_a_file(folder: Path) -> None:
    (folder / "rank0" / "weights.bin").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def cut_the_manifest(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text[: len(text) // 2])


def empty_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("{}")


DAMAGES = [
    change_a_byte, cut_a_file, change_the_state, lose_a_file, lose_the_manifest, cut_the_manifest, empty_the_manifest
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_ignored(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    saved = latest(tmp_path)
    assert saved is not None and saved.state["step"] == 1


@pytest.mark.parametrize("content", [b"\xff{}", b"null", b'{"files": {}}', b'{"files": []}'])
def test_a_malformed_manifest_is_ignored(tmp_path: Path, content: bytes) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / MANIFEST).write_bytes(content)
    saved = latest(tmp_path)
    assert saved is not None and saved.state["step"] == 1


def test_a_folder_copied_by_hand_does_not_stop_a_resume(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / "step_1_copy").mkdir()
    saved = latest(tmp_path)
    assert saved is not None and saved.state["step"] == 1


def test_a_folder_that_was_never_sealed_is_ignored(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (partial_folder(tmp_path, 2) / "weights.bin").write_bytes(b"half")
    saved = latest(tmp_path)
    assert saved is not None and saved.state["step"] == 1


def test_a_partial_folder_begins_empty(tmp_path: Path) -> None:
    (partial_folder(tmp_path, 2) / "left over").write_bytes(b"half")
    assert list(partial_folder(tmp_path, 2).iterdir()) == []


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (2, 9, 10, 11):
        save(tmp_path, step, keep=2)
    assert steps_kept(tmp_path) == {"step_10", "step_11"}


def test_a_step_saved_again_replaces_its_earlier_save(tmp_path: Path) -> None:
    (save(tmp_path, 3) / "old").write_text("x")
    assert not (save(tmp_path, 3, keep=1) / "old").exists()
    assert steps_kept(tmp_path) == {"step_3"}


@pytest.mark.parametrize("earlier", [True, False], ids=["saved before", "new"])
def test_a_kill_between_manifest_and_name_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    """If the step was saved before, that folder is gone by then."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    if earlier:
        save(tmp_path, 3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", killed)
        save(tmp_path, 3)
    assert steps_kept(tmp_path) == {"step_3.partial"}
    saved = latest(tmp_path)
    assert saved is not None and saved.state["step"] == 3 and steps_kept(tmp_path) == {"step_3"}


def test_a_new_checkpoint_is_synced_before_an_old_one_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and folders are synced, then the folder is renamed and synced; only then others are removed."""
    save(tmp_path, 1, keep=1)
    done: list[tuple[str, str]] = []
    replace, rmtree, fsync = os.replace, shutil.rmtree, os.fsync

    def noted(what: str, path: object) -> None:
        done.append((what, os.path.relpath(str(path), tmp_path / "checkpoints")))

    def synced(number: int) -> None:
        noted("sync", os.readlink(f"/proc/self/fd/{number}"))
        fsync(number)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *names: (noted("name", names[1]), replace(*names)))
    monkeypatch.setattr(shutil, "rmtree", lambda path, **how: (noted("drop", path), rmtree(path, **how)))
    save(tmp_path, 2, keep=1)
    before, after = done[: done.index(("name", "step_2"))], done[done.index(("name", "step_2")) + 1 :]
    inside = ("", "/rank0", "/rank0/weights.bin", f"/{STATE}", f"/{MANIFEST}")
    assert {("sync", f"step_2.partial{name}") for name in inside} | {("sync", ".")} <= set(before)
    assert after == [("sync", "."), ("drop", "step_1")]


def test_a_damaged_newer_checkpoint_does_not_push_out_the_one_just_sealed(tmp_path: Path) -> None:
    lose_the_manifest(save(tmp_path, 9))
    assert latest(tmp_path) is None  # so the run begins anew
    save(tmp_path, 2, keep=1)
    saved = latest(tmp_path)
    assert saved is not None and saved.state["step"] == 2


def test_logs_are_cut_to_the_checkpoint_and_the_tail_is_kept(tmp_path: Path) -> None:
    log(tmp_path, 1, 2)
    save(tmp_path, 2)
    log(tmp_path, 3, 4)
    before = (tmp_path / METRICS).read_text().splitlines()
    rewind(tmp_path, latest(tmp_path))
    assert (tmp_path / METRICS).read_text().splitlines() == before[:2]
    assert (tmp_path / f"{METRICS}.lost").read_text().splitlines() == before[2:]


def test_the_highest_version_survives_a_rewind(tmp_path: Path) -> None:
    for number in (3, 4):
        claim_version(tmp_path, number)
    rewind(tmp_path, None)
    assert highest_version(tmp_path) == 4


def test_a_second_cut_is_appended_to_the_first(tmp_path: Path) -> None:
    for steps in ((1, 2), (1,)):
        log(tmp_path, *steps)
        rewind(tmp_path, None)
    lost = (tmp_path / f"{METRICS}.lost").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lost] == [1, 2, 1]
    assert (tmp_path / METRICS).read_text() == ""


def test_a_line_cut_short_by_a_crash_does_not_stop_a_rewind(tmp_path: Path) -> None:
    log(tmp_path, 1)
    save(tmp_path, 1)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 2, "policy_ver')
    rewind(tmp_path, latest(tmp_path))
    assert (tmp_path / METRICS).read_text().count("\n") == 1


def test_samples_of_lost_steps_are_set_aside_and_those_of_evaluations_are_not(tmp_path: Path) -> None:
    save(tmp_path, 2)
    (tmp_path / "samples").mkdir()
    for name in ("step_000002.rank0", "step_000003.rank0", "step_000003.rank1", "eval_before.rank0"):
        (tmp_path / "samples" / f"{name}.arrow").write_bytes(b"")
    rewind(tmp_path, latest(tmp_path))
    assert {file.name for file in (tmp_path / "samples").iterdir()} == {
        "step_000002.rank0.arrow",
        "step_000003.rank0.arrow.lost",
        "step_000003.rank1.arrow.lost",
        "eval_before.rank0.arrow",
    }


def test_old_checkpoints_are_removed_even_if_the_step_was_whole_already(tmp_path: Path) -> None:
    """As after a kill between naming it and removing the old ones."""
    for step in (1, 2, 3):
        save(tmp_path, step)
    save(tmp_path, 3, keep=1)
    assert steps_kept(tmp_path) == {"step_3"}


def test_a_resume_removes_half_written_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 1)
    partial_folder(tmp_path, 2)
    rewind(tmp_path, latest(tmp_path))
    assert steps_kept(tmp_path) == {"step_1"}


def test_a_file_written_whole_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "recipe.yaml"
    write_whole(file, "old")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(KeyboardInterrupt))
        write_whole(file, "new")
    assert file.read_text() == "old"
    write_whole(file, "new")
    assert file.read_text() == "new"
