"""`logratio audit`: a verdict on a recipe or on a loss of one's own, in the exit code too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator import cli
from tests.cli.conftest import _logratio

CONFIGS = Path(__file__).parents[2] / "configs"


def audited(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code, and what was found."""
    monkeypatch.setattr(sys, "argv", ["logratio", "audit", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), capsys.readouterr().out


@pytest.mark.parametrize("name", ["opd_sampled", "mixed_kl", "kl_rl"])
def test_a_sound_recipe_has_no_findings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    code, said = audited(monkeypatch, capsys, str(CONFIGS / f"{name}.yaml"))
    assert code == 0 and "no findings" in said


def test_a_loss_without_a_signal_is_named_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = audited(monkeypatch, capsys, "tests.engines.own:lost_teacher")
    assert code == 1 and "defect: no_signal" in said


def test_a_biased_recipe_is_named_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    biased = ("objective.estimator=k3_in_reward", "objective.allow_biased=[k3_in_reward]", "objective.clip=null")
    code, said = audited(monkeypatch, capsys, str(CONFIGS / "opd_sampled.yaml"), *biased)
    assert code == 1 and "defect: reverse_minus_forward" in said


@pytest.mark.parametrize("target", ["nowhere:loss", "objectives.signal:nothing", "no_such.yaml"])
def test_what_cannot_be_audited_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    code, error = _logratio(monkeypatch, capsys, "audit", target)
    assert code == 2 and error.startswith(f"logratio: {target if ':' in target else ''}") and error.count("\n") == 1
