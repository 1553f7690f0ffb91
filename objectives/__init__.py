"""The mathematics. torch only: no Ray, no engines, no files.

Public names, for people who write their own: token_kl, support_kl, log_ratio_signal. They are imported when they are
first used: the orchestrator reads schedules alone, and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from objectives.divergence import support_kl, token_kl
    from objectives.signal import log_ratio_signal

__all__ = ["log_ratio_signal", "support_kl", "token_kl"]

_FROM = {"log_ratio_signal": "signal", "support_kl": "divergence", "token_kl": "divergence"}


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FROM[name]}"), name)
