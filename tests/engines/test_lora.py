"""Adapters on real engines: learner ranks under every ZeRO stage, and vLLM across an update."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.learning.saved_model import write_saved_model
from actors.lora.sites import read_sites
from actors.lora.wire import names, whole
from actors.metrics import MOVEMENT_METRICS
from actors.models import causal_lm
from actors.models.model_files import tensor_shapes
from orchestrator.surface.measuring.movement import measured
from tests.engines.lora_engine import LORA

acceptance = pytest.mark.acceptance
CASES = ("0-float32", "1-float32", "2-float32", "3-float32", "2-bfloat16", "3-bfloat16")
READING = ("sampled", "full", "reference")  # how an objective reads the base
ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("ranks", "cases"),
    [(1, ("0-float32", "3-float32", "0-float32-full", "3-float32-full")), pytest.param(2, CASES, marks=acceptance)],
    ids=["one", "two"],
)
def test_every_stage_takes_the_same_steps_saves_adapters_alone_and_resumes_exactly(
    models: dict[str, Path], tmp_path: Path, ranks: int, cases: tuple[str, ...]
) -> None:
    lines = on_ranks(models["student"], tmp_path, ranks, cases)
    for line in lines:
        close = 1e-6 if "float32" in line["case"] else 1e-2
        first = next(one for one in lines if one["case"].split("-")[2:] == line["case"].split("-")[2:])
        assert line["losses"] == pytest.approx(first["losses"], rel=close), line["case"]
        assert line["losses"][2] == line["losses"][3] < line["losses"][0]
        assert line["third"] == line["again"], "the step behind a resume gives the same bits, averages too"
        assert line.get("woken", line["again"][0]) == line["again"][0]
        assert line["trained"] and all(".lora_" in name for name in line["trained"])
        _check_files(models["student"], tmp_path, line["case"])


@acceptance
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("reads", READING)
def test_the_base_is_scored_alike_on_one_rank_and_on_two_under_every_stage(
    models: dict[str, Path], tmp_path: Path, reads: str
) -> None:
    """A rank without a sample joins the base's forward pass too: under ZeRO-3 that is a collective."""
    (tmp_path / "alone").mkdir()
    (alone,) = on_ranks(models["student"], tmp_path / "alone", 1, (f"0-float32-{reads}",))
    stages = on_ranks(models["student"], tmp_path, 2, tuple(f"{stage}-float32-{reads}" for stage in range(4)))
    assert min(alone["norms"]) > 1e-3 and len({*alone["losses"][:3]}) == 3
    for line in stages:
        assert line["losses"] == pytest.approx(alone["losses"], rel=1e-5, abs=1e-6), line["case"]
        assert line["norms"] == pytest.approx(alone["norms"], rel=1e-4), line["case"]
        assert line["losses"][2] == line["losses"][3] and line["third"] == line["again"]
        _check_files(models["student"], tmp_path, line["case"])


def on_ranks(student: Path, folder: Path, ranks: int, cases: Sequence[str]) -> list[dict[str, Any]]:
    """What rank 0 of so many says of each case."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    asked = [str(ranks), str(port), str(student), str(folder), *cases]
    output = together("tests.engines.lora_ranks", [[str(rank), *asked] for rank in range(ranks)], folder)
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"case"')]
    assert [line["case"] for line in lines] == list(cases)
    return lines


def _check_files(student: Path, folder: Path, case: str) -> None:
    """Checkpoints hold no base. The export is the base with its adapter merged, of the same names."""
    saved, export = folder / f"{case}-saved", folder / case
    base = student / "model.safetensors"
    size = sum(f.stat().st_size for f in (saved / "deepspeed").iterdir())
    assert size < base.stat().st_size, "2.4 % of the numbers, with moments and pickled code"
    assert json.loads((saved / "base.json").read_text())["directory"] == str(student)
    assert {n: s for n, (s, _) in tensor_shapes(export).items()} == {
        n: s for n, (s, _) in tensor_shapes(student).items()
    }
    from safetensors.torch import load_file

    beside = load_file(export / "adapter" / "adapter_model.safetensors")
    exported, written = load_file(export / "model.safetensors"), whole(beside, student, LORA)
    dtype = next(iter(exported.values())).dtype
    assert any(not torch.equal(exported[name].float(), load_file(base)[name]) for name in exported)
    for name, tensor in exported.items():
        near = 1e-6 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(tensor.float(), written[name].float(), rtol=near, atol=near, msg=name)
    _check_checkpoint(student, saved, folder / f"{case}-second", case.split("-")[1])


def _check_checkpoint(student: Path, saved: Path, exported: Path, dtype: str) -> None:
    """The model of an earlier checkpoint, read without a learner, is the one that the learner had then: its base with
    that checkpoint's adapter, and transformers loads it."""
    from peft import PeftModel
    from safetensors.torch import load_file

    out = saved.with_name(f"{saved.name}-read")
    write_saved_model(saved, student, dtype, (), out)
    assert {f.relative_to(out) for f in out.rglob("*")} == {f.relative_to(exported) for f in exported.rglob("*")}
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        mine, learners = load_file(out / file), load_file(exported / file)
        assert mine.keys() == learners.keys()
        assert not [name for name in mine if not torch.equal(mine[name], learners[name])], file
    ids = torch.tensor([[5, 6, 7, 8, 30, 40]])
    near = 1e-5 if dtype == "float32" else 5e-2
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(causal_lm.load_model(student, "float32"), out / "adapter")
        torch.testing.assert_close(
            causal_lm.load_model(out, "float32")(ids).logits, adapted(ids).logits, rtol=near, atol=near
        )
    moved = [measured(str(student), *of) for of in ((exported,), (student, saved))]
    for name in MOVEMENT_METRICS if dtype == "float32" else ():
        assert moved[1][name] == pytest.approx(moved[0][name], rel=1e-4) != 0.0, "of a checkpoint as of its export"


def test_peft_reads_the_exported_adapter_as_it_was_trained(models: dict[str, Path], tmp_path: Path) -> None:
    from peft import PeftModel

    from actors.lora.files import write_adapter

    version = drawn(models["student"], 1)
    write_adapter(version, LORA.targets, LORA, str(models["student"]), tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7, 8, 30, 40]])
    with torch.no_grad():
        read = PeftModel.from_pretrained(causal_lm.load_model(models["student"], "float32"), tmp_path / "adapter")
        torch.testing.assert_close(
            read(ids).logits, merged(models["student"], version)(ids).logits, rtol=1e-5, atol=1e-5
        )


@acceptance
@pytest.mark.parametrize("serving", ["adapter", "merged"])
def test_vllm_samples_with_each_version_and_a_response_goes_on_across_an_update(
    models: dict[str, Path], tmp_path: Path, serving: str
) -> None:
    student, versions = models["student"], {}
    for number in (1, 2):
        versions[number] = drawn(student, number)
        torch.save(versions[number], tmp_path / f"v{number}.pt")
    output = together("tests.engines.lora_engine", [[str(student), str(tmp_path), serving]], tmp_path)
    *first, across, last = json.loads(output.splitlines()[-1])
    assert {v for row in first for v in row["versions"]} == {1} and set(last["versions"]) == {2}
    assert across["versions"] == sorted(across["versions"]) and set(across["versions"]) == {1, 2}
    plain = {number: merged(student, version) for number, version in versions.items()}
    for row in (*first, across, last):
        found = {number: logprobs(model, row) for number, model in plain.items()}
        own = torch.stack([found[version][i] for i, version in enumerate(row["versions"])])
        torch.testing.assert_close(torch.tensor(row["logprobs"]), own, rtol=0.0, atol=1e-4)
    assert (logprobs(plain[1], last) - torch.tensor(last["logprobs"])).abs().max() > 0.1, "versions differ"


def drawn(student: Path, seed: int) -> dict[str, torch.Tensor]:
    """A version of adapters, by wire name."""
    draw, version = torch.Generator().manual_seed(seed), {}
    for site in read_sites(student, LORA.targets):
        a, b = names(site.tensor)
        version[a] = 0.1 * torch.randn(LORA.rank, site.shape[1], generator=draw)
        version[b] = 0.1 * torch.randn(site.shape[0], LORA.rank, generator=draw)
    return version


def merged(student: Path, version: dict[str, torch.Tensor]) -> Any:
    model = causal_lm.load_model(student, "float32")
    model.load_state_dict(whole(version, student, LORA), strict=False)
    return model


@torch.no_grad()
def logprobs(model: Any, row: dict[str, Any]) -> torch.Tensor:
    """[response tokens] of a sampled response, over the logits of the rollout, padding included."""
    prompt, response = row["prompt_ids"], row["response_ids"]
    rows = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return rows.gather(1, torch.tensor(response)[:, None])[:, 0]


def together(module: str, arguments: list[list[str]], folder: Path) -> str:
    """Run a module in one process for each list of arguments; returns what the first prints. Fails if one fails."""
    with ExitStack() as files:
        said = [files.enter_context((folder / f"process{i}").open("w+")) for i in range(len(arguments))]
        members = [
            subprocess.Popen(
                [sys.executable, "-m", module, *own], stdout=out, stderr=subprocess.STDOUT, env=os.environ | ENVIRONMENT
            )
            for own, out in zip(arguments, said, strict=True)
        ]
        codes = [member.wait() for member in members]
    output = (folder / "process0").read_text()
    assert codes == [0] * len(codes), output[-2000:]
    return output
