"""The type of a rule: a function of a whole recipe that returns None, or the refusal: key, reason, remedy."""

from __future__ import annotations

from collections.abc import Callable

from configs.schema import Recipe

Refusal = str | None
Rule = Callable[[Recipe], Refusal]
