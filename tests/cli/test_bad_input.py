"""Bad input is refused with exit code 2 and one clear line, before any actor starts."""

from __future__ import annotations

import json
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
from orchestrator.preflight import files
from tests import tiny
from tests.cli.conftest import _logratio
from tests.engines.shared import merged


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


def test_reverse_weight_outside_the_unit_interval(recipe: dict[str, Any], refused: Any) -> None:
    assert "objective.reverse_weight: 1.5 is wrong" in refused(recipe, "objective.reverse_weight=1.5")


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


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999"])
def test_a_rules_weight_is_finite(recipe: dict[str, Any], refused: Any, value: str) -> None:
    rules = f"reward.rules=[{{kind: length}}, {{kind: length, weight: {value}}}]"
    assert "reward.rules.1.weight: " in refused(recipe, rules)


def test_a_route_that_leads_nowhere_is_refused_with_its_row(recipe: dict[str, Any], refused: Any) -> None:
    target = {"field": "persona", "models": {"pirate": "teacher"}}
    error = refused(recipe | {"objective": {"target": target, "support": "full"}})
    assert "line 2: persona is 'poet', which names no teacher" in error


def test_a_reward_model_of_another_tokenizer_is_refused(
    recipe: dict[str, Any], refused: Any, models: dict[str, Path]
) -> None:
    error = refused(merged(recipe, {"reward": {"model": str(models["foreign"])}}))
    assert "reward.model" in error and "another tokenizer" in error
