"""Bad input is refused with exit code 2 and one clear line, before any actor starts."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from configs.load import RecipeError, parse_recipe, with_swaps
from orchestrator import cli
from orchestrator.preflight import cluster, files
from tests import tiny
from tests.engines.shared import merged


@pytest.fixture
def recipe(models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    """A recipe that would run, as a tree to spoil."""
    return {
        "run": {"name": "bad", "root": str(tmp_path / "runs"), "steps": 1},
        "models": {"student": {"path": str(models["student"])}, "teacher": {"path": str(models["teacher"])}},
        "data": {"prompts": str(prompts["train"])},
        "batch": {"prompts_per_step": 2},
        "sampling": {"max_response_tokens": 8},
        "objective": {"target": "teacher", "support": "full"},
        "learner": {"optimizer": {"lr": 0.1}, "resources": {"cpus": 0.1}},
        "rollout": {"max_context_tokens": 64, "resources": {"cpus": 0.1}},
        "scorer": {"teacher": {"max_context_tokens": 64, "resources": {"cpus": 0.1}}},
    }


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Runs `logratio run` on a tree; returns the one line it was refused with. No cluster may start."""

    def refuse(tree: dict[str, Any], *overrides: str) -> str:
        def no_cluster(cpus: int, object_store_mib: int | None) -> None:
            raise AssertionError("a cluster was about to start")

        monkeypatch.setattr(cluster, "start_local", no_cluster)
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(tree))
        code, error = _logratio(monkeypatch, capsys, "run", str(file), *overrides)
        assert code == 2, error
        assert error.startswith("logratio: ") and error.count("\n") == 1, error
        return error

    return refuse


def _logratio(monkeypatch: Any, capsys: Any, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["logratio", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), capsys.readouterr().err


def test_unknown_key(recipe: dict[str, Any], refused: Any) -> None:
    error = refused(merged(recipe, {"learner": {"learning_rate": 1}}))
    assert "learner.learning_rate: unknown key" in error and "optimizer" in error


def test_unknown_key_in_an_override(recipe: dict[str, Any], refused: Any) -> None:
    assert "batch.size: unknown key" in refused(recipe, "batch.size=3")


def test_wrong_type(recipe: dict[str, Any], refused: Any) -> None:
    error = refused(merged(recipe, {"batch": {"prompts_per_step": "many"}}))
    assert "batch.prompts_per_step: 'many' is wrong" in error and "integer" in error


def test_missing_model_directory(recipe: dict[str, Any], refused: Any) -> None:
    error = refused(merged(recipe, {"models": {"teacher": {"path": "/no/such/model"}}}))
    assert "models.teacher.path: /no/such/model is no directory" in error


def test_model_directory_with_a_truncated_file(
    recipe: dict[str, Any], refused: Any, models: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(models["teacher"], tmp_path / "copy")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    error = refused(merged(recipe, {"models": {"teacher": {"path": str(folder)}}}))
    assert "models.teacher.path" in error and "is not whole: model.safetensors has" in error


def test_a_swap_directory_is_checked_like_the_model_that_it_replaces(
    recipe: dict[str, Any], refused: Any, models: dict[str, Path], tmp_path: Path
) -> None:
    def swapped(path: Path | str, **scorer: Any) -> dict[str, Any]:
        changes = {"run": {"steps": 4}, "models": {"teacher": {"swaps": {3: str(path)}}}, "scorer": {"teacher": scorer}}
        return merged(recipe, changes)

    other = shutil.copytree(models["poet"], tmp_path / "other")
    (other / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert "models.teacher.swaps.3: /no/such is no directory" in refused(swapped("/no/such"))
    assert "models.teacher.swaps.3: its tokenizer differs" in refused(swapped(models["foreign"]))
    assert "models.teacher.swaps.3: its chat template differs from that of models.teacher.path" in refused(
        swapped(other)
    )
    sampled = {"objective": {"support": "sampled"}}
    wide = refused(merged(swapped(models["wide"], engine="vllm"), sampled))
    assert "'vllm' normalises over all 268 columns of models.teacher.swaps.3" in wide


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_weights_that_do_not_make_the_model_of_the_configuration(
    recipe: dict[str, Any], refused: Any, models: dict[str, Path], tmp_path: Path, model: str
) -> None:
    folder = shutil.copytree(models[model], tmp_path / "copy")
    named = merged(recipe, {"models": {model: {"path": str(folder)}}})
    tensors = load_file(folder / "model.safetensors")
    lacking = "model.layers.1.mlp.up_proj.weight"
    save_file({name: tensor for name, tensor in tensors.items() if name != lacking}, folder / "model.safetensors")
    assert f"models.{model}.path: {folder}: it lacks the weights ['{lacking}']" in refused(named)
    save_file(tensors | {lacking: tensors[lacking][:64].clone()}, folder / "model.safetensors")
    assert f"{lacking} is [64, 64] in its files and [128, 64] by its config.json" in refused(named)


def test_a_student_that_is_quantised_or_no_causal_language_model(
    recipe: dict[str, Any], refused: Any, models: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(models["student"], tmp_path / "copy")
    named = merged(recipe, {"models": {"student": {"path": str(folder)}}})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    assert "are quantised (fp8), and what is trained is not; give the model in bfloat16" in refused(named)
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))
    assert f"transformers builds no causal language model from {folder}/config.json" in refused(named)


def test_a_chat_template_that_does_not_take_the_turns(
    recipe: dict[str, Any], refused: Any, models: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(models["teacher"], tmp_path / "strict")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('System role not supported') }}")
    error = refused(merged(recipe, {"models": {"teacher": {"path": str(folder), "system": "be brief"}}}))
    assert "models.teacher: its chat template does not take the messages system and user" in error
    assert "System role not supported" in error and "put the text of `system` into `prompt`" in error


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["teacher"], "'teacher': write MODEL=DIRECTORY"),
        (["=/somewhere"], "'=/somewhere': write MODEL=DIRECTORY"),
        (["teacher=/a", "teacher=/b"], "'teacher=/b': teacher is there twice"),
        (["teacher=/a"], "is not running"),
    ],
)
def test_a_swap_that_reaches_no_run(
    recipe: dict[str, Any], monkeypatch: Any, capsys: Any, tmp_path: Path, asked: list[str], said: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, error = _logratio(monkeypatch, capsys, "swap", str(tmp_path), *asked)
    assert code == 2 and said in error and error.count("\n") == 1


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere.invalid:6379"])
def test_a_cluster_address_without_a_cluster(recipe: dict[str, Any], refused: Any, address: str) -> None:
    error = refused(merged(recipe, {"cluster": {"address": address}}))
    assert f"cluster.address: {address} cannot be joined" in error and "is it up?" in error


def test_a_model_of_fewer_columns_cannot_be_swapped_into_a_live_run(recipe: dict[str, Any], tmp_path: Path) -> None:
    """Heads and scores are cut to what the models had in common when it began."""
    live = parse_recipe(merged(recipe, {"run": {"steps": 4}}))
    narrow = tiny.build_model(tmp_path / "narrow", padding=3)
    files.check_swap(live, with_swaps(live, 3, {"teacher": str(tiny.build_model(tmp_path / "wide", padding=8))}))
    with pytest.raises(RecipeError, match="its logits have 262 columns, the models of this run share 264"):
        files.check_swap(live, with_swaps(live, 3, {"teacher": str(narrow)}))


def test_missing_prompt_file(recipe: dict[str, Any], refused: Any) -> None:
    assert "/no/prompts.jsonl" in refused(merged(recipe, {"data": {"prompts": "/no/prompts.jsonl"}}))


def test_empty_prompt_file(recipe: dict[str, Any], refused: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "is empty" in refused(merged(recipe, {"data": {"prompts": str(tmp_path / "empty.jsonl")}}))


@pytest.mark.parametrize("line", ['{"prompt": "x"', '{"question": "x"}', '"x"', '{"prompt": ""}'])
def test_malformed_line_with_its_number(recipe: dict[str, Any], refused: Any, tmp_path: Path, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "fine"}) + "\n" + line + "\n")
    assert "prompts.jsonl line 2:" in refused(merged(recipe, {"data": {"prompts": str(file)}}))


def test_different_tokenizers(recipe: dict[str, Any], refused: Any, models: dict[str, Path]) -> None:
    error = refused(merged(recipe, {"models": {"teacher": {"path": str(models["foreign"])}}}))
    assert "models.teacher.path: its tokenizer differs from the student's in 1 of 259 tokens" in error


def test_prompt_longer_than_the_context(recipe: dict[str, Any], refused: Any, tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"prompt": "very " * 30}) + "\n")
    error = refused(merged(recipe, {"data": {"prompts": str(file)}}))
    assert "tokens under models.student" in error and "rollout.max_context_tokens 64" in error


def test_privileged_prompt_longer_than_the_scorer(recipe: dict[str, Any], refused: Any) -> None:
    error = refused(merged(recipe, {"models": {"teacher": {"system": "long " * 20}}}))
    assert "scorer.teacher.max_context_tokens 64" in error


def test_context_beyond_the_model(recipe: dict[str, Any], refused: Any) -> None:
    assert f"exceeds the {tiny.CONTEXT} positions" in refused(recipe, "rollout.max_context_tokens=100000")


def test_a_vllm_scorer_needs_a_position_more_than_its_context(recipe: dict[str, Any], refused: Any) -> None:
    whole = {"max_context_tokens": tiny.CONTEXT, "engine": "vllm"}
    error = refused(merged(recipe, {"scorer": {"teacher": whole}, "objective": {"support": "sampled"}}))
    assert f"scorer.teacher.max_context_tokens: vLLM decodes one token behind {tiny.CONTEXT}" in error


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


def test_reverse_weight_outside_the_unit_interval(recipe: dict[str, Any], refused: Any) -> None:
    assert "objective.reverse_weight: 1.5 is wrong" in refused(recipe, "objective.reverse_weight=1.5")


def test_a_name_that_is_alive(recipe: dict[str, Any], refused: Any, tmp_path: Path) -> None:
    with cluster.own_name(tmp_path / "runs" / "bad"):
        assert "run.name: 'bad' is alive" in refused(recipe)


def test_a_name_that_exists(recipe: dict[str, Any], refused: Any, tmp_path: Path) -> None:
    (tmp_path / "runs" / "bad").mkdir(parents=True)
    (tmp_path / "runs" / "bad" / "recipe.yaml").write_text("{}")
    assert "logratio resume bad" in refused(recipe)


def test_a_refused_run_leaves_its_name_free(recipe: dict[str, Any], refused: Any, tmp_path: Path) -> None:
    refused(merged(recipe, {"data": {"prompts": "/no/prompts.jsonl"}}))
    assert not (tmp_path / "runs" / "bad").exists()


def test_commands_for_a_run_that_is_not_there(monkeypatch: Any, capsys: Any) -> None:
    for command in (["resume", "nobody"], ["stop", "nobody"], ["status", "nobody"], ["scale", "nobody", "rollout=2"]):
        code, error = _logratio(monkeypatch, capsys, *command)
        assert code == 2 and "nobody: no such run" in error


def test_usage_errors_are_exit_2(monkeypatch: Any, capsys: Any) -> None:
    code, error = _logratio(monkeypatch, capsys, "run")
    assert code == 2 and error.count("\n") == 1


def test_a_loss_that_cannot_be_imported_is_refused(recipe: dict[str, Any], refused: Any) -> None:
    error = refused(merged(recipe, {"objective": {"loss": "nowhere.at_all:loss"}}))
    assert "objective.loss: 'nowhere.at_all:loss' cannot be imported" in error


def test_a_rule_whose_field_no_row_has(recipe: dict[str, Any], refused: Any, tmp_path: Path) -> None:
    file = tmp_path / "other.jsonl"
    file.write_text(json.dumps({"prompt": "2 + 2", "reward_model": {"ground_truth": "4"}}) + "\n")
    rewarded = {"outcome": {"weight": 1.0}, "support": "sampled"}
    tree = merged(recipe, {"data": {"prompts": str(file)}, "objective": rewarded})
    error = refused(merged(tree, {"reward": {"rules": [{"kind": "exact"}]}}))
    assert "reward.rules.0.field: no row of" in error and "reward_model.ground_truth" in error


def test_rows_that_lack_a_rules_field_are_warned_of(
    recipe: dict[str, Any], monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    rows = [{"prompt": "a", "gold": {"is": 1}}, {"prompt": "b"}, {"prompt": "c"}]
    (tmp_path / "p.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    rule = {"kind": "exact", "field": "gold.is"}
    tree = merged(recipe, {"data": {"prompts": str(tmp_path / "p.jsonl")}, "reward": {"rules": [rule]}})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.setattr(sys, "argv", ["logratio", "check", str(tmp_path / "r.yaml")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = " ".join(capsys.readouterr().out.split())
    assert not ended.value.code and "warning: reward.rules.0.field: 2 of 3 rows" in said
    assert "lack 'gold.is', the first in line 3" in said


def test_a_recipe_file_with_two_recipes(recipe: dict[str, Any], monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    text = yaml.safe_dump(recipe)
    (tmp_path / "r.yaml").write_text(text + "objective: {target: teacher, support: sampled}\n")
    code, error = _logratio(monkeypatch, capsys, "check", str(tmp_path / "r.yaml"))
    lines = [text[: text.index("objective:")].count("\n") + 1, text.count("\n") + 1]
    assert code == 2 and f"the key 'objective' stands twice, in lines {lines[0]} and {lines[1]}" in error


@pytest.mark.parametrize("key", ["no", "1"])
def test_a_route_whose_key_yaml_reads_as_a_boolean(recipe: dict[str, Any], refused: Any, key: str) -> None:
    target = {"field": "persona", "models": {yaml.safe_load(key): "teacher"}}
    assert re.search(
        rf"YAML reads th\w+ key.* quote it: '{key}|quote it: 'false'",
        refused(merged(recipe, {"objective": {"target": target}})),
    )


def test_prompts_as_one_json_array(recipe: dict[str, Any], refused: Any, tmp_path: Path) -> None:
    file = tmp_path / "array.json"
    for indent in (None, 1):
        file.write_text(json.dumps([{"prompt": "a"}, {"prompt": "b"}], indent=indent))
        assert "is one JSON array; write an object a line: jq" in refused(
            merged(recipe, {"data": {"prompts": str(file)}})
        )


@pytest.mark.parametrize("key", ["objective.outcome.weight", "reward.model_weight"])
def test_weights_are_finite(recipe: dict[str, Any], refused: Any, key: str) -> None:
    for value in (".inf", ".nan", "1e999"):
        assert f"{key}: " in refused(recipe, f"{key}={value}", "reward.rules=[{kind: length}]")


def test_a_route_that_leads_nowhere_is_refused_with_its_row(recipe: dict[str, Any], refused: Any) -> None:
    target = {"field": "persona", "models": {"pirate": "teacher"}}
    error = refused(recipe | {"objective": {"target": target, "support": "full"}})
    assert "line 2: persona is 'poet', which names no teacher" in error


def test_a_reward_model_of_another_tokenizer_is_refused(
    recipe: dict[str, Any], refused: Any, models: dict[str, Path]
) -> None:
    error = refused(merged(recipe, {"reward": {"model": str(models["foreign"])}}))
    assert "reward.model" in error and "another tokenizer" in error


# --- what a user's files and machine can cause ---


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
