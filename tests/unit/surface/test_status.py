"""`logratio status` and `scale` at the command line, against a control actor that answers from a list."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import cli
from orchestrator.preflight import cluster
from orchestrator.surface.status import bottleneck_line

ROLES = [
    {"role": "rollout", "elastic": True, "members": 2, "restarts": 1, "busy": 0.97, "waiting": 0.03},
    {"role": "scorer.teacher", "elastic": True, "members": 1, "restarts": 0, "busy": 0.31, "waiting": 0.69},
    {"role": "reward", "elastic": True, "members": 1, "restarts": 0, "busy": 0.0, "waiting": 1.0},
    {"role": "learner", "elastic": False, "members": 1, "restarts": 0, "busy": 0.7, "waiting": 0.24},
]
STATE: dict[str, Any] = {
    "step": 12,
    "steps": 100,
    "version": 13,
    "phase": "training",
    "members": [
        {"name": "rollout-0", "state": "leaving", "version": 12, "load": 8, "restarts": 0},
        {"name": "rollout-2", "state": "serving", "version": 13, "load": 64, "restarts": 1},
        {"name": "scorer.teacher-0", "state": "serving", "version": None, "load": 0, "restarts": 0},
    ],
    "roles": ROLES,
    "swaps": [{"model": "teacher", "step": 9, "path": "/models/teacher-2"}],
    "seconds": 60.1,
    "samples_per_step": 64,
    "bottleneck": {
        "role": "rollout",
        "busy": 0.97,
        "samples_per_second": 11.2,
        "one_more": {"rollout": 0.31, "scorer.teacher": 0.0, "reward": 0.0},
    },
}
UNKNOWN = STATE | {
    "seconds": None,
    "roles": [role | {"busy": None, "waiting": None} for role in ROLES],
    "bottleneck": None,
}
Said = tuple[int, str, list[Any]]


@pytest.fixture
def logratio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Said]:
    """Run a command against a live run: (exit code, output, commands sent)."""
    (tmp_path / "recipe.yaml").touch()

    def run(command: str, *arguments: str, state: dict[str, Any] = STATE) -> Said:
        sent: list[Any] = []
        control = SimpleNamespace(
            status=SimpleNamespace(remote=lambda: state),
            send=SimpleNamespace(remote=lambda name, values: sent.append((name, values))),
        )

        @contextlib.contextmanager
        def attached(directory: Path) -> Iterator[Any]:
            yield control

        monkeypatch.setattr(cluster, "attached", attached)
        monkeypatch.setattr(cli, "_get", lambda value: value)
        monkeypatch.setattr(sys, "argv", ["logratio", command, str(tmp_path), *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err, sent

    return run


def cells(output: str, first: str) -> list[list[str]]:
    """Rows of the drawn tables that begin with a cell."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    return [row for row in rows if row and row[0] == first]


def test_status_shows_members_roles_and_the_bottleneck(logratio: Callable[..., Said]) -> None:
    code, output, _ = logratio("status")
    assert code == 0 and output.startswith("step 12 of 100, policy version 13, training\n")
    assert cells(output, "rollout-0") == [["rollout-0", "leaving", "12", "8", "0"]]
    assert cells(output, "rollout-2") == [["rollout-2", "serving", "13", "64", "1"]]
    assert cells(output, "scorer.teacher-0") == [["scorer.teacher-0", "serving", "-", "0", "0"]]
    assert cells(output, "rollout") == [["rollout", "2", "97%", "3%", "1"]]
    assert cells(output, "learner") == [["learner", "1", "70%", "24%", "0"]]
    assert "busy, last 60 s" in output and "models.teacher from step 9 on: /models/teacher-2\n" in output
    assert output.splitlines()[-1] == (
        "11.2 samples/s, 5.71 s a step; rollout is the bottleneck (busy 97%); "
        "one more rollout: +31% (14.7 samples/s, 4.36 s a step); one more scorer.teacher: +0%; one more reward: +0%"
    )


def test_unknown_values_are_shown_as_unknown(logratio: Callable[..., Said]) -> None:
    code, output, _ = logratio("status", state=UNKNOWN)
    assert code == 0 and cells(output, "rollout") == [["rollout", "2", "-", "-", "1"]]
    assert output.splitlines()[-1] == bottleneck_line(UNKNOWN)
    assert "unknown" in bottleneck_line(UNKNOWN) and "%" not in output


def test_members_of_a_kind_are_named_and_stay(logratio: Callable[..., Said]) -> None:
    wide = {"name": "rollout-3", "state": "serving", "version": 13, "load": 2, "restarts": 0, "kind": "wide"}
    state = STATE | {"members": [*STATE["members"], wide]}
    _, output, _ = logratio("status", state=state)
    assert cells(output, "rollout-3 (wide)") == [["rollout-3 (wide)", "serving", "13", "2", "0"]]
    code, output, sent = logratio("scale", "rollout=4", "reward=2", state=state)
    assert code == 0 and "scaling to rollout=4 beside 1 of its kinds, reward=2" in output
    assert sent == [("scale", {"rollout": 4, "reward": 2})]


def test_several_roles_scale_at_once(logratio: Callable[..., Said]) -> None:
    code, output, sent = logratio("scale", "rollout=4", "scorer.teacher=2", "reward=3")
    assert code == 0 and "scaling to rollout=4, scorer.teacher=2, reward=3" in output
    assert sent == [("scale", {"rollout": 4, "scorer.teacher": 2, "reward": 3})]


ALLOWED = "allowed: ['rollout', 'scorer.teacher', 'reward']"


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        (["learner=2"], f"learner: does not change its size in a live run; {ALLOWED}"),
        (["rollout=2", "scorer=2"], f"scorer: no such role in this run; {ALLOWED}"),
        (
            ["rollout.kinds.wide=2"],
            "rollout.kinds.wide: members of a kind stay as many as the recipe says; scale rollout",
        ),
        (["rollout"], "'rollout': write ROLE=N with N of at least 1, e.g. rollout=4"),
        (["rollout=0"], "'rollout=0': write ROLE=N with N of at least 1, e.g. rollout=4"),
        (["rollout=-1"], "'rollout=-1': write ROLE=N with N of at least 1, e.g. rollout=4"),
        (["rollout=1", "rollout=2"], "'rollout=2': rollout is there twice; say one size"),
    ],
)
def test_a_role_that_cannot_scale_is_refused_and_nothing_is_sent(
    logratio: Callable[..., Said], sizes: list[str], line: str
) -> None:
    assert logratio("scale", *sizes) == (2, f"logratio: {line}\n", [])


@pytest.mark.parametrize("command", [("status",), ("scale", "rollout=2")])
def test_a_run_without_a_report_yet_is_refused_with_the_remedy(
    logratio: Callable[..., Said], command: tuple[str, ...]
) -> None:
    code, output, sent = logratio(*command, state={})
    assert code == 2 and "has not said how it is yet; ask again in a second" in output and not sent
