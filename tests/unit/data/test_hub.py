"""Names on the Hub: which paths are such, how they are pinned, and what the caches give without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.data import DataSet
from configs.load import absolute_path, load_tree, model_directory, parse_recipe
from configs.names.hub import HubName, hub_name, may_be_on_the_hub, same_source
from configs.refusal import RecipeError
from orchestrator.data.files import arrow
from orchestrator.data.files.opening import open_table
from orchestrator.preflight.inputs import hub
from tests.unit import simulation
from tests.unit.recipes import tree
from tests.unit.surface.in_process import invoked

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The Hub's caches in an empty folder, and no network."""
    import datasets
    import datasets.config
    from huggingface_hub import constants

    monkeypatch.setenv("LOGRATIO_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "sets")
    yield tmp_path


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("hub:o/n", HubName("o", "n")),
        ("hub:o/n.x-1@v2:test", HubName("o", "n.x-1", "", "v2", "test")),
        (f"hub:openai/gsm8k/main@{COMMIT}", HubName("openai", "gsm8k", "main", COMMIT)),
        ("o/n", None),
        ("hub:n", None),
        ("hub:../n", None),
        ("hub:o/n/../../x", None),
    ],
)
def test_a_name_is_read_and_written(path: str, name: HubName | None) -> None:
    assert hub_name(path) == name
    assert name is None or str(name) == path


def test_only_a_path_that_is_not_there_and_does_not_end_as_a_file_may_be_a_name(tmp_path: Path) -> None:
    (tmp_path / "mine" / "set").mkdir(parents=True)
    no = [
        "mine/set",
        "mine/set:test",
        "data/train.jsonl",
        "data/train.PARQUET",
        "./o/n",
        "../o/n",
        "/o/n",
        "train",
        "~/n",
    ]
    assert [path for path in (*no, "o/n", "o/n@main:test") if may_be_on_the_hub(path, tmp_path)] == [
        "o/n",
        "o/n@main:test",
    ]
    assert absolute_path("o/n@main", tmp_path) == "hub:o/n@main" == absolute_path("hub:o/n@main", tmp_path)
    assert absolute_path("mine/set", tmp_path) == str(tmp_path / "mine" / "set")


def test_a_recorded_recipe_is_the_submitted_one_with_its_revisions_pinned() -> None:
    pinned = {"prompts": [{"path": f"hub:o/n@{COMMIT}:test", "weight": 1.0}]}
    assert same_source(pinned, {"prompts": [{"path": "hub:o/n:test", "weight": 1.0}]})
    assert same_source(pinned, {"prompts": [{"path": "hub:o/n@main:test", "weight": 1.0}]})
    for path in ("hub:o/n", "hub:o/m:test", f"hub:o/n@{OTHER}:test"):
        assert not same_source(pinned, {"prompts": [{"path": path, "weight": 1.0}]})


def cached_model(folder: Path) -> Path:
    """A model as the Hub's cache lays it out, its branch main at COMMIT."""
    place = folder / "hub" / "models--acme--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    snapshot = place / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    return snapshot


def test_a_model_of_the_cache_is_pinned_and_read_from_there(offline: Path) -> None:
    snapshot = cached_model(offline)
    recipe = hub.pinned(parse_recipe(tree({"models.student.path": "hub:acme/tiny"})))
    assert recipe.models["student"].path == f"hub:acme/tiny@{COMMIT}"
    assert model_directory(f"hub:acme/tiny@{COMMIT}") == snapshot
    assert hub.pinned(recipe) == recipe


def cached_data(folder: Path, commit: str) -> None:
    """A data set as the library's cache lays it out: made from a folder, then moved under its name."""
    import datasets

    (folder / "made").mkdir(exist_ok=True)
    (folder / "made" / "train.jsonl").write_text(json.dumps({"prompt": f"of {commit[0]}"}))
    builder = datasets.load_dataset_builder(
        "json", data_files=str(folder / "made" / "train.jsonl"), cache_dir=str(folder)
    )
    builder.download_and_prepare()
    target = folder / "sets" / "acme___sums" / "default" / "0.0.0" / commit
    shutil.copytree(builder.cache_dir, target)
    for file in target.glob("json-*.arrow"):
        file.rename(target / file.name.replace("json", "sums"))
    info = json.loads((target / "dataset_info.json").read_text())
    (target / "dataset_info.json").write_text(json.dumps(info | {"dataset_name": "sums", "builder_name": "json"}))


def test_a_data_set_of_the_cache_is_pinned_and_read_without_a_network(offline: Path) -> None:
    cached_data(offline, COMMIT)
    recipe = hub.pinned(parse_recipe(tree({"data.prompts": "hub:acme/sums"})))
    assert recipe.data.prompts == f"hub:acme/sums@{COMMIT}"
    (entry,) = recipe.data.sets
    assert open_table(entry)[0] == {"prompt": f"of {COMMIT[0]}"}
    with pytest.raises(RecipeError, match=rf"hub:acme/sums@{OTHER}: cannot be read"):
        open_table(DataSet(path=f"hub:acme/sums@{OTHER}"))


@pytest.fixture
def online(offline: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A Hub that has the model acme/tiny and the data acme/sums at COMMIT, what was asked of it, and empty caches."""
    import datasets
    import huggingface_hub

    asked, had = list[str](), offline / "hub" / "models--acme--tiny" / "snapshots" / COMMIT

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(f"model {name} {revision}")
        assert "*.safetensors" in allow_patterns and not {"*", "*.py", "*.bin"} & set(allow_patterns)
        return str(had if had.exists() else cached_model(offline))

    def dataset_info(self: Any, name: str, revision: str | None, timeout: float) -> Any:
        asked.append(f"commit of {name} {revision}")
        return SimpleNamespace(sha=COMMIT)

    def load_dataset_builder(name: str, subset: str | None, revision: str | None = None) -> Any:
        if datasets.config.HF_HUB_OFFLINE:
            raise ConnectionError("no cache has it")
        asked.append(f"data {name} {revision}")
        found = datasets.DatasetDict({"train": datasets.Dataset.from_list([{"prompt": "had"}])})
        download = lambda: asked.append("download")  # noqa: E731
        return SimpleNamespace(hash=COMMIT, download_and_prepare=download, as_dataset=lambda: found)

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    return asked


def test_what_no_cache_has_is_had_from_the_hub_at_its_commit(online: list[str]) -> None:
    changes = {"models.student.path": "hub:acme/tiny@main", "data.prompts": "hub:acme/sums"}
    recipe = hub.pinned(parse_recipe(tree(changes)))
    assert recipe.models["student"].path == f"hub:acme/tiny@{COMMIT}"
    assert recipe.data.prompts == f"hub:acme/sums@{COMMIT}"
    (entry,) = recipe.data.sets
    assert open_table(entry)[0] == {"prompt": "had"}
    data = ["commit of acme/sums None", f"data acme/sums {COMMIT}", "download"]
    assert online == ["model acme/tiny main", *data]
    with pytest.raises(RecipeError, match=rf"the cache has {COMMIT}, and the Hub is not reached"):
        open_table(DataSet(path=f"hub:acme/sums@{OTHER}"))
    assert online[4:] == [f"data acme/sums {OTHER}"], "another commit is not read"


def test_a_run_records_the_commits_that_it_reads(
    online: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"models.student.path": "hub:acme/tiny", "data.prompts": "hub:acme/sums"}
    made = simulation.recipe(tmp_path / "runs").model_dump(mode="json")
    made["models"]["student"]["path"], made["data"]["prompts"] = changes.values()
    (file := tmp_path / "recipe.yaml").write_text(json.dumps(made))
    ended = invoked(monkeypatch, "run", str(file))
    assert ended.exit_code == 0, ended.output or ended.exception
    kept = load_tree(tmp_path / "runs" / "sim" / "recipe.yaml")
    assert kept["models"]["student"]["path"] == f"hub:acme/tiny@{COMMIT}"
    assert kept["data"]["prompts"] == f"hub:acme/sums@{COMMIT}"
    online.clear()
    assert invoked(monkeypatch, "run", str(file)).exit_code == 0 and not online, "it is done: nothing is asked again"


SETS: dict[str, Any] = {
    "data.prompts": [{"path": "/mine.jsonl"}, {"path": "hub:acme/sums"}],
    "data.heldout": "hub:acme/sums",
    "evaluate.sets.maths.prompts": "hub:acme/sums:train",
    "evaluate.sets.prose.text": "hub:acme/sums",
}


def test_every_set_of_a_recipe_is_pinned(offline: Path) -> None:
    """One in a mixture, and those that are held out."""
    cached_data(offline, COMMIT)
    recipe = hub.pinned(parse_recipe(tree(SETS)))
    sets = recipe.evaluate.sets
    assert [entry.path for entry in recipe.data.sets] == ["/mine.jsonl", f"hub:acme/sums@{COMMIT}"]
    assert recipe.data.heldout == sets["prose"].text == f"hub:acme/sums@{COMMIT}"
    assert sets["maths"].prompts == f"hub:acme/sums@{COMMIT}:train"
    assert same_source(recipe.model_dump(mode="json"), parse_recipe(tree(SETS)).model_dump(mode="json"))
    entry = recipe.of_set("maths").data.heldout_set
    assert entry is not None and open_table(entry)[0] == {"prompt": f"of {COMMIT[0]}"}


def test_all_that_names_files_is_anchored_in_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "models: {student: {path: s, swaps: {2: t}}, odd: 3}\n"
        "reward: {model: r, rules: [{function: 'f.py:score'}, {function: 'pkg.mod:score'}, 7]}\n"
        "data: {prompts: [{path: a.csv}, o/n, 5], heldout: o/n, responses: kept}\n"
        "evaluate: {sets: {one: {prompts: h.jsonl, rules: [{function: 'g.py:score'}]}, two: {text: o/n@v1}, odd: []}}\n"
        "stages: {first: {data: {prompts: b.jsonl}}}\n"
    )
    found = load_tree(tmp_path / "recipe.yaml")

    def here(name: str) -> str:
        return str(tmp_path / name)

    assert found["models"] == {"student": {"path": here("s"), "swaps": {2: here("t")}}, "odd": 3}
    functions = [{"function": here("f.py:score")}, {"function": "pkg.mod:score"}, 7]
    assert found["reward"] == {"model": here("r"), "rules": functions}
    prompts = [{"path": here("a.csv")}, "o/n", 5]
    assert found["data"] == {"prompts": prompts, "heldout": "hub:o/n", "responses": here("kept")}
    one = {"prompts": here("h.jsonl"), "rules": [{"function": here("g.py:score")}]}
    assert found["evaluate"]["sets"] == {"one": one, "two": {"text": "hub:o/n@v1"}, "odd": []}
    assert found["stages"]["first"]["data"]["prompts"] == here("b.jsonl")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluate.sets.x.prompts": "hub:acme/none"}, "evaluate.sets.x.prompts: acme/none is no path on this machine"),
        (
            {"models.student.path": "hub:acme/none"},
            "models.student.path: acme/none is no path on this machine, and cannot be",
        ),
        (
            {"models.teacher.path": "hub:acme"},
            "models.teacher.path: hub:acme is no name on the Hub; write hub:owner/name",
        ),
        ({"models.student.path": "hub:acme/tiny:test"}, "has a part that no model has; write hub:acme/tiny"),
        (
            {"data.prompts": [{"path": "hub:acme/none"}]},
            "data.prompts.0.path: acme/none is no path on this machine, and",
        ),
        ({"data.heldout": "hub:acme/none@main"}, "data.heldout: acme/none@main is no path on this machine"),
    ],
)
def test_what_no_cache_has_is_refused_in_one_line(offline: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        hub.pinned(parse_recipe(tree(changes)))
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_local_recipe_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_fetched", None)
    monkeypatch.setattr(arrow, "commit_of", None)
    recipe = parse_recipe(tree({}))
    assert hub.pinned(recipe) is recipe


def test_evaluate_pins_what_its_recipe_names(offline: Path) -> None:
    from typer.testing import CliRunner

    from orchestrator.cli import app

    (recipe := offline / "recipe.yaml").write_text(json.dumps(tree({"models.teacher.path": "hub:o/n"})))
    (model := offline / "model").mkdir()
    (model / "config.json").write_text("{}")
    asked = CliRunner().invoke(app, ["evaluate", str(model), "--recipe", str(recipe)])
    assert isinstance(asked.exception, RecipeError) and "cannot be had from the Hub" in str(asked.exception)
