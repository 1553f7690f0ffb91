"""Adapters through the whole system: vLLM samples with each version, a torch teacher scores it, DeepSpeed trains it.

What a run says of itself is held against plain transformers: the base with the adapters that the run wrote.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from actors.lora.wire import names
from configs.load import dump_recipe
from configs.schema import Recipe
from orchestrator.pools.layout import build_pools
from orchestrator.pools.pool import Pool
from orchestrator.pools.pools import Pools
from orchestrator.pools.transport import RayTransport
from orchestrator.preflight import cluster
from orchestrator.preflight.files import read_inputs
from orchestrator.surface.export.export import export
from tests.cli.conftest import _logratio as logratio
from tests.cli.test_kill_and_resume import _lines, killed_after
from tests.cli.test_kill_and_resume import _logratio as started
from tests.engines import plain
from tests.engines.shared import Engines, Finished, merged

pytestmark = pytest.mark.system
STEPS = 8
LAST = f"step_{STEPS:06d}"
NOISE = 1e-5  # nats: mean difference of two engines' log-probs under one model in float32
SCALE = 2.0  # alpha / rank
SYSTEM = "be brief"
ZERO3: dict[str, Any] = {"learner": {"ranks": 2, "zero_stage": 3}}
BASE: dict[str, Any] = {  # teaches behind a system text, and behind the student's own prompt holds back a small reward
    "models": {"base": {"weights": "base", "system": SYSTEM}, "origin": {"weights": "base"}},
    "objective": {
        "target": "base",
        "outcome": {"weight": 0.1},
        "reference": {"model": "origin", "beta": 0.01, "placement": "reward_token"},
    },
    "reward": {"rules": [{"kind": "contains", "text": letter, "weight": 0.02} for letter in ascii_lowercase]},
}


class Adapted(Engines):
    """A vLLM rollout that serves adapters as it is told, a torch scorer, and learners of so many ranks."""

    def __init__(self, *of: Any, serving: str, ranks: Sequence[int] = (1,)) -> None:
        super().__init__(*of)
        self.serving, self.ranks = serving, ranks

    def start(self) -> None:
        self.base = self.adapted("first")
        built = {ranks: self._built(self.adapted("first", learner={"ranks": ranks})) for ranks in self.ranks}
        self.pools, self.learners = built[1], {ranks: pools.learner for ranks, pools in built.items()}
        self.runner.run(_all(self._every(), "start", 1))

    def stop(self) -> None:
        self.runner.run(_all(self._every(), "stop"))
        cluster.sweep(self.base)

    def adapted(self, name: str, **changes: Any) -> Recipe:
        """On-policy distillation of adapters in float32, with nested changes."""
        tree: dict[str, Any] = {
            "run": {"name": name, "steps": STEPS},
            "data": {"heldout": str(self.prompts["heldout"])},
            "evaluate": {"samples_per_prompt": 8},
            "batch": {"prompts_per_step": 8},
            "rollout": {"members": 1},
            "scorer": {} if "objective" in changes else {"teacher": {"members": 1}},
            "learner": {
                "ranks": 1,
                "zero_stage": 0,
                "lora": {"rank": 4, "alpha": 4 * SCALE, "serving": self.serving},
                "optimizer": {"name": "adamw", "lr": 1e-2},
            },
            "checkpoint": {"every": 1, "keep": STEPS},
        }
        return self.recipe(**merged(tree, changes))

    def _built(self, recipe: Recipe) -> Pools:
        return build_pools(recipe, RayTransport(), read_inputs(recipe).vocabulary, self.root / "logs")

    def _every(self) -> list[Pool]:
        return [*self.pools.all().values(), *(pool for ranks, pool in self.learners.items() if ranks > 1)]

    def _scorer(self, recipe: Recipe, name: str) -> Pool:
        return self.pools.scorers[name]


async def _all(pools: Iterable[Pool], change: str, *arguments: Any) -> None:
    await asyncio.gather(*(getattr(pool.members, change)(*arguments) for pool in pools))


@contextmanager
def running(engines: Adapted) -> Iterator[Adapted]:
    engines.start()
    try:
        yield engines
    finally:
        engines.stop()


@pytest.fixture(scope="module")
def own(
    ray_cluster: None,
    runner: asyncio.Runner,
    models: dict[str, Path],
    prompts: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Adapted]:
    """Engines that merge versions."""
    with running(Adapted(models, prompts, tmp_path_factory.mktemp("merged"), runner, serving="merged")) as engines:
        yield engines


@pytest.fixture(scope="module")
def bytes_before(models: dict[str, Path]) -> str:
    return _bytes_of(models["student"])


@pytest.fixture(scope="module")
def done(bytes_before: str, own: Adapted) -> Finished:
    return own.run(own.adapted("distilled"))


def test_the_student_comes_nearer_to_its_teacher_and_its_base_stays(
    done: Finished, bytes_before: str, models: dict[str, Path]
) -> None:
    _comes_nearer(done)
    assert _bytes_of(models["student"]) == bytes_before
    _only_adapters_moved(done.directory / "model", models["student"])


def test_the_rollout_samples_with_each_version(done: Finished, models: dict[str, Path]) -> None:
    _samples_with_each_version(done, models["student"])


def test_exported_models_have_the_log_probs_of_the_base_with_its_adapter(
    done: Finished, models: dict[str, Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """The last weights, and those of the checkpoint that the last step began with."""
    rows = done.samples(LAST)
    learners = torch.cat([torch.tensor(row["student_logprobs"]) for row in rows])
    for out, options in ((tmp_path / "end", ()), (tmp_path / "saved", ("--checkpoint", f"{STEPS - 1}"))):
        assert logratio(monkeypatch, capsys, "export", str(done.directory), str(out), *options)[0] == 0
        exported = _logprobs(_load(out), rows)
        beside = _logprobs(_load(models["student"], out / "adapter"), rows)
        torch.testing.assert_close(exported, beside, rtol=0.0, atol=1e-5)
        apart = (exported - learners).abs().max()
        assert apart < 1e-4 if options else apart > 1e-2, "a checkpoint is a step behind the end"


def test_the_base_is_a_teacher_behind_its_own_prompt_and_a_reference(own: Adapted) -> None:
    _base_teaches_and_holds_back(own.run(own.adapted("base", **BASE)))


@pytest.mark.acceptance
@pytest.mark.timeout(900)
def test_a_killed_driver_resumes_to_the_same_adapters(done: Finished, own: Adapted, tmp_path: Path) -> None:
    recipe = own.adapted("killed", run={"root": str(tmp_path)})
    file, directory = tmp_path / "recipe.yaml", tmp_path / "killed"
    file.write_text(dump_recipe(recipe))
    assert killed_after(started("run", str(file)), directory, 3) < STEPS, "killed in mid-run"
    resumed = started("resume", str(directory))
    output, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, output
    _same_steps(_lines(directory), done.lines)
    ends = [load_file(run / "model" / "adapter" / "adapter_model.safetensors") for run in (directory, done.directory)]
    assert ends[0].keys() == ends[1].keys()
    assert not [name for name, tensor in ends[1].items() if not torch.equal(ends[0][name], tensor)], "bit for bit"


@pytest.mark.acceptance
@pytest.mark.timeout(900)
def test_vllms_own_lora_layers_serve_one_rank_and_two_under_zero_3(
    ray_cluster: None, runner: asyncio.Runner, models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path
) -> None:
    with running(Adapted(models, prompts, tmp_path, runner, serving="adapter", ranks=(1, 2))) as engines:
        for name, learner in (("one", {}), ("two", ZERO3)):
            run = engines.run(engines.adapted(name, **learner))
            _comes_nearer(run)
            _samples_with_each_version(run, models["student"])
            _only_adapters_moved(run.directory / "model", models["student"])
        _base_teaches_and_holds_back(engines.run(engines.adapted("base", **merged(BASE, ZERO3))))


def _comes_nearer(done: Finished) -> None:
    """To its target, on held-out prompts."""
    before, after = (done.summary["evaluation"][when]["reverse_kl"] for when in ("before", "after"))
    assert done.code == 0 and after < 0.8 * before, (before, after)


def _only_adapters_moved(exported: Path, base: Path) -> None:
    """Without B A the exported weights are the base's: of adapted layers but for rounding, of others bit for bit."""
    adapter = load_file(exported / "adapter" / "adapter_model.safetensors")
    start, end = load_file(base / "model.safetensors"), load_file(exported / "model.safetensors")
    assert start.keys() == end.keys() and len(adapter) == 2 * 14, "seven linear layers in each of two blocks"
    for name, tensor in end.items():
        a, b = (adapter.pop(part, None) for part in names(name))
        if a is None or b is None:
            assert torch.equal(tensor, start[name]), name
        else:
            torch.testing.assert_close(tensor - SCALE * b @ a, start[name], rtol=0.0, atol=1e-6, msg=name)
            assert (tensor - start[name]).abs().max() > 1e-2, name
    assert not adapter


def _samples_with_each_version(done: Finished, base: Path) -> None:
    """The learner finds the log-probs of each step's version, and plain transformers that of the last step's."""
    assert [line["policy_version"] for line in done.lines] == list(range(1, STEPS + 1))
    for step in range(1, STEPS + 1):
        versions = [version for row in done.samples(f"step_{step:06d}") for version in row["versions"]]
        assert set(versions) == {step - 1}
    gaps, saved, rows = [line["logprob_gap_mean"] for line in done.lines], done.directory / "saved", done.samples(LAST)
    assert max(gaps) < NOISE, gaps
    export(done.directory, saved, STEPS - 1)
    sampled = torch.cat([torch.tensor(row["rollout_logprobs"]) for row in rows])
    of_version, of_base = (_logprobs(_load(base, *adapter), rows) for adapter in ((saved / "adapter",), ()))
    torch.testing.assert_close(sampled, of_version, rtol=0.0, atol=1e-4)
    assert (sampled - of_base).abs().mean() > 0.1, "or no version could be told from the base"


def _base_teaches_and_holds_back(done: Finished) -> None:
    """As plain transformers read the base, after seven updates too."""
    _comes_nearer(done)
    rows, base = done.samples(LAST), _load(Path(done.recipe.path_of("student")))
    behind = [row | {"prompt_ids": plain.behind_system(row, SYSTEM)} for row in rows]
    teachers, students = (
        torch.cat([torch.tensor(r[f"{who}_logprobs"]) for r in rows]) for who in ("teacher", "student")
    )
    torch.testing.assert_close(teachers, _logprobs(base, behind), rtol=0.0, atol=1e-4)
    distance = float((students - _logprobs(base, rows)).mean())
    assert abs(done.lines[0]["reference_kl"]) < NOISE and distance > 0.01
    assert done.lines[-1]["reference_kl"] == pytest.approx(distance, abs=NOISE)


def _same_steps(lines: Sequence[Mapping[str, Any]], whole: Sequence[Mapping[str, Any]]) -> None:
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line, expected in zip(lines, whole, strict=True):
        for metric in ("loss", "grad_norm", "reverse_kl", "entropy"):
            assert line[metric] == pytest.approx(expected[metric], rel=1e-5), (line["step"], metric)


def _load(base: Path, adapter: Path | None = None) -> Any:
    """A model in float32, with an adapter by peft's own layers if one is given."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return model if adapter is None else PeftModel.from_pretrained(model, adapter)


@torch.no_grad()
def _logprobs(model: Any, rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """Of all tokens of all responses, nats."""
    read = ((plain.logprobs(model, row["prompt_ids"], row["response_ids"]), row["response_ids"]) for row in rows)
    return torch.cat([plain.of_tokens(logprobs, ids) for logprobs, ids in read])


def _bytes_of(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
