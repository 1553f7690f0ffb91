"""Folders of members in shared memory: a dead one's goes, a living one's stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from actors.shared_memory import MemberFolder

MEMBER = """
import sys, time
from pathlib import Path
from actors.shared_memory import MemberFolder
folder = MemberFolder(Path(sys.argv[1]))
(folder.path / "v3.partial").write_bytes(b"half a model")
print(folder.path, flush=True)
time.sleep(20)
"""


def test_a_member_that_starts_removes_what_a_dead_one_left_and_nothing_that_lives(tmp_path: Path) -> None:
    shared, command = tmp_path / "run", [sys.executable, "-c", MEMBER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as process:
        assert process.stdout
        theirs = Path(process.stdout.readline().strip())
        first = MemberFolder(shared)
        assert set(shared.iterdir()) == {theirs, first.path} and (theirs / "v3.partial").exists()
        os.kill(process.pid, signal.SIGKILL)
    second = MemberFolder(shared)
    assert set(shared.iterdir()) == {first.path, second.path}
    assert shared.stat().st_mode & 0o777 == first.path.stat().st_mode & 0o777 == 0o700
    first.remove()
    second.remove()
    assert list(shared.iterdir()) == []
