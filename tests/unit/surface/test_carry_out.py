"""Real signals to a process that carries out a run, with members in the same process instead of Ray."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from configs.load import RecipeError
from orchestrator.preflight import files
from orchestrator.surface.carry_out import carry_out
from tests.unit.simulation import recipe

ROOT = Path(__file__).parents[3]
STORY = """
import contextlib, signal, sys, threading, time
from pathlib import Path
from actors.member import Member
from orchestrator.pools import transport
from orchestrator.preflight import capacity, cluster, files
from orchestrator.surface import driver
from orchestrator.surface.carry_out import carry_out
from actors.simulated.known import Speeds
from tests.unit.simulation import HELDOUT, TRAIN, recipe, simulated

root, where, numbers = Path(sys.argv[1]), sys.argv[2], [int(n) for n in sys.argv[3:]]

class Tokenizer:
    def decode(self, ids):
        return str(ids)

def strike():
    for number in numbers:
        signal.pthread_kill(threading.main_thread().ident, number)
        time.sleep(0.2)

def read_inputs(recipe):
    if where == "reading":
        threading.Thread(target=strike, daemon=True).start()
        time.sleep(60.0)
    return files.Inputs(TRAIN, HELDOUT, Tokenizer(), 1000, (1,), 0, 0)

@contextlib.asynccontextmanager
async def serve_commands(run, display, reporting):
    threading.Timer(1.0, strike).start()
    yield

Member.attach_log = lambda self, path: None  # it is this process's
cluster.connected = lambda recipe, directory: contextlib.nullcontext()
capacity.compared_with = lambda *arguments: []
driver.serve_commands = serve_commands
transport.RayTransport = transport.LocalTransport
files.read_inputs = read_inputs
sys.exit(carry_out(recipe(root), root / "sim", simulated(Speeds(rollout=100.0))))
"""


@pytest.mark.parametrize("where", ["reading", "sampling"])
@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGINT], [signal.SIGTERM], [signal.SIGUSR1], [signal.SIGINT, signal.SIGINT]],
    ids=lambda numbers: "+".join(number.name for number in numbers),
)
def test_a_signal_ends_a_run_with_a_message_exit_code_3_and_a_resumable_directory(
    tmp_path: Path, where: str, numbers: list[signal.Signals]
) -> None:
    arguments = [str(tmp_path), where, *(str(int(number)) for number in numbers)]
    ended = subprocess.run(
        [sys.executable, "-c", STORY, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=50.0, check=False
    )
    assert ended.returncode == 3, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "go on with: logratio resume sim" in ended.stdout
    assert (tmp_path / "sim" / "recipe.yaml").exists()
    if where == "sampling":
        assert json.loads((tmp_path / "sim" / "summary.json").read_text())["exit"] == 3


def test_a_job_that_ray_would_kill_before_its_checkpoint_is_warned_as_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreadable(recipe: object) -> None:
        raise RecipeError("no prompts")

    monkeypatch.setattr(files, "read_inputs", unreadable)
    monkeypatch.setattr("orchestrator.surface.carry_out.SIGNALS", ())  # this process's handlers are pytest's
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.delenv("RAY_JOB_STOP_WAIT_TIME_S", raising=False)
    (directory := tmp_path / "sim").mkdir()
    with pytest.raises(RecipeError, match="no prompts"):
        carry_out(recipe(tmp_path), directory)
    assert "warning: RAY_JOB_STOP_WAIT_TIME_S" in capsys.readouterr().out
