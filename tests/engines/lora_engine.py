"""A vLLM rollout that pulls versions of adapters, without Ray.

`python -m tests.engines.lora_engine MODEL FOLDER SERVING`.

Loads version 1, samples, and loads version 2 while a response is being sampled. Prints a line of JSON: each response's
prompt, tokens, log-probs and versions. The versions are in FOLDER/v1.pt and v2.pt, by wire name.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import torch

from actors.models import weights
from actors.rollout.rollout import Rollout
from actors.wire.records import Request
from configs.roles.lora import Lora
from configs.roles.rollout import Rollout as RolloutConfig
from configs.schema import Sampling

LORA = Lora.model_validate({"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj", "down_proj"]})


async def sampled(rollout: Rollout, request: Request, tokens: int) -> dict[str, Any]:
    """A response of so many tokens, whatever they are."""
    rows = [row async for row in rollout.write(request, Sampling(max_response_tokens=tokens), [])]
    last = rows[-1]
    return {
        "prompt_ids": list(last.prompt_ids),
        "response_ids": list(last.response_ids),
        "logprobs": [float(value) for value in last.rollout_logprobs],
        "versions": [int(version) for version in last.versions],
    }


async def across(rollout: Rollout, version: list[Any]) -> dict[str, Any]:
    """A long response across an update."""
    request = Request("long", "long", 0, 7, [5, 6, 7, 8], segment_tokens=2)
    task = asyncio.create_task(sampled(rollout, request, 120))
    while len(rollout._running.get("long") or ()) < 8:
        await asyncio.sleep(0)
    await rollout.load(2, version[1::2], *version[::2])
    return await task


async def main(model: Path, folder: Path, serving: str) -> None:
    config = RolloutConfig.model_validate(
        {"dtype": "float32", "max_context_tokens": 128, "max_concurrent": 8, "resources": {"threads": 1}}
    )
    rollout = Rollout(config, str(model), str(folder / "shared"), LORA.model_copy(update={"serving": serving}))
    await rollout.start()
    versions = [list(weights.buckets(torch.load(folder / f"v{i}.pt").items(), "float32")) for i in (1, 2)]
    flat = [[part for pair in version for part in pair] for version in versions]
    await rollout.load(1, flat[0][1::2], *flat[0][::2])
    requests = [Request(f"r{i}", f"r{i}", 0, i, [5, 6, 7 + i]) for i in range(4)]
    found = list(await asyncio.gather(*(sampled(rollout, request, 12) for request in requests)))
    found.append(await across(rollout, flat[1]))
    found.append(await sampled(rollout, requests[0], 12))
    await rollout.stop()
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
