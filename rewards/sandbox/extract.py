"""Where the code lies in a response."""

from __future__ import annotations

import re

from configs.reward_rules import Where

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*$")
_PYTHON = {"python", "python3", "py", "py3"}


def code_in(text: str, where: Where) -> str | None:
    """The code of a response: a fenced block (of those that are marked as Python, if any is; else of those that are not
    marked), or the whole text. None where there is no such block; one that is not closed is none."""
    if where == "whole":
        return text
    blocks = fenced(text)
    chosen = [code for mark, code in blocks if mark in _PYTHON] or [code for mark, code in blocks if not mark]
    if not chosen:
        return None
    return chosen[-1] if where == "last_block" else chosen[0]


def fenced(text: str) -> list[tuple[str, str]]:
    """(mark in lower case, text) of each closed block."""
    found: list[tuple[str, str]] = []
    fence, mark, lines = "", "", []
    for line in text.replace("\r\n", "\n").split("\n"):
        match = _FENCE.match(line)
        if not fence:
            if match:
                fence, mark, lines = match[1], match[2].lower(), []
        elif match and not match[2] and match[1].startswith(fence):
            found.append((mark, "".join(f"{each}\n" for each in lines)))
            fence = ""
        else:
            lines.append(line)
    return found
