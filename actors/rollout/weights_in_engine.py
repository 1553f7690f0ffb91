"""Runs inside vLLM's worker process, which has no Ray: loads a weight version from a file."""

from __future__ import annotations

from typing import Any

from actors.rollout.engine_worker import EndsWithActor


class VersionLoader(EndsWithActor):
    """vLLM worker extension; `collective_rpc("load_version", args=(path,))` reaches it."""

    model_runner: Any

    def load_version(self, path: str) -> None:
        """Reload all weights in place from a safetensors file. `model.load_weights` would fail on a CPU, where vLLM has
        repacked the parameters."""
        from safetensors.torch import load_file

        self._forget_packed_experts()
        self.model_runner.reload_weights(weights_iterator=iter(load_file(path).items()))
        self._tie_head()

    def _forget_packed_experts(self) -> None:
        """On a CPU the kernel of an expert layer packs the weights once, when it is built, and would read reloaded
        weights as packed ones. Without a kernel the reload builds one and packs again."""
        from vllm.platforms import current_platform

        if not current_platform.is_cpu():
            return
        for module in self.model_runner.get_model().modules():
            method: Any = getattr(module, "quant_method", None)
            if getattr(method, "moe_kernel", None) is not None:
                method.moe_kernel = None

    def _tie_head(self) -> None:
        """Tie an LM head to the embeddings again. It is in no file, so the reload skips it, and on a CPU it would keep
        a packed copy of the old weights."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

        if not self.model_runner.model_config.hf_text_config.tie_word_embeddings:
            return
        modules = list(self.model_runner.get_model().modules())
        heads = [m for m in modules if isinstance(m, ParallelLMHead)]
        embeddings = [m for m in modules if isinstance(m, VocabParallelEmbedding) and m not in heads]
        for head in heads:
            head.tie_weights(embeddings[0])
            head.quant_method.process_weights_after_loading(head)
