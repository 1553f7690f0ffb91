"""Files, folders, clusters and names that a run cannot use are refused, with exit code 2 and one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.preflight import cluster
from tests.cli.conftest import _logratio
from tests.engines.shared import merged


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere.invalid:6379"])
def test_a_cluster_address_without_a_cluster(recipe: dict[str, Any], refused: Any, address: str) -> None:
    error = refused(merged(recipe, {"cluster": {"address": address}}))
    assert f"cluster.address: {address} cannot be joined" in error and "is it up?" in error


def test_more_actors_than_the_cluster_holds(recipe: dict[str, Any], refused: Any) -> None:
    error = refused(merged(recipe, {"rollout": {"members": 500, "resources": {"cpus": 1.0}}}))
    assert "takes 500.3 CPU" in error and "rollout 500 x 1" in error and "short" in error


def test_more_gpus_than_the_cluster_holds(recipe: dict[str, Any], refused: Any) -> None:
    error = refused(merged(recipe, {"rollout": {"members": 99, "resources": {"cpus": 0.001, "gpus": 8.0}}}))
    assert "takes 792 GPU" in error and "the cluster has" in error


def test_too_little_shared_memory_for_a_weight_version(
    recipe: dict[str, Any], refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.preflight import files

    monkeypatch.setattr(files, "weight_bytes", lambda folder, dtype: 270 * 2**20)
    error = refused(recipe, "cluster.object_store_mib=100")
    assert "a weight version takes 270.0 MiB" in error and "100.0 MiB" in error


def test_a_name_that_is_alive(recipe: dict[str, Any], refused: Any, tmp_path: Path) -> None:
    with cluster.own_name(tmp_path / "runs" / "bad"):
        assert "run.name: 'bad' is alive" in refused(recipe)


def test_a_name_that_exists(recipe: dict[str, Any], refused: Any, tmp_path: Path) -> None:
    (tmp_path / "runs" / "bad").mkdir(parents=True)
    (tmp_path / "runs" / "bad" / "recipe.yaml").write_text("{}")
    assert "bad/recipe.yaml is no recipe to go on with: " in refused(recipe)


def test_a_refused_run_leaves_its_name_free(recipe: dict[str, Any], refused: Any, tmp_path: Path) -> None:
    refused(merged(recipe, {"data": {"prompts": "/no/prompts.jsonl"}}))
    assert not (tmp_path / "runs" / "bad").exists()


def test_commands_for_a_run_that_is_not_there(monkeypatch: Any, capsys: Any) -> None:
    for command in (["resume", "nobody"], ["stop", "nobody"], ["status", "nobody"], ["scale", "nobody", "rollout=2"]):
        code, error = _logratio(monkeypatch, capsys, *command)
        assert code == 2 and "nobody: no such run" in error


LONG = "a" * 300  # more than a file system allows, so that every look at it fails, as at a folder that is closed


def test_a_root_that_cannot_be_looked_at(recipe: dict[str, Any], refused: Any, tmp_path: Path) -> None:
    for command in ("check", "run"):
        error = refused(recipe, f"run.root={tmp_path / LONG}", command=command)
        assert error.startswith("logratio: run.root: ") and "cannot be looked at (File name too long)" in error


@pytest.mark.parametrize(
    "command",
    [
        ["resume", LONG],
        ["stop", LONG],
        ["status", LONG],
        ["scale", LONG, "rollout=2"],
        ["export", LONG, "out"],
        ["evaluate", LONG],
        ["compare", LONG, LONG, "--metric", "heldout.reverse_kl"],
        ["replay", LONG, "objective.clip=1"],
        ["watch", LONG],
        ["reward", LONG, "--on", LONG],
        ["check", LONG],
        ["check", "configs/quickstart.yaml", "--cluster-spec", LONG],
    ],
    ids=lambda command: "-".join(word for word in command if len(word) < 20),
)
def test_names_that_cannot_be_looked_at(monkeypatch: Any, capsys: Any, command: list[str]) -> None:
    code, error = _logratio(monkeypatch, capsys, *command)
    assert code == 2 and error.count("\n") == 1 and "File name too long" in error, error


def test_usage_errors_are_exit_2(monkeypatch: Any, capsys: Any) -> None:
    code, error = _logratio(monkeypatch, capsys, "run")
    assert code == 2 and error.count("\n") == 1


def _spoilt(models: dict[str, Path], folder: Path, file: str, content: bytes | str | None) -> Path:
    """A copy of the teacher with one file in other words, or a pipe in its place."""
    copy = shutil.copytree(models["teacher"], folder / "spoilt")
    (copy / file).unlink(missing_ok=True)
    if content is None:
        os.mkfifo(copy / file)
    else:
        (copy / file).write_bytes(content.encode() if isinstance(content, str) else content)
    return copy


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.json", '{"model": {"type": "Unknown"}}', "has no tokenizer that loads"),
        ("tokenizer.json", "[]", "has no tokenizer that loads"),
        ("tokenizer.json", "{", "is not whole: tokenizer.json is no JSON"),
        ("tokenizer_config.json", '{"tokenizer_class": 3}', "has no tokenizer that loads"),
        ("tokenizer.json", None, "is not whole: tokenizer.json is no file"),
        ("config.json", None, "is not whole: config.json is no file"),
        ("model.safetensors", None, "is not whole: model.safetensors is no file"),
        ("config.json", "[]", "is not whole: config.json is no JSON object"),
        ("config.json", '{"vocab_size": "a"}', "says nothing that can be read of vocab_size"),
        ("config.json", '{"vocab_size": null}', "says nothing that can be read of vocab_size"),
        ("config.json", '{"vocab_size": -3}', "its configuration has vocab_size -3"),
        ("config.json", "{}", "says nothing that can be read of vocab_size"),
        ("config.json", '{"text_config": []}', "says nothing that can be read of vocab_size"),
        ("generation_config.json", '{"eos_token_id": "x"}', "its configuration has eos_token_id"),
        ("generation_config.json", '{"eos_token_id": {"a": 1}}', "its configuration has eos_token_id"),
        ("config.json", '{"vocab_size": 7}', "no tensor has the 7 rows"),
        ("config.json", "{" * 5000, "config.json is no JSON"),
        ("config.json", '{"a": ' + "[" * 100_000, "config.json is no JSON that can be read (nested too deeply)"),
        ("generation_config.json", "null", "generation_config.json is no JSON object"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0[1, 2]  ", "model.safetensors is no safetensors file"),
        ("model.safetensors", b'\x09\0\0\0\0\0\0\0{"a": 1} ', "model.safetensors is no safetensors file"),
        ("model.safetensors", b"", "model.safetensors is no safetensors file"),
        ("model.safetensors.index.json", '{"weight_map": [1]}', "has no weight_map from tensors to files"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "b.safetensors"}}', "of 1 files are missing"),
        ("chat_template.jinja", "{% for", "its chat template does not take the messages"),
        ("chat_template.jinja", "{{ a.b.c }}", "its chat template does not take the messages"),
        (
            "chat_template.jinja",
            "{% for i in range(10 ** 9) %}{% endfor %}",
            "its chat template does not take the messages",
        ),
        ("chat_template.jinja", b"\xff\xfe{", "has no tokenizer that loads"),
    ],
    ids=lambda value: value[:45] if isinstance(value, str) else None,
)
def test_a_model_with_a_file_that_cannot_be_read(
    recipe: dict[str, Any],
    refused: Any,
    models: dict[str, Path],
    tmp_path: Path,
    file: str,
    content: bytes | str | None,
    said: str,
) -> None:
    folder = _spoilt(models, tmp_path, file, content)
    error = refused(merged(recipe, {"models": {"student": {"path": str(folder)}, "teacher": {"path": str(folder)}}}))
    assert "models.student" in error and said in error


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read a file")
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json", "."])
def test_weights_that_this_user_may_not_read(
    recipe: dict[str, Any], refused: Any, models: dict[str, Path], monkeypatch: Any, tmp_path: Path, file: str
) -> None:
    for name in ("HOME", "LOGRATIO_CACHE", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path) if name != "TMPDIR" else "/tmp")
    folder = shutil.copytree(models["teacher"], tmp_path / "locked")
    for above in tmp_path.parents[: len(tmp_path.parents) - 2]:
        above.chmod(above.stat().st_mode | 0o055)
    tmp_path.chmod(0o777)
    (folder / file).chmod(0)
    tree = merged(recipe, {"models": {"student": {"path": str(folder)}}})
    os.seteuid(65534)
    try:
        error = refused(tree)
    finally:
        os.seteuid(0)
    assert f"models.student.path: {folder}" in error and "(Permission denied)" in error


def test_half_a_surrogate_pair_in_a_prompt(recipe: dict[str, Any], refused: Any, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "fine"}\n{"prompt": "hm \\ud83d"}\n')
    error = refused(merged(recipe, {"data": {"prompts": str(tmp_path / "p.jsonl")}}))
    assert "p.jsonl line 2: " in error and "half a surrogate pair" in error


@pytest.mark.parametrize("key", ["data.prompts", "recipe"])
def test_a_pipe_is_refused_without_blocking(
    recipe: dict[str, Any], refused: Any, monkeypatch: Any, capsys: Any, tmp_path: Path, key: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    if key == "recipe":
        code, error = _logratio(monkeypatch, capsys, "check", str(tmp_path / "pipe"))
        assert code == 2
    else:
        error = refused(merged(recipe, {"data": {"prompts": str(tmp_path / "pipe")}}))
    assert "cannot be read (it is a pipe or a device, no file)" in error


def test_a_temporary_folder_too_deep_for_rays_sockets(
    recipe: dict[str, Any], refused: Any, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    deep = tmp_path / ("t" * (40 - len(str(tmp_path)) - 1)) if len(str(tmp_path)) < 38 else tmp_path
    monkeypatch.setenv("TMPDIR", str(deep))
    error = refused(recipe)
    assert f"TMPDIR: {deep} has {len(str(deep))} bytes; Ray's sockets below it would have paths of" in error
    assert "107 are the most; set TMPDIR to a folder of at most 39 bytes, e.g. /tmp" in error
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert _logratio(monkeypatch, capsys, "check", str(tmp_path / "r.yaml"), "--cluster") == (2, error)


def test_the_longest_temporary_folder_is_the_one_that_rays_own_check_takes() -> None:
    """Ray names a session by time and process id; ours stands for the longest."""
    from ray._private.utils import validate_socket_filepath

    from orchestrator.preflight import environment

    longest = environment.SOCKET_BYTES - len(environment.SESSION) - 1
    validate_socket_filepath("/" + "t" * (longest - 1) + "/" + environment.SESSION)
    with pytest.raises(OSError):
        validate_socket_filepath("/" + "t" * longest + "/" + environment.SESSION)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"LOGRATIO_CACHE": "/dev/null/x"}, "LOGRATIO_CACHE: /dev/null/x cannot be made, /dev/null is no folder"),
        ({"TMPDIR": "/dev/null"}, "TMPDIR: /dev/null cannot be made, /dev/null is no folder"),
        ({"HOME": "/dev/null"}, "HOME: /dev/null/.ray cannot be made, /dev/null is no folder"),
    ],
)
def test_folders_that_a_run_writes_to(
    recipe: dict[str, Any], refused: Any, monkeypatch: Any, changes: dict[str, str], said: str
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOGRATIO_CACHE", changes.get("LOGRATIO_CACHE", "/tmp"))
    assert said in refused(recipe)


@pytest.mark.parametrize("root", ["/dev/null", "/dev/null/runs"])
def test_a_run_root_that_is_no_folder(recipe: dict[str, Any], refused: Any, root: str) -> None:
    assert f"run.root: {root}/bad cannot be made, /dev/null is no folder" in refused(recipe, f"run.root={root}")


def test_a_run_root_behind_a_broken_link(recipe: dict[str, Any], refused: Any, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    error = refused(recipe, f"run.root={tmp_path / 'link'}")
    assert f"the link {tmp_path / 'link'} leads nowhere" in error


@pytest.mark.parametrize(
    "address", ["nonsense", "ftp://x:1", "127.0.0.1:99999999", "a b:1", "[::1", ":", "x" * 300 + ":1"]
)
def test_a_malformed_cluster_address(recipe: dict[str, Any], refused: Any, monkeypatch: Any, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert f"cluster.address: {address} cannot be joined" in refused(recipe)


def test_names_with_terminal_markup_are_shown_literally(recipe: dict[str, Any], refused: Any, tmp_path: Path) -> None:
    assert "models.a\\nb: " in refused(merged(recipe, {"models": {"a\nb": 3}}))
    assert "\\x1b[31m" in refused(merged(recipe, {"data": {"prompts": "/\x1b[31m"}}))


def test_a_module_that_fails_when_it_is_imported(
    recipe: dict[str, Any], refused: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    for name, code in (("broken_loss", "1 / 0"), ("leaving_loss", "raise SystemExit(0)"), ("wrong_loss", "def f(:")):
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))
        assert "cannot be imported" in refused(merged(recipe, {"objective": {"loss": f"{name}:loss"}}))
