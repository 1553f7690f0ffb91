"""Runs inside vLLM's worker process, which never sees Ray: loads a weight version from a file by path."""

from __future__ import annotations

from typing import Any


class VersionLoader:
    """vLLM worker extension; `collective_rpc("load_version", args=(path,))` reaches it."""

    model_runner: Any

    def load_version(self, path: str) -> None:
        """Reload all weights in place. On a CPU parameters are repacked, so `model.load_weights` would fail."""
        from safetensors.torch import load_file

        self.model_runner.reload_weights(weights_iterator=iter(load_file(path).items()))
