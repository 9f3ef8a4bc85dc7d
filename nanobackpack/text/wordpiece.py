"""WordPiece back to text: where a space stood between two tokens, and where none did."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LONGEST_QUOTE = 500  # characters; a mark that is not closed by then was none, as in 5" of rain
_IDEOGRAPH = re.compile("[\u2e80-\u9fff\uf900-\ufaff\ufe30-\uffef\U00020000-\U0003ffff]")  # and their marks
# WordPiece makes a token of each mark and forgets the spaces. People write none where one of these patterns
# matches the text so far, "\0" and the next token; wherever both are in use, the more common one is taken.
_NO_SPACE = re.compile(
    r"""
    \0[.,;:!?%°)\]}’”…] | [(\[{“‘¿¡]\0             # foo (bar): no! 50%
    | [\w)\]%]\0[-–—_/\\^@] | \S[-–—_/\\^@]\0 | -\0[-\d] | [:/]\0[/\\] | /\0    # GPT-2, a/b, -5
    | [$£€¥~]\0\d | \#\0\w                          # $5, #1
    | \d[.:]\0\d | (?<!\d)\d{1,3},\0\d{3}$          # 3.14, 10:30, 1,000
    | (?<![\w.])([^\W\di]\.\0[^\W\di] | i\.\0e | [^\W\d]\.[^\W\d]\.(?<![ap]\.m\.)\0[^\W\d])$   # U.S.A.
    | \w\0' | \b([^\W\d]|qu)['’]\0\w | \w['’]\0(s|t|m|d|re|ve|ll|am|all)$   # don't, l'été
    | (^|[\s(\[“])'\0 | (^|[\s(])'([^']|\w'\w)*[.,!?]\0'                   # 'Yes,' he said
    | \b\w\0& | \b\w&\0\w                           # R&D
    | \w\.\0(com|org|net|edu|gov|html|txt|pdf|py)$ | (://|\bwww)\S*(\0[=&\#~+] | [.?=&\#~+:%]\0\w)
    """,
    re.VERBOSE | re.IGNORECASE,
)


def join_words(symbols: Iterable[str], prefix: str) -> str:
    """Write the tokens of WordPiece as a text, with spaces where people would most likely put them.

    `prefix` marks a token that goes on with a word: ##s. Whether a space stands before a token depends on
    what comes before it and on itself, never on what follows.
    """
    text, quote = "", -_LONGEST_QUOTE  # where a quotation began that has not ended
    for symbol in symbols:
        last, in_quotes = text[-1:], len(text) - quote < _LONGEST_QUOTE
        if symbol.startswith(prefix):
            joined, symbol = True, symbol.removeprefix(prefix) if text else symbol
        elif not text or _IDEOGRAPH.match(last) or _IDEOGRAPH.match(symbol):
            joined = True
        elif last.isalnum() and symbol[:1].isalnum():
            joined = False
        else:
            joined = in_quotes and '"' in (last, symbol)
            joined = joined or _NO_SPACE.search(f"{text[-50:]}\0{symbol}") is not None
        if symbol == '"':
            quote = -_LONGEST_QUOTE if in_quotes else len(text)
        text += symbol if joined else " " + symbol
    return text
