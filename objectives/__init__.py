"""The mathematics. torch only: no Ray, no engines, no files.

Public names, for people who write their own: token_kl, support_kl, log_ratio_signal.
"""

from objectives.divergence import support_kl, token_kl
from objectives.signal import log_ratio_signal

__all__ = ["log_ratio_signal", "support_kl", "token_kl"]
