"""What a rule is: it reads a whole recipe and finds nothing, or says what is wrong, why, and what to do instead."""

from __future__ import annotations

from collections.abc import Callable

from configs.schema import Recipe

Refusal = str | None
Rule = Callable[[Recipe], Refusal]
