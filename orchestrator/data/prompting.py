"""Makes a prompt of a row: its token ids under every model, and those of its demonstration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from configs.names.columns import MESSAGES, PROMPT, RESPONSE
from configs.names.row_fields import Template
from configs.objective import Route
from configs.refusal import RecipeError, shown
from orchestrator.data.checks import check_route
from orchestrator.data.cutting import cut
from orchestrator.samples.prompts import Prompt
from orchestrator.samples.templates import Chat, Demonstrations

_TEMPLATE = Template()

Row = Mapping[str, Any]


class Limit(NamedTuple):
    """The longest context that a role gives a model, and the room in it that is the response's; tokens. The learner
    gives a base as many as it has positions."""

    model: str
    role: str
    context: int
    response: int

    def __str__(self) -> str:
        if self.role == "learner":
            return f"the {self.context} positions of models.{self.model}; shorten it"
        return f"{self.role}.max_context_tokens {self.context}; shorten it, raise the limit"


class TooLong(RecipeError):
    """A prompt that leaves no room for its response."""


class Made(NamedTuple):
    """A prompt. `altered`: the student's chat template would write its demonstration differently."""

    prompt: Prompt
    altered: bool = False


@dataclass(frozen=True)
class Prompting:
    """What makes prompts of rows: the models' chats, the limits of their roles, the route of a routed target, and who
    writes demonstrations where the run trains on them. `cuts`: a prompt that is too long is cut."""

    chats: Mapping[str, Chat]
    limits: tuple[Limit, ...] = ()
    route: Route | None = None
    demonstrations: Demonstrations | None = None
    cuts: bool = False

    def check(self) -> None:
        """Raise RecipeError if a chat template ignores what the recipe gives it."""
        for chat in self.chats.values():
            chat.check()

    def make(self, row: Row, at: str, number: int = 0) -> Made:
        """Raises RecipeError, naming `at`: for a row that lacks a field of a model's prompt, messages that a chat
        template rejects, a route that leads nowhere, a response that cannot end as generation ends; TooLong for a
        prompt that does not fit."""
        if self.route is not None:
            check_route(self.route, row, at)
        ids = self._ids(row, at)
        if (fault := self._too_long(row, ids)) and self.cuts:
            row = cut(row, lambda shorter: not self._too_long(shorter, self._ids(shorter, at)))
            ids = self._ids(row, at)
            fault = self._too_long(row, ids)
        if fault:
            raise TooLong(f"{at}: {fault}")
        prompt = Prompt(row, ids, None, number)
        return self._demonstrated(prompt, at) if self.demonstrations else Made(prompt)

    def _ids(self, row: Row, at: str) -> dict[str, list[int]]:
        return {name: self._ids_under(chat, row, at) for name, chat in self.chats.items()}

    def _ids_under(self, chat: Chat, row: Row, at: str) -> list[int]:
        turns = messages(row, chat, at)
        try:
            return chat.ids(chat.prompt(turns))
        except RecipeError as error:
            raise RecipeError(f"{at}: {error}") from None

    def _too_long(self, row: Row, ids: Mapping[str, list[int]]) -> str | None:
        """Why a prompt does not fit, or None."""
        for limit in self.limits:
            tokens = len(ids[limit.model])
            if tokens + limit.response > limit.context:
                return (
                    f"prompt {str(row[PROMPT])[:40]!r} has {tokens} tokens under models.{limit.model}; with a response "
                    f"of {limit.response} that exceeds {limit}, or set data.too_long to drop or cut"
                )
        return None

    def _demonstrated(self, prompt: Prompt, at: str) -> Made:
        assert self.demonstrations is not None
        turns = messages(prompt.row, self.demonstrations.chat, at)
        written = self.demonstrations.write(turns, prompt.row[RESPONSE], at)
        return Made(replace(prompt, response_ids=written.ids), written.altered)


def messages(row: Row, chat: Chat, at: str) -> list[dict[str, str]]:
    """The messages of a row's prompt under a model: its last turn as `models.NAME.prompt` writes it, behind the turns
    before it. Raises RecipeError."""
    model = chat.model
    try:
        text = _TEMPLATE.fill(model.prompt, row)
    except KeyError as error:
        raise RecipeError(f"{at}: the model's prompt names the field {error}, which the row lacks") from None
    except ValueError as error:
        raise RecipeError(
            f"models: prompt {shown(model.prompt)} is no format string over a row's fields ({error})"
        ) from None
    return chat.messages(text, row.get(MESSAGES))
