"""`logratio evaluate` on real engines: evaluations of one checkpoint are equal, and a text's loss is the model's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SMALL = {"max_context_tokens": 96, "resources": {"cpus": 0.1}}

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]  # minutes of real engines


def logratio(*arguments: str) -> None:
    command = [sys.executable, "-m", "orchestrator.cli", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600.0, check=False)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]


@pytest.fixture(scope="module")
def trained(
    models: dict[str, Path], prompts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run of two steps with a set of each kind, and its recipe."""
    root = tmp_path_factory.mktemp("evaluated")
    text = [{"prompt": f"p{i}", "response": f"the answer is {i} " * (1 + i)} for i in range(5)]
    (root / "text.jsonl").write_text("\n".join(map(json.dumps, text)))
    letters = {"kind": "regex", "text": "[aeiou]", "name": "vowel"}
    tree = {
        "run": {"name": "evaluated", "root": str(root), "steps": 2},
        "models": {name: {"path": str(models[name])} for name in ("student", "teacher")},
        "data": {"prompts": str(prompts["train"])},
        "batch": {"prompts_per_step": 2},
        "sampling": {"max_response_tokens": 12},
        "objective": {"target": "teacher", "support": "full"},
        "learner": {"optimizer": {"lr": 0.05}, "resources": {"cpus": 0.1}},
        "rollout": SMALL,
        "scorer": {"teacher": SMALL, "start": SMALL},
        "metrics": {"start_kl": "exact", "trackers": []},
        "checkpoint": {"best": {"metric": "vowels.pass@1"}},
        "evaluate": {
            "every": 1,
            "sets": {
                "vowels": {
                    "prompts": str(prompts["heldout"]),
                    "rules": [letters],
                    "format": "vowel",
                    "samples_per_prompt": 3,
                    "k": [1, 3],
                },
                "general": {
                    "prompts": str(prompts["heldout"]),
                    "teachers": False,
                    "temperature": 0.0,
                    "rules": [letters],
                },
                "text": {"text": str(root / "text.jsonl")},
            },
        },
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(tree))
    logratio("run", str(root / "recipe.yaml"))
    return root / "evaluated", tree


def known(line: dict[str, Any]) -> dict[str, float]:
    return {metric: value for metric, value in line.items() if value is not None}


def test_two_evaluations_of_one_checkpoint_are_equal(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """And equal to what the run itself measured after its last step."""
    run, _ = trained
    sets = json.loads((run / "summary.json").read_text())["evaluation"]["sets"]
    found = [{name: of_set["after"] for name, of_set in sets.items()}]
    for subject, out in ((run / "checkpoints" / "step_2", "a.json"), (run, "b.json")):
        logratio("evaluate", str(subject), "--out", str(tmp_path / out))
        results = json.loads((tmp_path / out).read_text())
        found.append(results["sets"])
        assert 0.0 < results["movement"]["weights_changed"] <= 1.0 < results["movement"]["effective_rank"]
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, line in found[0].items():
            bounds, others = line.pop("intervals", None), other[name].pop("intervals", None)
            unknown = {metric for metric, value in line.items() if value is None}
            assert {metric for metric, value in other[name].items() if value is None} == unknown, name
            assert known(other[name]) == pytest.approx(known(line), rel=1e-4, abs=1e-5), name
            for metric in bounds or ():
                assert others[metric] == pytest.approx(bounds[metric], rel=1e-4), metric
            line["intervals"] = bounds
    assert found[0]["general"]["reverse_kl"] is None and found[0]["general"]["start_kl"] > 0
    assert (run / "model-best" / "config.json").exists()


def test_the_loss_of_a_text_is_that_of_the_model(trained: tuple[Path, dict[str, Any]]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, tree = trained
    line = json.loads((run / "summary.json").read_text())["evaluation"]["sets"]["text"]["after"]
    model = AutoModelForCausalLM.from_pretrained(run / "model").float().eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    loss, count = 0.0, 0
    for row in map(json.loads, Path(tree["evaluate"]["sets"]["text"]["text"]).read_text().splitlines()):
        chat = [{"role": "user", "content": row["prompt"]}]
        before = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
        after = [*tokenizer.encode(row["response"], add_special_tokens=False), tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([[*before, *after]])).logits[0]
        logprobs = logits[len(before) - 1 : -1, : len(tokenizer)].log_softmax(-1)
        loss -= float(logprobs.gather(-1, torch.tensor(after).unsqueeze(-1)).sum())
        count += len(after)
    assert line["nll"] == pytest.approx(loss / count, rel=2e-2), "the learner computes in its own dtype"
    assert line["samples"] == 5
