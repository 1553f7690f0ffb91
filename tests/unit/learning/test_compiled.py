"""What a killed compiler leaves behind keeps nobody waiting; one that is at work is not disturbed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from actors.learning.compiled import load_ops, own_folder

COMPILES = """
import sys
from actors.learning import compiled
compiled._load = lambda name: (open(sys.argv[1], "x").close(), print("compiling", flush=True), sys.stdin.read())
compiled.load_ops(["an op"])
"""


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's, of an op."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "an_op").mkdir()
    return tmp_path / "an_op" / "lock"


def test_who_compiles_is_waited_for_and_who_was_killed_is_not(lock: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", COMPILES, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as compiler:
        assert compiler.stdout and compiler.stdout.readline() == "compiling\n"
        waiting = threading.Thread(target=load_ops, args=((),), daemon=True)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive() and lock.exists()
        compiler.send_signal(signal.SIGKILL)
        waiting.join(30.0)
    assert not waiting.is_alive() and not lock.exists()


def test_two_environments_compile_into_folders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    here = own_folder()
    assert here == own_folder()
    monkeypatch.setattr(sys, "prefix", "/another/environment")
    assert here != own_folder() and here.parent == own_folder().parent
