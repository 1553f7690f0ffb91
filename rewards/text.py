"""Rewards of what a response says: 1 or 0."""

from __future__ import annotations

import re
import string
import unicodedata

from configs.names.row_fields import answer_of, field_of
from configs.reward_rules import ContainsRule, ExactRule, MatchRule, RegexRule
from rewards.response import Response

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def contains(rule: ContainsRule, response: Response) -> float:
    """Whether the text is there, in any case."""
    return float((rule.text or "").casefold() in response.text.casefold())


def regex(rule: RegexRule, response: Response) -> float:
    """Whether the pattern is found; with `full`, whether all of the stripped response matches it."""
    pattern = re.compile(rule.text or "")
    return float((pattern.fullmatch(response.text.strip()) if rule.full else pattern.search(response.text)) is not None)


def exact(rule: ExactRule, response: Response) -> float:
    """Whether the response equals the answer, but for outer white space. 0 for a row without an answer."""
    return float(response.text.strip() == answer_of(response.row, rule.field))


def match(rule: MatchRule, response: Response) -> float:
    """Whether the normalised response, or what `extract` finds last in it, equals one of the normalised answers."""
    said = response.text if rule.extract is None else _extracted(rule.extract, response.text)
    return float(said is not None and normalised(said) in _answers(rule, response))


def normalised(text: str) -> str:
    """Under NFKC, without case, ASCII punctuation, the articles a, an, the, and with single spaces: as in SQuAD's
    evaluation (arXiv 1606.05250)."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def _answers(rule: MatchRule, response: Response) -> set[str]:
    """The row's answers, normalised. One that nothing is left of matches no response."""
    found = field_of(response.row, rule.field)
    answers = found if isinstance(found, list) else [answer_of(response.row, rule.field)]
    return {normalised(str(answer)) for answer in answers if answer is not None} - {""}


def _extracted(pattern: str, text: str) -> str | None:
    found = list(re.finditer(pattern, text))
    return (found[-1].group(1) if found[-1].re.groups else found[-1].group()) if found else None
