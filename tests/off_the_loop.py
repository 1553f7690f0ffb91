"""What blocks is refused on the thread of an event loop: hashing, fsync, reading and writing files, copying tensors,
tokenising, `ray.get` and `time.sleep` raise there while `off_the_loop` is entered. Off it, and outside a loop, nothing
changes.

What counts is whose call it is: the innermost frame that is neither the standard library's nor this file's must be the
program's. What a library does inside itself (Ray, vLLM, transformers, imports) is its own; but for
those that read or write whole files of weights, which are refused by their name. Exempt, too:

- members whose methods are all synchronous: Ray gives them no loop, though the in-process transport calls them on its;
- `attach_log`, and what vLLM does while an engine is built: once a member, before it has anything to serve;
- hashes of under 64 KiB that are no fingerprints of weights: seeds and keys.
"""

from __future__ import annotations

import asyncio
import builtins
import hashlib
import inspect
import io
import os
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from actors.member import Member

ROOT = Path(__file__).parents[1]
OURS = tuple(f"{ROOT / name}{os.sep}" for name in ("orchestrator", "actors", "objectives", "rewards", "configs"))
LIBRARY = f"{sysconfig.get_paths()['stdlib']}{os.sep}"
PACKAGES = f"{os.sep}site-packages{os.sep}"
ONCE = {"attach_log"}
SMALL = 64 * 2**10  # bytes


class OnTheLoop(AssertionError):
    """Something that blocks was called on the thread of an event loop."""


def blocks(frame: FrameType | None) -> str:
    """Whose line it is that keeps a loop waiting; empty where none does."""
    if asyncio._get_running_loop() is None:
        return ""
    while frame is not None and _in_between(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None or not frame.f_code.co_filename.startswith(OURS):
        return ""
    place = f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"
    while frame is not None:
        if frame.f_code.co_name in ONCE or _synchronous(frame.f_locals.get("self")):
            return ""
        frame = frame.f_back
    return place


def _in_between(file: str) -> bool:
    if PACKAGES in file:
        return False
    return file.startswith(LIBRARY) or file.startswith("<frozen") or file == __file__


def _synchronous(it: Any) -> bool:
    """A member that Ray gives a process without a loop."""
    if not isinstance(it, Member):
        return False
    methods = [method for _, method in inspect.getmembers(type(it), inspect.isfunction)]
    return not any(inspect.iscoroutinefunction(m) or inspect.isasyncgenfunction(m) for m in methods)


class Guard:
    """Patches what blocks, and keeps what it refused: a fault that is caught on its way shows all the same."""

    def __init__(self, patch: pytest.MonkeyPatch, refused: list[str] | None = None) -> None:
        self.refused = [] if refused is None else refused
        self._patch = patch

    def forbid(self, owner: Any, name: str, what: str, counts: Callable[..., bool] = lambda *_, **__: True) -> None:
        """Refuse a function, where `counts` says so of its arguments."""
        function = getattr(owner, name)

        def guarded(*args: Any, **kwargs: Any) -> Any:
            if counts(*args, **kwargs) and (place := blocks(inspect.currentframe())):
                self.refused.append(f"{what} in {place}")
                raise OnTheLoop(self.refused[-1])
            return function(*args, **kwargs)

        self._patch.setattr(owner, name, guarded)

    def everything(self) -> None:
        self._files()
        self._hashes()
        self._tensors()
        self._tokenizers()
        self.forbid(time, "sleep", "time.sleep")
        import ray  # the program may import it later

        self.forbid(ray, "get", "ray.get")
        self.forbid(ray, "wait", "ray.wait")

    def _files(self) -> None:
        for owner in (builtins, io, os):
            self.forbid(owner, "open", "a file is opened")
        for name in ("read", "write", "fsync"):
            self.forbid(os, name, f"os.{name}")
        for name in ("copy", "copy2", "copyfile", "copyfileobj", "copytree", "move", "rmtree"):
            self.forbid(shutil, name, f"shutil.{name}")
        self._files_of_libraries()

    def _files_of_libraries(self) -> None:
        import pyarrow
        import safetensors
        import safetensors.torch
        import torch

        for name in ("save_file", "load_file"):
            self.forbid(safetensors.torch, name, name)
        self.forbid(safetensors, "safe_open", "safe_open")
        for name in ("save", "load"):
            self.forbid(torch, name, f"torch.{name}")
        for name in ("OSFile", "memory_map"):
            self.forbid(pyarrow, name, f"pyarrow.{name}")

    def _hashes(self) -> None:
        from actors.models import fingerprint

        self.forbid(fingerprint, "blake3", "a fingerprint")
        self.forbid(hashlib, "file_digest", "hashing of a file")
        for name in ("sha256", "blake2b", "md5", "sha1"):
            self.forbid(hashlib, name, "hashing", lambda data=b"", **_: memoryview(data).nbytes > SMALL)

    def _tokenizers(self) -> None:
        from orchestrator.samples.templates import Chat

        for name in ("encoded", "render"):
            self.forbid(Chat, name, "a prompt is tokenised")

    def _tensors(self) -> None:
        import torch

        for name in ("copy_", "clone", "cpu", "cuda", "contiguous", "to"):
            self.forbid(torch.Tensor, name, f"a tensor's {name}")
        self.forbid(torch.nn.Module, "to", "a model's to")
        self.forbid(
            np, "concatenate", "a copy of arrays", lambda arrays, *_, **__: sum(a.nbytes for a in arrays) > SMALL
        )


@contextmanager
def off_the_loop() -> Iterator[None]:
    """What blocks is refused on a loop's thread; what was refused fails the test, whatever became of the error."""
    with pytest.MonkeyPatch.context() as patch:
        guard = Guard(patch)
        guard.everything()
        yield
    assert not guard.refused, f"an event loop was kept waiting: {sorted(set(guard.refused))}"
