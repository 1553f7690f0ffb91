"""How much more than needed a correction changes a piece of Python code: token-level Levenshtein distance.

After the minimal code-editing experiment: tokens of Python's own tokenizer, without comments, line ends and
indentation; distances divided by the longer of the two lists; the charge is the excess over the reference fix.
"""

from __future__ import annotations

import ast
import io
import tokenize
from functools import lru_cache

from rapidfuzz.distance import Levenshtein

_LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
_LAYOUT |= {tokenize.ENCODING}


def excess(code: str, given: str, reference: str) -> float:
    """d(code, given) - d(reference, given), each normalised, in [-1, 1]; above 0 where `code` changes more of `given`
    than the `reference` fix does. Raises ValueError where one of them is no Python."""
    return distance(code, given) - distance(reference, given)


def distance(one: str, other: str) -> float:
    """Levenshtein distance of two pieces of code by tokens over the longer's number of tokens, in [0, 1]; 0 for two
    empty ones. Raises ValueError where one is no Python."""
    return Levenshtein.normalized_distance(tokens_of(one), tokens_of(other))


@lru_cache(maxsize=1024)
def tokens_of(code: str) -> tuple[str, ...]:
    """The tokens of code, written as `ast.unparse` writes it, so that quotes, brackets and layout do not count. Raises
    ValueError where it is no Python."""
    try:
        plain = ast.unparse(ast.parse(code))
        found = tokenize.generate_tokens(io.StringIO(plain).readline)
        return tuple(token.string for token in found if token.type not in _LAYOUT)
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise ValueError(f"is no Python ({type(error).__name__}: {error})") from None
