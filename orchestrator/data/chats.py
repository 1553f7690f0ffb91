"""Messages of a row: which are the prompt, and which is the demonstration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from configs.refusal import RecipeError, shown

Turns = list[dict[str, str]]
ASSISTANT = "assistant"


def turns(value: Any, where: str) -> Turns:
    """Messages as role and text, of a list, or of its JSON text. Raises RecipeError for what is no such list."""
    if isinstance(value, str):
        value = _parsed(value, where)
    if not isinstance(value, list) or not value:
        raise RecipeError(f"{where}: messages need a list of role and content; found {shown(value, 60)}")
    return [_turn(message, f"{where}: message {number}") for number, message in enumerate(value, 1)]


def split(chat: Turns, where: str) -> tuple[Turns, str | None]:
    """The turns before a response, and the last assistant turn where the chat ends with one. Raises RecipeError if no
    one speaks before it."""
    before, last = (chat[:-1], chat[-1]["content"]) if chat[-1]["role"] == ASSISTANT else (chat, None)
    if not before or before[-1]["role"] in (ASSISTANT, "system"):
        raise RecipeError(f"{where}: no user speaks before the response; end the messages with a user's turn")
    return before, last


def _turn(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or not message["role"]:
        raise RecipeError(f"{where} has no role; write {{role: user, content: ...}}")
    if message.get("tool_calls"):
        raise RecipeError(f"{where} calls a tool, which is not offered; leave the row out")
    return {"role": message["role"], "content": _text(message.get("content"), where)}


def _text(content: Any, where: str) -> str:
    """A content that is text, or a list of parts that are all text."""
    if isinstance(content, list) and content and all(_is_text(part) for part in content):
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise RecipeError(f"{where} has no text; found {shown(content, 60)}")
    return content


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RecipeError(f"{where}: messages are no JSON list; found {shown(text, 60)}") from None
