"""Finds what cannot be read of a model directory, before a library raises an obscure error about it."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.models import model_files
from configs.refusal import reason, shown

_READ = (".json", ".jinja", ".safetensors", ".model", ".txt")  # suffixes of the files that engines read


def unreadable(directory: Path) -> str | None:
    """The first fault of a directory that has config.json and *.safetensors, or None."""
    try:
        entries = sorted(directory.iterdir())
    except OSError as error:
        return f"it cannot be listed ({reason(error)})"
    files = (fault for entry in entries if entry.suffix in _READ and (fault := _file(entry)))
    return next(files, None) or model_files.incomplete(directory) or _configuration(directory)


def _file(path: Path) -> str | None:
    """Why a file cannot be read, or None. A pipe is not opened, since that would block."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return f"{path.name} is no file"
        path.open("rb").close()
        if path.suffix == ".json":
            json.loads(path.read_bytes())
    except OSError as error:
        broken = ", the link leads nowhere" if path.is_symlink() and not path.exists() else ""
        return f"{path.name} cannot be read ({reason(error)}{broken})"
    except ValueError as error:
        return f"{path.name} is no JSON ({reason(error)})"
    except RecursionError:
        return f"{path.name} is no JSON that can be read (nested too deeply)"
    return None


def _configuration(directory: Path) -> str | None:
    """The first impossible value in config.json or generation_config.json, or None."""
    readers: dict[str, tuple[Callable[[Path], Any], Callable[[Any], bool]]] = {
        "vocab_size": (model_files.logit_width, _positive),
        "max_position_embeddings": (model_files.context_length, lambda n: n is None or _positive(n)),
        "eos_token_id": (model_files.end_token_ids, lambda ids: all(_natural(i) for i in ids)),
        "layers and heads": (model_files.key_values_per_token, lambda n: n is None or _positive(n)),
    }
    for name, (read, fits) in readers.items():
        try:
            value = read(directory)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            return (
                f"its configuration says nothing that can be read of {name} ({type(error).__name__}: {reason(error)})"
            )
        if not fits(value):
            return f"its configuration has {name} {shown(value)}"
    try:
        model_files.hidden_width(directory)
    except StopIteration:
        return f"no tensor has the {model_files.logit_width(directory)} rows that vocab_size of config.json says"
    return None


def _natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _positive(value: Any) -> bool:
    return _natural(value) and value > 0


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' log, so that a refusal stays one line; its warnings come again in a member's log."""
    from transformers.utils import logging as log

    before = log.get_verbosity()
    log.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        log.set_verbosity(before)
