"""Texts that tokenizers disagree about: spaces, digits, code, scripts, special tokens."""

from __future__ import annotations

import random
import unicodedata
from typing import Any

from factory.export.gguf_tokenizer import differences

FRAGMENTS = [
    *["what are", "students", " asthma", "it's", "'LL", "def f(x):\n    return x**2  # y", "a == b && !c", '{"k": [1, null]}'],
    *["https://a.b/c?d=1&e", "__init__", "...", "—", "¿", "0", "12", "3.14", "½", "Ⅷ", "٣٤", "²", "1,000"],
    *[
        "<|im_end|>",
        "<|im_start|>user\n",
        "<end_of_turn>\n",
        "<s>",
        "<|endoftext|> \n",
        "<bos>",
        "<eos>",
        "<0x0A>",
        "</s>",
        "▁",
        "▁▁",
        "Ġ",
        "ī",
    ],
    *[" ", "  ", " " * 9, "\n", "\n\n", "\n\n\n", " \n", "\t", "\r\n", "\x0b", "\x85", "\u00a0", "\u3000", "\u200b", "\u2028"],
    *["\x00", "\x7f", "\x1f", "\ufeff", "é", "e\u0301", "ß", "Größe", "中文", "한국어", "עברית", "हिन्दी", "ไทย", "ﬁ"],
    *["😀", "👩\u200d👩\u200d👧", "🇩🇪"],
]


def varied_texts(count: int) -> list[str]:
    chance = random.Random(1)
    joined = ["".join(chance.choices(FRAGMENTS, k=chance.randrange(2, 14))) for _ in range(count - len(FRAGMENTS) - 1)]
    return ["", *FRAGMENTS, *joined]


def within_what_is_known(tokenizer: Any, texts: list[str]) -> list[str]:
    """Those that ``differences`` does not name, or made such."""
    known = " ".join(differences(tokenizer))
    if "NFC" in known:
        return [unicodedata.normalize("NFC", text) for text in texts]
    if "case in ASCII" in known:
        return [text for text in texts if not any(unicodedata.category(one)[0] in "LM" for one in text if ord(one) > 127)]
    if "stands for a space" in known:
        return [text for text in texts if "▁" not in text]
    if "spaces outside ASCII" in known:
        return [text for text in texts if not any(one.isspace() for one in text if ord(one) > 127)]
    return ["<bos>" + text for text in texts] if "begin with a special token" in known else texts
