"""`logratio` with the real learner, scorers and reward workers in one process.

No Ray and no vLLM, which take longer to start than a tiny model to learn. The process imports everything and forks for
each command, as `tests/unit/surface/staged.py` does.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import torch

from actors.learning.learner import Learner
from configs.load import cache_directory
from orchestrator import cli
from orchestrator.preflight import cluster
from orchestrator.surface import driver
from tests.unit.surface.staged import nothing, serve, without_ray

ENGINE = "tests.in_process.rollout:TorchRollout"  # rollout.engine
MODULE = "tests.in_process.serve"


@contextlib.asynccontextmanager
async def no_commands(*arguments: Any) -> AsyncIterator[None]:
    yield


def stay_joined(learner: Learner) -> None:
    """The next stage's learner goes on in the process group of this one."""


def load_one_at_a_time() -> None:
    """transformers builds models one at a time in a process, as it sets the type that torch gives to new tensors
    meanwhile; members start side by side."""
    from transformers import AutoModelForCausalLM

    load, make, lock = AutoModelForCausalLM.from_pretrained, AutoModelForCausalLM.from_config, threading.Lock()

    def one_at_a_time(build: Callable[..., Any]) -> Callable[..., Any]:
        def locked(*arguments: Any, **options: Any) -> Any:
            with lock:
                return build(*arguments, **options)

        return locked

    AutoModelForCausalLM.from_pretrained = one_at_a_time(load)  # type: ignore[method-assign]
    AutoModelForCausalLM.from_config = one_at_a_time(make)  # type: ignore[method-assign]


if __name__ == "__main__":
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache_directory() / "torch_extensions"))
    os.environ |= {"DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import deepspeed  # noqa: F401

    torch.set_num_threads(1)
    load_one_at_a_time()
    without_ray()
    Learner.stop = stay_joined  # type: ignore[method-assign]
    cluster.driver = nothing  # type: ignore[assignment]
    driver.serve_commands = no_commands  # type: ignore[assignment]
    serve(lambda: cli.main())
