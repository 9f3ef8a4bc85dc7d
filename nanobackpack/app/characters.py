"""Characters of several tokens, such as the bytes of 中: which character it is, and which part of it.

shown_tokens(tokenizer, ["<#161>", "<#117>", "a"])      # ["中(1/2)<#161>", "中(2/2)<#117>", "a"]
text_of(tokenizer, ["<#161>", "<#117>", "a"])           # "中a"
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from nanobackpack.text.tokenizer import Tokenizer


def joined(tokenizer: Tokenizer, tokens: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Give pieces of a text and the tokens of each: one, or those that are a character together."""
    i = 0
    while i < len(tokens):
        text, n, ids = tokens[i], 1, []
        for token in tokens[i:]:
            part = tokenizer.named(token) if re.fullmatch(r"<#\d+>", token) else None
            if part is None:  # has a text of its own
                break
            ids.append(part)
            if "\ufffd" not in (together := tokenizer.decode(ids)):  # the last byte is there
                text, n = together, len(ids)
                break
        yield text, tokens[i : i + n]
        i += n


def shown_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> list[str]:
    """Say of each token that is a part of a character, which character and which part."""
    return [
        token if len(parts) == 1 else f"{text.strip(' ')}({n}/{len(parts)}){token}"
        for text, parts in joined(tokenizer, tokens)
        for n, token in enumerate(parts, 1)
    ]


def text_of(tokenizer: Tokenizer, tokens: Sequence[str]) -> str:
    """Give the text of tokens, as far as they have one."""
    return "".join(text for text, _ in joined(tokenizer, tokens))
