"""Chat templates: messages to the text of a prompt, and of a demonstration behind it.

A template is a program from the model's directory; its errors become RecipeErrors.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from configs.refusal import RecipeError, reason, shortened, shown
from configs.schema import Model

_PROBE = "answer4711"  # a text that no template alters

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Chat:
    """A model of the recipe with its tokenizer. The recipe's `template` arguments go to every rendering."""

    name: str
    model: Model
    tokenizer: Any

    def messages(self, text: str, turns: Messages | None = None) -> list[dict[str, str]]:
        """The messages before a response: the system message, if there is one, earlier turns, and `text` as the last,
        in place of the last of `turns`. A model's own system message stands in front of that of the turns."""
        *earlier, last = turns or [{"role": "user"}]
        own = [earlier.pop(0)["content"]] if earlier and earlier[0]["role"] == "system" else []
        system = "\n\n".join([*([self.model.system] if self.model.system else []), *own])
        begun = [{"role": "system", "content": system}] if system else []
        return [*begun, *map(dict, earlier), {"role": last["role"], "content": text}]

    def prompt(self, messages: Messages) -> str:
        """The prompt text of messages; without a template, one line per message."""
        if not self.has_template:
            return "\n".join(message["content"] for message in messages)
        return self.render(messages, begin=True)

    def ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt text. Special tokens are added only without a template, which writes its own."""
        return self.encoded(prompt, special=not self.has_template)

    def encoded(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text. Raises RecipeError if the tokenizer rejects it."""
        try:
            return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        except Exception as error:  # tokenizers raises bare Exceptions
            raise RecipeError(
                f"models.{self.name}: its tokenizer does not take {shown(text, 60)} ({reason(error)}); give it one "
                "that this version of transformers reads"
            ) from None

    @property
    def has_template(self) -> bool:
        return self.tokenizer.chat_template is not None

    def render(self, messages: Messages, begin: bool) -> str:
        """The template's text for messages; with `begin`, also the beginning of an assistant's message. Raises
        RecipeError."""
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=begin, tokenize=False, **self.model.template
            )
        except Exception as error:  # a template may raise anything
            remedy = "put the text of `system` into `prompt`, or " if self.model.system else ""
            said = (str(error).splitlines() or [""])[0]
            roles = shortened(" and ".join(message["role"] for message in messages))
            raise RecipeError(
                f"models.{self.name}: its chat template does not take the messages {roles} "
                f"({type(error).__name__}: {said}); {remedy}give it another chat_template"
            ) from None

    def check(self) -> None:
        """Raise RecipeError if the template ignores an argument or a message that the recipe gives."""
        if not self.has_template:
            if self.model.template:
                raise RecipeError(f"models.{self.name}.template: its tokenizer has no chat template; leave it out")
            return
        source = self._source()
        for argument in self.model.template:
            if not re.search(rf"\b{re.escape(argument)}\b", source):
                raise RecipeError(
                    f"models.{self.name}.template: its chat template does not read {argument!r}; look for "
                    "the argument's name in the template, or leave it out"
                )
        written = _bare(self.prompt(self.messages(_PROBE))).casefold()
        if self.model.system and _bare(self.model.system).casefold() not in written:
            raise RecipeError(
                f"models.{self.name}.system: its chat template leaves the system message out; put the text into "
                "`prompt`"
            )
        if _PROBE not in written:
            raise RecipeError(
                f"models.{self.name}: its chat template leaves the user's message out, so that all prompts are alike; "
                "give it another chat_template"
            )

    def _source(self) -> str:
        try:
            return self.tokenizer.get_chat_template()
        except ValueError as error:  # several templates, none of them the default
            raise RecipeError(f"models.{self.name}: {str(error).splitlines()[0]}") from None


class Demonstration(NamedTuple):
    """A demonstration's token ids, end token included. `altered`: the template would write it differently."""

    ids: list[int]
    altered: bool


@dataclass(frozen=True)
class Demonstrations:
    """Writes demonstrations of one model: the row's response, behind what the template begins an assistant's message
    with (such as an empty thinking block), up to the token that ends the message."""

    chat: Chat
    end_token_ids: Collection[int]

    def write(self, messages: Messages, response: str, where: str) -> Demonstration:
        """The ids of a response behind `messages`. Raises RecipeError, naming `where`, if it holds an end token."""
        text, altered = self._text(messages, response)
        ids = self.chat.encoded(text)
        if not self.chat.has_template:
            ids.append(self._plain_end)
        elif not ids or ids[-1] not in self._ends:
            raise self._endless()
        if inside := [i for i in ids[:-1] if i in self._ends]:
            raise RecipeError(
                f"{where}: its response holds the end token {self._ends[inside[0]]!r}; leave it out, a response's end "
                "is written by the chat template"
            )
        return Demonstration(ids, altered)

    @cached_property
    def opening(self) -> str:
        """What the template writes between a prompt and an assistant's text. Empty if the rendering with the text does
        not start with the prompt."""
        if not self.chat.has_template:
            return ""
        return self._written.rpartition(_PROBE)[0].removeprefix(self._prompt) if self._continues else ""

    @cached_property
    def end(self) -> str:
        """What the template writes after an assistant's text, up to the first end token, included."""
        behind = self._behind
        found = [(behind.find(text), -len(text)) for text in self._ends.values() if text in behind]
        if not found:
            raise self._endless()
        start, length = min(found)
        return behind[: start - length]

    def _text(self, messages: Messages, response: str) -> tuple[str, bool]:
        """The response as it is trained, and whether the template would write it differently, spaces aside."""
        if not self.chat.has_template:
            return response, False
        prompt = self.chat.prompt(messages)
        written = self.chat.render([*messages, {"role": "assistant", "content": response}], begin=False)
        own = _bare(response)
        end = self.end
        if not written.startswith(prompt):
            return response + end, own not in _bare(written)
        body = _bare(written[len(prompt) :]).removesuffix(_bare(self._behind))
        if body == _bare(self.opening) + own:
            return self.opening + response + end, False
        if body == own:  # it begins with the opening itself
            return response + end, False
        begun = len(own) - len(body)
        if (
            begun > 0 and own.endswith(body) and _bare(prompt).endswith(own[:begun])
        ):  # the prompt ends with its beginning
            spaces = prompt[len(prompt.rstrip()) :]
            return _skip(response, begun).removeprefix(spaces) + end, False
        return response + end, True

    @cached_property
    def _ends(self) -> dict[int, str]:
        """End token ids and their texts."""
        tokenizer = self.chat.tokenizer
        known = {int(i) for i in tokenizer.get_vocab().values()}
        ids = {*self.end_token_ids, *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])}
        texts = {i: tokenizer.decode([i]) for i in sorted(ids & known)}
        return {i: text for i, text in texts.items() if text}

    @cached_property
    def _plain_end(self) -> int:
        end = self.chat.tokenizer.eos_token_id
        if end is None:
            raise RecipeError(
                f"models.{self.chat.name}: its tokenizer has neither a chat template nor an eos_token, so nothing says "
                "how a response ends; give it one"
            )
        return end

    @cached_property
    def _prompt(self) -> str:
        return self.chat.prompt(self.chat.messages("question"))

    @cached_property
    def _written(self) -> str:
        messages = [*self.chat.messages("question"), {"role": "assistant", "content": _PROBE}]
        written = self.chat.render(messages, begin=False)
        if _PROBE not in written:
            raise RecipeError(
                f"models.{self.chat.name}: its chat template does not write an assistant's text, so nothing says how "
                "a demonstration ends; give it another chat_template"
            )
        return written

    @property
    def _continues(self) -> bool:
        return self._written.startswith(self._prompt)

    @cached_property
    def _behind(self) -> str:
        return self._written.rpartition(_PROBE)[2]

    def _endless(self) -> RecipeError:
        return RecipeError(
            f"models.{self.chat.name}: its chat template ends an assistant's message with {self._behind!r}, which "
            f"holds none of the end tokens {list(self._ends.values())} that generation stops at; put the id of the one "
            "it ends with into eos_token_id of generation_config.json"
        )


def _bare(text: str) -> str:
    """Text without white space, which templates strip, add and collapse."""
    return "".join(text.split())


def _skip(text: str, count: int) -> str:
    """Text after its first `count` non-space characters."""
    seen = 0
    for place, letter in enumerate(text):
        if seen == count:
            return text[place:]
        seen += not letter.isspace()
    return ""
